"""The other screen of ``top``: every pool, one line each."""

import os

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from bufferpool.cli.top.figures import Snapshot, brief, rate, read_snapshot, short
from bufferpool.client import segment_file
from bufferpool.errors import BufferPoolError, SegmentError, SegmentNotFound
from bufferpool.figures.names import hit_ratio
from bufferpool.printable import printable

COLUMNS = ("NAME", "RESIDENT", "BUDGET", "HIT RATIO", "MISSES/S", "BACK/S", "CLIENTS")


class Pools(Screen[str | None]):
    """Ends with the name of the pool that was chosen, None for none."""

    CSS = "#pools-head { height: 1; text-style: bold; } #pools { height: 1fr; }"
    BINDINGS = [Binding("escape,a", "dismiss(None)", "back")]  # noqa: RUF012 - as textual declares it

    def __init__(self, directory: str | None, interval: float) -> None:
        super().__init__()
        self.pool_directory, self.interval = directory, interval
        self.snapshots: dict[str, Snapshot] = {}

    def compose(self) -> ComposeResult:
        """The total, the table."""
        yield Static(id="pools-head")
        yield DataTable(id="pools", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        """The columns, and the clock."""
        self.query_one("#pools", DataTable).add_columns(*COLUMNS)
        self.refresh_pools()
        self.set_interval(self.interval, self.refresh_pools)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """A pool was chosen."""
        self.dismiss(event.row_key.value)

    def refresh_pools(self) -> None:
        """Looks at every pool, and shows what is there; the cursor stays where it is."""
        table, before, self.snapshots = self.query_one("#pools", DataTable), self.snapshots, {}
        at, where = table.cursor_row, self.pool_directory or segment_file.SHM
        table.clear()
        try:
            found = list(segment_file.find(self.pool_directory))
        except SegmentError as error:
            self.query_one("#pools-head", Static).update(Text(printable(error), "red"))
            return
        for one in found:
            name = os.path.basename(one.path)
            try:
                now = read_snapshot(name, self.pool_directory)
            except SegmentNotFound:  # it went between the two looks
                continue
            except (BufferPoolError, OSError):
                cells = ["-"] * (len(COLUMNS) - 2)
                table.add_row(Text(printable(name)), *cells, Text(one.condition or "damaged", "red"), key=name)
                continue
            self.snapshots[name] = now
            cells = _cells(before.get(name), now)
            table.add_row(Text(printable(name)), *(Text(cell, justify="right") for cell in cells), key=name)
        table.move_cursor(row=at)
        resident = sum(look.stats.resident_bytes for look in self.snapshots.values())
        text = f"{table.row_count} pools in {printable(where)}, {brief(resident)} resident; Enter looks at one"
        self.query_one("#pools-head", Static).update(Text(text, no_wrap=True, overflow="ellipsis"))


def _cells(before: Snapshot | None, now: Snapshot) -> list[str]:
    """The figures of one pool; those that need two looks come with the second."""
    rates = ["-", "-", "-"]
    if before is not None and before.uuid == now.uuid:
        hits, misses = rate(before, now, "hits"), rate(before, now, "misses")
        ratio = f"{hit_ratio(hits, misses):.2%}" if hits + misses else "-"
        rates = [ratio, short(misses), brief(int(rate(before, now, "reclaimed_total_bytes")))]
    alive = sum(client.alive for client in now.clients)
    return [brief(now.stats.resident_bytes), brief(now.stats.budget_bytes), *rates, str(alive)]
