import json
from pathlib import Path

import pytest
from builders import tokenizer_folder

from rnow.commands.check.models import window_problem
from rnow.commands.check.point import Outcome
from rnow.commands.check.project import CheckReport, as_json, check_project

CONFIG = """\
data: {batch_size: 1}
model: {path: student}
teacher: {path: teacher}
rollout:
  max_context_window: 4096
trainer: {num_epochs: 2}
"""
PROMPT = json.dumps({"messages": [{"role": "user", "content": "Who runs trial NCT1?"}]})
TOOLS = '''\
from rnow.core import tool


@tool
def browse(url: str) -> str:
    """Read a page."""
    return url
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project without tools that is right in all points."""
    (tmp_path / "config.yml").write_text(CONFIG)
    (tmp_path / "train.jsonl").write_text(f"{PROMPT}\n{PROMPT}\n{PROMPT}\n")
    for name in ("student", "teacher"):
        folder = tokenizer_folder(tmp_path / name, "qwen3")
        (folder / "model.safetensors").write_bytes(b"0" * 100)
    return tmp_path


def outcomes(report: CheckReport) -> dict[str, str]:
    return {point.name: str(point.outcome) for point in report.points}


def problems(report: CheckReport) -> list[str]:
    return [str(problem) for point in report.points for problem in point.problems]


def test_a_right_project_is_ok_in_all_points(project: Path) -> None:
    (project / "tools.py").write_text(TOOLS)
    (project / "val.jsonl").write_text(PROMPT)
    report = check_project(project, ["rollout.max_turns=4", "engine.kind=local"])
    assert report.ok
    messages = {point.name: point.message for point in report.points}
    num_tokens = int(messages["tokenizers"].split()[0])
    num_prompt = int(messages["window"].split()[4])
    assert num_prompt > 100  # the tools' schemas are in it
    device = messages.pop("devices")
    assert device
    plan = messages.pop("plan").splitlines()
    assert plan[:3] == [
        "each number with what it is from",
        "steps           6  (from the settings)",
        "rollouts        24  (from the settings)",
    ]
    # The folders of this project hold no sizes of models, so nothing is said of time.
    assert not [line for line in plan if line.startswith("time")]
    costs = json.loads(as_json(report))["plan"]
    assert costs["rollouts"] == {"value": 24, "basis": "from the settings"}
    assert costs["total_s"] is None
    assert messages == {
        "config": f"{project}/config.yml",
        "tools": "browse",
        "data": "3 prompts, 6 steps, 1 held-out prompts",
        "tokenizers": f"{num_tokens} tokens, the same ids in student and teacher",
        "template": "tool results can be appended token by token",
        "window": f"the longest prompt takes {num_prompt} of 4096 tokens, tools included",
    }
    assert problems(report) == []


def test_warnings_are_shown_and_leave_a_project_ok(project: Path) -> None:
    (project / "tools.py").write_text(TOOLS)
    for name in ("student", "teacher"):
        tokenizer_folder(project / name, "llama3.1")
    report = check_project(project, ["data.group_size=65"])
    assert report.ok
    found = json.loads(as_json(report))["problems"]
    assert [(p["severity"], p["key"]) for p in found] == [
        ("warning", "data.group_size"),
        ("warning", "model.path"),
    ]
    assert (found[1]["file"], found[1]["line"]) == (f"{project}/config.yml", 2)
    assert "does not write tool calls as" in found[1]["message"]
    assert [line[:6] for line in report.lines() if line.startswith("    !")] == ["    ! "] * 2


def test_every_problem_is_shown_and_not_the_first_alone(project: Path) -> None:
    (project / "config.yml").write_text(CONFIG + "algorithm: {kl_penalty_coeff: 1}\n")
    (project / "tools.py").write_text("from rnow.core import tool\n\n1 / 0\n")
    (project / "train.jsonl").write_text(f'{PROMPT}\n{{"messages": []}}\nnot json\n')
    report = check_project(project)
    assert not report.ok
    assert outcomes(report) == {
        "config": "problem",
        "tools": "problem",
        "data": "problem",
        "tokenizers": "not checked",
        "template": "not checked",
        "window": "not checked",
        "devices": "not checked",
        "plan": "not checked",
    }
    found = json.loads(as_json(report))["problems"]
    assert [(Path(p["file"]).name, p["line"], p["severity"]) for p in found] == [
        ("config.yml", 7, "error"),
        ("tools.py", 3, "error"),
        ("train.jsonl", 2, "error"),
        ("train.jsonl", 3, "error"),
    ]
    assert found[0]["key"] == "algorithm.kl_penalty_coeff"
    assert found[1] == {
        "file": f"{project}/tools.py",
        "line": 3,
        "key": None,
        "message": "ZeroDivisionError: division by zero",
        "severity": "error",
    }


def test_json_is_one_line_with_the_five_fields(project: Path) -> None:
    (project / "train.jsonl").unlink()
    text = as_json(check_project(project))
    assert "\n" not in text
    (problem,) = json.loads(text)["problems"]
    assert json.loads(text)["plan"] is None
    assert problem == {
        "file": f"{project}/train.jsonl",
        "line": None,
        "key": None,
        "message": "file not found; write one JSON object with messages a line",
        "severity": "error",
    }


def test_the_report_reads_as_lines(project: Path) -> None:
    (project / "config.yml").write_text("data: {batch_size: 1}\n")
    lines = list(check_project(project).lines())
    assert lines[0].startswith("✗ config      ")
    assert lines[1].startswith("    ✗ ")
    assert lines[-1] == "– plan        not checked: config.yml has problems"


def test_without_tools_py_several_turns_are_a_problem(project: Path) -> None:
    report = check_project(project, ["rollout.max_turns=3"])
    assert outcomes(report)["tools"] == "problem"
    assert problems(report)[0].endswith(
        f"rollout.max_turns is 3, but there is no tools.py in {project}; write one, or set "
        "rollout.max_turns to 1"
    )


def test_prompts_that_name_an_unknown_tool_are_a_problem(project: Path) -> None:
    entry = json.loads(PROMPT) | {"tools": ["browse"]}
    (project / "train.jsonl").write_text(json.dumps(entry))
    report = check_project(project)
    assert outcomes(report)["data"] == "problem"
    assert outcomes(report)["template"] == "not checked"
    assert outcomes(report)["tokenizers"] == "ok"


def test_different_token_ids_are_a_problem_of_the_teacher(project: Path) -> None:
    tokenizer_folder(project / "teacher", "qwen2.5")
    report = check_project(project)
    assert outcomes(report)["tokenizers"] == "problem"
    (problem,) = report.points[3].problems
    assert (problem.line, problem.key) == (3, "teacher.path")
    assert problem.message.startswith("student and teacher do not share token ids, ")


def test_models_that_are_elsewhere_are_not_checked_and_the_reason_is_said(project: Path) -> None:
    overrides = ["model.path=nobody/student", "teacher.path=nobody/teacher", "engine.kind=local"]
    report = check_project(project, overrides)
    assert report.ok
    assert [point.message for point in report.points[3:6]] == [
        "not on this machine: nobody/student, nobody/teacher",
        "not on this machine: nobody/student",
        "not on this machine: nobody/student",
    ]
    assert {point.outcome for point in report.points[3:6]} == {Outcome.NOT_CHECKED}


def test_a_template_that_the_ledger_cannot_use_is_a_problem(project: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ messages | length }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    tokenizer_folder(project / "student", "qwen3", template=template)
    report = check_project(project)
    assert outcomes(report)["template"] == "problem"
    assert report.points[5].message == "the template has problems"


def test_models_that_cannot_run_are_a_problem_of_devices(project: Path) -> None:
    (project / "teacher" / "model.safetensors").unlink()
    report = check_project(project)
    assert report.points[-2].problems[0].message == (
        "teacher cannot be loaded\n"
        f"  teacher.path: {project}/teacher has no weights, or not all of their parts"
    )
    assert list(report.lines())[-3:-1] == [
        f"    ✗ {project}/config.yml:3: teacher cannot be loaded",
        f"        teacher.path: {project}/teacher has no weights, or not all of their parts",
    ]


def test_sites_without_a_contact_are_a_problem(project: Path) -> None:
    with (project / "config.yml").open("a") as file:
        file.write("browser:\n  allow_hosts: [example.org]\n")
    report = check_project(project)
    assert problems(report)[0] == (
        f"{project}/config.yml: browser.contact is null: no site outside this machine is read "
        "until it is your mail or web address, which those sites are told"
    )
    assert outcomes(report)["config"] == "problem"
    assert outcomes(report)["template"] == "ok"
    assert check_project(project, ["browser.contact=me@example.org"]).ok


def test_kinds_of_training_that_are_not_built_are_a_problem(project: Path) -> None:
    text = CONFIG.replace("teacher: {path: teacher}\n", "dataset_type: midtrain\n")
    (project / "config.yml").write_text(text)
    (project / "train.jsonl").write_text('{"text": "once"}\n')
    report = check_project(project)
    assert problems(report)[1] == (
        f"{project}/config.yml:3: dataset_type midtrain is read and checked, but not trained in "
        "this version; only distill is"
    )
    assert report.points[3].message == "dataset_type midtrain has no teacher"


def test_a_folder_without_config_is_a_problem(tmp_path: Path) -> None:
    report = check_project(tmp_path)
    assert not report.ok
    assert "No config.yml or config.json found in" in problems(report)[0]


@pytest.mark.parametrize(
    ("longest", "window", "needed", "is_error"),
    [(6001, 8000, 2000, True), (3100, 4096, 1024, False), (4096, 4096, 1024, True)],
)
def test_a_window_must_leave_room(longest: int, window: int, needed: int, is_error: bool) -> None:
    assert window_problem(longest, window) == (
        f"rollout.max_context_window is {window} tokens, and the longest prompt takes {longest} "
        f"with its tools; that leaves {window - longest} for the student, who needs {needed}",
        "error" if is_error else "warning",
    )


@pytest.mark.parametrize(("longest", "window"), [(6000, 8000), (3072, 4096), (30768, 32768)])
def test_a_window_with_room_is_right(longest: int, window: int) -> None:
    assert window_problem(longest, window) is None


def test_a_prompt_that_fills_the_window_is_a_problem(project: Path) -> None:
    long = json.dumps({"messages": [{"role": "user", "content": "word " * 5000}]})
    (project / "train.jsonl").write_text(f"{PROMPT}\n{long}\n")
    report = check_project(project)
    assert outcomes(report)["window"] == "problem"
    (problem,) = report.points[5].problems
    assert (problem.line, problem.key) == (5, "rollout.max_context_window")
