"""Random damage to single words of the objects' area (tests/support/fuzz_objects.py), in a short and a long form.

What it found first: a block whose count of memory was damaged was stripped beyond its end, and the values of its neighbours
were lost, also those that callers held. A lower number of used address room gave two blocks the same place. A free list that
led into that of another class gave a block more bytes than it has. A damaged length gave a value the bytes of the next one.
And a damaged kind raised an error of pickle.
"""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FUZZ = ROOT / "tests" / "support" / "fuzz_objects.py"


def fuzz(seed: int, rounds: int, timeout_s: float) -> None:
    command = [sys.executable, str(FUZZ), "--seed", str(seed), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]}: {done.stderr}"
    assert [line["finding"] for line in lines if "finding" in line] == []
    assert lines[-1] == {"rounds": rounds}


def test_every_call_ends_and_no_value_is_another_keys() -> None:
    fuzz(1, 60, 600)


@pytest.mark.soak
def test_many_damages() -> None:
    fuzz(1000, 20_000, 7200)
