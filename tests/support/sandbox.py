"""A sandbox that refuses system calls: a seccomp filter, which cannot be removed, in a process of its own."""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

# Of this machine; the names are those of the man pages.
NUMBERS = {
    "x86_64": {
        "madvise": 28,
        "fcntl": 72,
        "fallocate": 285,
        "ftruncate": 77,
        "mmap": 9,
        "munlock": 150,
        "mprotect": 10,
        "io_uring_setup": 425,
        "clone": 56,
        "clone3": 435,
        "pread64": 17,
        "pwrite64": 18,
        "preadv": 295,
        "pwritev": 296,
        "preadv2": 327,
        "pwritev2": 328,
        "fsync": 74,
        "fdatasync": 75,
        "sync_file_range": 277,
        "utimensat": 280,
        "fadvise64": 221,
        "lseek": 8,
        "statfs": 137,
        "fstatfs": 138,
        "prlimit64": 302,
        "kill": 62,
        "sched_yield": 24,
        "clock_nanosleep": 230,
        "rename": 82,
        "flock": 73,
        "pipe2": 293,
        "poll": 7,
        "io_uring_enter": 426,
        "io_uring_register": 427,
    },
    "aarch64": {
        "madvise": 233,
        "fcntl": 25,
        "fallocate": 47,
        "ftruncate": 46,
        "mmap": 222,
        "munlock": 229,
        "mprotect": 226,
        "io_uring_setup": 425,
        "clone": 220,
        "clone3": 435,
        "pread64": 67,
        "pwrite64": 68,
        "preadv": 69,
        "pwritev": 70,
        "preadv2": 286,
        "pwritev2": 287,
        "fsync": 82,
        "fdatasync": 83,
        "sync_file_range": 84,
        "utimensat": 88,
        "fadvise64": 223,
        "lseek": 62,
        "statfs": 43,
        "fstatfs": 44,
        "prlimit64": 261,
        "kill": 129,
        "sched_yield": 124,
        "clock_nanosleep": 115,
        "flock": 32,
        "pipe2": 59,
        "io_uring_enter": 426,
        "io_uring_register": 427,
    },
}.get(platform.machine(), {})
MADV_REMOVE, OFD_GETLK, OFD_SETLK = 9, 36, 37
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("n", ctypes.c_ushort), ("at", ctypes.c_void_p))


def refuse(call: str, error: int, arguments: Sequence[tuple[int, int]] = ()) -> None:
    """From here on this process gets ``error`` from a call; with ``arguments``, where one of (which, value) fits."""
    returns = (_RETURN, 0, 0, _ERRNO | error)
    code = [(_LOAD, 0, 0, 0)]
    if arguments:
        code.append((_EQUAL, 0, 3 * len(arguments), NUMBERS[call]))
        for which, value in arguments:
            code += [(_LOAD, 0, 0, 16 + 8 * which), (_EQUAL, 0, 1, value), returns]
    else:
        code += [(_EQUAL, 0, 1, NUMBERS[call]), returns]
    code.append((_RETURN, 0, 0, _ALLOW))
    raw = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code), ctypes.addressof(raw))
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
