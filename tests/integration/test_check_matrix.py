"""`rnow check` and `rnow run` say the same of a third of the matrix.

bench/bench_check_matrix.py tries all of it.
"""

import zlib
from pathlib import Path

import pytest
from check_matrix import CELLS, SHORT, Cell, try_cell


def is_chosen(cell: Cell) -> bool:
    """Whether a cell is in the third that is run here: each template and vocabulary has some."""
    return zlib.crc32(str(cell).encode()) % 3 == 0


@pytest.mark.slow
@pytest.mark.parametrize("cell", [*filter(is_chosen, CELLS)], ids=str)
def test_what_check_says_a_run_bears_out(tmp_path: Path, cell: Cell) -> None:
    assert try_cell(tmp_path / "project", cell).disagreement is None


@pytest.mark.parametrize("vocabulary", SHORT)
def test_a_network_with_too_few_rows_is_refused_by_both(tmp_path: Path, vocabulary: str) -> None:
    cell = Cell(template="qwen3", vocabulary=vocabulary, has_tools=False)
    verdict = try_cell(tmp_path / "project", cell)
    (problem,) = verdict.problems
    assert verdict.refusal == problem
    assert problem.startswith("the student's chat template writes 1 ('<|im_start|>'), for which ")
