"""``bufferpool advise``: the hit ratio that a pool would have with another budget."""

import argparse
import time
from dataclasses import asdict

from bufferpool.cli.common import Commands, observe, print_json, print_table, tell
from bufferpool.figures.advice import FORMATS, Advice, plot
from bufferpool.figures.cache_advice import CacheAdvice
from bufferpool.printable import printable
from bufferpool.units import format_size


def _read(args: argparse.Namespace) -> tuple[Advice, tuple[CacheAdvice, ...]]:
    """Reads the advice. An observer takes no lock, so while clients update the simulations it tries again."""
    with observe(args) as pool:
        for _ in range(20):
            advice = pool.advise()
            if advice.resets:  # 0: no client has begun, or clients updated the simulations during the read
                break
            time.sleep(0.01)
        return advice, pool.advise_caches()


def _rows(advice: Advice) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("BUDGET", "FRAMES", "HIT RATIO", "MISSES/S", "")]
    for p in advice.points:
        now = "<- now" if p is advice.present else ""
        size = format_size(p.budget_bytes)
        rows.append((size, f"{p.budget_frames:,}", f"{p.hit_ratio:.2%}", f"{p.misses_per_s:,.0f}", now))
    return rows


def _advise(args: argparse.Namespace) -> int:
    if args.plot and not args.plot.lower().endswith(FORMATS):
        args.parser.error(f"--plot draws {', '.join(FORMATS)}, not {args.plot!r}")
    advice, caches = _read(args)
    if args.plot:
        plot(advice, args.plot, f"pool {args.name}: hit ratio by budget")
    if args.json:
        print_json(asdict(advice) | {"caches": [asdict(cache) for cache in caches]})
    elif advice.points:
        one_in = 1 / advice.sampling_rate
        print(f"{advice.references_per_s:,.0f} references a second; one page in {one_in:.0f} is simulated\n")
        print_table(_rows(advice), right=range(4))
    else:
        tell(f"{args.name}: too few references to pages yet for advice")
    for cache in () if args.json else caches:
        _tell_cache(cache)
    return 0


def _tell_cache(cache: CacheAdvice) -> None:
    """Prints the advice for a cache."""
    if not cache.points:
        tell(f"cache {printable(cache.name)}: too few uses yet for advice ({cache.uses})")
        return
    print(
        f"\ncache {printable(cache.name)}: {cache.uses:,} uses of one key in {1 / cache.sampling_rate:.0f} are simulated\n"
    )
    rows: list[tuple[str, ...]] = [("BYTES", "HIT RATIO", "OF BYTES", "")]
    for p in cache.points:
        now = "<- now" if p.bytes == cache.bytes else ""
        rows.append((format_size(p.bytes), f"{p.hit_ratio:.2%}", f"{p.byte_hit_ratio:.2%}", now))
    print_table(rows, right=range(3))
    if cache.large > 0.05:
        print(f"values with {cache.large:.0%} of the bytes are too large for the sample, and count as misses")


def register(commands: Commands) -> None:
    """Adds this command."""
    sub = commands.add(
        "advise", _advise, "show what the hit ratio would be with less or more memory",
        "The figures come from simulations that the pool runs all the time, over a sample of its recent references.\n\n"
        "examples:\n  bufferpool advise orders\n  bufferpool advise orders --plot orders.png",
    )  # fmt: skip
    sub.add_argument("--plot", metavar="FILE", help="also draw the curve: .png, .svg or .pdf (needs matplotlib)")
