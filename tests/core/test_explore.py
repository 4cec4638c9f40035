"""The protocol, explored: every interleaving, and a death after every step.

tests/native/explore.cpp compiles the core's own headers. A scenario is two to
four processes; from each state every one of them takes its next step, or dies.
The mutations below are mistakes that the explorer must find.
"""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import native_build

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the explorer switches stacks in x86-64 assembly"
)


CORES = os.cpu_count()


def build(out: Path, *flags: str, **sources: Path) -> Path:
    return native_build.program("explore", out, "-DBP_EXPLORE", *flags, **sources)


def explore(program: Path, scenario: str, deaths: int, most_states: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), scenario, str(deaths), str(most_states)], capture_output=True, text=True, timeout=3600
    )


@pytest.fixture(scope="session")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("explore") / "explore")


def scenarios(program: Path) -> list[str]:
    return subprocess.run([str(program), "list"], capture_output=True, text=True, check=True).stdout.split()


def explore_all(program: Path, deaths: int, most_states: int, at_once: int | None = CORES) -> int:
    """Explores every scenario; returns the number of states. Fails with the schedule of a violation."""
    names, total = scenarios(program), 0
    with ThreadPoolExecutor(at_once) as threads:
        runs = list(threads.map(lambda name: explore(program, name, deaths, most_states), names))
    for scenario, run in zip(names, runs, strict=True):
        assert run.returncode == 0, f"{scenario}: {run.stdout}{run.stderr}"
        covered = re.search(r"(\d+) states, (\d+) ends", run.stdout)
        assert covered is not None
        assert int(covered[1]) > 50
        assert int(covered[2]) > 0, f"{scenario} never came to an end: {run.stdout}"
        total += int(covered[1])
        print(run.stdout, end="")
    return total


def test_nothing_is_lost_or_torn_without_deaths(explorer: Path) -> None:
    assert explore_all(explorer, 0, 200_000) > 500_000


def test_nothing_is_lost_or_torn_when_one_process_dies_anywhere(explorer: Path) -> None:
    assert explore_all(explorer, 1, 250_000) > 1_500_000


def test_a_reaper_that_dies_anywhere_is_followed_by_another(explorer: Path) -> None:
    for scenario in [name for name in scenarios(explorer) if name.startswith("reap-")]:
        run = explore(explorer, scenario, 2, 250_000)
        assert run.returncode == 0, f"{scenario}: {run.stdout}{run.stderr}"
        assert "ends" in run.stdout


@pytest.mark.soak
def test_deeper(explorer: Path) -> None:
    for deaths, most_states in ((0, 60_000_000), (1, 40_000_000), (2, 20_000_000)):
        explore_all(explorer, deaths, most_states, at_once=1)  # each takes gigabytes


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
    assert text.count(anew) == text.count("    Search search;\n    for (;;) {\n") == 1
    text = text.replace(anew, "        //").replace(
        "        Alr<PoolEnv>(s.header->policy, env).insert(", "        policy.insert("
    )
    return text.replace("    Search search;\n", "    Alr<PoolEnv> policy(s.header->policy, env);\n    Search search;\n")


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
    u64 now = at.slot.reserved.load_acquire();
    if (space_pages(now) == end) at.slot.reserved.cas_seq_cst(now, now - (end - first));
"""
    return text[:start] + body + text[end:]


def _moved(text: str, first: str, last: str) -> str:
    """The line ``last`` moved to before the line ``first``, which stands above it."""
    start, end = text.index(first), text.index(last, text.index(first))
    return text[:start] + last + text[start:end] + text[end + len(last) :]


def _byte_before_pid(text: str) -> str:
    """A child without a description releases its slot's byte before its pid is there."""
    pid, byte = "    slot.pid.store_seq_cst(prim::process_id());\n", "    s.unlock_byte(LOCKS_AT + long(c));\n"
    assert text.count(pid + byte) == 1
    return text.replace(pid + byte, byte + pid)


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
        "if (clean_only && (e & entry::DIRTY)) return Status::OK;",
        "(void)clean_only;",
        "drop-clean-write",
    ),
    "a page that was set aside made clean in no ring": (
        "writeback.h",
        "        aside = clean && entry::is_aside(e);",
        "        aside = false;",
        "flush-aside",
    ),
    "a page made clean before it gets back into a ring": (
        "writeback.h",
        "    lock_memory(s, false);  // no search sets it aside again before it is clean\n    bring_back_locked(s, it.page);\n",
        "    settle_entry(s, it.page, [&](u64 e) { return entry::with_flusher(e & ~entry::DIRTY, 0); });\n"
        "    lock_memory(s, false);\n    PoolEnv env{s, nullptr, NONE};\n"
        "    Alr<PoolEnv>(s.header->policy, env).bring_back(it.page);\n",
        "flush-aside",
    ),
    "a clean page set aside": (
        "evict.h",
        "entry::state(e) == RESIDENT && (e & entry::DIRTY) && !entry::owner(e)",
        "entry::state(e) == RESIDENT && !entry::owner(e)",
        "pin-evict-hot",
    ),
    "an append's number given back to the next space in the slot": ("writing.h", _any_generation, "", "append-reopen"),
    "an append's number taken without a look at who else takes it": (
        "writing.h",
        "if (slot.reserved.cas_seq_cst(reserved, space_span(at.generation, end))) return Status::OK;",
        "return slot.reserved.store_seq_cst(space_span(at.generation, end)), Status::OK;",
        "append-append",
    ),
    "a load that does not look whether the space is still open": (
        "fetch.h",
        "Status status = at.open() ? load.prepare() : Status::REMOVED;",
        "Status status = load.prepare();",
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
    "a space removed while a page of it is in use": (
        "spaces.h",
        "if (s.has_page(u32(first + i)) && drop_page(s, op.intent(), u32(first + i), patience, freed) != Status::OK)\n"
        "            return false;",
        "(void)drop_page(s, op.intent(), u32(first + i), patience, freed);",
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
        "    slot.start_time.store_seq_cst(0);\n    slot.pid.store_seq_cst",
        "    slot.pid.store_seq_cst",
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
        "        return prim::still_maps(slot.pid",
        "        return false && prim::still_maps(slot.pid",
        "lost-reap",
    ),
    "the slot taken of a client that has lost its descriptor": (
        "client.h",
        "if (dead && s.still_maps(c)) {",
        "if (false) {",
        "lost-attach",
    ),
    "the pins of a block of clients that has just got its memory not looked at": (
        "segment.h",
        "u64 w = header->more_blocks.load_seq_cst();",
        "u64 w = 0;",
        "block-evict",
    ),
    "a client pins before the block of its pins is counted": (
        "growth.h",
        "    else if (!s.has_pins(c)) s.header->more_blocks.store_seq_cst(doubled(end / STRIPES - 1));\n",
        "",
        "block-evict",
    ),
    "a private space left when its client is reaped": (
        "reap.h",
        "    remove_owned(s, c);\n",
        "",
        "private-detach",
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
        "later_run::of(first + got, n - got, false)",
        "later_run::of(first + got, n - got, true)",
        "hurry-plug-none",
    ),
    "the frames of a run that are put off forgotten": (
        "frames.h",
        "        if (got) give_back_later(s, later_run::of(first, got, true), 0);\n",
        "",
        "hurry-plug",
    ),
    "a frame taken before its memory is there": (
        "frames.h",
        "int r = s.plug(s.page_offset(first), u64(n) << s.g.page_shift);",
        "int r = 0;",
        "load-load",
    ),
}


def look_for(mistake: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Builds the explorer with the mistake in it, and explores the scenario that should find it."""
    name, before, after, scenario = MUTATIONS[mistake]

    def change(text: str) -> str:
        if callable(before):
            return before(text)
        assert text.count(before) == 1, "the mutation no longer fits the source"
        changed = text.replace(before, after)
        return changed.replace("if (gone && any_pin(s, f)) {", "if (gone && early) {") if "early" in after else changed

    core, native = native_build.altered(place, name, change)
    # Most of the time is the compiler's; its guesses at -Og about what is uninitialized are wrong.
    program = build(place / "explore", "-Og", "-Wno-maybe-uninitialized", core=core, native=native)
    without = explore(program, scenario, 0, 4_000_000)
    return without if without.returncode else explore(program, scenario, 1, 4_000_000)


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, tmp_path: Path) -> None:
    run = look_for(mistake, tmp_path)
    assert run.returncode == 1, f"not found: {run.stdout}{run.stderr}"
    assert "VIOLATION" in run.stdout
