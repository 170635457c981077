"""Weights & Biases offline, and MLflow in a folder: what they were told is read back.

python tests/bench/real_trackers.py wandb mlflow     # those that are installed beside rnow

Each run is begun, interrupted and gone on with. No network is used.
"""

import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rnow.training.trackers.base import EvaluationReport, RunInfo
from rnow.training.trackers.reports import Reports

EVALUATION = EvaluationReport(
    step=1,
    columns=("prompts", "accuracy"),
    rows=[["all", 0.5], ["task company", 0.25]],
    transcripts=[("line 1", "right", "<script>alert(1)</script></pre>·[2J")],
    note="the first 1 of 1 answers",
)


def tell(name: str, folder: Path) -> None:
    """Tell of steps 0 and 1 of three, be interrupted, tell of 1 again and of 2."""
    said: list[str] = []
    for first_step, steps in ((0, (0, 1)), (1, (1, 2))):
        info = RunInfo(
            project="clinic",
            name="one",
            folder=folder,
            first_step=first_step,
            settings={"seed": 0},
            id=None,
            keep_id=lambda id: None,
            say=said.append,
        )
        with Reports([name], info) as reports:
            for step in steps:
                reports.log_metrics(
                    step,
                    {"reverse_kl": 1 / (1 + step), "reverse_kl/turn_0": 2.0, "tool/a b?c": 1.0},
                )
            if not first_step:
                reports.log_evaluation(EVALUATION)
    print(name, "said", said)
    assert not [line for line in said if "nothing more" in line]


def check_mlflow(folder: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder.parent.parent / "mlruns").as_uri())
    id = json.loads((folder / "trackers.json").read_text())["mlflow"]
    history = client.get_metric_history(id, "reverse_kl")
    assert [(one.step, one.value) for one in history] == [(0, 1), (1, 0.5), (1, 0.5), (2, 1 / 3)]
    assert len(client.get_metric_history(id, "tool/a b_c")) == 4
    assert len(client.get_metric_history(id, "reverse_kl.turn_0")) == 4
    run = client.get_run(id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "0"})
    texts = Path(run.info.artifact_uri.removeprefix("file://")) / "eval" / "000001"
    assert json.loads((texts / "figures.json").read_text()) == {
        "columns": ["prompts", "accuracy"],
        "data": [["all", 0.5], ["task company", 0.25]],
    }
    assert (texts / "transcripts.txt").read_text() == (
        "the first 1 of 1 answers\n\nline 1, right\n<script>alert(1)</script></pre>·[2J"
    )


def records_of(log: bytes) -> Iterator[bytes]:
    """Yield what stands in a log of LevelDB's format: parts of at most 32 KiB, 7 bytes before each
    with checksum, length, and whether it is the whole, first, middle or last part of a record."""
    at, parts = 7, b""  # after the file's own header
    while at + 7 <= len(log):
        if (room := -at % 32_768) and room < 7:
            at += room
        length, kind = struct.unpack_from("<HB", log, at + 4)
        parts += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def check_wandb(folder: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    id = json.loads((folder / "trackers.json").read_text())["wandb"]
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{id}.wandb"))
    assert len(files) == 2, files  # `wandb sync` makes one run of both: their id is the same
    told = []
    for file in files:
        for data in records_of(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "reverse_kl" in items:
                told.append((items["step"], items["reverse_kl"]))
    assert told == [(0, 1), (1, 0.5), (1, 0.5), (2, 1 / 3)], told
    tables = [json.loads(file.read_text()) for file in folder.glob("wandb/*/files/**/*.table.json")]
    assert [["line 1", "right", "<script>alert(1)</script></pre>·[2J"]] in [
        one["data"] for one in tables
    ]
    assert [["all", 0.5], ["task company", 0.25]] in [one["data"] for one in tables]


def main(names: list[str]) -> None:
    os.environ["WANDB_MODE"] = "offline"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    checks = {"wandb": check_wandb, "mlflow": check_mlflow}
    for name in names or list(checks):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "runs" / "one"
            folder.mkdir(parents=True)
            tell(name, folder)
            checks[name](folder)
            print(name, "was read back")


if __name__ == "__main__":
    main(sys.argv[1:])
