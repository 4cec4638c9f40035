"""What the user that runs the tests may do."""

import os
from pathlib import Path

import pytest


def _is_mapped(uid: int) -> bool:
    """Whether a user with this number exists in the user namespace: in one that `unshare -r` makes, root is alone."""
    lines = [[int(n) for n in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= uid < first + n for first, _, n in lines)


needs_another_user = pytest.mark.skipif(
    os.geteuid() != 0 or not (_is_mapped(12345) and _is_mapped(65534)),
    reason="only root, in a namespace with other users, can become another user",
)
