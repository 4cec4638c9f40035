"""Programs that run in a guest: each prints what it found as JSON on its last line."""
