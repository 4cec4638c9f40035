"""The protocols under weak memory orders: what the explorer, which sees one order of all accesses, cannot find.

tests/native/weak.cpp has the protocols of two words and more, short, and with the accesses of core/os/atomic.h, whose text is
compiled over the atomics of relacy (a checker of C++'s memory model; Debian: relacy-dev). With one order made
weaker, each must show the bad outcome. Not seen are a load that a processor performs after a later access of its own
thread, and a store of the order seq_cst that others see late.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WAIT
from tests.support.mistakes import mistakes_beside
from tests.support.native_build import COMPILER, CORE, NATIVE

FLAGS = ["-std=c++20", "-O0", "-w", "-fpermissive"]  # it takes longer to compile than to run

# The builtins of core/os/atomic.h, as relacy's calls.
CALLS = {
    r"static_assert\(__atomic_always_lock_free\(sizeof\(T\), nullptr\)\);": "",
    r"\bT value_;": "rl::atomic<T> value_;",
    r"__ATOMIC_(\w+)": lambda order: f"rl::mo_{order[1].lower()}",
    r"__atomic_load_n\(&value_, (rl::\w+)\)": r"value_.load(\1, $)",
    r"__atomic_store_n\(&value_, (.+?), (rl::\w+)\)": r"value_.store(\1, \2, $)",
    r"__atomic_exchange_n\(&value_, v, (rl::\w+)\)": r"value_.exchange(v, \1, $)",
    r"__atomic_(fetch_\w+)\(&value_, v, (rl::\w+)\)": r"value_.\1(v, \2, $)",
    r"__atomic_compare_exchange_n\(&value_, &expected, desired, false, (rl::\w+),\s*(rl::\w+)\)": (
        r"value_.compare_exchange_strong(expected, desired, \1, $, \2, $)"
    ),
    r"__atomic_thread_fence\((rl::\w+)\)": r"rl::atomic_thread_fence(\1, $)",
}
TESTS = ["PinEvict", "LoadPin", "PublishUnpin", "Lock", "Reopen", "Fold", "Events", "Leave"]

# (the test, the functions of core/os/atomic.h, their order instead; the bad outcome then)
WEAKER = [
    ("PinEvict", "load_seq_cst", "ACQUIRE", "neither the reader nor the eviction sees the other"),
    ("PinEvict", "add_seq_cst", "RELAXED", "the eviction does not see the pin"),
    ("PinEvict", "sub_seq_cst", "RELAXED", "the frame is used again before the reader has read"),
    ("LoadPin", "cas_seq_cst", "RELAXED", "the page is visible before its content"),
    ("PublishUnpin", "load_seq_cst", "ACQUIRE", "a superseded frame that nobody frees"),
    ("PublishUnpin", "sub_seq_cst", "RELAXED", "a superseded frame used again before its reader has read"),
    ("PublishUnpin", "cas_seq_cst", "RELAXED", "the new version is visible before its content"),
    ("Lock", "swap_seq_cst", "RELAXED", "what the lock protects is changed by two"),
    ("Reopen", "store_release load_seq_cst", "RELAXED", "numbers of no space, in a space that seems to be open"),
    ("Fold", "store_release", "RELAXED", "the totals are in use before they are filled"),
    ("Fold", "fence_release", "", "a counter that was folded, and is not in the totals"),
    ("Events", "store_release", "RELAXED", "an event has its number before its fields"),
    ("Events", "fence_release", "", "a field of the next event, under the number of the last"),
    ("Events", "fence_acquire", "", "the second look at the number comes before the fields"),
    ("Leave", "fence_seq_cst", "", "neither the handle nor the one that gives back sees the other"),
    ("Leave", "fence_acquire", "", "an entry that has left still seems to have memory"),
    ("Leave", "and_seq_cst", "RELAXED", "the memory leaves before the handle's last access"),
]


def weaker(text: str, name: str, order: str) -> str:
    """The text of atomic.h in which one function orders less; a fence of no order is none."""
    begin = next(re.finditer(rf"^.*\b(?:T|bool|void) {name}\(", text, re.MULTILINE)).start()
    end = text.index("\n    }" if name == "cas_seq_cst" else "\n", begin)
    body = text[begin:end]
    changed = re.sub(r"__ATOMIC_\w+", f"__ATOMIC_{order}", body) if order else re.sub(r"\{.*\}", "{}", body)
    assert changed != body
    return text[:begin] + changed + text[end:]


@pytest.fixture(scope="session")
def relacy(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("relacy") / "there.cpp"
    source.write_text("#include <relacy/relacy.hpp>\n")
    if subprocess.run([*COMPILER, *FLAGS, "-fsyntax-only", str(source)], capture_output=True, check=False).returncode:
        pytest.skip("relacy is not installed (Debian: relacy-dev)")


@pytest.fixture(scope="session")
def program(relacy: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The protocols, with the orders of the core, or with the weaker ones of the number in the environment's MISTAKE."""
    place = tmp_path_factory.mktemp("weak")
    right = (CORE / "os" / "atomic.h").read_text()
    wrong = {}
    for number, (_, names, order, _) in enumerate(WEAKER, 1):
        wrong[number] = right
        for name in names.split():
            wrong[number] = weaker(wrong[number], name, order)
    atomic = mistakes_beside(right, wrong)
    for pattern, call in CALLS.items():
        atomic, found = re.subn(pattern, call, atomic)
        assert found, f"core/os/atomic.h no longer has {pattern}"
    left = atomic.partition("namespace bp {")[2]
    assert "__atomic_" not in left, "core/os/atomic.h has a builtin that is not translated"
    (place / "weak_atomic.h").write_text(atomic)
    words = (CORE / "layout" / "words.h").read_text()
    (place / "words.h").write_text(words.replace('#include "os/atomic.h"', '#include "weak_atomic.h"'))
    program = place / "weak"
    command = [*COMPILER, *FLAGS, f"-I{place}", f"-I{NATIVE}", str(NATIVE / "weak.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run(program: Path, test: str, mistake: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MISTAKE": str(mistake)}
    command = [str(program), test]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False, env=environment)


@pytest.mark.parametrize("test", TESTS)
def test_the_orders_of_the_core_suffice(program: Path, test: str) -> None:
    done = run(program, test)
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(rf"{test}: \d+ iterations, held", done.stdout)


@pytest.mark.parametrize(("test", "name", "order", "wrong"), WEAKER)
def test_a_weaker_order_is_seen(program: Path, test: str, name: str, order: str, wrong: str) -> None:
    done = run(program, test, WEAKER.index((test, name, order, wrong)) + 1)
    assert done.returncode == 1, f"{name} was made weaker, and nobody noticed: {wrong}"
    assert "VIOLATED" in done.stdout
