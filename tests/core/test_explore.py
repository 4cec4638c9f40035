"""The protocol, explored: every interleaving, and a death after every step.

tests/native/explore.cpp compiles the core's own headers. A scenario is two to
four processes; from each state every one of them takes its next step, or dies.
The mutations below are mistakes that the explorer must find.
"""

import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import bufferpool as bp
from bufferpool.client.client import Client
from bufferpool.upkeep import page_sizes
from tests.support import native_build

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the explorer switches stacks in x86-64 assembly"
)


CORES = os.cpu_count()


def build(out: Path, *flags: str, **sources: Path) -> Path:
    return native_build.program("explore", out, "-O1", "-DBP_EXPLORE", *flags, **sources)


def explore(
    program: Path, scenario: str, deaths: int, most_states: int, mistake: int = 0
) -> subprocess.CompletedProcess[str]:
    return run(program, scenario, str(deaths), str(most_states), mistake=mistake)


def run(program: Path, *words: str, mistake: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MISTAKE": str(mistake)}
    return subprocess.run([str(program), *words], capture_output=True, text=True, env=environment, timeout=3600)


@pytest.fixture(scope="session")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("explore") / "explore")


def scenarios(program: Path) -> list[str]:
    return subprocess.run([str(program), "list"], capture_output=True, text=True, check=True).stdout.split()


# Those whose states are too many to visit all of them here, without deaths and with one; the soak visits more.
LARGE = {
    "append-append-read", "append-remove", "borrow-borrow", "checkpoint-log", "checkpoint-move", "compact-load",
    "discard-load", "drop-aside", "flush-aside", "flush-evict", "flush-flush", "fork-write", "group-again", "group-checkpoint",
    "group-evict", "group-flush", "group-group", "group-move", "group-swap", "group-sweep", "grow-grow",
    "grow-write", "hurry-load-twice", "hurry-object-again", "hurry-object-load", "hurry-object-put", "hurry-renew",
    "hurry-write-twice", "lengthen-append", "lengthen-extend", "lengthen-further", "lengthen-read",
    "lengthen-reopen", "limit-evict", "limit-many", "limit-write", "many-many", "many-write", "move-flush",
    "move-move", "object-load-load", "object-load-put", "past-load", "private-reopen-write", "put-clean", "read-reopen-twice",
    "reap-append", "reap-bank-load", "reap-group-flush", "reap-group-read", "reap-group-write", "reap-hurry-load",
    "reap-lengthen", "reap-load-write", "reap-many", "reap-private-write", "reap-reload", "reap-sizes", "renew-evict",
    "replace-evict", "replace-write-load", "settle-sweep", "sizes-count", "sizes-grow", "sizes-move-back",
    "sizes-move-flush", "sizes-move-hold", "sizes-move-move", "sizes-shrink", "three", "write-remove",
    "write-reopen-twice",
}  # fmt: skip
LARGE_WITH_DEATHS = LARGE | {
    "append-append", "append-reopen", "compact-write", "fork-reap", "huge-write", "leave-shrink", "many-drop", "many-evict",
    "move-write", "open-fail", "open-open", "past-write", "reap-drop-load", "reap-flush", "reap-grow", "reap-leave",
    "reap-limit-drop", "reap-limit-fail", "reap-past", "table-put", "trim-write", "write-pin",
}  # fmt: skip
# With two deaths, of those in which a process reaps.
LARGE_WITH_TWO = LARGE_WITH_DEATHS | {"reap-write-pin"}
ENOUGH, FIRST = 250_000, 20_000  # states: more than others have; of a large one


def explore_each(program: Path, names: list[str], deaths: int, large: set[str]) -> int:
    """Explores scenarios, and of the large ones the first states; returns the number of states."""
    total = 0
    with ThreadPoolExecutor(CORES) as threads:
        runs = list(threads.map(lambda n: explore(program, n, deaths, FIRST if n in large else ENOUGH), names))
    for scenario, done in zip(names, runs, strict=True):
        assert done.returncode == 0, f"{scenario}: {done.stdout}{done.stderr}"
        covered = re.search(r"(\d+) states, (\d+) ends", done.stdout)
        assert covered is not None
        assert int(covered[1]) > 50
        assert int(covered[2]) > 0, f"{scenario} never came to an end: {done.stdout}"
        total += int(covered[1])
        print(done.stdout, end="")
    return total


def test_nothing_is_lost_or_torn_without_deaths(explorer: Path) -> None:
    assert explore_each(explorer, scenarios(explorer), 0, LARGE) > 3_000_000


def test_nothing_is_lost_or_torn_when_one_process_dies_anywhere(explorer: Path) -> None:
    assert explore_each(explorer, scenarios(explorer), 1, LARGE_WITH_DEATHS) > 5_000_000


def test_random_schedules_end_well(explorer: Path) -> None:
    """Where there are more states than the tests above visit, random schedules reach every part of them.

    A step of a schedule takes a thirtieth of the time of a step of the search, which records the states.
    """
    for scenario in scenarios(explorer):
        done = run(explorer, scenario, "sample", "2", "20000" if scenario in LARGE_WITH_DEATHS else "5000")
        assert done.returncode == 0, f"{scenario}: {done.stdout}{done.stderr}"
        assert "000 ends" in done.stdout


def test_a_reaper_that_dies_anywhere_is_followed_by_another(explorer: Path) -> None:
    names = [name for name in scenarios(explorer) if name.startswith("reap-")]
    assert explore_each(explorer, names, 2, LARGE_WITH_TWO) > 400_000


@pytest.mark.soak
def test_deeper(explorer: Path) -> None:
    for deaths, most_states in ((0, 60_000_000), (1, 40_000_000), (2, 20_000_000)):
        for scenario in scenarios(explorer):  # one by one, because each takes gigabytes
            done = explore(explorer, scenario, deaths, most_states)
            assert done.returncode == 0, f"{scenario}: {done.stdout}{done.stderr}"


class _Recorded:
    """A segment of the core, and the calls of it that change it or take its locks."""

    READS = frozenset({"budget_frames", "caches", "geometry", "page_sizes", "reopen", "spaces", "status", "steward"})

    def __init__(self, segment: Any, size: str, calls: list[str]) -> None:
        self.segment, self.size, self.calls = segment, size, calls

    def __getattr__(self, name: str) -> Any:
        if name not in self.READS:
            self.calls.append(f"{name} of {self.size}")
        return getattr(self.segment, name)


def _earn(client: Client, step: int, whole: int) -> page_sizes.Earning:
    """Memory earns most in the other size, and the pool's own has a step of it to give."""
    is_home = client is client.home()
    return page_sizes.Earning(client, 0.0, 0.0 if is_home else 1.0, step if is_home else 0, 0, 0)


@pytest.mark.parametrize(
    ("scenario", "act"),
    [
        ("sizes-move", bp.Pool.balance),
        ("sizes-shrink", lambda pool: page_sizes.set_whole(pool.client, pool.capacity * 3 // 4, 5.0)),
        ("sizes-grow", lambda pool: page_sizes.set_whole(pool.client, pool.capacity * 2, 5.0)),
    ],
    ids=["sizes-move", "sizes-shrink", "sizes-grow"],
)
def test_memory_moves_between_page_sizes_as_in_the_package(
    explorer: Path, make_pool: Any, monkeypatch: pytest.MonkeyPatch, scenario: str, act: Callable[[bp.Pool], object]
) -> None:
    """The steps are Python, and the explorer has them in C++: both call the core in the same order.

    In the package all memory is in use by then, as in the explorer.
    """
    pool: bp.Pool = make_pool(2 << 20, max_capacity=8 << 20, page_size=65536)

    def load(page_no: int, out: Any) -> None:
        out[:] = page_no % 251

    large, small = pool.open_derived("a", 100, load), pool.open_derived("b", 1000, load, page_size=8192)
    for n in [*range(100), *range(1000)]:
        small[n], large[n % 100]
    calls: list[str] = []
    monkeypatch.setattr(page_sizes, "_earning", _earn)
    monkeypatch.setattr(Client, "post", lambda self, event: None)
    for client, size in ((large.pool.client, "home"), (small.pool.client, "other")):
        monkeypatch.setattr(client, "_segment", _Recorded(client.seg, size, calls))
    act(pool)
    monkeypatch.undo()
    schedule = "".join(f" {name}{i}" * 4000 for i, name in enumerate("MLO" if scenario == "sizes-move" else "SLO"))
    told = run(explorer, scenario, "replay", schedule).stdout
    assert "VIOLATION" not in told
    assert calls == re.findall(r"^  0 calls (.*)$", told, re.MULTILINE)
    assert calls


def _pins_before_intents(text: str) -> str:
    """The reap of the pins moved before that of the intents."""
    intents, pins = text.index("    // 2. What it was about"), text.index("    // 4. Its pins")
    fields, frames = text.index("    // 3. Its writer fields"), text.index("    // 5. Its frames.")
    ready = "    s.has_frame(s.g.max_frames - 1);\n"
    return text[:intents] + ready + text[pins:frames] + text[intents:fields] + text[fields:pins] + text[frames:]


def _settles_without_a_look(text: str) -> str:
    """The settler takes a superseded frame without a look at its pins."""
    for look in ("|| any_pin(s, f)) return false;", "bool left = any_pin(s, f);"):
        assert text.count(look) == 1
    return text.replace("|| any_pin(s, f)) return false;", ") return false;").replace(
        "bool left = any_pin(s, f);", "bool left = false;"
    )


def _one_policy(text: str) -> str:
    """take_frame() does not look anew how long the rings are."""
    anew = "        Alr<PoolEnv> policy(s.header->policy, env);  // anew"
    assert text.count(anew) == text.count("    Search search;\n") == 1
    text = text.replace(anew, "        //").replace(
        "        Alr<PoolEnv>(s.header->policy, env).insert(", "        policy.insert("
    )
    return text.replace("    Search search;\n", "    Alr<PoolEnv> policy(s.header->policy, env);\n    Search search;\n")


def _clean_before_its_ring(text: str) -> str:
    """A page that was set aside made clean before the memory lock is held."""
    lock, back = "    if (!lock_memory(s, false, slices)) {\n", "    bring_back_locked(s, it.page);"
    assert text.count(lock) == text.count(back) == 1
    clean = "    settle_entry(s, it.page, [&](u64 e) { return entry::with_flusher(e & ~entry::DIRTY, 0); });\n"
    brought = "    PoolEnv env{s, nullptr, NONE};\n    Alr<PoolEnv>(s.header->policy, env).bring_back(it.page);"
    return text.replace(lock, clean + lock).replace(back, brought)


def _scan_by_frames(text: str) -> str:
    """The dirty pages found through the frames: one that moves meanwhile may be missed."""
    start, end = text.index("    u64 end = std::min(first + count"), text.index("// The dirty pages of a range")
    body = """
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || page < first || page >= first + count) continue;
        u64 e = s.entries[page].load_acquire();
        if (!entry::is_resident_in(e, f) || !(e & entry::DIRTY)) continue;
        if (!visit(page, s.frames[f].lsn.load_relaxed(), s.frames[f].rec_lsn.load_relaxed())) return;
    }
}

"""
    return text[:start] + body + text[end:]


def _any_generation(text: str) -> str:
    """A number that nobody has used given back to the space that has the slot now, whichever it is."""
    start = text.index("    u64 expected = space_span(at.generation, end);")
    end = text.index("}\n", start)
    body = """
    u64 now = at.slot.allocated.load_acquire();
    if (space_pages(now) == end) at.slot.allocated.cas_seq_cst(now, now - (end - first));
"""
    return text[:start] + body + text[end:]


def _moved(text: str, first: str, last: str) -> str:
    """The line ``last`` moved to before the line ``first``, which stands above it."""
    start, end = text.index(first), text.index(last, text.index(first))
    return text[:start] + last + text[start:end] + text[end + len(last) :]


def _grows_blindly(text: str) -> str:
    """The last page of a space that grows is published as its store has it, though an append has put another there."""
    for found, wrong in (
        ("if (s.entries[last.page].load_acquire() & entry::DIRTY) end_write", "if (false) end_write"),
        ("publish_page(s, last, s.page_data(frame)", "publish_page(s, last, hooks.stored"),
    ):
        assert text.count(found) == 1
        text = text.replace(found, wrong)
    return text


def _longer_early(text: str) -> str:
    """The space has its new pages before the last of them is published."""
    head = "    if (stored) {\n        u32 frame;\n        Status status = own_page(s, last"
    assert text.count(head) == 1
    return text.replace(head, "    raise_pages(last, pages);\n" + head)


def _group_over_early(text: str) -> str:
    """The group word says that the group is over, and then its pages are settled."""
    over = "    decides.store_seq_cst(group::with_state(word, group::NO_GROUP));\n    intent.op"
    assert text.count(over) == 1
    committed = '    BP_POINT("group.committed");\n'
    return text.replace(over, "    intent.op").replace(
        committed, committed + "    decides.store_seq_cst(group::with_state(word, group::NO_GROUP));\n"
    )


def _committed_late(text: str) -> str:
    """The first page of a group is settled, and then the group is committed."""
    commit = "    decides.store_seq_cst(group::with_state(word, group::COMMITTED));\n"
    settled = '        BP_POINT("group.settled");\n'
    assert text.count(commit) == text.count(settled) == 1
    return text.replace(commit, "").replace(settled, settled + commit)


def _byte_before_pid(text: str) -> str:
    """A child without a description releases its slot's byte before its pid is there."""
    pid, byte = "    slot.pid.store_seq_cst(prim::process_id());\n", "    s.unlock_byte(LOCKS_AT + long(c));\n"
    assert text.count(pid + byte) == 1
    return text.replace(pid + byte, byte + pid)


def _grants_before_it_takes(text: str) -> str:
    """The taker's part made larger before the giver's is smaller, by what the giver will give."""
    take = "    take_part(giver, step / giver.g.page_size);\n"
    assert text.count(take) == 1
    return text.replace(take, "    grant_part(taker, step);\n" + take)


def _parts_before_the_whole(text: str) -> str:
    """The parts made larger, and then the budget that allows it."""
    write = "        set_whole_bytes(home, bytes);\n        u64 share"
    last = "        return grant_part(home, unassigned(home, other, bytes));\n"
    assert text.count(write) == text.count(last) == 1
    text = text.replace(write, "        u64 share")
    return text.replace(last, last.replace("return ", "") + "        return set_whole_bytes(home, bytes);\n")


# name: (file, what stands there or a function, what stands there instead, scenario that finds it)
MUTATIONS = {
    "the second load of the entry in pin left out": (
        "pin.h",
        "if (entry::is_resident_in(word.load_seq_cst(), f)) [[likely]] {",
        "if (true) {",
        "pin-evict-hot",
    ),
    "the pins looked at before the entry is closed": (
        "evict.h",
        "        bool gone = word.cas_seq_cst(e, closed);",
        "        bool early = any_pin(s, f);\n        bool gone = word.cas_seq_cst(e, closed);",
        "pin-evict-hot",
    ),
    "a superseded frame reused with a pin on it": (
        "pin.h",
        _settles_without_a_look,
        "",
        "retire-pin",
    ),
    "the pins of a superseded frame looked at before it is closed": (
        "pin.h",
        "        bool left = any_pin(s, f);\n",
        "        bool left = false;\n",
        "settle-sweep",
    ),
    "a frame that was being settled not looked at again": (
        "pin.h",
        "        if (!left) return true;\n    }",
        "        return !left;\n    }",
        "retire-pin",
    ),
    "the frame of a load that has ended taken by its reaper": (
        "reap.h",
        "if (entry::state(e) == LOADING && entry::owner(e) == c) frame_cas",
        "if (!entry::names(e, f)) frame_cas",
        "reap-load-write",
    ),
    "the pages of a load of several not found by its reaper": (
        "reap.h",
        "        if (frame::state(w) == BUSY && frame::client(w) == c) unclaim(s, page, c);\n",
        "",
        "reap-many",
    ),
    "a page of a load of several published without an intent": (
        "load_many.h",
        "        intent.page.store_release(c.page);  // its frame is NONE\n",
        "",
        "reap-many",
    ),
    "a load of several that waits for a page of another": (
        "load_many.h",
        "            if (status == Status::WAIT) next++;\n",
        "            if (status == Status::WAIT) wait_entry(s_, claims_[next].page, s_.entries[claims_[next].page].load_acquire()), next++;\n",
        "many-many",
    ),
    "a load of several that does not look whether the space is still open": (
        "load_many.h",
        "Status status = at_.open() ? take_frame(s_, op_.intent(), want, f) : Status::REMOVED;",
        "Status status = take_frame(s_, op_.intent(), want, f);",
        "many-reopen",
    ),
    "the flusher field ignored": (
        "writeback.h",
        "        if (entry::flusher(e)) {\n            wait_entry",
        "        if (false) {\n            wait_entry",
        "flush-flush",
    ),
    "the pins reaped before the intents": ("reap.h", _pins_before_intents, "", "reap-drop-load"),
    "dirty cleared before the sync": (
        "actors.h",
        "    model::step();\n    for (u32 p = 0; p < PAGES; p++)\n        if (written[p]",
        "    end_flush(s, op.intent(), items, true);\n    items.clear();\n    model::step();\n    for (u32 p = 0; p < PAGES; p++)\n        if (written[p]",
        "flush-write",
    ),
    "a page above the durable LSN written": (
        "writeback.h",
        "if (ok && s.frames[pinned].lsn.load_relaxed() <= want.lsn && out",
        "if (ok && out",
        "flush-log",
    ),
    "dirty pages looked for by frames": ("writeback.h", _scan_by_frames, "", "checkpoint-move"),
    "a page that changes while it is being taken passed over": (
        "writeback.h",
        "        if (word.cas_seq_cst(e, entry::with_flusher(e, s.me))) return true;",
        "        return word.cas_seq_cst(e, entry::with_flusher(e, s.me));",
        "checkpoint-move",
    ),
    "the LSN of the oldest change left behind by a move": (
        "page.h",
        "    to.rec_lsn.store_relaxed(from.rec_lsn.load_relaxed());\n",
        "",
        "checkpoint-log",
    ),
    "the writer field released with the swap": (
        "page.h",
        "return entry::with_frame(e, g) | set;",
        "return entry::with_owner(entry::with_frame(e, g), 0) | set;",
        "flush-evict",
    ),
    "a dirty page dropped with the clean ones": (
        "drop.h",
        "if (what == Drop::CLEAN && (e & entry::DIRTY)) return Status::OK;",
        "(void)what;",
        "drop-clean-write",
    ),
    "a page that was set aside made clean in no ring": (
        "writeback.h",
        "        aside = clean && entry::is_aside(e);",
        "        aside = false;",
        "flush-aside",
    ),
    "a page made clean before it gets back into a ring": ("writeback.h", _clean_before_its_ring, "", "flush-aside"),
    "a clean page set aside": (
        "evict.h",
        "entry::state(e) == RESIDENT && (e & entry::DIRTY) && !entry::owner(e)",
        "entry::state(e) == RESIDENT && !entry::owner(e)",
        "pin-evict-hot",
    ),
    "an append's number given back to the next space in the slot": ("writing.h", _any_generation, "", "append-reopen"),
    "an append that takes a number of the next space in the slot": (
        "writing.h",
        "if (slot.allocated.cas_seq_cst(allocated, space_span(at.generation, end))) return Status::OK;",
        "if (u64 now = slot.allocated.load_seq_cst(); slot.allocated.cas_seq_cst(now, now + count)) return Status::OK;",
        "append-reopen",
    ),
    "a space that grows by zeros in place of what its last page has": (
        "writing.h",
        _grows_blindly,
        "",
        "lengthen-append",
    ),
    "a space that is longer before its last page is there": ("writing.h", _longer_early, "", "lengthen-extend"),
    "a space that grows makes the next space in its slot longer": (
        "writing.h",
        "    while (e >> GENERATION_SHIFT == at.generation && (e & PAGES_MASK) < pages &&\n"
        "           !at.slot.span.cas_seq_cst(e, space_span(at.generation, pages))) {}",
        "    while ((e & PAGES_MASK) < pages && !at.slot.span.cas_seq_cst(e, space_span(e >> GENERATION_SHIFT, pages))) {}",
        "lengthen-reopen",
    ),
    "an append's number taken without a look at who else takes it": (
        "writing.h",
        "if (slot.allocated.cas_seq_cst(allocated, space_span(at.generation, end))) return Status::OK;",
        "return slot.allocated.store_seq_cst(space_span(at.generation, end)), Status::OK;",
        "append-append",
    ),
    "a load that does not look whether the space is still open": (
        "fetch.h",
        "u32 f = NONE;\n    Status status = at.open() ? load.prepare() : Status::REMOVED;",
        "u32 f = NONE;\n    Status status = load.prepare();",
        "load-reopen",
    ),
    "a pin that does not look whether the space is still open": (
        "fetch.h",
        "    if (at.open()) return Status::OK;\n    hooks.unpin(frame);",
        "    if (true) return Status::OK;\n    hooks.unpin(frame);",
        "read-reopen",
    ),
    "a writer that does not look whether the space is still open": (
        "writing.h",
        "if (!at.open()) return end_write(s, at.page), Status::REMOVED;",
        "",
        "write-reopen",
    ),
    "a blind writer that does not look whether the space is still open": (
        "writing.h",
        "            status = at.open() ? Status::OK : Status::REMOVED;\n",
        "            status = Status::OK;\n",
        "replace-reopen",
    ),
    "a blind write that leaves the page as another client has loaded it": (
        "writing.h",
        "if (entry::state(s.entries[at.page].load_acquire()) == RESIDENT) return Status::WAIT;",
        "if (entry::state(s.entries[at.page].load_acquire()) == RESIDENT) return Status::OK;",
        "replace-load",
    ),
    "a slot left to a space that could not be opened": (
        "spaces.h",
        "    if (!fill(t)) return t.state.store_seq_cst(SPACE_FREE), false;\n",
        "    if (!fill(t)) return false;\n",
        "open-fail",
    ),
    "a space removed with the entries only that it has given memory itself": (
        "spaces.h",
        "    n = round_up(slot.max_pages.load_relaxed(), s.g.os_page / 8);\n",
        "    n = slot.entries_ready.load_relaxed();\n",
        "read-reopen-twice",
    ),
    "a space removed while a page of it is in use": (
        "spaces.h",
        "if (drop_page(s, op.intent(), u32(page), patience, freed, what) != Status::OK) return false;",
        "(void)drop_page(s, op.intent(), u32(page), patience, freed, what);",
        "write-remove",
    ),
    "the pins of a forked child not repeated": (
        "client.h",
        "each_pin([&](u32 f) { s.pin_count_of(c, f).add_seq_cst(1); });",
        "(void)each_pin;",
        "fork-write",
    ),
    "a dead client's lock left when a waiter comes meanwhile": (
        "reap.h",
        "if (!take(s, lock, w, lock_word::REPAIR | lock_word::WAITED)) continue;",
        "if (!take(s, lock, w, lock_word::REPAIR | lock_word::WAITED)) return;",
        "reap-lock",
    ),
    "a failed load told after its page is absent": (
        "fetch.h",
        lambda text: _moved(
            text, "        if (status == Status::RAISED)\n", "        abort_load(s, op.intent(), at.page, f);\n"
        ),
        "",
        "fail-wait",
    ),
    "older failures of a page not made void before it is loaded": (
        "page.h",
        "    forget_failures(s.client(), page, among);\n",
        "",
        "fail-again",
    ),
    "a ring that wraps made longer, and its gaps not counted": (
        "policy.h",
        "u32 gaps = u64(q.head) + q.count > was ? now - was : 0;",
        "u32 gaps = u64(q.head) + q.count > was ? now - now : 0;",
        "grow-drop",
    ),
    "a policy kept from one hold of the memory lock to the next": (
        "frames.h",
        _one_policy,
        "",
        "grow-grow",
    ),
    "a forked child whose slot has nobody's pid when its byte is released": (
        "client.h",
        _byte_before_pid,
        "",
        "fork-unlocked",
    ),
    "a forked child without a description recognised by its parent's start": (
        "client.h",
        "    slot.start_time.store_seq_cst(0);\n    slot.namespaces",
        "    slot.namespaces",
        "fork-unlocked",
    ),
    "the pins of a guest not repeated": (
        "client.h",
        "each_pin([&](u32 f) { s.pin_count_of(c, f).add_seq_cst(1); });",
        "if (!guest) each_pin([&](u32 f) { s.pin_count_of(c, f).add_seq_cst(1); });",
        "fork-guest",
    ),
    "a client that has lost its descriptor reaped while its process lives": (
        "segment.h",
        "        return !has_our_pid && prim::still_maps(pid",
        "        return false && prim::still_maps(pid",
        "lost-reap",
    ),
    "the slot taken of a client that has lost its descriptor": (
        "client.h",
        "if (dead && s.still_maps(c)) {",
        "if (false) {",
        "lost-attach",
    ),
    "the pins of a bank of clients that has just got its memory not looked at": (
        "segment.h",
        "u64 w = header->more_banks.load_seq_cst();",
        "u64 w = 0;",
        "bank-evict",
    ),
    "a client pins before the block of its pins is counted": (
        "growth.h",
        "    else if (!s.has_pins(c)) s.header->more_banks.store_seq_cst(doubled(end / STRIPES - 1));\n",
        "",
        "bank-evict",
    ),
    "a private space left when its client is reaped": (
        "reap.h",
        "    remove_owned(s, c);\n",
        "",
        "private-detach",
    ),
    "entries given back that a handle may touch": (
        "growth.h",
        "if (are_used(s, first, count) || !word.cas_seq_cst(asked, gone)) {",
        "if (!word.cas_seq_cst(asked, gone)) {",
        "leave-read",
    ),
    "entries given back although a client is about to touch them": (
        "segment.h",
        "if (!me || header->leaving.cas_seq_cst(w, 0)) return false;",
        "return false;",
        "leave-read",
    ),
    "a handle that looks whether an entry has memory before it says that it touches it": (
        "entry_memory.h",
        "    Atomic<u64>& word = block_word(s.client(), block);\n",
        "    Atomic<u64>& word = block_word(s.client(), block);\n    if (s.has_page(page)) return word.or_seq_cst(block_bit(block)), true;\n",
        "leave-read",
    ),
    "entries given back while a client without a handle looks at them": (
        "entry_memory.h",
        "        if (slot.looks.load_seq_cst()) return true;\n",
        "",
        "leave-look",
    ),
    "entries given back while the owner of the memory lock looks at them": (
        "growth.h",
        "bool forgotten = forget_elements(s, page, page + count * ENTRY_BLOCK / 8);",
        "bool forgotten = true;",
        "leave-shrink",
    ),
    "entries given back that the reaper of a dead client needs": (
        "spaces.h",
        "        EntryLook look(s);  // if we die, the entries must be there for the reaper of our intent\n",
        "",
        "reap-leave",
    ),
    "entries that were being given back left so after a death": (
        "growth.h",
        "    s.header->leaving.store_seq_cst(0);  // chunks without a bit were punched above; the others keep their memory\n",
        "",
        "leave-read",
    ),
    "entries without memory that are still said to have it": (
        "growth.h",
        "for (u64 i = chunk; i < end; i++) s.clear_entry_chunk(i);",
        "(void)end;",
        "leave-reopen",
    ),
    "a space closed that another one has followed meanwhile": (
        "spaces.h",
        "            close_space(slot, seen);\n        any",
        "            seen = slot.span.load_acquire(), close_space(slot, seen);\n        any",
        "reap-private",
    ),
    "a directory left without a look at what was closed meanwhile": (
        "spaces.h",
        "if (closing <= left || ",
        "if (closing <= left || closing > left || ",
        "private-detach",
    ),
    "a frame whose memory was refused, and that is put off, given back as if it had memory": (
        "frames.h",
        "give_back_later(s, first + got, n - got, false);",
        "give_back_later(s, first + got, n - got, true);",
        "hurry-plug-none",
    ),
    "the frames of a run that are put off forgotten": (
        "frames.h",
        "        give_back_later(s, first, got, true);\n",
        "",
        "hurry-plug",
    ),
    "a slot freed of a dead client whose frames are left": (
        "reap.h",
        "    if (!reap_busy(s, c)) return false;\n",
        "    reap_busy(s, c);\n",
        "hurry-reap",
    ),
    "memory given back of a frame that is put off, which counts as having it": (
        "shrink.h",
        "give_back_later(s, frames[i], u32(end - i), r != 0);",
        "give_back_later(s, frames[i], u32(end - i), true);",
        "hurry-trim",
    ),
    "a slot freed by a client that left what it had put off": (
        "client.h",
        "        s.client().pid.store_seq_cst(0);\n",
        "        s.client().state.store_release(CLIENT_FREE);\n",
        "hurry-detach",
    ),
    "a group that every reader takes for committed": (
        "pin.h",
        "bool is_new = group::state(before) == group::COMMITTED;",
        "bool is_new = true;",
        "group-read",
    ),
    "a group that no reader takes for committed before its pages are settled": (
        "pin.h",
        "bool is_new = group::state(before) == group::COMMITTED;",
        "bool is_new = false;",
        "group-read",
    ),
    "the group word not looked at again": (
        "pin.h",
        "if (same && group.load_seq_cst() == before) {",
        "if (same) {",
        "group-again",
    ),
    "the entry of a pending page not looked at again": (
        "pin.h",
        "bool same = ((word.load_seq_cst() ^ e) & SAME) == 0 &&",
        "bool same = SAME != 0 &&",
        "group-swap",
    ),
    "a group committed after its first page": (
        "publish_many.h",
        _committed_late,
        "",
        "group-read",
    ),
    "a group that is always undone by its reaper": (
        "publish_many.h",
        "    bool committed = group::state(word) == group::COMMITTED;\n",
        "    bool committed = false;\n",
        "reap-group",
    ),
    "a group that is always completed by its reaper": (
        "publish_many.h",
        "    bool committed = group::state(word) == group::COMMITTED;\n",
        "    bool committed = true;\n",
        "reap-group-read",
    ),
    "the page in hand of a committed group not in the intent": (
        "publish_many.h",
        "    intent.page.store_release(page);\n    BP_POINT(",
        "    BP_POINT(",
        "reap-group",
    ),
    "a group over before its pages are settled": (
        "publish_many.h",
        _group_over_early,
        "",
        "reap-group",
    ),
    "the old version of the page in hand left by the reaper": (
        "publish_many.h",
        "        else if (entry::is_resident_in(e, g)) s.frames[f].word",
        "        else if (entry::is_resident_in(e, g) && f == NONE) s.frames[f].word",
        "reap-group",
    ),
    "the new versions of a group that is undone left by the reaper": (
        "publish_many.h",
        "        s.frames[g].word.cas_seq_cst(w, frame::busy(c));\n    }\n    decides",
        "    }\n    decides",
        "reap-group",
    ),
    "the writer field of a group's page released with the swap": (
        "publish_many.h",
        "entry::is_pending(e) ? entry::settled(e, g) : e; });\n    BP_POINT",
        "entry::is_pending(e) ? entry::with_owner(entry::settled(e, g), 0) : e; });\n    BP_POINT",
        "group-drop",
    ),
    "a pending page that a flush does not let go": (
        "writeback.h",
        "        if (!entry::is_there(e) || entry::flusher(e) != s.me) return e;\n",
        "        if (entry::state(e) != RESIDENT || entry::flusher(e) != s.me) return e;\n",
        "group-flush",
    ),
    "a frame taken before its memory is there": (
        "frames.h",
        "int r = s.plug(s.page_offset(first), u64(n) << s.g.page_shift);",
        "int r = 0;",
        "load-load",
    ),
    "an object's entry not looked at again after the pin": (
        "object_index.h",
        "bool same = entry.word.load_seq_cst() == w && entry.place.load_seq_cst() == place;",
        "bool same = true;",
        "get-evict-put",
    ),
    "the place of an object that is being moved not looked at again": (
        "object_index.h",
        "entry.word.load_seq_cst() == w && entry.place.load_seq_cst() == place;",
        "entry.word.load_seq_cst() == w;",
        "get-clean",
    ),
    "a block freed with a pin on it": (
        "object_blocks.h",
        "block::word(BLOCK_DOOMED, block::size_class(w)));\n    if (!any_object_pin(s, b)) free_block_locked(s, b);",
        "block::word(BLOCK_DOOMED, block::size_class(w)));\n    free_block_locked(s, b);",
        "get-evict-put",
    ),
    "a block left when its last pin is gone": (
        "object_blocks.h",
        "    if (unpin_block(s, b)) settle_block(s, b);",
        "    (void)unpin_block(s, b);",
        "put-get-delete",
    ),
    "the memory of a block not counted before the kernel gives it": (
        "object_blocks.h",
        "        count_memory(s, out, want.pages);\n    }\n    unlock_objects(s);\n    if (!fits)",
        "    }\n    unlock_objects(s);\n    if (!fits)",
        "put-put",
    ),
    "the load of a dead client left": (
        "object_reap.h",
        "            wake = end_load_locked(s, e);",
        "            wake = false;",
        "reap-object-load",
    ),
    "the block that a dead client was filling left": (
        "object_reap.h",
        "        if (ours) strip_block(s, b, c);",
        "        (void)ours;",
        "reap-object-put",
    ),
    "an entry that was changing kept by the inheritor of the lock": (
        "object_index.h",
        "    if (object::state(w) != OBJECT_LIVE && object::state(w) != OBJECT_LOADING) return false;",
        "    if (object::state(w) == OBJECT_FREE) return false;",
        "put-put",
    ),
    "a load that does not end because the lock could not be taken": (
        "object_write.h",
        "        if (owner == s.me) leave_load(s, e, word);\n",
        "",
        "hurry-object-load",
    ),
    "a load that was left taken for one under way": (
        "object_read.h",
        "    if (object::state(found.word) == OBJECT_LOADING && found.word & object::LEFT) return Offer::NEW;\n",
        "",
        "hurry-object-load",
    ),
    "a load that was left not removed by the next one": (
        "object_write.h",
        "        end_load_locked(s, e);  // its waiters were woken when it was left\n",
        "",
        "hurry-object-load",
    ),
    "a renewal that was left taken for one under way": (
        "object_read.h",
        "        end_load_locked(s, want.put.entry);  // its waiters were woken when it was left\n        same = false;\n",
        "",
        "hurry-renew",
    ),
    "a stripped block kept because the lock could not be taken": (
        "object_blocks.h",
        "        leave_block(s, b);\n        return false;\n",
        "        return false;\n",
        "hurry-object-strip",
    ),
    "the memory of a stripped block counted still": (
        "object_blocks.h",
        "        if (r == 0) k.memory.store_relaxed(0);\n",
        "",
        "hurry-object-strip",
    ),
    "a sweep that does not count the memory anew": (
        "object_blocks.h",
        "    h.used.store_relaxed(used);\n}\ninline bool sweep_blocks",
        "    (void)used;\n}\ninline bool sweep_blocks",
        "hurry-object-strip",
    ),
    "a block without a last pin not left to the next owner of the lock": (
        "object_blocks.h",
        "    if (!lock_objects_briefly(s)) return leave_to_sweep(s);\n",
        "    if (!lock_objects_briefly(s)) return;\n",
        "hurry-object-get",
    ),
    "too few entries counted while the tables are made anew": (
        "object_index.h",
        "    u32 high = 0;  // clients read",
        "    u32 high = 0;\n    h.entries_high.store_relaxed(0);  // clients read",
        "hurry-object-again",
    ),
    "the chain of before searched in a table that another process has extended": (
        "object_index.h",
        "    if (n > s.objects.heads_ready) look_at_objects(s);         // another process has extended the table\n",
        "",
        "table-put",
    ),
    "a log page that was not opened kept": (
        "object_log.h",
        "        leave_block(s, b);\n",
        "",
        "hurry-object-put",
    ),
    "a record moved although its object was replaced meanwhile": (
        "object_evict.h",
        "(state == OBJECT_LIVE || state == OBJECT_LOADING) && entry.place.load_relaxed() == object::place(b, offset)) {",
        "state == OBJECT_LIVE || state == OBJECT_LOADING) {",
        "put-clean",
    ),
    "a loaded value kept although a newer one was put meanwhile": (
        "object_write.h",
        "    if (put.entry != NONE && (e != put.entry ||",
        "    if (e == NONE && put.entry != NONE && (e != put.entry ||",
        "object-load-put",
    ),
    "a value evicted that is being renewed": (
        "object_evict.h",
        "        bool loads = entry.owner.load_relaxed() && !(victim.word & object::LEFT);\n",
        "        bool loads = false;\n",
        "renew-evict",
    ),
    "a value renewed by two": (
        "object_read.h",
        "bool others = same && entry.owner.load_relaxed();",
        "bool others = false;",
        "renew-renew",
    ),
    "a value renewed that was touched before it expired": (
        "object_read.h",
        "    same = same && is_expired(entry.expires_ns.load_relaxed());\n",
        "",
        "renew-touch",
    ),
    "the frame of a page that was moved given back with a pin on it": (
        "shrink.h",
        "if (ours && !out.push(f)) free_frame(s, f);",
        "if (!out.push(f)) free_frame(s, f);",
        "compact-pin",
    ),
    "a part of a huge page given back": (
        "shrink.h",
        "    if (s.g.huge_pages) keep_parts(s, frames);\n",
        "",
        "huge-pin",
    ),
    "a part of a huge page given back for a dead client": (
        "reap.h",
        "if (!s.g.huge_pages || n == s.g.extent_frames ||",
        "if (n != 0 ||",
        "reap-huge-load",
    ),
    "frames of a dead client taken to have memory": (
        "reap.h",
        "    error = s.plug(s.page_offset(first), u64(n) << s.g.page_shift);\n",
        "    error = 0;\n",
        "reap-huge-hole",
    ),
    "a huge page made of a part of an extent": (
        "frames.h",
        "if (s.g.huge_pages && got == s.g.extent_frames) prim",
        "if (s.g.huge_pages) prim",
        "huge-part",
    ),
    "a read past the pool without a claim": (
        "fetch.h",
        "    if (begin_load(s, op.intent(), at.page) != Status::ABSENT) return Status::WAIT;\n    Status status = at.open()",
        "    Status status = at.open()",
        "past-write",
    ),
    "a page loaded that was discarded since it was looked at": (
        "page.h",
        "entry::state(e) != ABSENT || (entry::is_discarded(e) && !replaces)",
        "entry::state(e) != ABSENT",
        "discard-load",
    ),
    "holes given back while others use them": (
        "shrink.h",
        "            s.holes.remove(f);\n            s.frames[f].word.store_release(frame::busy(s.me));\n        }\n        s.header",
        "        }\n        s.header",
        "holes-load",
    ),
    "memory beyond the frames that are ready given back while they become ready": (
        "shrink.h",
        "    if (!lock_growth(s)) return Status::INTERRUPTED;  // so that no",
        "    while (!lock_growth(s)) {}\n    release(s, s.header->growth);\n    // so that no",
        "holes-grow",
    ),
    "the frame of an evicted page not counted for the next one": (
        "frames.h",
        "        if (step == Step::TAKEN && full) want.in_share = count_one(*full);\n",
        "",
        "limit-evict",
    ),
    "a full share not looked at": (
        "shares.h",
        "    else if (is_full(*share)) return counted = {}, false;\n",
        "",
        "limit-load",
    ),
    "a dropped page still counted": (
        "page.h",
        '    BP_POINT("discard.retired");\n    uncount(s, counted);',
        '    BP_POINT("discard.retired");\n    (void)counted;',
        "limit-drop",
    ),
    "a frame taken from a count that was made without it": (
        "shares.h",
        "    while (w >> 32 == counted.pass && share_frames(w))",
        "    while (share_frames(w))",
        "reap-limit-fail",
    ),
    "the frames of the dead still counted": (
        "reap.h",
        "    recount_shares(s);\n",
        "",
        "reap-limit",
    ),
    "a value evicted although another client has borrowed memory meanwhile": (
        "object_evict.h",
        " || object_budget(s) > want.budget) return true;",
        ") return true;",
        "borrow-borrow",
    ),
    "a page size that gets memory before the other has given it": (
        "size_actors.h",
        _grants_before_it_takes,
        "",
        "sizes-move",
    ),
    "a page size that gets what another should have given, though its pages are pinned": (
        "size_actors.h",
        "    grant_part(taker, std::min<i64>(step, unassigned(home, other, whole)));\n",
        "    grant_part(taker, step);\n",
        "sizes-move-hold",
    ),
    "what a dead process has taken from a page size not given out": (
        "size_actors.h",
        "    grant_part(taker, unassigned(home, other, whole));\n    if (!step)",
        "    if (!step)",
        "sizes-move",
    ),
    "pages that a dead process has left above a part not given back": (
        "size_actors.h",
        "if (held_frames(*s) > part_of(*s)) take_part(*s, 0);",
        "if (held_frames(*s) > s->g.max_frames) take_part(*s, 0);",
        "sizes-move",
    ),
    "the memory of a page size counted without its memory lock": (
        "size_actors.h",
        "    while (!lock_memory(s)) {}\n    u64 held = held_frames(s);\n    unlock_memory(s);\n",
        "    u64 held = held_frames(s);\n",
        "sizes-count",
    ),
    "a larger budget of all page sizes written after their parts": (
        "size_actors.h",
        _parts_before_the_whole,
        "",
        "sizes-grow",
    ),
    "a load that another client has not looked at": (
        "object_write.h",
        "    if (object::state(entry.word.load_relaxed()) == OBJECT_LOADING) return Published::OTHER_LOAD;",
        "",
        "object-load-load",
    ),
}


def _change(mistake: str) -> tuple[str, Callable[[str], str]]:
    """The file of a mistake, and what makes it there."""
    name, before, after, _ = MUTATIONS[mistake]

    def change(text: str) -> str:
        if callable(before):
            return before(text)
        assert text.count(before) == 1, f"the mistake no longer fits the source: {mistake}"
        changed = text.replace(before, after)
        return changed.replace("if (gone && any_pin(s, f)) {", "if (gone && early) {") if "early" in after else changed

    return name, change


@pytest.fixture(scope="session")
def mistaken_explorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer with all the mistakes in it."""
    place = tmp_path_factory.mktemp("mistakes")
    core, native = native_build.with_mistakes(place, [_change(mistake) for mistake in MUTATIONS])
    # The compiler's guesses about what is uninitialized are wrong.
    return build(place / "explore", "-Wno-maybe-uninitialized", core=core, native=native)


def _number_and_scenario(mistake: str) -> tuple[int, str]:
    return list(MUTATIONS).index(mistake) + 1, MUTATIONS[mistake][3]


def _must_be_found(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, f"not found: {done.stdout}{done.stderr}"
    assert "VIOLATION" in done.stdout


# How a mistake is looked for: by random schedules, which take a moment, or else by the search.
WAYS = (("sample", "1", "20000"), ("sample", "2", "100000"), ("0", "1000000"), ("1", "4000000"))
SEARCHED = {"the frame of a load that has ended taken by its reaper"}  # only the last way finds it


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistaken_explorer: Path, mistake: str) -> None:
    number, scenario = _number_and_scenario(mistake)
    for way in WAYS[-1:] if mistake in SEARCHED else WAYS:
        found = run(mistaken_explorer, scenario, *way, mistake=number)
        if found.returncode:
            break
    _must_be_found(found)


@pytest.mark.soak
@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found_by_the_search(mistaken_explorer: Path, mistake: str) -> None:
    number, scenario = _number_and_scenario(mistake)
    found = explore(mistaken_explorer, scenario, 0, 4_000_000, number)
    _must_be_found(found if found.returncode else explore(mistaken_explorer, scenario, 1, 4_000_000, number))


def test_without_a_mistake_nothing_is_found(mistaken_explorer: Path) -> None:
    """What the explorer finds above is the mistake, not the way in which it was put into the source."""
    for scenario in sorted({scenario for *_, scenario in MUTATIONS.values()}):
        run = explore(mistaken_explorer, scenario, 1, 10_000)
        assert run.returncode == 0, f"{scenario}: {run.stdout}{run.stderr}"
