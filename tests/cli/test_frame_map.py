"""``bufferpool map`` of a large pool fits the screen."""

from typing import Any

import numpy as np
import pytest

import bufferpool as bp
from bufferpool.cli import frame_map, main
from bufferpool.cli.frame_map import CLEAN, DIRTY, FREE, HOLE, STATES


@pytest.mark.parametrize(("extents", "per"), [(1, 32), (7, 32), (4096, 32), (100_000, 64), (5000, 1), (3, 4096)])
@pytest.mark.parametrize(("width", "rows"), [(80, 20), (40, 6), (200, 50)])
def test_a_map_of_any_size_fits_the_screen(extents: int, per: int, width: int, rows: int) -> None:
    """The map of a pool of 64 GiB was printed with eight million characters."""
    cells = np.full(extents * per, CLEAN, np.uint8)
    folded, box, each = frame_map.fold(cells, per, width, rows)
    shown = list(frame_map.lines(folded, STATES, box, width, False, box * each // per))
    assert 0 < len(shown) <= rows
    assert max(map(len, shown)) <= width
    assert "".join(shown).count("o") == len(folded) >= len(cells) // each


def test_a_folded_cell_shows_the_most_frequent_kind_and_lines_name_their_extents() -> None:
    cells = np.repeat(np.array([CLEAN, DIRTY, FREE, HOLE], np.uint8), 4096)
    cells[5] = DIRTY  # one among many: the legend counts it, the cell does not show it
    folded, box, each = frame_map.fold(cells, 64, 80, 4)
    quarter = 4096 // each
    assert each > 1
    assert folded[: 4 * quarter].tolist() == [k for k in (CLEAN, DIRTY, FREE, HOLE) for _ in range(quarter)]
    numbers = [int(line.split()[0]) for line in frame_map.lines(folded, STATES, box, 80, False, box * each // 64)]
    assert numbers[0] == 0
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < len(cells) // 64


def test_the_command_folds_to_the_terminal_unless_it_is_asked_for_all(
    make_pool: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "12")
    pool: bp.Pool = make_pool(capacity=4096 * 4096)
    assert main(["map", pool.name, "--color", "never"]) == 0
    folded = capsys.readouterr().out
    assert len(folded.splitlines()) <= 12
    assert "the most frequent kind of" in folded.splitlines()[0]
    assert main(["map", pool.name, "--color", "never", "--full"]) == 0
    whole = capsys.readouterr().out
    assert "most frequent" not in whole
    assert whole.count("·") + whole.count("-") >= 4096
    assert folded.splitlines()[-1] == whole.splitlines()[-1]  # the legend counts the same frames
