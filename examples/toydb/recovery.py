"""Opens a database: attaches to its pool, or creates one and recovers the database into it.

These steps run under the open lock, which one process has at a time:

1. If there is a pool of the name that is sound, ready, and belongs to these files (the same database
   uuid and log inode, and the log has everything that the pool has published), attach to it: it is *warm*, and
   nothing is read. A pool of another application is left alone (PoolTaken).
2. Otherwise the pool is useless, since log and data file have everything. If other handles are
   open, they use a pool whose name was removed: refuse (PoolRemoved). Otherwise remove the pool.
3. Without a log segment this is a new database: create its first segment, with its first record, in one step.
4. Read the log from its oldest segment: a page is its last full image with the changes
   since then (log.py). Cut an incomplete record off the end. Sync the log.
5. Create a pool, publish the pages in it, and finally mark it as ready.

Steps 4 and 5 change nothing that they read, except that they cut off an incomplete record, and they
read nothing from the data file. So recovery may be killed and repeated any number of times, and it repairs
pages that it, or a flush, left torn in the file.
"""

import contextlib
import os

import numpy as np
import xxhash

import bufferpool as bp
from toydb import locks
from toydb.engine import Engine
from toydb.errors import Busy, DatabaseNotFound, LogCorrupt, NotADatabase, PoolRemoved, PoolTaken
from toydb.log import Log, new_uuid, sync_directory
from toydb.page import LEAF, META, Page
from toydb.points import point
from toydb.shared import CONTROL, DATA, SPILL, VERSIONS, Shared, State
from toydb.transaction import CATALOG, META_PAGE, MetaPage

FIRST_LSN = 4096
OPEN_S = 60.0


def default_pool_name(path: str) -> str:
    return f"toydb-{path_hash(path):016x}"


def path_hash(path: str) -> int:
    return xxhash.xxh3_64_intdigest(os.fsencode(path))


def open_engine(path: str, *, capacity: int | str, create: bool, pool_name: str | None, page_size: int) -> Engine:
    """Opens a database. Raises DatabaseNotFound, NotADatabase, PoolRemoved, PoolTaken, LogCorrupt, Busy, errors of the pool."""
    path = os.path.realpath(path)
    pool_name = pool_name or default_pool_name(path)
    if not create and not os.path.exists(path):
        raise DatabaseNotFound(
            f"there is no database {path}; use create=True to create it (in the shell: omit --existing)"
        )
    log = Log(path + "-log.")
    if not os.path.isdir(os.path.dirname(path)):
        raise DatabaseNotFound(f"there is no folder {os.path.dirname(path)}; make it first")
    if os.path.isdir(path):
        raise NotADatabase(f"{path} is a folder; name a file in it")
    if not os.path.exists(path + "-lock"):
        _refuse_half(path, log)  # before a lock file is created beside it
    file = _lock_file(path)
    try:
        if not file.take(locks.OPEN, OPEN_S):
            raise Busy(f"another process has been opening {path} for {OPEN_S} s; if it is stopped, end it")
        point("open.locked")
        _refuse_half(path, log)
        engine = _attach(path, pool_name, log, file)
        if engine is None:
            engine = _recover(path, pool_name, capacity, page_size, log, file)
        try:
            point("open.attaching")
            file.take(locks.ATTACHED, shared=True)
            file.release(locks.OPEN)
        except BaseException:
            _detach(engine.pool)
            raise
        return engine
    except BaseException:
        log.close()
        file.close()
        raise


def _lock_file(path: str) -> locks.LockFile:
    try:
        return locks.LockFile(path + "-lock")
    except OSError as error:
        why = f"{error.strerror}; a database needs a folder that can be written, even for reading"
        raise type(error)(error.errno, why, error.filename) from error


def _refuse_half(path: str, log: Log) -> None:
    """Raises NotADatabase if one of the files is missing. The pool is kept: it may have the only copy of the pages."""
    segments = log.segments()
    if not segments and os.path.exists(path) and os.path.getsize(path):
        raise NotADatabase(
            f"{path} is not empty and has no log beside it: it is no database, or its log was moved away"
        )
    if segments and segments[0] != FIRST_LSN and not os.path.exists(path):
        raise NotADatabase(f"{path} is missing, and its log has only the latest changes; put the file back")


def _attach(path: str, pool_name: str, log: Log, file: locks.LockFile) -> Engine | None:
    """Attaches to the existing pool; returns None if there is none, or if it was useless and has been removed."""
    pool, why = None, f"there is no pool {pool_name}"
    try:
        pool = bp.Pool.attach(pool_name)
        _refuse_foreign(pool, path)
        shared = Shared(pool)
        why = _what_is_wrong(shared, log)
        if not why:
            return Engine(pool, open_data(pool, path, log, shared), log, file, shared)
    except bp.errors.SegmentNotFound:
        pass
    except (bp.errors.SegmentError, bp.errors.SpaceError, bp.errors.StoreError) as error:
        if pool is None and pool_name != default_pool_name(path):
            raise  # damaged, or of another version of the library: its owner is unknown
        why = f"the pool {pool_name} cannot be used: {error}"
    log.close()
    if not file.take(locks.ATTACHED, 0):
        raise PoolRemoved(f"{path} is in use by other processes, but {why}; end them, then open it again")
    file.release(locks.ATTACHED)
    if pool is not None:
        _detach(pool)
    with contextlib.suppress(bp.errors.SegmentNotFound):
        bp.Pool.remove(pool_name, discard=True)  # the log has every page that it has
        point("open.unlinked")
    return None


def _detach(pool: bp.Pool) -> None:
    """Closes a pool after an error. If the traceback holds pages of it, the pool is closed when the process ends."""
    with contextlib.suppress(BufferError):
        pool.close()


def _refuse_foreign(pool: bp.Pool, path: str) -> None:
    """Raises PoolTaken unless the pool belongs to this database, or is unused."""
    names = {space.name for space in pool.stats().spaces}
    state = Shared(pool).state() if CONTROL in names else None
    if names - {CONTROL, VERSIONS, SPILL, DATA} or (state is not None and state.path != path_hash(path)):
        _detach(pool)
        raise PoolTaken(f"the pool {pool.name} belongs to another use than {path}; open with another pool_name=")


def _what_is_wrong(shared: Shared, log: Log) -> str:
    """Why a pool does not match the files; "" if it does."""
    while True:
        state = shared.state()
        if state is None or not state.ready:
            return "recovery into its pool was not completed"
        if shared.failed():
            return "a sync of its log failed, and the disk must be read again"
        why = _is_another(state, log)
        if not why or state == shared.state():  # otherwise a checkpoint has just removed this segment
            return why


def _is_another(state: State, log: Log) -> str:
    """Why the log does not match this state; "" if it does."""
    segment = state.segment
    if state.rotating and os.path.exists(log.path(state.rotating)):
        segment = state.rotating
    try:
        inode = log.identity(segment)
    except LogCorrupt as error:
        return f"its log is not the one that the pool was filled from ({error})"
    if log.uuid != state.uuid or (segment == state.segment and inode != state.inode):
        return "the pool belongs to another database that had this name"
    if log.end(segment) < state.published:
        return "its log is shorter than what the pool has published"
    return ""


def _recover(path: str, pool_name: str, capacity: int | str, page_size: int, log: Log, file: locks.LockFile) -> Engine:
    """Does steps 3 to 5."""
    point("recover.begun")
    if not log.segments():
        _make(path, page_size, log)
    segment, end, images = log.redo()
    point("recover.read")
    log.truncate(segment, end)
    log.sync(segment)
    point("recover.cut")
    size = os.stat(path).st_size if os.path.exists(path) else 0
    with open(path, "ab") as data:
        data.truncate(-(-size // log.page_size) * log.page_size)
    with open(path + "-spill", "wb"):
        pass  # what it had was for snapshots that have ended
    sync_directory(path)  # the file may be new: make its name durable before the log is shortened
    pool = bp.Pool.create(pool_name, capacity, page_size=log.page_size)
    try:
        point("recover.pool")
        shared = Shared(pool)
        pool.durable_lsn = end
        shared.set_visible(end)
        space = open_data(pool, path, log, shared)
        engine = Engine(pool, space, log, file, shared)
        state = shared.set_state(State(log.uuid, path_hash(path), 0, end, segment, log.identity(segment)))
        space.grow(1 + max(images, default=0))
        for page_no, image in sorted(images.items()):
            with space.write(
                page_no, lsn=Page(image).lsn, fresh=True
            ) as page:  # what the file has may be torn, and is not read
                page[:] = np.frombuffer(image, np.uint8)
            point("recover.page")
        images.clear()
        shared.set_state(state, ready=1)
        point("recover.ready")
        return engine
    except BaseException:
        _detach(pool)
        raise


def open_data(pool: bp.Pool, path: str, log: Log, shared: Shared) -> bp.Space:
    """Opens the data file as a space. A damaged page is repaired from the log, if the log has it."""

    def repair(page_no: int, _: object) -> bytearray | None:
        while True:
            before = log.segments()
            try:
                return log.redo(shared.current().published)[2].get(page_no)
            except LogCorrupt:
                if before == log.segments():
                    raise  # otherwise a checkpoint removed a segment while it was read

    shared.open_spill(path)
    return pool.open_file(path, "r+", name=DATA, checksum=True, repair=repair)


def _make(path: str, page_size: int, log: Log) -> None:
    """Creates the first segment of a new database: its record has the meta page and an empty catalog."""
    with open(path, "ab"):
        pass
    log.uuid, log.page_size = new_uuid(), page_size
    meta, catalog = Page(bytearray(page_size)), Page(bytearray(page_size))
    meta.format(META_PAGE, META, 0)
    MetaPage(log.uuid, page_size, n_pages=2, first_free=0, n_free=0).store(meta)
    catalog.format(CATALOG, LEAF, CATALOG)
    catalog.rebuild([], b"", None, 0)
    _, record = log.encode(FIRST_LSN, [(p.page_no, None, p.bytes.obj) for p in (meta, catalog)])  # type: ignore[misc]
    point("make.begun")
    log.create(FIRST_LSN, record)
    point("make.done")
