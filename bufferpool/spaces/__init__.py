"""Spaces: what a handle is, which spaces a segment has, and whose their files are."""
