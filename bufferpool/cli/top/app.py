"""``bufferpool top``: shows a pool, live, on the whole screen. It needs the extra ``top`` (textual)."""

import math
import os
from collections.abc import Callable
from contextlib import suppress

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, Static

from bufferpool.cli import colours
from bufferpool.cli.top.figures import PARTS, Snapshot, bar, brief, legend, memory_parts, rate, read_snapshot, short
from bufferpool.cli.top.pools import Pools
from bufferpool.client import segment_file
from bufferpool.errors import BufferPoolError, SegmentError, SegmentNotFound
from bufferpool.figures.names import hit_ratio
from bufferpool.figures.operations import LATE_S
from bufferpool.pool import Pool
from bufferpool.printable import printable
from bufferpool.units import counted, format_size, parse_size


def _descending(figure: float) -> float:
    """A key that puts large figures first; a space without references has no hit ratio and comes last."""
    return math.inf if math.isnan(figure) else -figure


CACHE_COLUMNS = (
    "CACHE",
    "VALUES",
    "BYTES",
    "HITS/S",
    "MISSES/S",
    "HIT RATIO",
    "LOADS/S",
    "EVICTED/S",
    "LIMIT",
    "RESERVE",
)
SPACE_COLUMNS = ("NAME", "KIND", "PAGES", "RESIDENT", "DIRTY", "HITS/S", "MISSES/S", "HIT RATIO", "LIMIT", "RESERVE")


class Ask(ModalScreen[str | None]):
    """A dialog with one question and one line for the answer; Escape cancels it."""

    CSS = (
        "Ask { align: center middle; } Ask > Vertical { width: 60; height: auto; border: round $accent; padding: 0 1; }"
    )
    BINDINGS = [Binding("escape", "dismiss(None)", "cancel")]  # noqa: RUF012 - as textual declares it

    def __init__(self, question: str, value: str) -> None:
        super().__init__()
        self.question, self.value = question, value

    def compose(self) -> ComposeResult:
        """Makes the question and the input line."""
        with Vertical():
            yield Label(Text(printable(self.question)))  # not markup: the pool's name is in it
            yield Input(self.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Closes the dialog with the answer."""
        self.dismiss(event.value)


class Top(App[None]):
    """The application: one pool on the whole screen."""

    CSS = """
    #head { height: 1; text-style: bold; }
    #memory { height: 2; }
    #rates { height: 1; }
    #ages { height: 2; }
    .title { height: 1; color: $accent; text-style: bold; }
    #spaces { height: 1fr; max-height: 12; min-height: 3; }
    #caches { height: auto; max-height: 8; display: none; }
    #hangs { height: auto; max-height: 3; display: none; color: $error; }
    #clients { height: 1fr; max-height: 12; min-height: 3; }
    #events { height: 1fr; min-height: 3; overflow: hidden; }
    DataTable { scrollbar-size-vertical: 1; }
    """
    BINDINGS = [  # noqa: RUF012
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("right,n", "pool(1)", "next"),
        Binding("left,p", "pool(-1)", "previous", show=False),
        Binding("a", "all", "all pools"),
        Binding("s", "sort", "sort"),
        Binding("t", "trim", "trim"),
        Binding("r", "resize", "resize"),
        Binding("f", "flush", "flush"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, name: str | None, directory: str | None, interval: float) -> None:
        super().__init__()
        self.pool_directory, self.interval = directory, interval
        self.wanted, self.sort_by = name, 0
        self.last: Snapshot | None = None
        self.before: Snapshot | None = None
        """The snapshot before the last, of the same pool."""

    # ---- life ------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Makes the parts of the screen, from top to bottom."""
        for name in ("head", "hangs", "memory", "rates", "ages"):
            yield Static(id=name)
        yield Static("spaces", id="spaces-title", classes="title")
        yield DataTable(id="spaces", cursor_type="none", show_cursor=False)
        yield DataTable(id="caches", cursor_type="none", show_cursor=False)
        yield Static("clients", classes="title")
        yield DataTable(id="clients", cursor_type="none", show_cursor=False)
        yield Static("latest events", classes="title")
        yield Static(id="events")
        yield Footer()

    def on_mount(self) -> None:
        """Makes the columns, and starts the timer."""
        self.query_one("#spaces", DataTable).add_columns(*SPACE_COLUMNS)
        self.query_one("#caches", DataTable).add_columns(*CACHE_COLUMNS)
        self.query_one("#clients", DataTable).add_columns(
            "CLIENT", "PID", "PROGRAM", "PINS", "FRAMES PINNED", "VALUES HELD", "ROLE"
        )
        several = self.wanted is None and len(self.names()) > 1
        self.refresh_screen()
        if several:
            self.action_all()
        self.set_interval(self.interval, self.refresh_screen)

    def names(self) -> list[str]:
        """The names of the pools that can be read."""
        with suppress(SegmentError):  # the directory was removed: the next refresh shows the error
            return sorted(os.path.basename(f.path) for f in segment_file.find(self.pool_directory) if not f.trouble)
        return []

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While the list of all pools is shown, the keys of the pool below it are disabled."""
        return action == "quit" or not isinstance(self.screen, Pools)

    # ---- actions -----------------------------------------------------------------------

    def action_pool(self, step: int) -> None:
        """Shows the next pool, or the previous one."""
        names = self.names()
        if names:
            self.wanted = names[(names.index(self.wanted) + step) % len(names)] if self.wanted in names else names[0]
        self.last = None
        self.refresh_screen()

    def action_all(self) -> None:
        """Shows the list of all pools."""

        def chosen(name: str | None) -> None:
            if name is not None:
                self.wanted, self.last = name, None
            self.refresh_screen()

        self.push_screen(Pools(self.pool_directory, self.interval), chosen)

    def action_sort(self) -> None:
        """Sorts the spaces by the next column."""
        self.sort_by = (self.sort_by + 1) % len(SPACE_COLUMNS)
        if self.last is not None:
            self._show_spaces(self.last)

    def action_trim(self) -> None:
        """Asks for a number of bytes, and trims."""
        self._ask(f"give back of {self.wanted}, coldest pages first:", "16MiB", lambda pool, n: pool.trim(n))

    def action_resize(self) -> None:
        """Asks for a budget, and resizes the pool."""
        value = format_size(self.last.stats.budget_bytes).replace(" ", "") if self.last else "64MiB"
        self._ask(f"new budget of {self.wanted}:", value, lambda pool, n: pool.resize(n, timeout=1.0))

    def action_flush(self) -> None:
        """Flushes the pool."""
        self._do(lambda pool: f"{counted(pool.flush(), 'page')} written")

    def _ask(self, question: str, value: str, act: Callable[[Pool, int], int]) -> None:
        def answered(text: str | None) -> None:
            if text:
                self._do(lambda pool: f"{format_size(act(pool, parse_size(text)))} given back")

        self.push_screen(Ask(question, value), answered)

    def _do(self, act: Callable[[Pool], str]) -> None:
        """Runs an action on the pool, attached to it as a client meanwhile."""
        if self.wanted is None:
            return
        try:
            with Pool.attach(self.wanted, directory=self.pool_directory) as pool:
                self.notify(printable(act(pool)), markup=False)
        except (BufferPoolError, ValueError, OSError) as error:
            self.notify(printable(error), markup=False, severity="error", timeout=8)
        self.refresh_screen()

    # ---- what is shown -------------------------------------------------------------------

    def refresh_screen(self) -> None:
        """Reads the pool and shows its figures, or the error."""
        if not self.query("#head"):  # the application is ending
            return
        try:
            if self.wanted is None:
                self.wanted = next(iter(self.names()), None)
            if self.wanted is None:
                raise SegmentNotFound(f"no pools in {self.pool_directory or segment_file.SHM}")
            now = read_snapshot(self.wanted, self.pool_directory)
        except (BufferPoolError, OSError) as error:
            self._show_nothing(Text(printable(error), "red"))
            return
        self.before = self.last if self.last is not None and self.last.uuid == now.uuid else None
        self.last = now
        self._show(now)

    def on_resize(self) -> None:
        """Draws the figures anew for the new size, the first one too, without another look at the pool."""
        self.call_after_refresh(self._show_last)

    def _show_last(self) -> None:
        if self.last is not None and self.query("#head"):
            self._show(self.last)

    def _show(self, now: Snapshot) -> None:
        self._show_memory(now)
        self._show_rates(now)
        self._show_hanging(now)
        self._show_spaces(now)
        self._show_caches(now)
        self._show_clients(now)
        room = max(1, self.query_one("#events").size.height)
        events = Text("\n".join(map(printable, reversed(now.events[-room:]))), no_wrap=True, overflow="ellipsis")
        self.query_one("#events", Static).update(events)

    def _show_nothing(self, why: Text) -> None:
        """Shows why a pool cannot be read, and clears its last figures, which are no longer true."""
        self.last = self.before = None
        self.query_one("#head", Static).update(why)
        for name in ("memory", "rates", "ages", "events"):
            self.query_one(f"#{name}", Static).update("")
        for name in ("spaces", "caches", "clients"):
            self.query_one(f"#{name}", DataTable).clear()
        for name in ("hangs", "caches"):
            self.query_one(f"#{name}").display = False

    def _show_memory(self, now: Snapshot) -> None:
        stats, width = now.stats, max(10, self.query_one("#memory").size.width)
        self.query_one("#head", Static).update(
            Text(
                f"{printable(stats.name)}  {brief(stats.resident_bytes)} of {brief(stats.budget_bytes)} budget "
                f"({brief(stats.min_bytes)} to {brief(stats.max_bytes)})  kernel {brief(stats.kernel_bytes)}"
                + (f"  caches {brief(stats.object_bytes)}" if stats.caches else ""),
                no_wrap=True,
                overflow="ellipsis",
            )
        )
        parts = memory_parts(stats)
        text = bar([(float(parts[name]), colour) for name, colour in PARTS], width)
        text.append("\n")
        text.append(legend([(name, colour, brief(parts[name])) for name, colour in PARTS if parts[name]]))
        self.query_one("#memory", Static).update(text)
        ages = [(*band, size) for band, size in zip(colours.AGES, now.age_bytes, strict=True)]
        text = bar([(float(size), colour) for _, colour, size in ages], width)
        text.append("\n")
        figures = [(f"< {age}" if age != "older" else age, colour, brief(n)) for age, colour, n in ages if n]
        text.append(Text("last used ", "dim"))
        text.append(legend(figures))
        self.query_one("#ages", Static).update(text)

    def _show_rates(self, now: Snapshot) -> None:
        before = self.before
        if before is None:
            self.query_one("#rates", Static).update(Text("rates appear with the next update", "dim"))
            return
        hits, misses = rate(before, now, "hits"), rate(before, now, "misses")
        ratio = f"{hit_ratio(hits, misses):.2%}" if hits + misses else "-"
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, figure in (
            ("hit ratio", ratio),
            ("hits", short(hits)),
            ("misses", short(misses)),
            ("given back", brief(int(rate(before, now, "reclaimed_total_bytes")))),
            ("evicted", short(rate(before, now, "evictions_recycled", "evictions_reclaimed"))),
            ("flushed", short(rate(before, now, "flushed_pages"))),
        ):
            text.append(f"{name} ", "dim")
            text.append(f"{figure}{'' if name == 'hit ratio' else '/s'}  ", "bold")
        self.query_one("#rates", Static).update(text)

    def _show_spaces(self, now: Snapshot) -> None:
        before, table = self.before, self.query_one("#spaces", DataTable)
        self.query_one("#spaces-title", Static).update(f"spaces, by {SPACE_COLUMNS[self.sort_by].lower()}")
        table.clear()
        seen = {(s.name, s.owner): s for s in before.stats.spaces} if before is not None else {}
        span = now.at - before.at if before is not None else 1.0
        rows = []
        for s in now.stats.spaces:
            was = seen.get((s.name, s.owner), s)
            hits, misses = (s.hits - was.hits) / span, (s.misses - was.misses) / span
            ratio = hit_ratio(hits, misses)  # of the same time as the rates beside it
            rows.append((s.shown_name, s.kind, s.pages, s.resident, s.dirty, hits, misses, ratio, s.limit, s.reserve))
        by_text = self.sort_by < 2
        rows.sort(key=lambda row: row[self.sort_by] if by_text else _descending(float(row[self.sort_by])))
        for name, kind, pages, resident, dirty, hits, misses, ratio, *shares in rows:
            cells = (
                f"{pages:,}", f"{resident:,}", f"{dirty:,}", short(hits), short(misses),
                "-" if math.isnan(ratio) else f"{ratio:.2%}", *(brief(share) if share else "-" for share in shares),
            )  # fmt: skip
            table.add_row(Text(printable(name)), kind, *(Text(cell, justify="right") for cell in cells))

    def _show_hanging(self, now: Snapshot) -> None:
        """Shows loads and flushes that have made no progress for long: of a healthy pool there are none."""
        late = [one for one in now.operations if one.seconds >= LATE_S]
        lines = [f"{one} has not come back for {one.seconds:.0f} s" for one in late]
        hangs = self.query_one("#hangs", Static)
        hangs.update(Text("\n".join(map(printable, lines)), no_wrap=True, overflow="ellipsis"))
        hangs.display = bool(lines)

    def _show_caches(self, now: Snapshot) -> None:
        before, table = self.before, self.query_one("#caches", DataTable)
        table.clear()
        table.display = bool(now.stats.caches)
        seen = {c.name: c for c in before.stats.caches} if before is not None else {}
        span = now.at - before.at if before is not None else 1.0
        for c in now.stats.caches:
            was = seen.get(c.name, c)
            hits, misses, loads, evicted = (
                (getattr(c, name) - getattr(was, name)) / span for name in ("hits", "misses", "loads", "evictions")
            )
            ratio = hit_ratio(hits, misses)
            cells = (
                f"{c.count:,}", brief(c.bytes), short(hits), short(misses), "-" if math.isnan(ratio) else f"{ratio:.2%}",
                short(loads), short(evicted), *(brief(share) if share else "-" for share in (c.limit, c.reserve)),
            )  # fmt: skip
            table.add_row(Text(printable(c.name)), *(Text(cell, justify="right") for cell in cells))

    def _show_clients(self, now: Snapshot) -> None:
        table = self.query_one("#clients", DataTable)
        table.clear()
        for c in sorted(now.clients, key=lambda c: -c.pins):
            what = "steward" if c.is_steward else "" if c.alive else "dead"
            cells = (f"{c.pins:,}", f"{c.pinned_frames:,}", brief(c.held_bytes) if c.held_bytes else "-")
            figures = (Text(cell, justify="right") for cell in cells)
            table.add_row(str(c.client), str(c.pid), Text(printable(c.name)), *figures, what)
