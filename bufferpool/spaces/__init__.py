"""Spaces: the handles of spaces, the directory of a segment, and the claims on files."""
