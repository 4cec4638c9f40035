"""The main job: a trace of page references, replayed by processes that share a pool."""
