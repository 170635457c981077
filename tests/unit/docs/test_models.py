"""The table of families in docs/models.md says of each what `rnow check` says."""

from pathlib import Path

import pytest
from families import FAMILIES, refusal

TEXT = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {
    name: cells
    for name, *cells in (
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in TEXT.split("\n## Families\n")[1].split("\n## ")[0].splitlines()
        if line.startswith("| ")
    )
    if name != "family"
}


def test_every_family_that_is_tried_has_its_row() -> None:
    assert list(ROWS) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_refused_is_what_check_refuses(family: str) -> None:
    _, _, adapters, whole, teacher = ROWS[family]
    for tuning, cell in (("lora", adapters), ("full", whole)):
        assert (cell == "refused") == (refusal(family, tuning) is not None), tuning
        assert cell == "refused" or float(cell) < 1e-4
    assert float(teacher) < 1e-4
