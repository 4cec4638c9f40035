"""The commands that show a pool: its frames, extents, spaces, clients, pins and events."""

import argparse
import math
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from bufferpool.cli.common import (
    Commands,
    attach,
    count,
    interval,
    json_line,
    observe,
    pool_name,
    print_json,
    print_json_stream,
    print_table,
    since,
    tell,
)
from bufferpool.client import segment_file
from bufferpool.client.segment_file import size_text
from bufferpool.errors import BufferPoolError, PageOutOfRange, SegmentNotFound
from bufferpool.figures import stats as pool_stats
from bufferpool.figures.events import Event, fields_of
from bufferpool.figures.names import FrameState, OperationKind, hit_ratio
from bufferpool.figures.operations import LATE_S
from bufferpool.figures.pool_figures import read_all_unsaved
from bufferpool.figures.stats import ClientInfo, PoolStats, SpaceStats
from bufferpool.observer import Observer
from bufferpool.units import counted, format_size

FOLLOW_S = 0.5  # between two looks for new events

# ---- ls -----------------------------------------------------------------------------


def _row(found: segment_file.Found, directory: str | None) -> dict[str, Any] | None:
    """A row of ``ls``; a figure that cannot be read is None. Returns None if the pool has been removed meanwhile."""
    row: dict[str, Any] = {
        "name": os.path.basename(found.path),
        "page_size": None,
        "resident_bytes": None,
        "budget_bytes": None,
        "clients": None,
        "unsaved_pages": None,
        "kernel_bytes": found.kernel_bytes,
        "owner": user_name(found.owner),
        "trouble": found.trouble,
    }
    if found.trouble:
        return row
    try:
        with Observer(row["name"], directory=directory) as pool:
            stats, clients, unsaved = pool_stats.read_stats(pool), pool.clients(), pool_stats.read_unsaved(pool)
            return {
                **row,
                "page_size": stats.page_size,
                "resident_bytes": stats.resident_bytes,
                "budget_bytes": stats.budget_bytes,
                "clients": sum(client.alive for client in clients),
                "unsaved_pages": sum(unsaved.values()),
                "kernel_bytes": stats.kernel_bytes,
            }
    except SegmentNotFound:
        return None
    except BufferPoolError as error:
        return {**row, "trouble": str(error)}


def user_name(uid: int) -> str:
    """The name of a user, or its number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _ls(args: argparse.Namespace) -> int:
    found = list(segment_file.find(args.directory))
    rows = [row for row in (_row(one, args.directory) for one in found) if row is not None]
    if args.json:
        print_json(rows)
        return 0
    if not rows:
        tell(f"no pools in {args.directory or segment_file.SHM}")
        return 0

    def cell(value: int | None, form: Callable[[float], str]) -> str:
        return "-" if value is None else form(value)

    table = [("NAME", "OWNER", "PAGE", "RESIDENT", "BUDGET", "CLIENTS", "UNSAVED", "KERNEL", "STATE")]
    for row in rows:
        table.append(
            (
                row["name"],
                row["owner"],
                cell(row["page_size"], str),
                cell(row["resident_bytes"], format_size),
                cell(row["budget_bytes"], format_size),
                cell(row["clients"], str),
                cell(row["unsaved_pages"], str),
                format_size(row["kernel_bytes"]),
                row["trouble"] or ("in use" if row["clients"] else "nobody attached"),
            )
        )
    print_table(table, right=range(2, 8))
    return 0


# ---- stat ---------------------------------------------------------------------------


def _stat(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        stats, clients, unsaved = pool.stats(), pool.clients(), read_all_unsaved(pool)
        max_clients = pool.geometry["max_clients"]
    if args.json:
        about = {**asdict(stats), "unsaved_pages": unsaved, "clients": [asdict(client) for client in clients]}
        derived = ("hit_ratio", "kernel_data_bytes", "reclaimed_total_bytes")
        print_json({**about, **{name: getattr(stats, name) for name in derived}})
        return 0
    _print_stats(stats, unsaved, max_clients)
    if stats.by_page_size:
        print()
        tell("page sizes")
        parts = [
            (
                size_text(size),
                format_size(s.budget_bytes),
                format_size(s.resident_bytes),
                f"{s.frames.live:,}",
                f"{s.hits:,}",
                f"{s.misses:,}",
            )
            for size, s in stats.by_page_size.items()
        ]
        print_table([("PAGE", "BUDGET", "RESIDENT", "PAGES", "HITS", "MISSES"), *parts], right=range(6))
    if stats.spaces:
        print()
        tell("spaces")
        rows = [
            (
                _sized(s, stats, s.shown_name), s.kind, f"{s.pages:,}", f"{s.resident:,}", f"{s.dirty:,}", f"{s.hits:,}", f"{s.misses:,}",
                share(s.limit), share(s.reserve),
            )
            for s in stats.spaces
        ]  # fmt: skip
        names: tuple[str, ...] = ("NAME", "KIND", "PAGES", "RESIDENT", "DIRTY", "HITS", "MISSES", "LIMIT", "RESERVE")
        print_table([names, *rows], right=range(2, 9))
    if stats.caches:
        print()
        tell("caches")
        cells = [
            (
                c.name, *(f"{n:,}" for n in (c.count, c.bytes, c.hits, c.misses, c.loads, c.evictions, c.refused)),
                share(c.limit), share(c.reserve),
            )
            for c in stats.caches
        ]  # fmt: skip
        names = ("NAME", "VALUES", "BYTES", "HITS", "MISSES", "LOADS", "EVICTIONS", "REFUSED", "LIMIT", "RESERVE")
        print_table([names, *cells], right=range(1, 10))
    print()
    tell(f"clients ({len(clients)})" if clients else "no clients")
    if clients:
        _print_clients(clients)
    return 0


def share(size: int) -> str:
    """The limit or the reserve of a space or a cache, as text."""
    return format_size(size) if size else "-"


def _sized(space: SpaceStats, stats: PoolStats, name: str) -> str:
    """The name of a space, with its page size if that is not the pool's."""
    return name + (f" ({size_text(space.page_size)})" if space.page_size != stats.page_size else "")


def _client(client: ClientInfo) -> tuple[str, ...]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(client.attached_at))
    program = client.name if client.alive else f"{client.name} (dead)"
    return (
        str(client.client),
        str(client.pid),
        program,
        since,
        f"{client.pins:,}",
        f"{client.pinned_frames:,}",
        (format_size(client.held_bytes) if client.held_bytes else "-"),
        "steward" if client.is_steward else "-",
    )


def _print_clients(clients: list[ClientInfo]) -> None:
    head = ("CLIENT", "PID", "PROGRAM", "ATTACHED", "PINS", "FRAMES PINNED", "VALUES HELD", "ROLE")
    print_table([head, *map(_client, clients)], right=(0, 1, 4, 5, 6))


_OPERATIONS: dict[OperationKind, str] = {
    "load": "loads", "flush": "flushes", "cache_load": "loads of values", "log_sync": "syncs of the log", "save": "saves",
}  # fmt: skip


def _under_way(stats: PoolStats) -> str:
    oldest = max(stats.oldest_operation_s.values())
    waits = f"; one has made no progress for {oldest:.1f} s" if oldest >= LATE_S else ""
    counts = {_OPERATIONS[kind]: n for kind, n in stats.pending_operations.items() if n or kind in ("load", "flush")}
    return ", ".join(f"{n:,} {name}" for name, n in counts.items()) + waits


def _held_back(stats: PoolStats) -> str:
    if not stats.held_back_pages:
        return ""
    return f"; {stats.held_back_pages:,} dirty ones wait for the log, which is durable up to LSN {stats.durable_lsn}"


def _print_stats(stats: PoolStats, unsaved: dict[str, int], max_clients: int) -> None:
    reasons = ", ".join(f"{reason} {format_size(n)}" for reason, n in stats.reclaimed_bytes.items() if n)
    lost = f"{counted(sum(unsaved.values()), 'dirty page')} of files and stores, in memory only until a flush"
    ratio = "no access yet" if math.isnan(stats.hit_ratio) else f"{stats.hit_ratio:.2%}"
    frames, shown = asdict(stats.frames), stats.frames.shown()
    print_table(
        [
            ("name", stats.name),
            (
                "page size",
                f"{stats.page_size} B" + (f", and {len(stats.by_page_size) - 1} more" if stats.by_page_size else ""),
            ),
            (
                "budget",
                f"{format_size(stats.budget_bytes)} of at most {format_size(stats.max_bytes)} (resize: up to {format_size(stats.room_bytes)})",
            ),
            ("resident", f"{stats.resident_bytes:,} B, as the pool counts"),
            ("kernel", f"{stats.kernel_data_bytes:,} B, as st_blocks says, and {stats.metadata_bytes:,} B of metadata"),
            (
                "objects",
                f"{stats.object_bytes:,} B in {counted(len(stats.caches), 'cache')}; {format_size(stats.lent_bytes)} of the budget is lent",
            ),
            ("frames", ", ".join(f"{frames[s]:,} {s}" for s in ("live", "free", "busy", "retired", "hole"))),
            ("live frames", ", ".join(f"{shown[s]:,} {s}" for s in ("clean", "dirty", "pinned")) + _held_back(stats)),
            ("unsaved", lost if unsaved else "nothing: every file and store has the newest pages"),
            ("hit ratio", f"{ratio} ({stats.hits:,} hits, {stats.misses:,} misses)"),
            (
                "loads",
                f"{stats.loads:,}, of them {stats.prefetched:,} read ahead ({stats.prefetched_unused:,} evicted unused); {stats.load_failures:,} failed",
            ),
            ("reclaimed", format_size(stats.reclaimed_total_bytes) + (f" ({reasons})" if reasons else "")),
            ("evictions", f"{stats.evictions_recycled:,} recycled, {stats.evictions_reclaimed:,} reclaimed"),
            ("policy", f"{stats.policy_mode} mode; changed {counted(stats.mode_changes, 'time')}"),
            ("writes", f"{stats.publishes:,} published, {stats.appends:,} appended, {stats.flushed_pages:,} flushed"),
            (
                "flushes",
                f"{stats.flushes:,}, of them {stats.foreground_flushes:,} by a client that needed a frame; {stats.flush_failures:,} failed",
            ),
            ("checksums", f"{stats.corrupt_pages:,} corrupt pages, {stats.repaired_pages:,} repaired"),
            ("under way", _under_way(stats)),
            ("exhausted", f"{counted(stats.exhausted, 'request')} found every frame pinned or dirty"),
            (
                "clients",
                f"{stats.reaped:,} reaped, {stats.refused_clients:,} refused; at most {max_clients:,} at a time",
            ),
        ]
    )


# ---- check ----------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    with attach(args) as pool:
        violations = pool.check()
    if args.json:
        print_json({"name": args.name, "clean": not violations, "violations": violations})
    elif violations:
        tell(f"{args.name}: {len(violations)} violations")
        for violation in violations:
            tell(f"  {violation}")
    else:
        tell(f"{args.name}: clean")
    return 1 if violations else 0


# ---- what is in a pool ---------------------------------------------------------------


def _spaces(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        stats = pool.stats()
        found = stats.spaces
        clients = {size: {c.client: c for c in one.clients()} for size, one in pool.page_sizes().items()}
    if args.json:
        print_json([{**asdict(space), "hit_ratio": hit_ratio(space.hits, space.misses)} for space in found])
        return 0
    rows = [
        (
            _sized(s, stats, s.name), s.kind, _owner(s.owner, clients.get(s.page_size, {})), f"{s.pages:,}", f"{s.resident:,}", f"{s.dirty:,}", f"{s.hits:,}", f"{s.misses:,}",
            "-" if not s.hits + s.misses else f"{hit_ratio(s.hits, s.misses):.2%}", share(s.limit), share(s.reserve),
            s.cache or "-", s.path or "-",
        )
        for s in found
    ]  # fmt: skip
    head = (
        "NAME", "KIND", "OWNER", "PAGES", "RESIDENT", "DIRTY", "HITS", "MISSES", "HIT RATIO", "LIMIT", "RESERVE", "CACHE", "PATH",
    )  # fmt: skip
    print_table([head, *rows], right=range(3, 11), fits=True) if rows else tell("no spaces")
    return 0


def _owner(number: int, clients: dict[int, ClientInfo]) -> str:
    """The client that a private space belongs to, as text; "pool" for a space of the pool."""
    if not number:
        return "pool"
    client = clients.get(number)
    return f"client {number}" if client is None else f"client {number} (pid {client.pid}, {client.name})"


def _clients(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        clients = pool.clients()
    if args.json:
        print_json([asdict(client) for client in clients])
        return 0
    _print_clients(clients) if clients else tell("no process is attached")
    return 0


def _frames(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        found = pool.frames()
        names = {record["index"]: record["name"] for record in pool.seg.spaces()}
    if args.state:
        wanted = {"dirty": found["dirty"], "pinned": found["pins"] > 0}
        found = found[wanted[args.state] if args.state in wanted else found["state"] == FrameState[args.state.upper()]]
    else:
        found = found[(found["state"] != FrameState.HOLE) & (found["state"] != FrameState.FREE)]
    rows: Iterator[dict[str, Any]] = (
        {
            "frame": int(f["frame"]),
            "state": FrameState(int(f["state"])).name.lower(),
            "space": names.get(int(f["space"])),
            "page_no": int(f["page_no"]) if f["page_no"] >= 0 else None,
            "dirty": bool(f["dirty"]),
            "hot": bool(f["hot"]),
            "pins": int(f["pins"]),
            "pinners": int(f["pinners"]),
            "writer": int(f["writer"]) or None,
            "flusher": int(f["flusher"]) or None,
            "lsn": int(f["lsn"]),
            "idle_s": float(f["idle_s"]),
        }
        for f in found[: args.limit]
    )
    if args.json:
        print_json_stream(rows)
        return 0
    head = ("FRAME", "STATE", "SPACE", "PAGE", "DIRTY", "RING", "PINS", "LSN", "IDLE")
    cells = [
        (
            str(r["frame"]), r["state"], r["space"] or "-", "-" if r["page_no"] is None else str(r["page_no"]),
            "dirty" if r["dirty"] else "", ("hot" if r["hot"] else "cold") if r["state"] == "live" else "",
            str(r["pins"] or ""), str(r["lsn"] or ""), _span(r["idle_s"]),
        )
        for r in rows
    ]  # fmt: skip
    print_table([head, *cells], right=(0, 3, 6, 7, 8))
    if len(found) > args.limit:
        tell(f"... and {len(found) - args.limit:,} more (--limit)")
    return 0


def _span(seconds: float) -> str:
    """A time span in its largest unit."""
    if math.isnan(seconds):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _extents(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        found = pool.extents()
    rows = [{name: int(extent[name]) for name in pool_stats.EXTENT.names or ()} for extent in found]
    if args.json:
        print_json(rows)
        return 0
    head = tuple(name.upper() for name in pool_stats.EXTENT.names or ())
    print_table([head, *(tuple(str(n) for n in row.values()) for row in rows)], right=range(len(head)))
    return 0


_INNER = ("origin", "cache_number")  # of an operation: numbers that only the pool knows


def _operations(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        found = pool.operations()
        names = {client.pid: client.name for one in pool.page_sizes().values() for client in one.clients()}
    if args.json:
        print_json(
            [{name: value for name, value in asdict(one).items() if name not in _INNER} for one in found],
        )
        return 0
    rows = [
        (
            one.kind.replace("_", " "), one.space or one.cache or "-",
            one.key or "-" if one.page_no is None else str(one.page_no), str(one.client), str(one.pid),
            names.get(one.pid, "-"), _span(one.seconds),
        )
        for one in found
    ]  # fmt: skip
    head = ("WHAT", "SPACE OR CACHE", "PAGE OR KEY", "CLIENT", "PID", "PROGRAM", "WAITS FOR")
    print_table([head, *rows], right=(3, 4, 6)) if rows else tell("nothing is under way that could hang")
    return 0


def _pins(args: argparse.Namespace) -> int:
    """Lists the pins. Pinning a page counts as a use of it, so the newest pin is as old as the page's last use."""
    with observe(args) as pool:
        sizes = list(pool.page_sizes().values())
        records = [record for one in sizes for record in one.seg.spaces()]
        # Several clients may have private spaces of the same name.
        asked = [r for r in records if r["name"] == args.space]
        if args.space is not None and not asked:
            raise BufferPoolError(
                f"{args.name} has no space {args.space!r}; it has {sorted(r['name'] for r in records)}"
            )
        most = max((r["pages"] for r in asked), default=0)
        if args.page is not None and not 0 <= args.page < most:
            raise PageOutOfRange(f"{args.space!r} has {counted(most, 'page')}, numbered from 0")
        rows = [row for one in sizes for row in _pins_of(one, args.space, args.page)]
    if args.json:
        print_json(rows)
    elif not rows:
        tell("no client pins it" if args.page is not None else "nothing is pinned")
    else:
        head = ("SPACE", "PAGE", "VERSION", "PINS", "CLIENT", "PID", "PROGRAM", "LAST PINNED")
        cells = [
            (
                r["space"] or "-", str(r["page_no"]), "newest" if r["version"] == "live" else "superseded",
                str(r["pins"]), str(r["client"]), str(r["pid"]), r["program"] + ("" if r["alive"] else " (dead)"),
                "-" if r["pinned_s"] is None else _span(r["pinned_s"]),
            )
            for r in rows
        ]  # fmt: skip
        print_table([head, *cells], right=(1, 3, 4, 5, 7))
    return 0


def _pins_of(pool: Observer, space: str | None, page_no: int | None) -> list[dict[str, Any]]:
    """The pins of pages of one size."""
    records, counts, frames = pool.seg.spaces(), pool_stats.read_pins(pool), pool.frames()
    clients = {client.client: client for client in pool.clients()}
    names = {record["index"]: record["name"] for record in records}
    wanted = frames["pins"][: len(counts)] > 0
    if space is not None:
        wanted &= np.isin(frames["space"][: len(counts)], [r["index"] for r in records if r["name"] == space])
    if page_no is not None:
        wanted &= frames["page_no"][: len(counts)] == page_no
    rows: list[dict[str, Any]] = []
    for f in np.flatnonzero(wanted):
        for c in np.flatnonzero(counts[f]):
            client = clients.get(int(c) + 1)
            if client is not None:
                idle = float(frames[f]["idle_s"])
                rows.append(
                    {
                        "space": names.get(int(frames[f]["space"])),
                        "page_no": int(frames[f]["page_no"]),
                        "version": FrameState(int(frames[f]["state"])).name.lower(),
                        "pins": int(counts[f, c]),
                        "client": client.client,
                        "pid": client.pid,
                        "program": client.name,
                        "alive": client.alive,
                        "pinned_s": None if math.isnan(idle) else idle,
                    }
                )
    return rows


def _events(args: argparse.Namespace) -> int:
    with observe(args) as pool:
        found, uuid = pool.events(), pool.uuid
    last = max((event.number for event in found), default=0)
    found = [event for event in found if event.time >= args.since]
    found = found[max(0, len(found) - args.limit) :]
    if args.json and not args.follow:
        print_json([fields_of(event) for event in found])
        return 0
    _print_events(found, args.json)
    while args.follow:
        time.sleep(FOLLOW_S)
        with observe(args) as pool:
            if pool.uuid != uuid:  # another pool of this name
                uuid, last = pool.uuid, 0
            found = [event for event in pool.events() if event.number > last]
        last = max((event.number for event in found), default=last)
        _print_events(found, args.json)
    return 0


def _print_events(found: list[Event], js: bool) -> None:
    for event in found:
        if js:
            print(json_line(fields_of(event)), flush=True)
        else:
            tell(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event.time))}  {event}")


def _top(args: argparse.Namespace) -> int:
    try:
        from bufferpool.cli.top.app import Top
    except ImportError as error:
        raise BufferPoolError("top needs the library textual: pip install textual") from error
    if args.name is not None:
        with observe(args):  # so that errors appear before the screen is switched
            pass
    else:
        list(segment_file.find(args.directory))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BufferPoolError("top needs a terminal; bufferpool stat, spaces and clients print the figures")
    Top(args.name, args.directory, args.interval).run()
    return 0


def register(commands: Commands) -> None:
    """Adds these commands."""
    top = commands.add(
        "top", _top, "watch a pool, live, on the whole screen",
        "Memory by state, the working set by age, rates, spaces, clients, events. Keys: a for all pools, right and left\n"
        "for other ones, s sorts the spaces, t trims, r resizes, f flushes, q quits.\n\nexamples:\n  bufferpool top\n  bufferpool top orders --interval 0.5",
        pool=False, js=False,
    )  # fmt: skip
    top.add_argument("name", metavar="NAME", nargs="?", type=pool_name, help="the pool (default: all of them)")
    top.add_argument(
        "--interval", type=interval, default=1.0, metavar="S", help="seconds between two updates (default: %(default)s)"
    )
    commands.add(
        "ls", _ls, "list the pools",
        "RESIDENT is what the pool counts for its pages. UNSAVED counts dirty pages of files and stores: they are in\n"
        "memory only until a flush. KERNEL is st_blocks of the whole file, metadata included. (ls -l shows\n"
        "the size that the file could grow to: the file is sparse.) A pool that cannot be read is listed with the reason.\n\nexample:\n"
        "  bufferpool ls --json | jq '.[] | select(.clients == 0) | .name'",
        pool=False,
    )  # fmt: skip
    commands.add(
        "stat", _stat, "show the figures of one pool",
        "Counters run since the pool was created, over all its clients.\n\n"
        "examples:\n  bufferpool stat orders\n  bufferpool stat orders --json | jq .hit_ratio",
    )  # fmt: skip
    commands.add(
        "spaces", _spaces, "show the spaces of a pool",
        "CACHE: whether the kernel's page cache keeps the pages of a file too. PATH: of a file, shortened on a terminal that\n"
        "is too narrow for it.\n\nexample:\n  bufferpool spaces orders",
    )  # fmt: skip
    commands.add(
        "clients",
        _clients,
        "show the attached clients, and how much each pins",
        "example:\n  bufferpool clients orders",
    )
    commands.add(
        "operations", _operations, "show what is under way in stores, loaders and the log, and what of it hangs",
        "Loads and flushes of pages, loads of values of caches, syncs of the engine's log, saves of the working set.\n"
        "WAITS FOR: the time since it began, or since a page of it was last claimed or published. The one that has waited\n"
        "longest comes first: a store that hangs.\n\nexample:\n  bufferpool operations orders",
    )  # fmt: skip
    pins = commands.add(
        "pins", _pins, "show which clients pin which pages",
        "A pinned page is not evicted, and a superseded version is kept while a client pins it. LAST PINNED: the time since\n"
        "any client last pinned the page, which is no age of a pin: a leak of a page that others use looks young. A leak is\n"
        "a client whose number of pins (bufferpool clients) keeps its value, or only grows, between two runs a minute apart.\n\nexamples:\n  bufferpool pins orders\n  bufferpool pins orders orders.db 42",
    )  # fmt: skip
    pins.add_argument("space", metavar="SPACE", nargs="?", help="only pages of this space")
    pins.add_argument("page", metavar="PAGE", nargs="?", type=int, help="only this page")
    frames = commands.add(
        "frames", _frames, "show what is in each frame",
        "Free frames and holes are left out unless asked for. IDLE: the time since the page's last use.\n\n"
        "examples:\n  bufferpool frames orders --state dirty\n  bufferpool frames orders --limit 1000000 --json",
    )  # fmt: skip
    frames.add_argument(
        "--state", choices=[*(s.name.lower() for s in FrameState), "dirty", "pinned"], help="only these"
    )
    frames.add_argument("--limit", type=count, default=100, metavar="N", help="at most N frames (default: %(default)s)")
    commands.add(
        "extents", _extents, "show how full each extent is",
        "An extent is the unit in which memory is given back to the kernel; an extent of holes has no memory.\n\n"
        "example:\n  bufferpool extents orders",
    )  # fmt: skip
    events = commands.add(
        "events", _events, "show the decisions about the memory of a pool, with their reasons",
        "The pool keeps the last thousand or so. With --follow, --json prints one object a line; the command ends with an\n"
        "error once the pool has been removed.\n\n"
        "examples:\n  bufferpool events orders --since 2h\n  bufferpool events orders --follow --json | jq .text",
    )  # fmt: skip
    events.add_argument("--follow", action="store_true", help="wait for more events, and print them as they come")
    events.add_argument(
        "--since",
        type=since,
        default=0.0,
        metavar="TIME",
        help="only younger ones: 90 (seconds), 15m, 2h, 1d, or a date",
    )
    events.add_argument("--limit", type=count, default=1024, metavar="N", help="the last N (default: all)")
    commands.add(
        "check", _check, "check every invariant of a pool, while other processes use it",
        "Exits with 1 if an invariant is violated, and names it. Reaps dead clients first.\n\n"
        "example:\n  bufferpool check orders && echo sound",
    )  # fmt: skip
