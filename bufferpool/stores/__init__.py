"""Where pages come from and are written to."""
