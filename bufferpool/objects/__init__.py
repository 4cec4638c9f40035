"""Objects of any size: the caches of a pool."""
