"""What can be read about a pool: stats, frames, events, advice."""
