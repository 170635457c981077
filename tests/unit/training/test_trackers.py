"""Trackers: what TensorBoard reads back, and that none of them can end or hold up a run.

What Weights & Biases and MLflow wrote is read back in tests/bench/real_trackers.py: both take
seconds to import, and bring much with them.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from builders import make_trajectory, tokenizer_folder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnow.chat.template import ChatTemplate
from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.config.settings import Config
from rnow.evaluation.constant_answers import ConstantAnswers
from rnow.evaluation.figures import Answer, Evaluation
from rnow.records import Prompt, RolloutId
from rnow.tools.graders import Grade
from rnow.training.trackers.base import EvaluationReport, RunInfo, flat_settings
from rnow.training.trackers.evaluation_report import MAX_TRANSCRIPT_CHARS, evaluation_report
from rnow.training.trackers.reports import Reports

METRICS = {"reverse_kl": 0.5, "browser/fetched": 3.0}
HOSTILE = "<script>alert(1)</script></pre>\x1b[2J\u202egpj.exe ![x](javascript:alert(1))"


def make_info(folder: Path, said: list[str], *, first_step: int = 0) -> RunInfo:
    return RunInfo(
        project="clinic",
        name="one",
        folder=folder,
        first_step=first_step,
        settings={"seed": 0},
        id=None,
        keep_id=lambda id: None,
        say=said.append,
    )


def make_evaluation(folder: Path, *said: str) -> tuple[Evaluation, ChatTemplate]:
    """An evaluation with these answers, of which the first one is right."""
    chat = ChatTemplate.load(tokenizer_folder(folder / "student", "qwen3"))
    answers = []
    for number, text in enumerate(said):
        ids = [*chat.encode("Which?"), *chat.encode(text)]
        prompt_length = len(chat.encode("Which?"))
        mask = [index >= prompt_length for index in range(len(ids))]
        trajectory = make_trajectory(ids, mask, id=RolloutId(-1, number, 0))
        metadata = {"expected_answer": "NA" if number else "Acme", "task_name": "company"}
        prompt = Prompt(index=number, line=number + 1, messages=(), tools=None, metadata=metadata)
        grade = Grade(correct=number == 0, extracted=text)
        answers.append(Answer(prompt=prompt, trajectory=trajectory, grade=grade))
    # That the second prompt's answer is NA alone is known.
    constants = ConstantAnswers(right={1: frozenset({"NA"})})
    return Evaluation(answers=tuple(answers), constants=constants), chat


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_goes_on_where_a_run_was_interrupted(tmp_path: Path) -> None:
    said: list[str] = []
    with Reports(["tensorboard"], make_info(tmp_path, said)) as reports:
        reports.log_metrics(0, METRICS)
        reports.log_metrics(1, {"reverse_kl": 9.0})
    with Reports(["tensorboard"], make_info(tmp_path, said, first_step=1)) as reports:
        reports.log_metrics(1, {"reverse_kl": 0.25})
    events = read_events(tmp_path)
    values = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert {name: [(one.step, one.value) for one in ones] for name, ones in values.items()} == {
        "reverse_kl": [(0, 0.5), (1, 0.25)],
        "browser/fetched": [(0, 3.0)],
    }
    assert said == []
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"tensorboard": "tensorboard"}


def test_what_a_page_wrote_acts_on_nothing_in_tensorboard(tmp_path: Path) -> None:
    evaluation, chat = make_evaluation(tmp_path, HOSTILE, "no idea\nor NA")
    report = evaluation_report(3, evaluation, chat)
    with Reports(["tensorboard"], make_info(tmp_path, [])) as reports:
        reports.log_evaluation(report)
    events = read_events(tmp_path)
    texts = {}
    for name in ("evaluation/figures", "evaluation/transcripts"):
        (event,) = events.Tensors(name)
        assert event.step == 3
        texts[name] = event.tensor_proto.string_val[0].decode()
    assert texts["evaluation/figures"].splitlines() == [
        "| `prompts` | `accuracy` | `low` | `high` | `n` | `best constant` |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `all` | 0.5 | 0.0945 | 0.9055 | 2 | `unknown` |",
        "| `task company` | 0.5 | 0.0945 | 0.9055 | 2 | `unknown` |",
        "| `with an answer` | 1 | 0.2065 | 1 | 1 | `unknown` |",
        "| `answer is NA` | 0 | 0 | 0.7935 | 1 | 1 |",
    ]
    num_prompt = len(chat.encode("Which?"))
    # All of what was said stands in blocks of code, without what moves a cursor or turns a line.
    assert texts["evaluation/transcripts"].splitlines() == [
        "the first 2 of 2 answers",
        "",
        "line 1, right",
        "",
        f"    ── prompt · {num_prompt} tokens",
        "    Which?",
        f"    ── turn 1 · {evaluation.answers[0].trajectory.num_actions} tokens · stop",
        "    <script>alert(1)</script></pre>·[2J·gpj.exe ![x](javascript:alert(1))",
        f"    ── end · answer · {evaluation.answers[0].trajectory.num_actions} sampled tokens",
        "",
        "line 2, wrong",
        "",
        f"    ── prompt · {num_prompt} tokens",
        "    Which?",
        f"    ── turn 1 · {evaluation.answers[1].trajectory.num_actions} tokens · stop",
        "    no idea",
        "    or NA",
        f"    ── end · answer · {evaluation.answers[1].trajectory.num_actions} sampled tokens",
    ]


def test_a_long_transcript_is_cut_and_says_so(tmp_path: Path) -> None:
    evaluation, chat = make_evaluation(tmp_path, "x" * 2 * MAX_TRANSCRIPT_CHARS)
    ((_, _, text),) = evaluation_report(0, evaluation, chat).transcripts
    head, last = text[:MAX_TRANSCRIPT_CHARS], text[MAX_TRANSCRIPT_CHARS:]
    assert head.endswith("xxx")
    assert last.startswith("\n… 2")
    assert last.endswith(" characters more")


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder is to be")
    said: list[str] = []
    with Reports(["tensorboard"], make_info(tmp_path, said)) as reports:
        for step in range(3):
            reports.log_metrics(step, METRICS)
    assert said == [
        "trainer.report_to: tensorboard is told nothing more: "
        f"[Errno 17] File exists: '{tmp_path}/tensorboard'. The run goes "
        "on, and metrics.jsonl has all of it; is there room on the disk, and a right to write?"
    ]


@pytest.fixture
def make_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Puts a `wandb` of the source given before the installed one, and nothing of it stays."""

    def forget() -> None:
        for name in [one for one in sys.modules if one.split(".")[0] == "wandb"]:
            del sys.modules[name]
        sys.modules.pop("rnow.training.trackers.wandb", None)

    def make(source: str) -> None:
        (tmp_path / "site" / "wandb").mkdir(parents=True)
        (tmp_path / "site" / "wandb" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "site")
        forget()

    yield make
    forget()


def test_a_package_that_cannot_be_imported_costs_its_record_alone(
    tmp_path: Path, make_package: Callable[[str], None]
) -> None:
    make_package("raise ImportError('libcore.so.1 is\\x1b[31m gone')")
    said: list[str] = []
    with Reports(["wandb", "tensorboard"], make_info(tmp_path, said)) as reports:
        reports.log_metrics(0, METRICS)
    assert said == [
        "trainer.report_to: wandb is told nothing more: libcore.so.1 is·[31m gone. The run goes "
        "on, and metrics.jsonl has all of it; install it beside rnow: pip install -e '.[wandb]' in "
        "the folder of rnow's source"
    ]
    assert [one.value for one in read_events(tmp_path).Scalars("reverse_kl")] == [0.5]


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end(
    tmp_path: Path, make_package: Callable[[str], None]
) -> None:
    make_package("import threading\n\ndef login(prompt):\n    threading.Event().wait()\n")
    importlib.import_module("rnow.training.trackers.wandb")  # not by the thread, after the test
    said: list[str] = []
    with Reports(["wandb"], make_info(tmp_path, said), limit_s=0.05) as reports:
        reports.log_metrics(0, METRICS)
    assert said == ["wandb has not taken all within 0 s; metrics.jsonl has it"]


def test_a_package_that_is_missing_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_project(tmp_path / "clinic", template="clinic")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    overrides = ["trainer.report_to=[tensorboard, mlflow]"]
    loaded = load_config(tmp_path / "clinic", overrides=overrides)
    assert loaded.config.trainer.report_to == ["tensorboard", "mlflow"]
    assert [(one.key, one.severity, one.message) for one in loaded.warnings] == [
        (
            "trainer.report_to",
            "warning",
            "trainer.report_to names mlflow, which is not installed: it is told nothing; install "
            "it beside rnow: pip install -e '.[mlflow]' in the folder of rnow's source",
        )
    ]
    said: list[str] = []
    with Reports(["mlflow"], make_info(tmp_path, said)) as reports:
        reports.log_metrics(0, METRICS)
    assert said == []


def test_what_servers_are_started_with_is_told_to_no_tracker() -> None:
    config = Config.model_validate(
        {
            "data": {"batch_size": 1},
            "model": {"path": "student"},
            "teacher": {"path": "teacher", "args": {"api-key": "secret"}},
            "rollout": {"mcp_url": ["http://127.0.0.1:9/mcp?key=secret"]},
            "trainer": {"num_epochs": 1, "report_to": ["wandb", "mlflow"]},
        }
    )
    settings: Mapping[str, object] = flat_settings(config.model_dump(mode="json"))
    assert "secret" not in str(settings)
    assert "rollout.mcp_url" not in settings
    assert settings["teacher.path"] == "teacher"
    assert settings["trainer.report_to"] == "wandb, mlflow"


def test_an_evaluation_without_answers_of_one_kind_has_no_row_for_it(tmp_path: Path) -> None:
    evaluation, chat = make_evaluation(tmp_path, "Acme")
    report: EvaluationReport = evaluation_report(0, evaluation, chat)
    assert [row[0] for row in report.rows] == ["all", "task company", "with an answer"]
