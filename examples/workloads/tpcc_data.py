"""The database of tpcc_lite at its beginning: tables, the specification's random numbers, the first rows."""

from dataclasses import dataclass

import numpy as np
from workload import Run

from toydb import sql

SCHEMA = """
CREATE TABLE warehouse(w_id INTEGER PRIMARY KEY, w_tax REAL, w_ytd INTEGER);
CREATE TABLE district(d_w_id INTEGER, d_id INTEGER, d_tax REAL, d_ytd INTEGER, d_next_o_id INTEGER,
    PRIMARY KEY(d_w_id, d_id));
CREATE TABLE customer(c_w_id INTEGER, c_d_id INTEGER, c_id INTEGER, c_first TEXT, c_last TEXT, c_credit TEXT,
    c_discount REAL, c_balance INTEGER, c_ytd_payment INTEGER, c_payment_cnt INTEGER, c_delivery_cnt INTEGER,
    c_data TEXT, PRIMARY KEY(c_w_id, c_d_id, c_id));
CREATE INDEX customer_by_name ON customer(c_w_id, c_d_id, c_last, c_first);
CREATE TABLE history(h_id INTEGER PRIMARY KEY, h_c_id INTEGER, h_c_d_id INTEGER, h_c_w_id INTEGER, h_d_id INTEGER,
    h_w_id INTEGER, h_amount INTEGER);
CREATE TABLE orders(o_w_id INTEGER, o_d_id INTEGER, o_id INTEGER, o_c_id INTEGER, o_carrier_id INTEGER,
    o_ol_cnt INTEGER, o_all_local INTEGER, PRIMARY KEY(o_w_id, o_d_id, o_id));
CREATE INDEX orders_by_customer ON orders(o_w_id, o_d_id, o_c_id, o_id);
CREATE TABLE new_order(no_w_id INTEGER, no_d_id INTEGER, no_o_id INTEGER, PRIMARY KEY(no_w_id, no_d_id, no_o_id));
CREATE TABLE order_line(ol_w_id INTEGER, ol_d_id INTEGER, ol_o_id INTEGER, ol_number INTEGER, ol_i_id INTEGER,
    ol_supply_w_id INTEGER, ol_delivered INTEGER, ol_quantity INTEGER, ol_amount INTEGER,
    PRIMARY KEY(ol_w_id, ol_d_id, ol_o_id, ol_number));
CREATE TABLE item(i_id INTEGER PRIMARY KEY, i_name TEXT, i_price INTEGER);
CREATE TABLE stock(s_w_id INTEGER, s_i_id INTEGER, s_quantity INTEGER, s_ytd INTEGER, s_order_cnt INTEGER,
    s_remote_cnt INTEGER, PRIMARY KEY(s_w_id, s_i_id));
"""  # amounts of money are in cents: integers add up exactly
SYLLABLES = ("BAR", "OUGHT", "ABLE", "PRI", "PRES", "ESE", "ANTI", "CALLY", "ATION", "EING")


@dataclass(frozen=True)
class Scale:
    """How large the database is."""

    warehouses: int
    districts: int  # of a warehouse
    customers: int  # of a district; as many orders at the beginning, the last third of them not delivered
    items: int


# ---- random numbers (clause 2.1.6, 4.3.2) ----------------------------------------------------


class Dice:
    """The specification's random numbers."""

    def __init__(self, scale: Scale, seed: int) -> None:
        self.scale, self._random = scale, np.random.default_rng(seed)

    def uniform(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return int(self._random.integers(low, high + 1))

    def chance(self, percent: float) -> bool:
        """True with a probability of ``percent`` %."""
        return bool(self._random.random() * 100 < percent)

    def skewed(self, a: int, n: int) -> int:
        """NURand(A, 1, n), with C = 123."""
        return ((self.uniform(0, a) | self.uniform(1, n)) + 123) % n + 1

    def customer(self) -> int:
        """A customer of a district."""
        return self.skewed(1023, self.scale.customers)

    def name(self) -> str:
        """A customer's last name."""
        return name_of(self.skewed(255, min(1000, self.scale.customers)) - 1)

    def other_warehouse(self, w: int) -> int:
        """Another warehouse, if there is one."""
        if self.scale.warehouses == 1:
            return w
        return (w - 1 + self.uniform(1, self.scale.warehouses - 1)) % self.scale.warehouses + 1

    def pick(self, shares: dict[str, float]) -> str:
        """One of the keys, with probabilities in proportion to the values."""
        return str(self._random.choice(list(shares), p=list(shares.values())))


def name_of(n: int) -> str:
    """Last name number ``n``, below 1000."""
    return SYLLABLES[n // 100] + SYLLABLES[n // 10 % 10] + SYLLABLES[n % 10]


# ---- loading (clause 4.3.3) --------------------------------------------------------------------


def load(run: Run, con: sql.Connection, scale: Scale) -> None:
    """Fills the database."""
    dice = Dice(scale, run.options.seed)
    con.execute(SCHEMA)
    items = [(i, f"item {i}", dice.uniform(100, 10_000)) for i in range(1, scale.items + 1)]
    with con:
        con.executemany("INSERT INTO item VALUES(?, ?, ?)", items)
    with run.progress("loading", scale.warehouses * scale.districts) as advance:
        for w in range(1, scale.warehouses + 1):
            with con:
                con.execute(
                    "INSERT INTO warehouse VALUES(?, ?, ?)", (w, dice.uniform(0, 20) / 100, 3_000_000 * scale.districts)
                )
                stock = [(w, i, dice.uniform(10, 100), 0, 0, 0) for i in range(1, scale.items + 1)]
                con.executemany("INSERT INTO stock VALUES(?, ?, ?, ?, ?, ?)", stock)
            for d in range(1, scale.districts + 1):
                with con:
                    load_district(con, dice, w, d)
                advance(1)


def load_district(con: sql.Connection, dice: Dice, w: int, d: int) -> None:
    """A district, its customers and their first orders."""
    n = dice.scale.customers
    con.execute("INSERT INTO district VALUES(?, ?, ?, ?, ?)", (w, d, dice.uniform(0, 20) / 100, 3_000_000, n + 1))
    con.executemany(
        "INSERT INTO customer VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (w, d, c, f"first {dice.uniform(0, 999)}", name_of((c - 1) % 1000), "BC" if dice.chance(10) else "GC",
             dice.uniform(0, 50) / 100, -1000, 1000, 1, 0, "")
            for c in range(1, n + 1)
        ],
    )  # fmt: skip
    paid = [(c, d, w, d, w, 1000) for c in range(1, n + 1)]
    con.executemany(
        "INSERT INTO history(h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_amount) VALUES(?, ?, ?, ?, ?, ?)", paid
    )
    customers = [int(c) + 1 for c in np.random.default_rng(w * 100 + d).permutation(n)]
    for o, c in enumerate(customers, start=1):
        done, count = o <= n - n // 3, dice.uniform(5, 15)
        carrier = dice.uniform(1, 10) if done else None
        con.execute("INSERT INTO orders VALUES(?, ?, ?, ?, ?, ?, 1)", (w, d, o, c, carrier, count))
        lines = [
            (
                w,
                d,
                o,
                number,
                dice.uniform(1, dice.scale.items),
                w,
                int(done),
                5,
                0 if done else dice.uniform(1, 999_999),
            )
            for number in range(1, count + 1)
        ]
        con.executemany("INSERT INTO order_line VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", lines)
        if not done:
            con.execute("INSERT INTO new_order VALUES(?, ?, ?)", (w, d, o))
