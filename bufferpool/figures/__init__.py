"""Reads the figures of a pool: stats, frames, events, advice."""
