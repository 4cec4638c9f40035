"""The client: one process's attachment to a segment, and the segment's file."""
