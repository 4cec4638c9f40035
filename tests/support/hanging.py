"""Stores that hang: each of their methods waits until the test lets it continue."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bufferpool.stores.base import FileStore
from tests.conftest import WAIT
from tests.support.disks import Disk


class Gate:
    """A place at which calls wait while the gate is closed."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.came = threading.Event()  # set when a thread waits at the closed gate

    def shut(self) -> None:
        self.came.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        if not self._open.is_set():
            self.came.set()
            assert self._open.wait(2 * WAIT), "the test has not let the store go on"

    def wait_until_somebody_came(self) -> None:
        assert self.came.wait(WAIT), "nobody has called the store"


class Hanging(Disk):
    """A store whose methods hang where the test wants it."""

    def __init__(self, n_pages: int) -> None:
        super().__init__(n_pages)
        self.reads, self.writes, self.syncs, self.sizes = Gate(), Gate(), Gate(), Gate()

    def read_into(self, offset, buffer):
        self.reads.pass_through()
        return super().read_into(offset, buffer)

    def write_from(self, offset, buffer):
        self.writes.pass_through()
        return super().write_from(offset, buffer)

    def sync(self):
        self.syncs.pass_through()
        super().sync()

    def size(self):
        self.sizes.pass_through()
        return super().size()

    def open(self) -> None:
        for gate in (self.reads, self.writes, self.syncs, self.sizes):
            gate.open()


def in_time(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns the function's result or raises its exception. The test fails if the call takes long."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((True, function(*args, **kwargs)))
        except BaseException as error:  # noqa: BLE001  raised below
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert outcome, f"{getattr(function, '__qualname__', function)} was held up for {WAIT} s"
    ok, value = outcome[0]
    if not ok:
        raise value
    return value


@contextmanager
def file_that_hangs(monkeypatch, path) -> Iterator[Gate]:
    """While the block runs, syncs of one file in this process wait at the gate."""
    gate, sync = Gate(), FileStore.sync

    def hang(store):
        if store.path == str(path):
            gate.pass_through()
        sync(store)

    monkeypatch.setattr(FileStore, "sync", hang)
    gate.shut()
    try:
        yield gate
    finally:
        gate.open()
