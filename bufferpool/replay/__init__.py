"""Replays a trace of page references with several processes that share a pool, and verifies every access."""
