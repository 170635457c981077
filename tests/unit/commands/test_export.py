"""`rnow export`: where it writes, and what it needs."""

import json
from pathlib import Path

import pytest

from rnow.commands.export import export_run
from rnow.errors import CheckpointError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of an adapter, as far as exporting looks at it."""
    folder = tmp_path / "runs" / "one"
    (folder / "model").mkdir(parents=True)
    base = {"base_model_name_or_path": str(tmp_path / "models" / "student")}
    (folder / "model" / "adapter_config.json").write_text(json.dumps(base))
    (folder / "config.yml").write_text("model: {path: models/student}\n")
    return folder


def message(run: Path, *, output: Path | None, merge: bool = False) -> str:
    with pytest.raises(CheckpointError) as caught:
        export_run(run, output=output, merge=merge)
    return str(caught.value)


def test_an_output_that_cannot_be_filled_is_refused(run: Path, tmp_path: Path) -> None:
    file = run / "config.yml"
    assert message(run, output=file) == f"{file} is a file; name a folder with --output"
    inside = run / "model" / "x"
    assert message(run, output=inside) == (
        f"{inside} is inside the model itself; name a folder outside it"
    )
    assert message(run, output=run) == f"{run} is not empty; name another folder with --output"


def test_a_folder_that_is_gone_is_not_asked_of_the_hub(run: Path, tmp_path: Path) -> None:
    assert message(run, output=tmp_path / "out", merge=True) == (
        "--merge adds the adapter to the model that it was trained on, models/student, "
        f"which is gone from {tmp_path}; put it back, or export without --merge"
    )
