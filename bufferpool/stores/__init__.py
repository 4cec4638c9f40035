"""Stores: where pages are read from and written to."""
