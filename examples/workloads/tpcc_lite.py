"""The five transactions of TPC-C (specification 5.11) on toydb, through SQL, by several processes.

New-Order (45 %), Payment (43 %), Order-Status, Delivery and Stock-Level (4 % each), with the specification's
random numbers, its one New-Order in a hundred that is rolled back, and its customers and items of other
warehouses. It is "lite": fewer customers, items and orders than the specification demands, no filler columns, no
terminals and no thinking time, so its figures are not TPC-C results.

At the end the consistency conditions 1 to 4 (clause 3.3.2) must hold, in every warehouse and district, and the
rows that the processes have counted must be there. Then the pool is removed, the database recovered from its log, and
everything is checked again.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from machine import SHM
from tpcc_data import Dice, Scale, load
from workload import BLUE, GREY, MIB, Pipe, Run, main

from toydb import SnapshotTooOld, sql

MIX = {"New-Order": 0.45, "Payment": 0.43, "Order-Status": 0.04, "Delivery": 0.04, "Stock-Level": 0.04}
UNUSED_ITEM = 1 << 30
PERCENTILES = (50, 95, 99)


class RolledBack(Exception):
    """The New-Order whose last item does not exist (clause 2.4.1.4)."""


# ---- the transactions (clause 2.4 to 2.8) ------------------------------------------------------


class Terminal:
    """One process, with its home warehouse."""

    def __init__(self, con: sql.Connection, scale: Scale, home: int, seed: int) -> None:
        self.con, self.scale, self.home, self.dice = con, scale, home, Dice(scale, seed)
        self.wrong = 0  # orders without all of their lines

    def one(self, statement: str, *values: Any) -> tuple[Any, ...]:
        """The one row that a query finds."""
        row = self.con.execute(statement, values).fetchone()
        if row is None:
            raise LookupError(f"{statement} found nothing for {values}")
        return tuple(row)

    def new_order(self) -> None:
        """Clause 2.4: an order of five to fifteen items."""
        dice, con, w = self.dice, self.con, self.home
        d, c = dice.uniform(1, self.scale.districts), dice.customer()
        lines = [
            (dice.skewed(8191, self.scale.items), dice.other_warehouse(w) if dice.chance(1) else w, dice.uniform(1, 10))
            for _ in range(dice.uniform(5, 15))
        ]
        if dice.chance(1):
            lines[-1] = (UNUSED_ITEM, w, 1)
        self.one("SELECT w_tax FROM warehouse WHERE w_id = ?", w)
        _, o = self.one("SELECT d_tax, d_next_o_id FROM district WHERE d_w_id = ? AND d_id = ?", w, d)
        con.execute("UPDATE district SET d_next_o_id = ? WHERE d_w_id = ? AND d_id = ?", (o + 1, w, d))
        self.one(
            "SELECT c_discount, c_last, c_credit FROM customer WHERE c_w_id = ? AND c_d_id = ? AND c_id = ?", w, d, c
        )
        local = int(all(supply == w for _, supply, _ in lines))
        con.execute("INSERT INTO orders VALUES(?, ?, ?, ?, NULL, ?, ?)", (w, d, o, c, len(lines), local))
        con.execute("INSERT INTO new_order VALUES(?, ?, ?)", (w, d, o))
        for number, (i, supply, quantity) in enumerate(lines, start=1):
            found = con.execute("SELECT i_price FROM item WHERE i_id = ?", (i,)).fetchone()
            if found is None:
                raise RolledBack
            (there,) = self.one("SELECT s_quantity FROM stock WHERE s_w_id = ? AND s_i_id = ?", supply, i)
            con.execute(
                "UPDATE stock SET s_quantity = ?, s_ytd = s_ytd + ?, s_order_cnt = s_order_cnt + 1, "
                "s_remote_cnt = s_remote_cnt + ? WHERE s_w_id = ? AND s_i_id = ?",
                (there - quantity + (91 if there < quantity + 10 else 0), quantity, int(supply != w), supply, i),
            )
            con.execute(
                "INSERT INTO order_line VALUES(?, ?, ?, ?, ?, ?, 0, ?, ?)",
                (w, d, o, number, i, supply, quantity, quantity * found[0]),
            )

    def customer(self, w: int, d: int) -> int:
        """A customer, by number, or six times in ten the middle one of those with a last name."""
        if not self.dice.chance(60):
            return self.dice.customer()
        found = self.con.execute(
            "SELECT c_id FROM customer WHERE c_w_id = ? AND c_d_id = ? AND c_last = ? ORDER BY c_first",
            (w, d, self.dice.name()),
        ).fetchall()
        return int(str(found[(len(found) - 1) // 2][0]))

    def payment(self) -> None:
        """Clause 2.5: a customer pays."""
        dice, con, w = self.dice, self.con, self.home
        d, amount = dice.uniform(1, self.scale.districts), dice.uniform(100, 500_000)
        c_w, c_d = (dice.other_warehouse(w), dice.uniform(1, self.scale.districts)) if dice.chance(15) else (w, d)
        con.execute("UPDATE warehouse SET w_ytd = w_ytd + ? WHERE w_id = ?", (amount, w))
        con.execute("UPDATE district SET d_ytd = d_ytd + ? WHERE d_w_id = ? AND d_id = ?", (amount, w, d))
        c = self.customer(c_w, c_d)
        key = (c_w, c_d, c)
        credit, data = self.one(
            "SELECT c_credit, c_data FROM customer WHERE c_w_id = ? AND c_d_id = ? AND c_id = ?", *key
        )
        if credit == "BC":
            data = f"{c} {c_d} {c_w} {d} {w} {amount} {data}"[:500]
        con.execute(
            "UPDATE customer SET c_balance = c_balance - ?, c_ytd_payment = c_ytd_payment + ?, "
            "c_payment_cnt = c_payment_cnt + 1, c_data = ? WHERE c_w_id = ? AND c_d_id = ? AND c_id = ?",
            (amount, amount, data, *key),
        )
        con.execute(
            "INSERT INTO history(h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_amount) VALUES(?, ?, ?, ?, ?, ?)",
            (c, c_d, c_w, d, w, amount),
        )

    def order_status(self) -> None:
        """Clause 2.6: a customer's last order. Reads one snapshot: the order has all its lines."""
        w, d = self.home, self.dice.uniform(1, self.scale.districts)
        c = self.customer(w, d)
        found = self.con.execute(
            "SELECT o_id, o_ol_cnt FROM orders WHERE o_w_id = ? AND o_d_id = ? AND o_c_id = ? ORDER BY o_id DESC LIMIT 1",
            (w, d, c),
        ).fetchone()
        if found is not None:
            lines = self.con.execute(
                "SELECT ol_i_id, ol_amount FROM order_line WHERE ol_w_id = ? AND ol_d_id = ? AND ol_o_id = ?",
                (w, d, found[0]),
            ).fetchall()
            self.wrong += len(lines) != found[1]

    def delivery(self) -> None:
        """Clause 2.7: the oldest order of each district that is not delivered yet."""
        con, w, carrier = self.con, self.home, self.dice.uniform(1, 10)
        for d in range(1, self.scale.districts + 1):
            found = con.execute(
                "SELECT no_o_id FROM new_order WHERE no_w_id = ? AND no_d_id = ? ORDER BY no_o_id LIMIT 1", (w, d)
            ).fetchone()
            if found is None:
                continue
            key = (w, d, found[0])
            con.execute("DELETE FROM new_order WHERE no_w_id = ? AND no_d_id = ? AND no_o_id = ?", key)
            (c,) = self.one("SELECT o_c_id FROM orders WHERE o_w_id = ? AND o_d_id = ? AND o_id = ?", *key)
            con.execute(
                "UPDATE orders SET o_carrier_id = ? WHERE o_w_id = ? AND o_d_id = ? AND o_id = ?", (carrier, *key)
            )
            of_order = "WHERE ol_w_id = ? AND ol_d_id = ? AND ol_o_id = ?"
            con.execute(f"UPDATE order_line SET ol_delivered = 1 {of_order}", key)
            (total,) = self.one(f"SELECT sum(ol_amount) FROM order_line {of_order}", *key)
            con.execute(
                "UPDATE customer SET c_balance = c_balance + ?, c_delivery_cnt = c_delivery_cnt + 1 "
                "WHERE c_w_id = ? AND c_d_id = ? AND c_id = ?",
                (total, w, d, c),
            )

    def stock_level(self) -> None:
        """Clause 2.8: how many items of a district's last twenty orders are short."""
        w, d = self.home, self.dice.uniform(1, self.scale.districts)
        (o,) = self.one("SELECT d_next_o_id FROM district WHERE d_w_id = ? AND d_id = ?", w, d)
        self.one(
            "SELECT count(DISTINCT s_i_id) FROM order_line JOIN stock ON s_w_id = ol_w_id AND s_i_id = ol_i_id "
            "WHERE ol_w_id = ? AND ol_d_id = ? AND ol_o_id >= ? AND ol_o_id < ? AND s_quantity < ?",
            w, d, o - 20, o, self.dice.uniform(10, 20),
        )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What all terminals have in common."""

    path: Path
    pool_name: str
    scale: Scale
    seconds: float


def terminal(pipe: Pipe, task: Task, home: int, seed: int) -> dict[str, Any]:
    """A process: runs transactions for some time; returns the number of commits and their times, by kind."""
    con = sql.connect(task.path, pool_name=task.pool_name, create=False)
    con.set_busy_timeout(60_000)
    one = Terminal(con, task.scale, home, seed)
    actions: dict[str, Callable[[], None]] = {
        "New-Order": one.new_order, "Payment": one.payment, "Order-Status": one.order_status,
        "Delivery": one.delivery, "Stock-Level": one.stock_level,
    }  # fmt: skip
    times = {name: HdrHistogram(1, 60_000_000, 3) for name in MIX}  # microseconds
    done, rolled_back, too_old = dict.fromkeys(MIX, 0), 0, 0
    pipe.put("ready")
    pipe.get()
    began = time.monotonic()
    while not sum(done.values()) or time.monotonic() < began + task.seconds:
        name = one.dice.pick(MIX)
        start = time.perf_counter_ns()
        con.execute("BEGIN" if name in ("Order-Status", "Stock-Level") else "BEGIN IMMEDIATE")
        try:
            actions[name]()
        except (RolledBack, SnapshotTooOld) as reason:
            con.execute("ROLLBACK")
            rolled_back += isinstance(reason, RolledBack)
            too_old += isinstance(reason, SnapshotTooOld)
            continue
        con.execute("COMMIT")
        times[name].record_value(max(1, (time.perf_counter_ns() - start) // 1000))
        done[name] += 1
    took = time.monotonic() - began
    con.close()
    encoded = {name: t.encode() for name, t in times.items()}
    return {
        "done": done, "rolled_back": rolled_back, "too_old": too_old, "wrong": one.wrong, "took": took, "times": encoded
    }  # fmt: skip


# ---- the checks --------------------------------------------------------------------------------


def violations(con: sql.Connection) -> dict[str, int]:
    """Consistency conditions 1 to 4 (clause 3.3.2), each with the number of places where it does not hold.

    Sums are taken per table, and compared here: so no join hides a row that is missing.
    """

    def table(query: str) -> dict[Any, Any]:
        rows = [tuple(row) for row in con.execute(query).fetchall()]
        return {row[0] if len(row) == 2 else row[:2]: row[-1] for row in rows}

    def differ(first: dict[Any, Any], second: dict[Any, Any]) -> int:
        return sum(first.get(key) != second.get(key) for key in first.keys() | second.keys())

    by_order, by_new = "FROM orders GROUP BY o_w_id, o_d_id", "FROM new_order GROUP BY no_w_id, no_d_id"
    last = table("SELECT d_w_id, d_id, d_next_o_id - 1 FROM district")
    newest = table(f"SELECT no_w_id, no_d_id, max(no_o_id) {by_new}")
    return {
        "1, a warehouse's takings are its districts'": differ(
            table("SELECT w_id, w_ytd FROM warehouse"), table("SELECT d_w_id, sum(d_ytd) FROM district GROUP BY d_w_id")
        ),
        "2, order numbers end where the district says": differ(
            last, table(f"SELECT o_w_id, o_d_id, max(o_id) {by_order}")
        )
        + sum(last[key] != number for key, number in newest.items()),
        "3, orders not delivered are numbered without a gap": differ(
            table(f"SELECT no_w_id, no_d_id, max(no_o_id) - min(no_o_id) + 1 {by_new}"),
            table(f"SELECT no_w_id, no_d_id, count(*) {by_new}"),
        ),
        "4, orders have the lines that they say": differ(
            table(f"SELECT o_w_id, o_d_id, sum(o_ol_cnt) {by_order}"),
            table("SELECT ol_w_id, ol_d_id, count(*) FROM order_line GROUP BY ol_w_id, ol_d_id"),
        ),
    }


def verify(run: Run, con: sql.Connection, scale: Scale, done: dict[str, int], when: str) -> None:
    """Checks the conditions, and that everything that was committed is in the database."""
    for condition, places in violations(con).items():
        run.check(places == 0, f"{when}: condition {condition}; {places} violations")
    first = scale.warehouses * scale.districts * scale.customers
    for table, name in (("orders", "New-Order"), ("history", "Payment")):
        rows = len(con.execute(f"SELECT 1 FROM {table}").fetchall())
        run.check(
            rows == first + done[name],
            f"{when}: {table} has {rows:,} rows: {first:,} of the beginning, {done[name]:,} of committed {name}s",
        )
    run.check(con.check() == [], f"{when}: toydb.check finds nothing, and rows and indexes agree")


def measure(run: Run, path: Path, pool_name: str, scale: Scale) -> tuple[dict[str, int], dict[str, Any], float]:
    """Runs the terminals; returns (commits by kind, times by kind, seconds)."""
    options = run.options
    task = Task(path, pool_name, scale, options.seconds)
    workers = [run.start(terminal, task, n % scale.warehouses + 1, options.seed + n) for n in range(options.processes)]
    for worker in workers:
        worker.get()
    for worker in workers:
        worker.put("go")
    with run.progress("transactions, in seconds", int(options.seconds + 0.5)) as advance:
        for _ in range(int(options.seconds)):
            time.sleep(1)
            advance(1)
        found = [worker.get() for worker in workers]
    times = {name: HdrHistogram(1, 60_000_000, 3) for name in MIX}
    for part in found:
        for name, encoded in part["times"].items():
            times[name].decode_and_add(encoded)
    done = {name: sum(part["done"][name] for part in found) for name in MIX}
    wrong, rolled_back, too_old = (sum(part[key] for part in found) for key in ("wrong", "rolled_back", "too_old"))
    run.check(
        wrong == 0, f"each of {done['Order-Status']:,} Order-Status saw an order with all of its lines, {wrong} did not"
    )
    run.say(f"     {rolled_back} New-Orders were rolled back, as they should be")
    run.say(f"     {too_old} queries were given up because their snapshot had become too old")
    return done, times, max(part["took"] for part in found)


def work(run: Run) -> None:
    """Load, transactions, checks; recovery, checks."""
    options = run.options
    scale = Scale(options.warehouses, options.districts, options.customers, options.items)
    path, pool_name = run.folder() / "tpcc.db", run.pool_name()
    with closing(sql.connect(path, pool_name=pool_name, capacity=int(options.cache * MIB))) as con:
        load(run, con, scale)
        done, times, took = measure(run, path, pool_name, scale)
        run.table(
            f"{options.processes} processes, {options.warehouses} warehouses: committed, and milliseconds (percentiles)",
            ("", "committed", "a second", *map(str, PERCENTILES)),
            [
                (name, f"{done[name]:,}", f"{done[name] / took:,.1f}",
                 *(f"{times[name].get_value_at_percentile(p) / 1000:.1f}" for p in PERCENTILES))
                for name in MIX
            ],
        )  # fmt: skip
        verify(run, con, scale, done, "after the run")
    (SHM / pool_name).unlink()
    with closing(sql.connect(path, pool_name=pool_name, create=False)) as con:
        verify(run, con, scale, done, "recovered from the log")
    run.plot(draw, done, times, took)


def draw(done: dict[str, int], times: dict[str, Any], took: float) -> Any:
    """Throughput to the left, latencies to the right."""
    from matplotlib import pyplot

    figure, (speed, latency) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 3))
    names = [name for name in MIX if done[name]]
    bars = speed.barh(names, [done[name] / took for name in names], color=BLUE, height=0.55)
    speed.bar_label(bars, [f"{done[name] / took:,.1f}" for name in names], padding=4)
    speed.set(title="committed a second", xlim=(0, 1.2 * max(done.values()) / took))
    speed.invert_yaxis()
    for name in names:
        values = [times[name].get_value_at_percentile(p) / 1000 for p in PERCENTILES]
        latency.plot(values, [name] * 3, "-", color=BLUE, alpha=0.5)
        for value, marker in zip(values, "o|>", strict=True):
            latency.plot([value], [name], marker, color=BLUE, ms=7)
    for marker, p in zip("o|>", PERCENTILES, strict=True):
        latency.plot([], [], marker, color=GREY, label=f"{p} %")
    latency.set(title="milliseconds", xscale="log")
    latency.legend(loc="lower right", ncols=3, bbox_to_anchor=(1, 1), borderpad=0, columnspacing=1, handletextpad=0.2)
    for axes in (speed, latency):
        axes.tick_params(axis="y", length=0)
    return figure


if __name__ == "__main__":
    main(
        work,
        processes=(2, 2, "processes at once"),
        warehouses=(2, 1, "warehouses"),
        districts=(10, 2, "districts of a warehouse"),
        customers=(60, 12, "customers of a district, and orders at the beginning"),
        items=(500, 50, "items"),
        cache=(16, 4, "size of the database's pool in MiB"),
        seconds=(15.0, 1.0, "how long the transactions run"),
    )
