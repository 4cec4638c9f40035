"""The commands that look at a pool's inside and change it, and the full-screen view."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.cli.top.app import Ask, Top
from bufferpool.cli.top.figures import bar, brief, memory_parts, short
from bufferpool.cli.top.pools import Pools
from bufferpool.prometheus import server
from tests.cli.test_printable import EVIL, obeyed
from tests.conftest import WAIT
from tests.support.children import Threads
from tests.support.disks import Disk
from tests.support.hanging import Hanging, file_that_hangs, in_time
from tests.support.stewards import leader

SHM = Path("/dev/shm")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pool(pool_name: str, tmp_path: Path) -> Iterator[bp.Pool]:
    """A pool with one dirty page and some clean ones; sound at the end."""
    path = tmp_path / "orders.db"
    path.write_bytes(bytes(200 * 4096))
    with bp.Pool.create(pool_name, "1MiB", page_size=4096, max_capacity="2MiB") as pool:
        orders = pool.open_file(path, "r+", name="orders")
        orders.read_many(range(100))
        with orders.write(7) as page:
            page[:] = 1
        yield pool
        assert pool.check() == []


def run_json(capsys: Capture, *argv: str) -> object:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_spaces_frames_extents_clients(pool: bp.Pool, capsys: Capture) -> None:
    (space,) = run_json(capsys, "spaces", pool.name)
    assert (space["name"], space["resident"], space["dirty"], space["misses"]) == ("orders", 100, 1, 100)
    frames = run_json(capsys, "frames", pool.name, "--limit", "1000")
    assert {f["page_no"] for f in frames if f["state"] == "live"} == set(range(100))
    assert [f["page_no"] for f in run_json(capsys, "frames", pool.name, "--state", "dirty")] == [7]
    assert len(run_json(capsys, "frames", pool.name, "--limit", "3")) == 3
    extents = run_json(capsys, "extents", pool.name)
    assert sum(extent["live"] for extent in extents) == 100
    (client,) = run_json(capsys, "clients", pool.name)
    assert client["pid"] == os.getpid()
    assert client["is_steward"] is False
    for command in ("spaces", "frames", "extents", "clients"):  # the same as tables
        assert main([command, pool.name]) == 0
        assert capsys.readouterr().out.count("\n") > 1


def test_pins_say_who_and_how_long(pool: bp.Pool, capsys: Capture, tmp_path: Path) -> None:
    assert main(["pins", pool.name]) == 0
    assert "nothing is pinned" in capsys.readouterr().out
    code = (
        "import bufferpool as bp, sys, time\n"
        f"p = bp.Pool.attach({pool.name!r}); s = p.open_file({str(tmp_path / 'orders.db')!r}, 'r+', name='orders')\n"
        "held = [s[42], s[42]]; print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (pin,) = run_json(capsys, "pins", pool.name, "orders", "42")
        assert (pin["pid"], pin["pins"], pin["alive"], pin["version"]) == (other.pid, 2, True, "live")
        with pool.space("orders", "r+").write(42) as page:
            page[:] = 2
        (pin,) = run_json(capsys, "pins", pool.name)
        assert (pin["page_no"], pin["version"]) == (42, "retired")
        assert 0 <= pin["pinned_s"] < 60
        assert main(["pins", pool.name, "orders", "41"]) == 0
        assert "no client pins it" in capsys.readouterr().out
        other.kill()
    assert main(["pins", pool.name, "nope"]) == 1
    assert "it has ['orders']" in capsys.readouterr().err
    assert main(["pins", pool.name, "orders", "200"]) == 1
    assert "numbered from 0" in capsys.readouterr().err


def test_drop_gives_pages_up_and_refuses_dirty_ones(pool: bp.Pool, capsys: Capture) -> None:
    """There was no command to drop pages; one that drops dirty pages in silence would lose what no file has."""
    assert main(["drop", pool.name, "orders"]) == 1
    told = capsys.readouterr().err
    assert "1 dirty page that its file" in told
    assert "--discard" in told
    assert pool.stats().spaces[0].resident == 100
    assert run_json(capsys, "flush", pool.name, "orders")["written_pages"] == 1
    assert run_json(capsys, "drop", pool.name, "orders", "--first", "10", "--count", "20")["given_back_bytes"] >= 0
    assert pool.stats().spaces[0].resident == 80
    with pool.space("orders", "r+").write(7) as page:
        page[:] = 9
    assert main(["drop", pool.name, "orders", "--discard"]) == 0
    assert pool.stats().spaces[0].resident == 0
    assert pool.space("orders")[7][0] == 1, "what the file has"
    assert main(["drop", pool.name, "orders", "--first", "200", "--count", "1"]) == 1
    assert "numbered from 0" in capsys.readouterr().err


def test_remove_writes_a_space_and_takes_it_out(pool: bp.Pool, capsys: Capture, tmp_path: Path) -> None:
    """There was no command to remove a space but discard, which loses its dirty pages."""
    pool.open_scratch("sort", 4)
    assert run_json(capsys, "remove", pool.name, "sort")["space"] == "sort"
    assert run_json(capsys, "remove", pool.name, "orders")["resident_bytes"] == 100 * 4096
    assert pool.spaces() == []
    assert (tmp_path / "orders.db").read_bytes()[7 * 4096] == 1
    assert main(["remove", pool.name, "orders"]) == 1
    assert "has no space" in capsys.readouterr().err


def test_remove_cache_takes_out_a_cache(pool: bp.Pool, capsys: Capture) -> None:
    """A pool had at most 64 caches in its life, and nothing removed one."""
    tiles = pool.cache("tiles")
    tiles.put("a", bytes(100))
    pool.cache("other").put("b", 1)
    done = run_json(capsys, "remove-cache", pool.name, "tiles")
    assert (done["cache"], done["values"]) == ("tiles", 1)
    assert [one.name for one in pool.caches()] == ["other"]
    with pytest.raises(bp.errors.CacheRemoved):
        tiles.get("a")
    assert main(["remove-cache", pool.name, "tiles"]) == 1
    assert "has no cache 'tiles'; its caches: other" in capsys.readouterr().err


def test_resize_trim_flush_events(pool: bp.Pool, capsys: Capture) -> None:
    done = run_json(capsys, "flush", pool.name, "orders")
    assert (done["written_pages"], done["dirty_pages"]) == (1, 0)
    before = pool.stats().resident_bytes
    done = run_json(capsys, "resize", pool.name, "256KiB")
    assert before - pool.stats().resident_bytes == done["given_back_bytes"] > 0
    done = run_json(capsys, "trim", pool.name, "--bytes", "64KiB")
    assert done["given_back_bytes"] == 64 << 10
    what = [(event["kind"], event["reason"]) for event in run_json(capsys, "events", pool.name)]
    assert what == [("created", "asked"), ("resized", "asked"), ("trimmed", "asked")]
    assert main(["events", pool.name, "--limit", "1"]) == 0
    assert re.fullmatch(r"\S+ \S+  trimmed, 64.0 KiB given back: asked for\n", capsys.readouterr().out)
    assert run_json(capsys, "resize", pool.name, "4MiB")["budget_bytes"] == 4 << 20, "more than its max_capacity"
    with pytest.raises(SystemExit) as ended:
        main(["resize", pool.name, "1000TiB"])
    assert ended.value.code == 2
    assert "room=" in capsys.readouterr().err


def test_a_flush_that_hangs_ends_and_says_where_to_look(
    pool: bp.Pool, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a disk that hung, the command printed nothing and did not end; it had no timeout."""
    with file_that_hangs(monkeypatch, tmp_path / "orders.db"):
        for more in ([], ["orders"]):
            assert in_time(main, ["flush", pool.name, *more, "--timeout", "0.3"]) == 1
            assert f"bufferpool operations {pool.name} shows what hangs" in capsys.readouterr().err
    assert main(["flush", pool.name]) == 0
    assert "0 still dirty" in capsys.readouterr().out


def test_a_flush_that_gives_up_does_not_wait_for_its_own_job(
    pool: bp.Pool, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command printed that it gave up, and ended seconds later: the pool's close waited for the flush that it had given up."""
    monkeypatch.setattr("bufferpool.pool.STOP_S", 1e6)
    with file_that_hangs(monkeypatch, tmp_path / "orders.db"):
        assert in_time(main, ["flush", pool.name, "--timeout", "0.3"]) == 1
        assert "no progress" in capsys.readouterr().err
    assert main(["flush", pool.name]) == 0


_GIVES_UP = """
import sys, threading
from bufferpool.cli import main
from bufferpool.stores.base import FileStore

FileStore.sync = lambda store: threading.Event().wait()
sys.exit(main(["flush", sys.argv[1], "--timeout", "0.3"]))
"""


def test_a_flush_that_gives_up_is_no_death(pool: bp.Pool) -> None:
    """Each such command counted as a client that died, so that an operator who tried a hung disk four times set off an alert
    about crashes. Its store has the pages when the process ends, so that it cannot detach."""
    done = subprocess.run(
        [sys.executable, "-c", _GIVES_UP, pool.name], check=False, capture_output=True, text=True, timeout=WAIT
    )
    assert (done.returncode, "no progress" in done.stderr) == (1, True), done.stderr
    assert pool.reap() == 1, "it has detached after all"
    assert (pool.stats().clients, pool.stats().reaped) == (1, 0)
    assert "reaped" not in {event.kind.name.lower() for event in pool.events()}
    assert pool.flush() == 1


def test_gc_asks(pool: bp.Pool, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{pool.name}-left"
    bp.Pool.create(name, "1MiB").close()
    code = f"import bufferpool as bp, os; p = bp.Pool.attach({pool.name!r}); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False, timeout=WAIT)
    try:
        monkeypatch.setattr(
            "bufferpool.client.segment_file.find", only(name, pool.name)
        )  # never pools of somebody else
        for answer, left in (("no\n", True), ("", True), ("yes\n", False)):
            monkeypatch.setattr("sys.stdin", __import__("io").StringIO(answer))
            assert main(["gc"]) == 0
            assert (SHM / name).exists() is left
        out = capsys.readouterr().out
        assert "dead clients reaped: 1" in out
        bp.Pool.create(name, "1MiB").close()
        rows = {row["name"]: row for row in run_json(capsys, "gc")}
        assert (rows[name]["removed"], rows[name]["in_use"], rows[pool.name]["in_use"]) == (False, False, True)
        assert [row["name"] for row in run_json(capsys, "rm", name)] == [name]
        assert (SHM / pool.name).exists()
    finally:
        (SHM / name).unlink(missing_ok=True)


def test_gc_passes_over_a_pool_without_a_free_slot(
    pool: bp.Pool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{pool.name}-full"
    with bp.Pool.create(name, "1MiB", max_clients=1) as full:
        monkeypatch.setattr("bufferpool.client.segment_file.find", only(name))
        assert main(["gc", "--yes"]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "")
        full.unlink()


def only(*names: str) -> object:
    from bufferpool.client import segment_file

    find = segment_file.find
    return lambda directory=None: [f for f in find(directory) if os.path.basename(f.path) in names]


def test_map_in_the_terminal_and_as_pictures(pool: bp.Pool, capsys: Capture, tmp_path: Path) -> None:
    held = pool.space("orders")[3]
    assert main(["map", pool.name, "--color", "never"]) == 0
    text = capsys.readouterr().out
    cells = "".join(re.findall(r"[·\-*odPx]{8,}", text))
    assert len(cells) == pool.max_frames
    assert (cells.count("P"), cells.count("d"), cells.count("o")) == (1, 1, 98)
    assert main(["map", pool.name, "--by", "age", "--color", "always"]) == 0
    assert "\x1b[38;2;255;224;102m" in capsys.readouterr().out
    found = run_json(capsys, "map", pool.name)
    assert [found["frames"].count(state) for state in ("pinned", "dirty", "clean")] == [1, 1, 98]
    for form, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        out = tmp_path / f"map.{form}"
        assert main(["map", pool.name, "--output", str(out)]) == 0
        assert out.read_bytes().startswith(magic)
    with pytest.raises(SystemExit):
        main(["map", pool.name, "--output", "map.pdf"])
    del held


def test_completion_knows_every_command(capsys: Capture) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(command in script for command in ("steward", "pins", "map", "top"))


def test_bench_prints_ratios(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bufferpool.cli.bench.ROUNDS", 2)
    rows = run_json(capsys, "bench")
    assert len(rows) == 5
    assert all(row["ratio"] > 0 for row in rows)
    assert not [f for f in SHM.iterdir() if f.name.startswith(f"bufferpool-bench-{os.getpid()}")]


def test_steward_command_ends_with_a_pool_that_nobody_has(pool: bp.Pool) -> None:
    name = f"{pool.name}-gone"
    other = bp.Pool.create(name, "1MiB")
    command = [sys.executable, "-m", "bufferpool.cli", "steward", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as steward:
        try:
            assert steward.stdout is not None
            assert steward.stdout.readline().startswith("steward of")
            other.unlink()
            time.sleep(1.2)  # others are attached: the pool is not removed
            assert steward.poll() is None
            other.close()
            out, _ = steward.communicate(timeout=WAIT)
            assert (steward.returncode, "was removed" in out) == (0, True)
        finally:
            steward.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_steward_command_ends_with_a_signal(pool: bp.Pool, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bufferpool.cli", "steward", pool.name, "--flush-every", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as steward:
        deadline = time.monotonic() + WAIT
        while (leader(pool) == 0 or pool.stats().frames.dirty) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert leader(pool) != 0
        assert pool.stats().frames.dirty == 0
        steward.send_signal(number)
        _, err = steward.communicate(timeout=WAIT)
        assert (steward.returncode, err) == (128 + number, "")
    assert leader(pool) == 0
    assert [client.pid for client in pool.clients()] == [os.getpid()]  # it has detached


# ---- top ----------------------------------------------------------------------------


def test_bar_fills_its_width() -> None:
    for shares in ([1.0, 1.0, 1.0], [1e9, 1.0, 0.0], [0.0, 5.0], [1.0] * 7):
        text = bar([(share, "#ffffff") for share in shares], 40)
        assert len(text.plain) == 40
    assert (brief(999), brief(10240), brief(5 << 30), short(12345), short(3)) == ("999B", "10.0K", "5.0G", "12k", "3")


def test_memory_parts_are_all_of_the_memory(pool: bp.Pool) -> None:
    parts = memory_parts(pool.stats())
    assert sum(parts.values()) == pool.stats().max_bytes
    assert parts["dirty"] == 4096


def test_a_page_that_was_replaced_under_a_reader_counts_as_retired_everywhere(
    pool: bp.Pool, tmp_path: Path, capsys: Capture
) -> None:
    """The bar of ``top`` and ``stat`` counted a pinned frame of an old version as a pinned live one; the metrics did not."""
    space = pool.open_file(tmp_path / "orders.db", "r+", name="orders")
    held = space[3]
    with space.write(3) as page:
        page[:] = 7
    parts = memory_parts(pool.stats())
    assert (parts["pinned"], parts["retired"]) == (0, 4096)
    assert sum(parts.values()) == pool.stats().max_bytes
    assert main(["stat", pool.name]) == 0
    assert ", 0 pinned" in capsys.readouterr().out
    assert f'bufferpool_frames{{pool="{pool.name}",state="pinned"}} 0.0' in server.text_of(pool.name)
    assert f'bufferpool_frames{{pool="{pool.name}",state="retired"}} 1.0' in server.text_of(pool.name)
    assert held[0] == 0


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    """Waits for what the screen comes to, however slow the machine is."""
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        await pilot.pause(0.05)


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_top_shows_a_pool_and_acts_on_it(pool: bp.Pool, size: tuple[int, int]) -> None:
    async def session() -> None:
        app = Top(pool.name, None, 0.2)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: "hit ratio" in str(app.query_one("#rates").render()))  # the second look
            head = str(app.query_one("#head").render())
            assert pool.name in head
            assert "kernel" in head
            assert len(head) <= size[0]
            assert app.query_one("#spaces").row_count == 1  # type: ignore[attr-defined]
            await pilot.press("f")
            await pilot.press("s")
            await pilot.press("r")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            app.screen.query_one("Input").value = "512KiB"  # type: ignore[attr-defined]
            await pilot.press("enter")
            await until(pilot, lambda: pool.stats().budget_bytes == 512 << 10)
            await until(pilot, lambda: pool.stats().frames.dirty == 0)
            await pilot.press("t")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("escape")
            await pilot.press("right")
            await pilot.pause(0.3)

    asyncio.run(session())
    assert pool.stats().budget_bytes == 512 << 10
    assert pool.stats().frames.dirty == 0


def test_top_without_a_pool_says_so(tmp_path: Path) -> None:
    async def session() -> None:
        app = Top(None, str(tmp_path), 0.2)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "no pools in" in str(app.query_one("#head").render()))

    asyncio.run(session())


def test_top_follows_pools_that_come_and_go() -> None:
    folder = tempfile.mkdtemp(dir=SHM, prefix="test-cli-")

    async def session() -> None:
        app = Top(None, folder, 0.1)
        async with app.run_test(size=(80, 24)) as pilot:
            head, spaces = app.query_one("#head"), app.query_one("#spaces")
            await until(pilot, lambda: "no pools in" in str(head.render()))
            for times in (1, 2):  # the second has the name of the first
                with bp.Pool.create("come", "1MiB", directory=folder) as pool:
                    for n in range(times):
                        pool.open_scratch(f"s{n}", 4)
                    await until(pilot, lambda times=times: spaces.row_count == times)  # type: ignore[attr-defined,misc]
                    await until(pilot, lambda: "hit ratio" in str(app.query_one("#rates").render()))
                    pool.unlink()
                await until(pilot, lambda: "there is no pool" in str(head.render()))
                assert spaces.row_count == 0  # type: ignore[attr-defined]
                assert str(app.query_one("#rates").render()) == ""
            shutil.rmtree(folder)
            await pilot.press("right")
            await until(pilot, lambda: "there is no pool" in str(head.render()))

    try:
        asyncio.run(session())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_top_shows_every_pool_and_goes_to_one() -> None:
    folder = tempfile.mkdtemp(dir=SHM, prefix="test-cli-")

    async def session() -> None:
        app = Top(None, folder, 0.1)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: isinstance(app.screen, Pools))
            table = app.screen.query_one("#pools", DataTable)
            await until(pilot, lambda: table.row_count == 3)
            rows = {str(row[0]): [str(cell) for cell in row[1:]] for row in map(table.get_row_at, range(3))}
            assert rows["torn"][-1] == "damaged"
            assert rows["many"][0] == "256K"  # an extent
            assert rows["few"][-1] == "1"
            await pilot.press("t", "r", "f", "s")  # a pool that is not shown is not changed
            await pilot.pause()
            assert isinstance(app.screen, Pools)
            await pilot.press("down", "enter")
            await until(pilot, lambda: str(app.query_one("#head").render()).startswith("many  256K"))
            await pilot.press("a")
            await until(pilot, lambda: isinstance(app.screen, Pools))
            await pilot.press("escape")
            await until(pilot, lambda: not isinstance(app.screen, Pools))
            assert app.wanted == "many"

    try:
        with bp.Pool.create("few", "1MiB", directory=folder), bp.Pool.create("many", "1MiB", directory=folder) as many:
            many.open_derived("d", 20, lambda n, out: None).read_many(range(20))
            with open(Path(folder) / "few", "rb") as file:
                (Path(folder) / "torn").write_bytes(file.read(5000))
            asyncio.run(session())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def on_screen(app: Top) -> str:
    """All lines that the terminal gets."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def test_top_shows_names_that_no_terminal_obeys(tmp_path: Path) -> None:
    """The questions of the dialogs had the pool's name as it is, also for textual's markup, which ended the program; the events, the space's."""
    folder, evil = tempfile.mkdtemp(dir=SHM, prefix="test-cli-"), f"{EVIL}[@click=app.quit()][b"

    async def session() -> None:
        app = Top(None, folder, 0.2)
        async with app.run_test(size=(200, 60)) as pilot:
            await pilot.press("a")
            await until(pilot, lambda: isinstance(app.screen, Pools))
            table = app.screen.query_one("#pools", DataTable)
            await until(pilot, lambda: table.row_count == 2)
            assert obeyed(on_screen(app)) == []
            await pilot.press("enter")
            await until(pilot, lambda: "flush failed" in on_screen(app))
            assert obeyed(on_screen(app)) == []
            for key in "rt":
                await pilot.press(key)
                await until(pilot, lambda: isinstance(app.screen, Ask))
                await until(pilot, lambda: "evil" in on_screen(app))
                assert obeyed(on_screen(app)) == []
                await pilot.press("escape")
                await until(pilot, lambda: not isinstance(app.screen, Ask))
            await pilot.press("f")
            await until(pilot, lambda: "no write today" in on_screen(app) or bool(app._notifications))
            assert obeyed(on_screen(app)) == []

    try:
        with bp.Pool.create(f"evil{evil}", "1MiB", directory=folder) as pool:
            with open(pool.path, "rb") as file:
                Path(folder, f"torn{evil}").write_bytes(file.read(5000))
            disk = Disk(8)
            space = pool.open_store(f"s{evil}[/]".replace("\udc9b", ""), disk, mode="r+")
            with space.write(1) as page:
                page[0] = 1
            disk.fails = "write"
            with pytest.raises(bp.errors.StoreError):
                pool.flush()
            pool.open_scratch(f"w{evil}[/]".replace("\udc9b", ""), 4)
            pool.cache(f"c{evil}[/]".replace("\udc9b", ""))
            asyncio.run(session())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_top_needs_a_terminal(pool: bp.Pool) -> None:
    command = [sys.executable, "-m", "bufferpool.cli", "top", pool.name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "top needs a terminal" in done.stderr


def test_top_of_a_missing_pool_is_an_error(capsys: Capture) -> None:
    assert main(["top", "no-such-pool"]) == 1
    assert "no pool" in capsys.readouterr().err


def test_top_shows_caches_and_what_hangs(pool: bp.Pool, threads: Threads) -> None:
    """The caches of a pool were in the metrics only, and a store that hung was on no screen."""
    store = Hanging(8)
    cache = pool.cache("tiles")
    for n in range(5):
        cache.put(n, bytes(1000))

    async def session() -> None:
        app = Top(pool.name, None, 0.2)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.query_one("#caches", DataTable).row_count == 1)
            assert [str(cell) for cell in app.query_one("#caches", DataTable).get_row_at(0)][:2] == ["tiles", "5"]
            assert not app.query_one("#hangs").display
            space = pool.open_store("hung", store)
            store.reads.shut()
            threads.start(space.__getitem__, 3)
            await until(
                pilot, lambda: "a load of page 3 of 'hung' by client 1" in str(app.query_one("#hangs").render())
            )
            store.open()
            await until(pilot, lambda: not app.query_one("#hangs").display)

    asyncio.run(session())
    threads.join()


def test_spaces_show_the_path_and_fit_the_terminal(
    pool: bp.Pool, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a space did not say which file it is; a long path, or one with a newline, would break the table."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    path = folder / "a\nb.db"
    path.write_bytes(bytes(4096))
    pool.open_file(path, name="odd")
    pool.open_scratch("none", 4)
    assert main(["spaces", pool.name]) == 0
    out = capsys.readouterr().out
    assert f"{'x' * 100}/a\\nb.db" in out
    assert out.count("\n") == 4
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["spaces", pool.name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("x/a\\nb.db") and "…x" in line and len(line) == 120 for line in lines)
    assert [space["path"] for space in run_json(capsys, "spaces", pool.name)] == [
        str(tmp_path / "orders.db"),
        str(path),
        "",
    ]
