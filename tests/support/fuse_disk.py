"""A file system whose requests can be held up, one kind at a time: a FUSE server in a process of its own, without a library.

The disk of a test freezes (loop_disk.py): then writes and syncs hang. On a network file system any call may hang, also one that
opens, examines or closes a file. Only root can mount it.
"""

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

ROOT, FILE = 1, 2  # the inodes: the folder, and its one file
OPERATIONS = {"lookup": 1, "getattr": 3, "open": 14, "read": 15, "write": 16, "statfs": 17, "fsync": 20, "flush": 25}
_LOOKUP, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _INIT = 1, 3, 4, 14, 15, 16, 17, 26
_DONE = (18, 20, 25)  # release, fsync, flush
_UNANSWERED = (2, 36, 42)  # forget one inode, interrupt, forget several
GIVES_UP_S = 60.0  # then a held request is answered, and the test gets an error that says so


class HeldDisk:
    """The file ``place/"f"`` of ``n_bytes`` bytes; a test is skipped where the file system cannot be mounted."""

    def __init__(self, folder: Path, n_bytes: int) -> None:
        self.place, self.n_bytes = folder / "held", n_bytes
        self.file = self.place / "f"

    def __enter__(self) -> "HeldDisk":
        import pytest  # not at the top: the server does not need it

        if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or shutil.which("umount") is None:
            pytest.skip("only root mounts a FUSE file system")
        self.place.mkdir()
        command = [sys.executable, __file__, str(self.place), str(self.n_bytes)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._heard() != "mounted":
            pytest.skip("a FUSE file system cannot be mounted here")
        return self

    def _heard(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def hold(self, operation: str) -> None:
        """From now on requests of this kind wait."""
        self._say(operation)
        assert self._heard() == "holds"

    def wait_until_held(self) -> None:
        """Returns when a request waits."""
        assert self._heard() == "held"

    def let_go(self) -> bool:
        """Answers what waits. Returns False if the server has done that already, because this took so long."""
        self._say("-")
        while (heard := self._heard()) == "held":  # several requests waited
            pass
        return heard == "let go"

    def _say(self, what: str) -> None:
        assert self._server.stdin is not None
        print(what, file=self._server.stdin, flush=True)

    def __exit__(self, *_: object) -> None:
        self._server.kill()  # which ends what still waits for it
        self._server.communicate()
        subprocess.run(["umount", "-l", str(self.place)], check=False)


class _Server:
    def __init__(self, place: str, n_bytes: int) -> None:
        self.data = bytearray(n_bytes)
        self.times = [1_700_000_000 * 10**9] * 2  # of the last change, in ns: mtime, ctime
        self.held = 0
        self.gate = threading.Event()
        self.expired = False
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"held", place.encode(), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")

    def obey(self) -> None:
        """Reads what the test wants."""
        for line in sys.stdin:
            word = line.strip()
            if word == "-":
                self.held = 0
                self.gate.set()
                print("expired" if self.expired else "let go", flush=True)
            else:
                self.gate.clear()
                self.expired, self.held = False, OPERATIONS[word]
                print("holds", flush=True)

    def serve(self) -> None:
        """Takes requests until the file system is unmounted. Each is answered in a thread of its own, because some wait."""
        while True:
            try:
                request = os.read(self.fd, 1 << 20)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            n_bytes, operation, number, inode = struct.unpack_from("<IIQQ", request)
            args = operation, number, inode, request[40:n_bytes]
            threading.Thread(target=self._answer, args=args, daemon=True).start()

    def _answer(self, operation: int, number: int, inode: int, body: bytes) -> None:
        if operation in _UNANSWERED:
            return
        if operation == self.held:
            print("held", flush=True)
            self.expired = not self.gate.wait(GIVES_UP_S)
        answer = self._done(operation, inode, body)
        error, text = (answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(self.fd, struct.pack("<IiQ", 16 + len(text), -error, number) + text)

    def _attributes(self, inode: int) -> bytes:
        is_file, (seconds, rest) = inode == FILE, divmod(self.times[0], 10**9)
        size, changed = len(self.data) if is_file else 0, divmod(self.times[1], 10**9)
        times = seconds, seconds, changed[0], rest, rest, changed[1]
        mode = 0o100644 if is_file else 0o40755
        return struct.pack("<6Q10I", inode, size, size // 512, *times[:3], *times[3:], mode, 1, 0, 0, 0, 4096, 0)

    def _done(self, operation: int, inode: int, body: bytes) -> bytes | int:
        if operation == _INIT:
            return struct.pack("<IIIIHHI", 7, 31, 0, 0, 12, 12, 1 << 17) + bytes(40)
        if operation == _LOOKUP:  # nothing may be remembered: neither names nor attributes
            found = body.rstrip(b"\0") == b"f"
            return struct.pack("<4Q2I", FILE, 0, 0, 0, 0, 0) + self._attributes(FILE) if found else errno.ENOENT
        if operation == _SETATTR:
            self._set(body)
        if operation in (_GETATTR, _SETATTR):
            return struct.pack("<Q2I", 0, 0, 0) + self._attributes(inode)
        if operation == _OPEN:
            return struct.pack("<QII", 1, 0, 0)
        if operation == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return bytes(self.data[offset : offset + size])
        if operation == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.data[offset : offset + size] = body[40 : 40 + size]
            self.times = [time + 10**6 for time in self.times]
            return struct.pack("<II", size, 0)
        if operation == _STATFS:
            return struct.pack("<5Q4I24x", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096, 0)
        return b"" if operation in _DONE else errno.ENOSYS

    def _set(self, body: bytes) -> None:
        valid, _, _, size, _, _, mtime, _, _, mtime_ns = struct.unpack_from("<II6QII", body)
        if valid & 8:
            del self.data[size:]
            self.data.extend(bytes(size - len(self.data)))
        if valid & 32:
            self.times[0] = mtime * 10**9 + mtime_ns
        self.times[1] += 10**6


if __name__ == "__main__":
    server = _Server(sys.argv[1], int(sys.argv[2]))
    print("mounted", flush=True)
    threading.Thread(target=server.obey, daemon=True).start()
    server.serve()
