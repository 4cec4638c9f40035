"""A disk with a volatile cache, for guests: a server of the NBD protocol in a thread, which logs every write and flush.

When power fails, a disk has everything that was flushed, and any part of the other writes. :meth:`Recording.state` builds from
the log a state that a power failure at a given point may leave. A physical sector of 4 KiB is written whole or not at all, as disks
promise. (With smaller units, ext4 itself does not mount any more.)
Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import random
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECTOR = 4096
_MAGIC, _HAVE_OPTION, _OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_EXPORT_NAME, _ABORT, _GO = 1, 2, 7
_ACK, _INFO, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_REQUEST, _REPLY = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_CAN_FLUSH = 1 | 4
_EINVAL = 22


@dataclass(frozen=True)
class Recording:
    """The first content of a disk, and the writes to it since."""

    first: bytes
    log: list[tuple[int, bytes]]
    """(offset, data) of each write; (-1, b"") is a flush."""

    def state(self, at: int, seed: int) -> bytearray:
        """A content that the disk may have if power fails after ``at`` entries of the log: the flushed writes, and some of the others."""
        rng, content = random.Random(seed), bytearray(self.first)
        flushed = max((i for i in range(at) if self.log[i][0] < 0), default=0)
        for offset, data in self.log[:flushed]:
            if offset >= 0:
                content[offset : offset + len(data)] = data
        share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for offset, data in self.log[flushed:at]:
            whole = rng.random() < 0.5  # otherwise some sectors of one write survive and some do not
            kept = rng.random() < share
            for i in range(0, len(data), SECTOR):
                if kept if whole else rng.random() < share:
                    piece = data[i : i + SECTOR]
                    content[offset + i : offset + i + len(piece)] = piece
        return content


class Disk:
    """The content of a disk, the log of what was written to it, and the socket at which guests find it."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.put(content)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def drive(self) -> str:
        """The value of qemu's ``-drive``."""
        return f"file=nbd:unix:{self.path},cache=none"

    def close(self) -> None:
        """Stops the server."""
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def put(self, content: bytes | bytearray) -> None:
        """Replaces the content of the disk, durably, and begins a new log. No guest may use the disk meanwhile."""
        self.now = bytearray(content)
        self.recording = Recording(bytes(content), [])

    # ---- the protocol --------------------------------------------------------------------

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(EOFError, ConnectionError):
                    if self._negotiate(connection):
                        while self._answer(connection):
                            pass

    def _negotiate(self, connection: socket.socket) -> bool:
        """The handshake; returns whether the client wants to use the disk."""
        connection.sendall(struct.pack(">QQH", _MAGIC, _HAVE_OPTION, 3))
        received(connection, 4)
        while True:
            _, option, length = struct.unpack(">QII", received(connection, 16))
            received(connection, length)
            about = struct.pack(">QH", len(self.now), _CAN_FLUSH)
            if option == _EXPORT_NAME:
                connection.sendall(about)
                return True
            if option == _GO:
                connection.sendall(
                    struct.pack(">QIII", _OPTION_REPLY, option, _INFO, 12) + struct.pack(">H", 0) + about
                )
            answer = _ACK if option in (_GO, _ABORT) else _UNSUPPORTED
            connection.sendall(struct.pack(">QIII", _OPTION_REPLY, option, answer, 0))
            if option in (_GO, _ABORT):
                return option == _GO

    def _answer(self, connection: socket.socket) -> bool:
        """Answers one request; returns False after the last."""
        _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", received(connection, 28))
        data, error = b"", 0
        if kind == _WRITE:
            written = received(connection, length)
            self.now[offset : offset + length] = written
            self.recording.log.append((offset, written))
        elif kind == _READ:
            data = bytes(self.now[offset : offset + length])
        elif kind == _FLUSH:
            self.recording.log.append((-1, b""))
        elif kind == _DISCONNECT:
            return False
        else:
            error = _EINVAL
        connection.sendall(struct.pack(">IIQ", _REPLY, error, cookie) + data)
        return True


def received(connection: socket.socket, n: int) -> bytes:
    """Exactly n bytes. Raises EOFError at the end of the connection."""
    data = bytearray()
    while len(data) < n:
        more = connection.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
