"""The commands that change a pool: its budget, memory, dirty pages, dead clients; and the removal of pools."""

import argparse
import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator

from bufferpool.cli import doctor
from bufferpool.cli.common import (
    Commands,
    add_seconds,
    attach,
    complain,
    count,
    interval,
    json_line,
    pool_name,
    print_json,
    print_table,
    seconds,
    size,
    tell,
)
from bufferpool.client import segment_file
from bufferpool.client.trouble import LOG
from bufferpool.errors import BufferPoolError, CacheRemoved, SegmentNotFound, SegmentRefused, UnsavedPages, WaitTimeout
from bufferpool.figures.pool_figures import read_all_unsaved
from bufferpool.observer import Observer, refuse_loss, unsaved_pages
from bufferpool.pool import Pool
from bufferpool.printable import printable
from bufferpool.stores.base import sync_directory
from bufferpool.units import counted, format_size
from bufferpool.upkeep.steward import Settings, run

LOOK_S = 0.2  # between two looks at whether a flush makes progress


def _rm(args: argparse.Namespace) -> int:
    failed, rows = 0, []
    for name in args.name:
        try:
            row, text = _remove(segment_file.path_of(name, args.directory), args.force, args.discard)
            rows.append(row)
            if not args.json:
                tell(text)
        except (BufferPoolError, OSError) as error:
            complain(error)
            failed = 1
    if args.json:
        print_json(rows)
    return failed


def _remove(path: str, force: bool, discard: bool) -> tuple[dict[str, object], str]:
    """Removes one pool, sound or damaged; returns what became free, as figures and as a sentence."""
    name = os.path.basename(path)
    found = segment_file.must_find(path)
    segment_file.refuse_part(path)
    others = segment_file.other_sizes(path)
    used = doctor.in_use(path)
    if used and not force:
        raise SegmentRefused(
            f"{name!r} is in use by living processes (bufferpool stat {name} names them): end them first, or use --force"
        )
    if not discard and not found.trouble:  # a damaged pool cannot be attached to, so its pages cannot be saved
        refuse_loss(name, os.path.dirname(path))
    if discard:
        segment_file.mark_may_lose(path)
    kernel_bytes = found.kernel_bytes + sum(segment_file.must_find(one).kernel_bytes for one in others)
    segment_file.unlink_all(path)
    size = format_size(kernel_bytes)
    row: dict[str, object] = {"name": name, "kernel_bytes": kernel_bytes, "in_use": used}
    if used:
        return row, f"{name}: removed; its {size} come free when the last attached process ends"
    return row, f"{name}: removed, {size} ({kernel_bytes:,} B) freed"


# ---- memory ---------------------------------------------------------------------------


def _given(args: argparse.Namespace, pool: Pool, given: int, **more: int) -> int:
    if args.json:
        print_json({"name": args.name, "given_back_bytes": given, **more})
    else:
        stats = pool.stats()
        tell(
            f"{args.name}: {format_size(given)} given back; resident {format_size(stats.resident_bytes)} "
            f"of a budget of {format_size(stats.budget_bytes)}"
        )
    return 0


def _resize(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        try:
            given = pool.resize(args.capacity, timeout=args.timeout)
        except ValueError as error:
            args.parser.error(str(error))
        return _given(args, pool, given, budget_bytes=args.capacity)


def _trim(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        given = pool.trim(args.bytes) if args.idle is None else pool.trim_idle(args.idle)
        return _given(args, pool, given)


def _unless_it_hangs(args: argparse.Namespace, pool: Pool, work: Callable[[], int]) -> int:
    """Runs a flush in a thread; returns its result. It may take long, but no longer than the timeout without any progress."""
    job, moved = pool.client.jobs.start("the command", work)[0], time.monotonic()
    while not pool.client.jobs.wait(lambda: job.done, LOOK_S):
        now = time.monotonic()
        idle = [one.seconds for one in pool.operations() if one.kind == "flush" and args.space in (None, one.space)]
        moved = max(moved, now - min(idle, default=math.inf))
        if now - moved >= args.timeout:
            raise WaitTimeout(
                f"{args.name}: the flush has made no progress for {args.timeout:g} s; pages that are not written remain dirty. "
                f"bufferpool operations {args.name} shows what hangs, and for how long (--timeout S waits longer)"
            )
    if job.error is not None:
        raise job.error
    return job.result


def _flush(args: argparse.Namespace) -> int:
    if args.overwrite and args.space is None:
        args.parser.error("--overwrite needs the SPACE whose file is to be written over")
    with attach(args) as pool:

        def work() -> int:
            if args.overwrite:
                return pool.overwrite(args.space)
            return pool.flush(None if args.space is None else pool.space(args.space, "r+"))

        written = _unless_it_hangs(args, pool, work)
        stats = pool.stats()
    left = (
        sum(s.dirty for s in stats.spaces if s.name == args.space and not s.owner) if args.space else stats.frames.dirty
    )
    if args.json:
        print_json({"name": args.name, "written_pages": written, "dirty_pages": left})
    else:
        kept = 0 if args.space else min(left, sum(s.dirty for s in stats.spaces if s.kind == "scratch"))
        more = f", and {counted(kept, 'scratch page')}, which no store has" if kept else ""
        tell(f"{args.name}: {counted(written, 'page')} written and synced; {left - kept:,} still dirty{more}")
    return 0


def _dirty(args: argparse.Namespace) -> int:
    rows: list[tuple[str, int, str]] = []
    with Pool.attach(args.name, directory=args.directory, mode="r") as pool:
        if args.save is not None:
            os.makedirs(args.save, exist_ok=True)
        for page_no, image in pool.dirty_pages(args.space):
            path = "" if args.save is None else os.path.join(args.save, f"page-{page_no:010}")
            if path:
                with open(path, "xb") as file:
                    file.write(image)
                    file.flush()
                    os.fsync(file.fileno())
            rows.append((str(page_no), page_no * memoryview(image).nbytes, path))
        if args.save is not None:
            sync_directory(args.save)
    if args.json:
        print_json([{"page_no": int(number), "offset": offset, "saved": path or None} for number, offset, path in rows])
    elif rows:
        print_table(
            [("page", "offset", "saved"), *((number, str(offset), path) for number, offset, path in rows)], right=(0, 1)
        )
    else:
        tell(f"{args.name}: no page of {args.space} is dirty")
    return 0


def _discard(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        lost = pool.discard(args.space)
    if args.json:
        print_json({"name": args.name, "space": args.space, "discarded_pages": lost})
    else:
        tell(
            f"{args.name}: {counted(lost, 'dirty page')} of {args.space} discarded; they are loaded again when they are next used"
        )
    return 0


def _drop(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        space = pool.space(args.space)
        unsaved = 0 if args.discard else unsaved_pages(args.name, args.directory).get(args.space, 0)
        if unsaved:
            raise UnsavedPages(
                f"{args.space!r} has {counted(unsaved, 'dirty page')} that its file or store does not have yet: write what is dirty first "
                f"(bufferpool flush {args.name} {args.space}), or give it up (--discard)",
                {args.space: unsaved},
            )
        return _given(args, pool, space.drop(args.first, args.count))


def _remove_space(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        space = pool.space(args.space)
        resident = space.stats().resident * space.page_size
        space.remove()
    if args.json:
        print_json({"name": args.name, "space": args.space, "resident_bytes": resident})
    else:
        tell(f"{args.name}: {args.space} is not in the pool any more; it had {format_size(resident)} there")
    return 0


def _remove_cache(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        found = next((one for one in pool.caches() if one.name == args.cache), None)
        if found is None or not pool.remove_cache(args.cache):
            names = ", ".join(sorted(one.name for one in pool.caches())) or "none"
            raise CacheRemoved(f"{args.name!r} has no cache {args.cache!r}; its caches: {names}")
    if args.json:
        print_json({"name": args.name, "cache": args.cache, "values": found.count, "bytes": found.bytes})
    else:
        tell(
            f"{args.name}: the cache {args.cache} was removed; it had {found.count:,} values, {format_size(found.bytes)}"
        )
    return 0


def _gc(args: argparse.Namespace) -> int:
    """Reaps dead clients without asking, because that loses nothing. It asks before it removes a pool."""
    failed, rows = 0, []

    def say(text: str) -> None:
        if not args.json:
            tell(text)

    for found in list(segment_file.find(args.directory)):
        name, reaped = os.path.basename(found.path), 0
        try:
            if found.owner != os.geteuid():
                continue
            if not found.trouble and _has_dead(name, args.directory):
                with Pool.attach(name, directory=args.directory) as pool:
                    reaped = pool.reap()
                if reaped:
                    say(f"{name}: dead clients reaped: {reaped}")
            if segment_file.is_part(found.path):  # it is removed with its pool
                continue
            used, removed = doctor.in_use(found.path), False
            unsaved = 0 if used or found.trouble else sum(unsaved_pages(name, args.directory).values())
            what = f"{found.condition} ({found.trouble})" if found.trouble else "no process is attached"
            loss = f", {counted(unsaved, 'dirty page')} that no file has yet" if unsaved else ""
            question = f"{name}: {what}, {format_size(found.kernel_bytes)}{loss}. Remove it?"
            if not used and (args.yes or (not args.json and _asked(question))):
                say(_remove(found.path, force=False, discard=not args.yes)[1])
                removed = True
            rows.append(
                {
                    "name": name,
                    "reaped_clients": reaped,
                    "in_use": used,
                    "trouble": found.trouble,
                    "unsaved_pages": unsaved,
                    "removed": removed,
                }
            )
        except SegmentNotFound:  # removed since it was found, by another process or with the pool of which it is a part
            continue
        except (BufferPoolError, OSError) as error:
            complain(error)
            failed = 1
    if args.json:
        print_json(rows)
    return failed


def _has_dead(name: str, directory: str | None) -> bool:
    with Observer(name, directory=directory) as pool:
        return not all(client.alive for client in pool.clients())


def _asked(question: str) -> bool:
    """Asks a question. Only "y" and "yes" are a yes; the end of the input is a no."""
    tell(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _steward(args: argparse.Namespace) -> int:
    settings = Settings(
        flush_every=args.flush_every,
        pressure=not args.no_pressure,
        idle=args.idle,
        working_set=args.working_set,
    )
    with attach(args) as pool, _printing_log(args.json):
        if pool.client.is_part:
            args.parser.error(
                f"{args.name!r} is a page size of the pool {pool.client.home().name!r}, whose steward serves all of them"
            )
        begins = f"steward of {args.name}, until interrupted"
        if args.json:
            LOG.info("%s", begins)
        else:
            tell(begins)
        run(pool.client, settings)
        unsaved = sum(read_all_unsaved(pool).values())
        LOG.info("pool %r was removed, and no other process is attached: the steward ends", args.name)
    if unsaved:
        raise UnsavedPages(
            f"{args.name!r} was removed with {counted(unsaved, 'dirty page')} that could not be written", {}
        )
    return 0


class _Lines(logging.Formatter):
    """A line of the log: text, or a JSON object."""

    def __init__(self, js: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._js = js

    def format(self, record: logging.LogRecord) -> str:
        if not self._js:
            return printable(super().format(record))
        about = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        return json_line({**getattr(record, "fields", {}), **about})


@contextlib.contextmanager
def _printing_log(js: bool) -> Iterator[None]:
    """Prints the lines of the logger "bufferpool" to standard output."""
    handler, level = logging.StreamHandler(sys.stdout), LOG.level
    handler.setFormatter(_Lines(js))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)


def register(commands: Commands) -> None:
    """Adds these commands."""
    resize = commands.add(
        "resize", _resize, "change the budget of a pool, while others use it",
        "A smaller budget evicts the coldest pages and gives whole extents back; dirty pages are written for it.\n\n"
        "example:\n  bufferpool resize orders 64MiB",
    )  # fmt: skip
    resize.add_argument("capacity", metavar="SIZE", type=size)
    add_seconds(resize, "--timeout", 5.0, "how long to wait for pages in use", seconds)
    trim = commands.add(
        "trim", _trim, "give memory back now, with an unchanged budget",
        "Without options: the free frames.\n\n"
        "examples:\n  bufferpool trim orders --bytes 64MiB\n  bufferpool trim orders --idle 30",
    )  # fmt: skip
    which = trim.add_mutually_exclusive_group()
    which.add_argument("--bytes", type=size, metavar="SIZE", help="this many bytes, the coldest pages first")
    which.add_argument("--idle", type=seconds, metavar="S", help="every clean page not used for this many seconds")
    flush = commands.add(
        "flush", _flush, "write dirty pages to their files, and sync them",
        "Pages above the pool's durable LSN stay dirty, and so do pages whose store only another process has.\n"
        "A flush that makes progress may take long. If the disk or the store hangs, the command gives up after --timeout.\n\n"
        "example:\n  bufferpool flush orders",
    )  # fmt: skip
    flush.add_argument("space", metavar="SPACE", nargs="?", help="only this space")
    flush.add_argument("--overwrite", action="store_true", help="even if another program has changed the file of SPACE")
    add_seconds(flush, "--timeout", 60.0, "give up after so many seconds without progress")
    dirty = commands.add(
        "dirty", _dirty, "list the dirty pages of a space, or save copies of them",
        "For pages that cannot be written. Because the disk is full or broken: --save keeps copies of them on another disk until\n"
        "it is mended. Because another program has changed their file: look at them here, then write them over the change\n"
        "(flush --overwrite), or discard them (discard). The file is not read, and no page counts as a hit.\n\n"
        "examples:\n  bufferpool dirty orders orders.db\n  bufferpool dirty orders orders.db --save rescued",
    )  # fmt: skip
    dirty.add_argument("--save", metavar="DIR", help="write each page to a file page-NUMBER in this folder")
    discard = commands.add(
        "discard", _discard, "discard the dirty pages of a space, and remove it from the pool",
        "Its file keeps its contents. The next process that opens the file reads it again.\n\n"
        "example:\n  bufferpool discard orders orders.db",
    )  # fmt: skip
    drop = commands.add(
        "drop", _drop, "drop pages of a space from the pool, and give their memory back",
        "A page of a file or store is read again when it is used, and a page of a derived space is computed again;\n"
        "scratch pages read as zeros. A space with dirty pages that its file or store does not have is refused.\n\n"
        "examples:\n  bufferpool drop orders orders.db\n  bufferpool drop orders tiles --first 100 --count 50",
    )  # fmt: skip
    drop.add_argument("--first", type=count, default=0, metavar="N", help="the first page (default: %(default)s)")
    drop.add_argument("--count", type=count, metavar="N", help="so many pages (default: to the end of the space)")
    drop.add_argument("--discard", action="store_true", help="drop dirty pages too: their changes are lost")
    remove = commands.add(
        "remove", _remove_space, "write the dirty pages of a space, and take the space out of the pool",
        "The pages of a scratch space are lost. Handles of the space raise SpaceRemoved from then on. To give up dirty\n"
        "pages instead of writing them, use discard; to remove a whole pool, use rm.\n\n"
        "example:\n  bufferpool remove orders tiles",
    )  # fmt: skip
    for sub in (dirty, discard, drop, remove):
        sub.add_argument("space", metavar="SPACE", help="a space of the pool")
    remove_cache = commands.add(
        "remove-cache", _remove_cache, "remove a cache of a pool, with all its values",
        "Handles of the cache raise CacheRemoved from then on. A pool has at most 64 caches.\n\n"
        "example:\n  bufferpool remove-cache orders thumbnails",
    )  # fmt: skip
    remove_cache.add_argument("cache", metavar="CACHE", help="a cache of the pool")
    gc = commands.add(
        "gc", _gc, "reap dead clients, and, after asking, remove pools that no process uses",
        "It asks, because a pool that no process uses now may be kept warm for the next one.\n"
        "With --json it does not ask, and removes no pool without --yes. --yes keeps pools with dirty pages of files.\n\n"
        "examples:\n  bufferpool gc\n  bufferpool gc --yes",
        pool=False,
    )  # fmt: skip
    gc.add_argument("--yes", action="store_true", help="remove them without asking")
    steward = commands.add(
        "steward", _steward, "do the background work of a pool, in this process",
        "Reaps dead clients, writes dirty pages, and adapts the budget to the memory pressure. Several may run: one is\n"
        "active, and another takes over when it ends. It ends with Ctrl-C or SIGTERM, and when the pool was removed and\n"
        "no other process is attached. Each decision, each failure of a store and each dead client is a line; with --json, a\n"
        "JSON object. A signal leaves the pool with its dirty pages to the other processes. Exits with 1 if it cannot do\n"
        "its work, or if the pool was removed and its dirty pages could not be written.\n\n"
        "examples:\n  bufferpool steward orders --idle 600\n  bufferpool steward orders --json | jq -r .message",
    )  # fmt: skip
    add_seconds(steward, "--flush-every", 15.0, "no page stays dirty for longer")
    steward.add_argument("--idle", type=interval, metavar="S", help="give back pages not used for this long")
    steward.add_argument("--no-pressure", action="store_true", help="leave the budget alone")
    steward.add_argument("--working-set", metavar="FILE", help="save the working set there, every five minutes")
    rm = commands.add(
        "rm", _rm, "remove pools and free their memory",
        "A pool with dirty pages of files or stores is kept, unless --discard is given, and so is a pool with living\n"
        "clients, unless --force is given: they can still use it then, but no new process finds it.\n\n"
        "examples:\n  bufferpool rm orders\n  bufferpool rm --force orders tiles",
        pool=False,
    )  # fmt: skip
    rm.add_argument("name", metavar="NAME", nargs="+", type=pool_name)
    rm.add_argument("--discard", action="store_true", help="even if pages are lost that were not flushed")
    rm.add_argument("--force", action="store_true", help="even if processes are attached")
