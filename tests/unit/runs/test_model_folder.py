from pathlib import Path

import pytest

from rnow.errors import CheckpointError
from rnow.runs.folder import RunDirectory
from rnow.runs.model_folder import write_model_folder


def test_a_tokenizer_that_was_deleted_under_a_run_is_told_and_no_model_is_written_without(
    tmp_path: Path,
) -> None:
    model, student = tmp_path / "model", tmp_path / "student"
    with pytest.raises(CheckpointError) as caught:
        write_model_folder(
            model,
            save=lambda folder: (folder / "adapter_model.safetensors").touch(),
            base="student",
            tokenizer=student,
            ends=(2,),
            run=RunDirectory(tmp_path),
        )
    assert str(caught.value) == (
        f"{student} has no tokenizer.json any more, without which the trained model cannot be "
        "used, so it is not written. Nothing is lost: put the folder back and give the same "
        "command again"
    )
    assert not model.exists()
