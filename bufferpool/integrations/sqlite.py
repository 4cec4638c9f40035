"""SQLite databases of HTTP servers and object stores, read through the blocks that all processes share.

``connect("https://host/data.sqlite")`` opens a database for reading. SQLite reads the pages that a query needs, and their blocks are
fetched once for all processes of the machine. The database must not be written to while it is open: if the file has changed, queries
raise RemoteChanged, and the database must be opened again. (A local database gains nothing: the kernel's page cache is as good.)
"""

from __future__ import annotations

from typing import Any

from bufferpool._locks import Lock
from bufferpool.integrations.extras import needs
from bufferpool.integrations.fsspec import BlockFile, Reader

with needs("'bufferpool[fsspec]' apsw"):
    import apsw
    from fsspec.core import url_to_fs

NAME = "bufferpool"
_registering = Lock()
_registered: list[RemoteVFS] = []


def connect(url: str, *, storage_options: dict[str, Any] | None = None, **pool: Any) -> apsw.Connection:
    """Opens the SQLite database at a URL of fsspec, for reading only.

    ``storage_options``: those of the URL's file system. ``pool``: the options of
    :class:`bufferpool.integrations.fsspec.PoolOptions`. Raises the errors of the file system. A later query raises
    RemoteChanged if the file has changed.
    """
    protocol = url.partition("://")[0]
    fs, path = url_to_fs(f"bufferpool::{url}", **{protocol: storage_options or {}, "bufferpool": pool})
    opened = fs.open(path)
    if not isinstance(opened, BlockFile):
        opened.close()
        raise ValueError(f"{url} cannot be read in parts: its server gives no length or no ranges; download it first")
    with _registering:
        if not _registered:
            _registered.append(RemoteVFS())
    vfs = _registered[0]
    name = vfs.add(opened.reader)
    try:
        return apsw.Connection(name, flags=apsw.SQLITE_OPEN_READONLY, vfs=NAME)
    finally:
        vfs.remove(name)


class RemoteVFS(apsw.VFS):
    """Gives SQLite the files that :func:`connect` has opened; temporary files are those of SQLite's own VFS."""

    def __init__(self) -> None:
        self._readers: dict[str, Reader] = {}
        self._number = 0
        super().__init__(NAME, "")

    def add(self, reader: Reader) -> str:
        """Registers a file, and returns the name by which SQLite opens it."""
        with _registering:
            self._number += 1
            name = f"/bufferpool/{self._number}"
            self._readers[name] = reader
            return name

    def remove(self, name: str) -> None:
        """Removes a file's name, after its connection was opened or has failed."""
        with _registering:
            del self._readers[name]

    def xFullPathname(self, name: str) -> str:
        """Returns the name as it is: those of :meth:`add` are full paths."""
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:
        """Whether a file exists: no, because a remote database has no journal beside it."""
        return False

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        """Opens a remote database, or a temporary file."""
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return apsw.VFSFile("", name, flags)
        flags[1] = apsw.SQLITE_OPEN_READONLY
        return RemoteDatabase(self._readers[name.filename() if isinstance(name, apsw.URIFilename) else name])


class RemoteDatabase:
    """A database file of one version, which does not change."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def xRead(self, amount: int, offset: int) -> bytes:
        return self._reader.read(offset, offset + amount)

    def xFileSize(self) -> int:
        return self._reader.file.size

    def xDeviceCharacteristics(self) -> int:
        return int(apsw.SQLITE_IOCAP_IMMUTABLE)

    def xSectorSize(self) -> int:
        return 4096

    def xLock(self, level: int) -> None: ...
    def xUnlock(self, level: int) -> None: ...
    def xClose(self) -> None: ...
    def xSync(self, flags: int) -> None: ...

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False
