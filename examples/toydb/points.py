"""Named points at which a test kills the process: with ``TOYDB_KILL_AT=commit.appended:3`` it dies there the third time.

A point stands between two steps that another process, or recovery, must be
able to distinguish. The tests find the names in the source.
"""

import os
import signal

_name, _, _count = os.environ.get("TOYDB_KILL_AT", "").partition(":")
_left = int(_count or 1)


def point(name: str) -> None:
    """Kills this process with SIGKILL if this point is armed and its count is reached."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(name: str, count: int = 1) -> None:
    """Arms a point, as the environment variable does; ``arm("")`` disarms."""
    global _name, _left
    _name, _left = name, count


def armed(name: str) -> bool:
    """Whether this point is armed; the caller then splits a step in two."""
    return name == _name
