"""Opening: attach to the pool that is there, or make one and recover the database into it.

Under the open lock, which one process has at a time:

1. Is there a pool of the name, and is it sound, ready, and of these very files (the database's
   uuid, the inode of its log, a log no shorter than it knows)? Attach: *warm*, nothing is read.
   A pool of something else is left alone (PoolTaken).
2. Otherwise it is worthless: the log and the data file are the truth. If other handles are
   open, they work with a pool that has lost its name: refuse (PoolRemoved). Else remove it.
3. No log segment? A new database: its first segment, made in one step, has its first record.
4. Read the log from its oldest segment: the last full image of each page and the changes
   since make the page (log.py). Cut half a record off the end. Sync what is there.
5. Make a pool, publish the pages in it, and say *ready*, last of all.

Steps 4 and 5 change nothing that they read but half a record, and take nothing from the data
file: recovery may be killed and begun again any number of times, and the pages that
it, or a flush, left torn in the file are whole again.
"""

import contextlib
import os

import xxhash

import bufferpool as bp
from toydb import locks
from toydb.engine import Engine
from toydb.errors import Busy, DatabaseNotFound, LogCorrupt, NotADatabase, PoolRemoved, PoolTaken
from toydb.log import Log, new_uuid, sync_directory
from toydb.page import LEAF, META, Page
from toydb.points import point
from toydb.shared import CONTROL, DATA, VERSIONS, Shared, State
from toydb.transaction import CATALOG, META_PAGE, MetaPage

FIRST_LSN = 4096
OPEN_S = 60.0


def default_pool_name(path: str) -> str:
    return f"toydb-{path_hash(path):016x}"


def path_hash(path: str) -> int:
    return xxhash.xxh3_64_intdigest(os.fsencode(path))


def open_engine(path: str, *, capacity: int | str, create: bool, pool_name: str | None, page_size: int) -> Engine:
    """Raises DatabaseNotFound, NotADatabase, PoolRemoved, PoolTaken, LogCorrupt, Busy, and errors of the pool."""
    path = os.path.realpath(path)
    pool_name = pool_name or default_pool_name(path)
    if not create and not os.path.exists(path):
        raise DatabaseNotFound(
            f"there is no database {path}; with create=True (in the shell: without --existing) it would be made"
        )
    log = Log(path + "-log.")
    if not os.path.isdir(os.path.dirname(path)):
        raise DatabaseNotFound(f"there is no folder {os.path.dirname(path)}; make it first")
    if os.path.isdir(path):
        raise NotADatabase(f"{path} is a folder; name a file in it")
    if not os.path.exists(path + "-lock"):
        _refuse_half(path, log)  # and leave no lock beside it
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
            engine.versions.enter()
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
        why = f"{error.strerror}; a database, even if only to be read, needs a folder to write in"
        raise type(error)(error.errno, why, error.filename) from error


def _refuse_half(path: str, log: Log) -> None:
    """Raises NotADatabase if one of the files is missing: a pool that is still there may be all that is left."""
    segments = log.segments()
    if not segments and os.path.exists(path) and os.path.getsize(path):
        raise NotADatabase(
            f"{path} is not empty and has no log beside it: it is no database, or its log was moved away"
        )
    if segments and segments[0] != FIRST_LSN and not os.path.exists(path):
        raise NotADatabase(f"{path} is gone, and its log has the latest changes only; put the file back")


def _attach(path: str, pool_name: str, log: Log, file: locks.LockFile) -> Engine | None:
    """The engine on the pool that is there; None if there is none that is of any use: then it has been removed."""
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
            raise  # damaged, or of another version of the library: who knows whose it is
        why = f"the pool {pool_name} cannot be used: {error}"
    log.close()
    if not file.take(locks.ATTACHED, 0):
        raise PoolRemoved(f"{path} is in use by others, but {why}; end the processes that use it, then open it again")
    file.release(locks.ATTACHED)
    if pool is not None:
        _detach(pool)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(bp.client.segment_file.path_of(pool_name))
        point("open.unlinked")
    return None


def _detach(pool: bp.Pool) -> None:
    """Closes a pool after an error, whose traceback may have pages of it: then it ends with the process."""
    with contextlib.suppress(BufferError):
        pool.close()


def _refuse_foreign(pool: bp.Pool, path: str) -> None:
    """Raises PoolTaken unless the pool belongs to this database, or to nobody yet."""
    names = {space.name for space in pool.stats().spaces}
    state = Shared(pool).state() if CONTROL in names else None
    if names - {CONTROL, VERSIONS, DATA} or (state is not None and state.path != path_hash(path)):
        _detach(pool)
        raise PoolTaken(f"the pool {pool.name} is used for something else than {path}; open with another pool_name=")


def _what_is_wrong(shared: Shared, log: Log) -> str:
    """Why a pool does not belong to the files; "" if it does."""
    while True:
        state = shared.state()
        if state is None or not state.ready:
            return "recovery into its pool was not completed"
        if shared.failed():
            return "a sync of its log failed, and what the disk has must be read again"
        why = _is_another(state, log)
        if not why or state == shared.state():  # else a checkpoint has taken this segment away just now
            return why


def _is_another(state: State, log: Log) -> str:
    """Why the log is not the one of this state; "" if it is."""
    segment = state.segment
    if state.rotating and os.path.exists(log.path(state.rotating)):
        segment = state.rotating
    try:
        inode = log.identity(segment)
    except LogCorrupt as error:
        return f"its log is not the one that the pool knows ({error})"
    if log.uuid != state.uuid or (segment == state.segment and inode != state.inode):
        return "the pool belongs to another database that had this name"
    if log.end(segment) < state.committed:
        return "its log is shorter than the pool knows it"
    return ""


def _recover(path: str, pool_name: str, capacity: int | str, page_size: int, log: Log, file: locks.LockFile) -> Engine:
    """Steps 3 to 5."""
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
    sync_directory(path)  # it may just have been created, and the log will be cut once its pages are written
    pool = bp.Pool.create(pool_name, capacity, page_size=log.page_size)
    try:
        point("recover.pool")
        shared = Shared(pool)
        pool.durable_lsn = end
        shared.set_durable(end)
        space = open_data(pool, path, log, shared, images)
        engine = Engine(pool, space, log, file, shared)
        state = shared.set_state(State(log.uuid, path_hash(path), 0, end, segment, log.identity(segment)))
        for page_no, image in sorted(images.items()):
            engine.write_page(page_no, image, Page(image).lsn)
            point("recover.page")
        images.clear()
        shared.set_state(state, ready=1)
        point("recover.ready")
        return engine
    except BaseException:
        _detach(pool)
        raise


def open_data(
    pool: bp.Pool, path: str, log: Log, shared: Shared, recovered: dict[int, bytearray] | None = None
) -> bp.Space:
    """The data file as a space; a page that is damaged there is taken from the log, if it has it."""

    def repair(page_no: int, _: object) -> bytearray | None:
        if recovered:  # the pool loads a page even if it is to be replaced
            return recovered.get(page_no)
        while True:
            before = log.segments()
            try:
                return log.redo(shared.current().committed)[2].get(page_no)
            except LogCorrupt:
                if before == log.segments():
                    raise  # else a checkpoint has removed one while it was read

    return pool.open_file(path, "r+", name=DATA, checksum=True, repair=repair)


def _make(path: str, page_size: int, log: Log) -> None:
    """The first segment of a new database: its record has the meta page and an empty catalog."""
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
