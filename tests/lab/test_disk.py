"""The disk of the lab: what a power failure may leave is what was flushed, and any part of the rest."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.disk import SECTOR, Disk, Recording, received


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", bytes(16 * SECTOR))
    yield made
    made.close()


def connect(disk: Disk) -> socket.socket:
    """A client that has done the handshake, as qemu does it: it asks for structured replies, and is refused."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(disk.path))
    assert received(client, 18)[:8] == b"NBDMAGIC"
    client.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 8, 0))
    assert struct.unpack(">QIII", received(client, 20))[2] == (1 << 31) + 1
    client.sendall(struct.pack(">QII", 0x49484156454F5054, 7, 6) + bytes(6))
    assert struct.unpack(">QIIIHQH", received(client, 32))[5] == len(disk.now)
    assert struct.unpack(">QIII", received(client, 20))[2] == 1
    return client


def ask(client: socket.socket, kind: int, offset: int = 0, length: int = 0, data: bytes = b"") -> bytes:
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 77, offset, length) + data)
    assert struct.unpack(">IIQ", received(client, 16)) == (0x67446698, 0, 77)
    return received(client, length) if kind == 0 else b""


def test_a_power_failure_keeps_what_was_flushed_and_any_part_of_the_rest(disk: Disk) -> None:
    """A qemu that is killed loses nothing that it has written: without this disk, no cache of a disk would be volatile."""
    with connect(disk) as client:
        ask(client, 1, 0, SECTOR, b"a" * SECTOR)
        ask(client, 3)
        ask(client, 1, SECTOR, 2 * SECTOR, b"b" * 2 * SECTOR)
        ask(client, 1, 0, SECTOR, b"c" * SECTOR)
        assert ask(client, 0, 0, 3 * SECTOR) == b"c" * SECTOR + b"b" * 2 * SECTOR
    recording = disk.recording
    assert [offset for offset, _ in recording.log] == [0, -1, SECTOR, 0]
    assert recording.state(0, 1) == bytes(16 * SECTOR)
    assert {bytes(recording.state(2, seed)) for seed in range(50)} == {b"a" * SECTOR + bytes(15 * SECTOR)}
    left = {
        tuple(bytes(recording.state(4, seed))[i * SECTOR : i * SECTOR + 1] for i in range(3)) for seed in range(500)
    }
    assert left == {(x, y, z) for x in (b"a", b"c") for y in (b"b", b"\0") for z in (b"b", b"\0")}


def test_a_write_of_less_than_a_sector_leaves_the_disk_as_large_as_it_was() -> None:
    """The disk shrank by what such a write lacked, and the guest that read past its end hung."""
    recording = Recording(bytes(4 * SECTOR), [(SECTOR, b"x" * 512)])
    states = {bytes(recording.state(1, seed)) for seed in range(50)}
    assert states == {bytes(4 * SECTOR), bytes(SECTOR) + b"x" * 512 + bytes(3 * SECTOR - 512)}


def test_a_flush_that_is_not_in_the_log_yet_makes_nothing_durable() -> None:
    recording = Recording(bytes(SECTOR), [(0, b"x" * SECTOR), (-1, b"")])
    assert {bytes(recording.state(1, seed))[:1] for seed in range(50)} == {b"x", b"\0"}
    assert {bytes(recording.state(2, seed))[:1] for seed in range(50)} == {b"x"}
