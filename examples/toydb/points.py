"""Named points at which a test kills the process: ``TOYDB_KILL_AT=commit.appended:3`` dies there the third time.

Every point stands between two steps that another process, or recovery, must be
able to tell apart. The names are found by the tests in the source.
"""

import os
import signal

_name, _, _count = os.environ.get("TOYDB_KILL_AT", "").partition(":")
_left = int(_count or 1)


def point(name: str) -> None:
    """Dies here, as by ``kill -9``, if the environment says so."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(name: str, count: int = 1) -> None:
    """What the environment does, from within: ``arm("")`` disarms."""
    global _name, _left
    _name, _left = name, count


def armed(name: str) -> bool:
    """Whether this point is the one: a step is then cut in two."""
    return name == _name
