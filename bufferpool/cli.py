"""The command ``bufferpool``: look at pools, remove them, try one out, examine the machine."""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import bufferpool
from bufferpool import doctor, segment
from bufferpool.errors import BufferPoolError, SegmentNotFound, SegmentRefused
from bufferpool.inspect import ClientInfo, PoolStats
from bufferpool.pool import Pool
from bufferpool.replay import DEMO_REPEAT, Options, ReplayStopped, replay
from bufferpool.sizes import format_size, parse_size

_DEMO = Options(repeat=DEMO_REPEAT)
_PLAIN = argparse.RawDescriptionHelpFormatter

_ABOUT = """\
A pool is one file in /dev/shm that any number of processes share. It stays
when they end, so that the next one finds its pages warm: these commands show
what is there, say whether it is sound, and remove it.
"""
_EXAMPLES = """\
examples:
  bufferpool replay --demo            see a pool at work, on a real trace
  bufferpool doctor                   does this machine have what a pool needs?
  bufferpool ls                       every pool: its memory, its clients, its state
  bufferpool stat orders              one pool: hits, misses, memory, clients, spaces
  bufferpool check orders             every invariant of a pool, while others use it
  bufferpool rm orders                give all its memory back

exit codes: 0 all is well; 1 something failed, or was found wrong; 2 wrong usage
"""


# ---- output ------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN is null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _print_table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Columns, aligned; those in ``right`` to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers = set(right)
    for row in rows:
        cells = [
            cell.rjust(w) if i in numbers else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _others(pool: Pool) -> list[ClientInfo]:
    """The clients but for the one that this handle is: the last of this process."""
    clients = pool.clients()
    me = max((c for c in clients if c.pid == os.getpid()), key=lambda c: c.attached_at, default=None)
    return [c for c in clients if c != me]


# ---- ls -----------------------------------------------------------------------------


def _row(found: segment.Found, directory: str | None) -> dict[str, Any]:
    """One pool for ``ls``; what cannot be read of it is None."""
    row: dict[str, Any] = {
        "name": os.path.basename(found.path),
        "page_size": None,
        "resident_bytes": None,
        "budget_bytes": None,
        "clients": None,
        "kernel_bytes": found.kernel_bytes,
        "trouble": found.trouble,
    }
    if found.trouble:
        return row
    if found.owner != os.geteuid():
        return {**row, "trouble": f"belongs to user {found.owner}: not opened"}
    try:
        with Pool.attach(row["name"], directory=directory) as pool:
            stats = pool.stats()
            return {
                **row,
                "page_size": stats.page_size,
                "resident_bytes": stats.resident_bytes,
                "budget_bytes": stats.budget_bytes,
                "clients": len([c for c in _others(pool) if c.alive]),
                "kernel_bytes": stats.kernel_bytes,
            }
    except BufferPoolError as error:
        return {**row, "trouble": f"{type(error).__name__}: {error}"}


def _ls(args: argparse.Namespace) -> int:
    rows = [_row(found, args.directory) for found in segment.find(args.directory)]
    if args.json:
        _print_json(rows)
        return 0
    if not rows:
        print(f"no pools in {args.directory or segment.SHM}")
        return 0

    def cell(value: int | None, form: Callable[[float], str]) -> str:
        return "-" if value is None else form(value)

    table = [("NAME", "PAGE", "RESIDENT", "BUDGET", "CLIENTS", "KERNEL", "STATE")]
    for row in rows:
        table.append(
            (
                row["name"],
                cell(row["page_size"], str),
                cell(row["resident_bytes"], format_size),
                cell(row["budget_bytes"], format_size),
                cell(row["clients"], str),
                format_size(row["kernel_bytes"]),
                row["trouble"] or ("in use" if row["clients"] else "nobody attached"),
            )
        )
    _print_table(table, right=range(1, 6))
    return 0


# ---- stat ---------------------------------------------------------------------------


def _stat(args: argparse.Namespace) -> int:
    with Pool.attach(args.name, directory=args.directory) as pool:
        stats, clients = pool.stats(), _others(pool)
    if args.json:
        about = {**asdict(stats), "clients": [asdict(client) for client in clients]}
        derived = ("hit_ratio", "kernel_data_bytes", "reclaimed_total_bytes")
        _print_json({**about, **{name: getattr(stats, name) for name in derived}})
        return 0
    _print_stats(stats)
    if stats.spaces:
        print("\nspaces")
        rows = [(s.name, s.kind, f"{s.pages:,}", f"{s.hits:,}", f"{s.misses:,}") for s in stats.spaces]
        _print_table([("NAME", "KIND", "PAGES", "HITS", "MISSES"), *rows], right=(2, 3, 4))
    print(f"\nclients ({len(clients)})" if clients else "\nno clients")
    if clients:
        head = ("CLIENT", "PID", "PROGRAM", "ATTACHED", "PINS", "FRAMES PINNED")
        _print_table([head, *map(_client, clients)], right=(0, 1, 4, 5))
    return 0


def _client(client: ClientInfo) -> tuple[str, ...]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(client.attached_at))
    program = client.name if client.alive else f"{client.name} (dead)"
    return str(client.client), str(client.pid), program, since, f"{client.pins:,}", f"{client.pinned_frames:,}"


def _print_stats(stats: PoolStats) -> None:
    reasons = ", ".join(f"{reason} {format_size(n)}" for reason, n in stats.reclaimed_bytes.items() if n)
    ratio = "no access yet" if math.isnan(stats.hit_ratio) else f"{stats.hit_ratio:.2%}"
    frames = stats.frames
    _print_table(
        [
            ("name", stats.name),
            ("page size", f"{stats.page_size} B"),
            ("budget", f"{format_size(stats.budget_bytes)} of at most {format_size(stats.max_bytes)}"),
            ("resident", f"{stats.resident_bytes:,} B, as the pool counts"),
            ("kernel", f"{stats.kernel_data_bytes:,} B, as st_blocks says, and {stats.metadata_bytes:,} B of metadata"),
            ("frames", ", ".join(f"{frames[s]:,} {s}" for s in ("live", "free", "busy", "old", "hole"))),
            ("live frames", ", ".join(f"{frames[s]:,} {s}" for s in ("clean", "dirty", "pinned"))),
            ("hit ratio", f"{ratio} ({stats.hits:,} hits, {stats.misses:,} misses)"),
            ("reclaimed", format_size(stats.reclaimed_total_bytes) + (f" ({reasons})" if reasons else "")),
            ("evictions", f"{stats.evictions_recycled:,} recycled, {stats.evictions_reclaimed:,} reclaimed"),
            ("writes", f"{stats.publishes:,} published, {stats.appends:,} appended, {stats.flushed_pages:,} flushed"),
            ("flushes", f"{stats.flushes:,}, of them {stats.foreground_flushes:,} by a client that needed room"),
            ("clients reaped", f"{stats.reaped:,}"),
        ]
    )


# ---- check, rm ----------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    with Pool.attach(args.name, directory=args.directory) as pool:
        violations = pool.check()
    if args.json:
        _print_json({"name": args.name, "clean": not violations, "violations": violations})
    elif violations:
        print(f"{args.name}: {len(violations)} violations", *violations, sep="\n  ")
    else:
        print(f"{args.name}: clean")
    return 1 if violations else 0


def _rm(args: argparse.Namespace) -> int:
    failed = 0
    for name in args.name:
        try:
            print(_remove(segment.path_of(name, args.directory), args.force))
        except (BufferPoolError, OSError) as error:
            _complain(error)
            failed = 1
    return failed


def _remove(path: str, force: bool) -> str:
    """Removes one pool, whatever its condition; says what came free."""
    name = os.path.basename(path)
    found = next((f for f in segment.find(os.path.dirname(path)) if f.path == path), None)
    if found is None:
        if os.path.lexists(path):
            raise SegmentRefused(f"{path} is no pool, or not yours to read; if it is to go, use rm {path}")
        raise SegmentNotFound(f"there is no pool {path}; bufferpool ls shows what is there")
    used = doctor.in_use(path)
    if used and not force:
        raise SegmentRefused(
            f"{name!r} is in use by living processes (bufferpool stat {name} names them): end them first, or use --force"
        )
    segment.unlink(path)
    if used:
        return f"{name}: removed; its {format_size(found.kernel_bytes)} come free when the last process that is attached ends"
    return f"{name}: removed, {format_size(found.kernel_bytes)} ({found.kernel_bytes:,} B) freed"


# ---- replay, doctor -----------------------------------------------------------------


def _replay(args: argparse.Namespace) -> int:
    if args.demo == (args.trace is not None):
        args.parser.error("give a TRACE, or --demo for the one that ships with bufferpool")
    names = ("trace", "capacity", "processes", "page_size", "writes", "limit", "seed", "directory", "temp")
    given = {name: getattr(args, name) for name in names}
    try:
        options = Options(**given, repeat=args.repeat or (_DEMO.repeat if args.demo else 1))
    except ValueError as error:
        args.parser.error(str(error))
    if args.demo:
        print("demo: TPC-C on SQLite, 400,000 page accesses, replayed", options.repeat, "times")
    print(replay(options, sys.stdout).table())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    findings = []
    for finding in doctor.examine(args.directory):
        findings.append(finding)
        if not args.json:
            print(f"{finding.level:<4}  {finding.what:<14}  {finding.text}")
            if finding.remedy:
                print(f"{'':22}-> {finding.remedy}")
    if args.json:
        _print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.level is doctor.Level.FAIL for finding in findings) else 0


# ---- arguments ----------------------------------------------------------------------


def _name(text: str) -> str:
    try:
        segment.path_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_replay(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser(
        "replay",
        help="replay a trace of page accesses through a pool, everything verified",
        description="Builds a file with one stamped page for every page of the trace, replays the trace through one\n"
        "pool with several processes, verifies every page that is read, halves the budget on the way and\n"
        "restores it, and compares what the pool counts with what the kernel says. Leaves nothing behind.",
        epilog="examples:\n  bufferpool replay --demo\n"
        "  bufferpool replay trace.npy --capacity 64MiB --processes 4 --page-size 8192 --writes 0.1\n\n"
        "TRACE is a .npy file with one row of integers, the page number of each access in order, or an\n"
        ".npz file with such an array named 'pages'.",
        formatter_class=_PLAIN,
    )
    sub.add_argument("trace", nargs="?", metavar="TRACE", help="the trace: .npy or .npz")
    sub.add_argument("--demo", action="store_true", help="use the trace that ships with bufferpool (TPC-C on SQLite)")
    sub.add_argument(
        "--capacity", type=_size, metavar="SIZE", help="the pool's budget (default: a quarter of the file)"
    )
    sub.add_argument(
        "--processes", type=int, default=_DEMO.processes, metavar="N", help="workers (default: %(default)s)"
    )
    sub.add_argument(
        "--page-size",
        type=_size,
        default=_DEMO.page_size,
        metavar="BYTES",
        help="a power of two (default: %(default)s)",
    )
    sub.add_argument(
        "--writes",
        type=float,
        default=_DEMO.writes,
        metavar="SHARE",
        help="share of writes, 0 to 1 (default: %(default)s)",
    )
    sub.add_argument(
        "--repeat", type=int, metavar="N", help=f"passes over the trace (default: 1; {_DEMO.repeat} for the demo)"
    )
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N accesses of the trace")
    sub.add_argument("--seed", type=int, default=_DEMO.seed, help="which accesses write (default: %(default)s)")
    sub.add_argument(
        "--temp", metavar="DIR", help="where to build the file (default: the system's temporary directory)"
    )
    sub.set_defaults(run=_replay, parser=sub)
    _add_directory(sub)


def _add_directory(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--directory", metavar="DIR", help="the tmpfs that holds the pools (default: /dev/shm)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bufferpool", description=_ABOUT, epilog=_EXAMPLES, formatter_class=_PLAIN)
    parser.add_argument("--version", action="version", version=f"bufferpool {bufferpool.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str, epilog: str, js: bool = True) -> Any:
        text = about[0].upper() + about[1:] + "."
        sub = commands.add_parser(name, help=about, description=text, epilog=epilog, formatter_class=_PLAIN)
        sub.set_defaults(run=run)
        _add_directory(sub)
        if js:
            sub.add_argument("--json", action="store_true", help="print JSON; sizes are bytes")
        return sub

    add("ls", _ls, "list the pools", "RESIDENT is what the pool counts for its pages; KERNEL is st_blocks of the whole\nfile, metadata included. A damaged pool is listed with its trouble.\n\nexample:\n  bufferpool ls --json | jq '.[] | select(.clients == 0) | .name'")  # fmt: skip
    add("stat", _stat, "show the figures of one pool", "Counters run since the pool was created, over all its clients.\n\nexamples:\n  bufferpool stat orders\n  bufferpool stat orders --json | jq .hit_ratio").add_argument("name", metavar="NAME", type=_name)  # fmt: skip
    add("check", _check, "check every invariant of a pool, while others use it", "Exits with 1 if any is violated, and says which. Ends the business of clients that died first.\n\nexample:\n  bufferpool check orders && echo sound").add_argument("name", metavar="NAME", type=_name)  # fmt: skip
    rm = add("rm", _rm, "remove pools and free their memory", "Pages that were written and not flushed are lost. A pool with living clients is kept,\nunless forced: then they go on with what they have, and new ones do not find it.\n\nexamples:\n  bufferpool rm orders\n  bufferpool rm --force orders tiles", js=False)  # fmt: skip
    rm.add_argument("name", metavar="NAME", nargs="+", type=_name)
    rm.add_argument("--force", action="store_true", help="even if processes are attached")
    _add_replay(commands)
    add("doctor", _doctor, "examine the machine: what a pool needs, and what to do about what is missing", "OK is fine; WARN works, but read it; FAIL must be seen to (exit code 1).\n\nexample:\n  bufferpool doctor --directory /mnt/pools")  # fmt: skip
    return parser


def _complain(error: Exception) -> None:
    print(f"bufferpool: {error}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 for a failure, 128 + n after signal n.

    Wrong usage ends in SystemExit(2), as argparse has it.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ReplayStopped as stopped:
        _complain(stopped)
        return 128 + stopped.signal
    except (BufferPoolError, OSError) as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
