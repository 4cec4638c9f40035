"""The second screen of ``top``: the list of all pools."""

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
    """A screen that returns the name of the chosen pool, or None."""

    CSS = "#pools-head { height: 1; text-style: bold; } #pools { height: 1fr; }"
    BINDINGS = [Binding("escape,a", "dismiss(None)", "back")]  # noqa: RUF012 - as textual declares it

    def __init__(self, directory: str | None, interval: float) -> None:
        super().__init__()
        self.pool_directory, self.interval = directory, interval
        self.snapshots: dict[str, Snapshot] = {}

    def compose(self) -> ComposeResult:
        """Makes the line with the total, and the table."""
        yield Static(id="pools-head")
        yield DataTable(id="pools", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        """Makes the columns, and starts the timer."""
        self.query_one("#pools", DataTable).add_columns(*COLUMNS)
        self.refresh_pools()
        self.set_interval(self.interval, self.refresh_pools)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Closes the screen with the chosen pool."""
        self.dismiss(event.row_key.value)

    def refresh_pools(self) -> None:
        """Reads and shows every pool; the cursor keeps its row."""
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
            if segment_file.is_part(one.path):  # the pool's row has all of its page sizes
                continue
            try:
                now = read_snapshot(name, self.pool_directory)
            except SegmentNotFound:  # removed since it was listed
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
        text = f"{table.row_count} pools in {printable(where)}, {brief(resident)} resident; Enter shows one"
        self.query_one("#pools-head", Static).update(Text(text, no_wrap=True, overflow="ellipsis"))


def _cells(before: Snapshot | None, now: Snapshot) -> list[str]:
    """The cells of one pool's row; rates need two snapshots."""
    rates = ["-", "-", "-"]
    if before is not None and before.uuid == now.uuid:
        hits, misses = rate(before, now, "hits"), rate(before, now, "misses")
        ratio = f"{hit_ratio(hits, misses):.2%}" if hits + misses else "-"
        rates = [ratio, short(misses), brief(int(rate(before, now, "reclaimed_total_bytes")))]
    alive = sum(client.alive for client in now.clients)
    return [brief(now.stats.resident_bytes), brief(now.stats.budget_bytes), *rates, str(alive)]
