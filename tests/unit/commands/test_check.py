import asyncio
import io
import json
import os
from pathlib import Path

import pytest
from builders import HOLLOW_CONFIG, real_template, tokenizer_folder, write_hollow_model
from rich.console import Console

from rnow.commands.arguments import require_writable
from rnow.commands.check.files import saying_waits
from rnow.commands.check.models import window_problem
from rnow.commands.check.point import Outcome
from rnow.commands.check.project import CheckReport, as_json, check_project
from rnow.commands.run import train_project
from rnow.config.load import load_config
from rnow.errors import CheckpointError, TemplateError
from rnow.runtime.deadline import within

CONFIG = """\
data: {batch_size: 1, group_size: 64}
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
        write_hollow_model(tokenizer_folder(tmp_path / name, "qwen3"))
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
        "rollouts        384  (from the settings)",
    ]
    costs = json.loads(as_json(report))["plan"]
    assert costs["rollouts"] == {"value": 384, "basis": "from the settings"}
    assert costs["total_s"]["basis"].startswith("assumed 30 tokens/s a rollout, 1 s a tool call; ")
    assert messages == {
        "config": f"{project}/config.yml\nrollout.max_turns = 4 (was: not set)\n"
        "engine.kind = 'local' (was: not set)",
        "tools": "browse",
        "data": "3 prompts, 6 steps, 1 held-out prompts",
        "rewards": "no rewards.py",
        "tokenizers": f"{num_tokens} tokens, the same ids in student and teacher",
        "template": "tool results can be appended token by token",
        "window": f"the longest prompt takes {num_prompt} of 4096 tokens, tools included",
    }
    assert problems(report) == []


async def test_what_a_check_waits_for_is_said_after_a_while() -> None:
    async def work(seconds: float) -> int:
        async with within(60, "tools: the import of tools.py"):
            await asyncio.sleep(seconds)
        return 3

    said: list[str] = []
    assert await saying_waits(work(0), said.append, after_s=5) == 3
    assert said == []
    assert await saying_waits(work(0.3), said.append, after_s=0.05) == 3
    assert said == ["waiting for tools: the import of tools.py, 60 s at most"]


def test_warnings_are_shown_and_leave_a_project_ok(project: Path) -> None:
    (project / "tools.py").write_text(TOOLS)
    overrides = ["data.group_size=65", "rollout.max_turns=4", "rollout.reasoning_mode=none"]
    report = check_project(project, overrides)
    assert report.ok
    found = json.loads(as_json(report))["problems"]
    assert [(p["severity"], p["key"]) for p in found] == [
        ("warning", "data.group_size"),
        ("warning", "model.path"),
    ]
    assert (found[1]["file"], found[1]["line"]) == (f"{project}/config.yml", 2)
    assert "rewrites earlier thinking" in found[1]["message"]
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
        "rewards": "not checked",
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
        f"rollout.max_turns is 3, but there is no tools.py in {project}; write one, name an MCP "
        "server in rollout.mcp_url, or set rollout.max_turns to 1"
    )


def test_prompts_that_name_an_unknown_tool_are_a_problem(project: Path) -> None:
    entry = json.loads(PROMPT) | {"tools": ["browse"]}
    (project / "train.jsonl").write_text(json.dumps(entry))
    report = check_project(project)
    assert outcomes(report)["data"] == "problem"
    assert outcomes(report)["template"] == "not checked"
    assert outcomes(report)["tokenizers"] == "ok"


REWARDS = """\
from rnow.core import RewardArgs, grader, reward


@reward
def accuracy(args: RewardArgs, messages: list) -> float:
    return 1.0


@grader(label="CITY")
def same_city(expected: str, answered: str) -> bool:
    return expected == answered
"""


def test_the_names_of_rewards_and_graders_are_looked_for_in_rewards_py(project: Path) -> None:
    (project / "rewards.py").write_text(REWARDS)
    named = json.dumps(json.loads(PROMPT) | {"rewards": ["accuracy"], "grader": "same_city"})
    wrong = json.dumps(json.loads(PROMPT) | {"rewards": ["acuracy"], "grader": "accuracy"})
    (project / "train.jsonl").write_text(f"{named}\n")
    report = check_project(project, ["data.grader=same_city"])
    assert report.ok
    assert report.points[3].message == "accuracy, same_text, same_city"
    (project / "val.jsonl").write_text(f"{PROMPT}\n{wrong}\n")
    report = check_project(project, ["data.grader=best"])
    assert outcomes(report)["rewards"] == "problem"
    put = "put @grader (from rnow.core) above a function of that name, or take one that is there"
    assert problems(report) == [
        f"{project}/config.yml: data.grader is 'best', which is no grader of rewards.py; {put}: "
        "same_text, same_city",
        f"{project}/val.jsonl:2: grader is 'accuracy', which is no grader of rewards.py; {put}: "
        "same_text, same_city",
        f"{project}/val.jsonl:2: Reward 'acuracy' is referenced in val.jsonl but not defined in "
        "rewards.py, which has: accuracy",
    ]


def test_names_without_a_rewards_py_are_told(project: Path) -> None:
    named = json.dumps(json.loads(PROMPT) | {"rewards": ["a", "b"], "grader": "same_city"})
    (project / "train.jsonl").write_text(f"{PROMPT}\n{named}\n{named}\n")
    report = check_project(project)
    assert outcomes(report)["rewards"] == "problem"
    assert problems(report)[0] == (
        f"{project}/train.jsonl:2: grader is 'same_city', but there is no rewards.py; "
        "write one, with @grader (from rnow.core) above the function same_city "
        "(so in 2 lines: 2, 3)"
    )
    (warning,) = (p for p in report.points[3].problems if p.severity == "warning")
    assert str(warning) == (
        f"{project}/train.jsonl:2: rewards names a, b, but there is no rewards.py: write one, with "
        "@reward (from rnow.core) above each, or remove rewards from the entries"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "\nimport nowhere_at_all\n",
            "2: ModuleNotFoundError: No module named 'nowhere_at_all'; install it in the "
            "environment that rnow runs in: pip install -r {project}/requirements.txt",
        ),
        (
            REWARDS.replace("args: RewardArgs, ", ""),
            "4: Reward registration failed: Reward 'accuracy' must have exactly 2 parameters: "
            "(args: RewardArgs, messages: list). Got 1 parameters.",
        ),
        (
            REWARDS.replace(", answered: str", ""),
            "9: Grader 'same_city' must take (expected: str, answered: str), and one more where it "
            "wants the entry's metadata; it takes (expected).",
        ),
    ],
)
def test_a_rewards_py_that_cannot_be_used_is_told_with_line_and_remedy(
    project: Path, code: str, message: str
) -> None:
    (project / "rewards.py").write_text(code)
    (project / "requirements.txt").write_text("nowhere-at-all\n")
    report = check_project(project)
    assert problems(report) == [f"{project}/rewards.py:" + message.format(project=project)]


def test_different_token_ids_are_a_problem_of_the_teacher(project: Path) -> None:
    tokenizer_folder(project / "teacher", "llama3.1")
    report = check_project(project)
    assert outcomes(report)["tokenizers"] == "problem"
    (problem,) = report.points[4].problems
    assert (problem.line, problem.key) == (3, "teacher.path")
    assert problem.message.startswith("student and teacher do not share token ids, ")


def test_a_teacher_that_knows_less_tokens_is_said_and_the_template_may_not_write_them(
    project: Path,
) -> None:
    tokenizer_folder(project / "teacher", "qwen2.5")
    report = check_project(project)
    assert outcomes(report)["tokenizers"] == "ok"
    (told,) = report.points[4].problems
    assert told.severity == "warning"
    assert told.message.startswith("the teacher does not know 4 ('<tool_response>', ")
    assert outcomes(report)["template"] == "ok"  # without tools it writes none of them
    (project / "tools.py").write_text(TOOLS)
    report = check_project(project, ["rollout.max_turns=4"])
    assert outcomes(report)["template"] == "problem"
    (problem,) = report.points[5].problems
    assert problem.message == (
        "the student's chat template writes 2 ('<tool_response>', '</tool_response>'), unknown to "
        "the teacher; take two models with the same tokenizer"
    )


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_check_and_run_look_for_tokens_that_a_model_cannot_read_in_every_prompt(
    project: Path, name: str
) -> None:
    tokenizer_folder(project / "teacher", "qwen2.5")
    asked = {"messages": [{"role": "user", "content": "What does <tool_response> do?"}]}
    answer = {"metadata": {"expected_answer": "It shows."}}
    for file in ("train.jsonl", "val.jsonl"):
        (project / file).write_text(f"{json.dumps(json.loads(PROMPT) | answer)}\n" * 2)
    with (project / name).open("a") as file:
        file.write(f"{json.dumps(asked | answer)}\n")
    overrides = ["trainer.eval_step=1", "engine.kind=local"]
    (problem,) = check_project(project, overrides).points[5].problems
    assert problem.message == (
        f"the prompt of {name}:3 holds 1 ('<tool_response>'), unknown to the teacher; write it "
        "otherwise, or take two models with the same tokenizer"
    )
    loaded, console = load_config(project, overrides=overrides), Console(file=io.StringIO())
    with pytest.raises(TemplateError) as caught:
        train_project(loaded, project, name="run", fresh=False, console=console)
    assert str(caught.value) == problem.message


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_with_fewer_rows_than_its_template_needs_is_a_problem(
    project: Path, role: str
) -> None:
    (project / role / "config.json").write_text(json.dumps(HOLLOW_CONFIG | {"vocab_size": 431}))
    report = check_project(project)
    assert outcomes(report)["template"] == "problem"
    (problem,) = report.points[5].problems
    assert problem.message.startswith("the student's chat template writes ")
    assert problem.message.endswith(
        f", for which the {role}'s network has no row (vocab_size is 431); take two models with "
        "the same tokenizer"
    )


def test_models_that_are_elsewhere_are_not_checked_and_the_reason_is_said(project: Path) -> None:
    overrides = ["model.path=nobody/student", "teacher.path=nobody/teacher", "engine.kind=local"]
    report = check_project(project, overrides)
    assert report.ok
    assert [point.message for point in report.points[4:7]] == [
        "not on this machine: nobody/student, nobody/teacher",
        "not on this machine: nobody/student",
        "not on this machine: nobody/student",
    ]
    assert {point.outcome for point in report.points[4:7]} == {Outcome.NOT_CHECKED}


def test_of_models_that_are_elsewhere_what_can_be_planned_is(project: Path) -> None:
    config = "model: {path: nobody/student}\nteacher: {path: nobody/teacher}"
    (project / "config.yml").write_text(
        CONFIG.replace("model: {path: student}\nteacher: {path: teacher}", config)
    )
    local = check_project(project, ["engine.kind=local"])
    assumed = "assumed 400 tokens a turn and all 1 turns of a rollout, 4 bytes a token of prompts"
    # The prompt's 52 bytes of JSON, and 4 of the empty list of tools, are 14 tokens.
    plan = [
        "each number with what it is from",
        "steps           6  (from the settings)",
        "rollouts        384  (from the settings)",
        f"tokens sampled  154 thousand  ({assumed})",
        f"tokens read     5.38 thousand  ({assumed})",
        "journal         3.1 MB  (assumed 20 bytes a sampled token and 2 a read one, at most "
        "trainer.keep_trajectories_gb)",
    ]
    sizes = [
        f"no time that is not measured: the sizes of nobody/{name} are not known here; "
        f"hf download nobody/{name} --include '*.json' '*.jinja'"
        for name in ("student", "teacher")
    ]
    assert local.points[-1].message.splitlines() == [*plan, *sizes]
    devices = {point.name: point for point in local.points}["devices"]
    assert devices.message.splitlines()[1:] == [
        f"{key}.path: nobody/{name} is not on this machine: a run downloads it first"
        for key, name in (("model", "student"), ("teacher", "teacher"))
    ]
    costs = json.loads(as_json(local))["plan"]
    assert (costs["tokens_in"]["value"], costs["total_s"]) == (384 * 14, None)


def test_a_template_that_the_ledger_cannot_use_is_a_problem(project: Path) -> None:
    template = real_template("qwen3.jinja").replace(
        "{{- '\\n<tool_response>\\n' }}", "{{- '\\n<tool_response>' + loop.index | string }}"
    )
    tokenizer_folder(project / "student", "qwen3", template=template)
    one_turn = check_project(project)
    messages = {point.name: point.message for point in one_turn.points}
    assert messages["template"] == "a turn ends with <|im_end|>"
    assert outcomes(one_turn)["template"] == "ok"
    (project / "tools.py").write_text(TOOLS)
    report = check_project(project, ["rollout.max_turns=4"])
    assert outcomes(report)["template"] == "problem"
    assert report.points[6].message == "the template has problems"


def test_a_prompt_that_the_template_refuses_is_named(project: Path) -> None:
    template = real_template("gemma.jinja").replace("<end_of_turn>", "<|im_end|>")
    tokenizer_folder(project / "student", "qwen3", template=template)
    system = {"role": "system", "content": "Be brief."}
    line = json.dumps({"messages": [system, {"role": "user", "content": "Who?"}]})
    (project / "train.jsonl").write_text(f"{PROMPT}\n{PROMPT}\n{line}\n")
    found = [problem for problem in problems(check_project(project)) if "template" in problem]
    assert found == [
        f"{project}/config.yml:2: the prompt of train.jsonl:3: the chat template of "
        f"{project}/student cannot render these messages: TemplateError: System role not supported"
    ]


def test_a_prompt_of_few_characters_and_many_tokens_is_found(project: Path) -> None:
    lines = [json.loads(PROMPT) for _ in range(80)]
    for line in lines[:-1]:
        line["messages"][0]["content"] = "word " * 400
    lines[-1]["messages"][0]["content"] = "\U00020000" * 1500  # four bytes each, which are tokens
    (project / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    window = next(one for one in check_project(project).points if one.name == "window")
    (problem,) = window.problems
    assert problem.severity == "error"
    assert problem.message.startswith(
        "rollout.max_context_window is 4096 tokens, and the longest prompt takes 6"
    )


def test_held_out_prompts_are_rendered_and_counted_too(project: Path) -> None:
    (project / "val.jsonl").write_text(PROMPT.replace("Who", "Who " * 5000))
    window = next(one for one in check_project(project).points if one.name == "window")
    assert [problem.severity for problem in window.problems] == ["error"]
    template = real_template("gemma.jinja").replace("<end_of_turn>", "<|im_end|>")
    tokenizer_folder(project / "student", "qwen3", template=template)
    system = {"role": "system", "content": "Be brief."}
    line = json.dumps({"messages": [system, {"role": "user", "content": "Who?"}]})
    (project / "val.jsonl").write_text(line)
    found = [problem for problem in problems(check_project(project)) if "template" in problem]
    assert found[0].startswith(f"{project}/config.yml:2: the prompt of val.jsonl:1: ")


def test_held_out_prompts_that_cannot_be_graded_are_a_problem_of_runs_that_evaluate(
    project: Path,
) -> None:
    (project / "val.jsonl").write_text(PROMPT)
    assert check_project(project).ok
    assert problems(check_project(project, ["trainer.eval_step=1"])) == [
        f"{project}/val.jsonl:1: there is no metadata.expected_answer, without which an answer "
        "cannot be graded; add it, or take the line out"
    ]
    (project / "val.jsonl").unlink()
    (project / "val.jsonl").mkdir()
    assert outcomes(check_project(project, ["trainer.eval_step=1"]))["data"] == "problem"


def test_a_models_file_that_is_no_json_is_named(project: Path) -> None:
    file = project / "teacher" / "generation_config.json"
    file.write_text("[]")
    chat = next(one for one in check_project(project).points if one.name == "template")
    assert [problem.message for problem in chat.problems] == [
        f"{file} cannot be read: it holds no JSON object; fetch it again"
    ]


def test_models_that_cannot_run_are_a_problem_of_devices(project: Path) -> None:
    (project / "teacher" / "model.safetensors").unlink()
    report = check_project(project)
    assert report.points[-2].problems[0].message == (
        "teacher cannot be loaded\n"
        f"  teacher.path: {project}/teacher has no weights (*.safetensors or "
        "pytorch_model*.bin)"
    )
    lines = list(report.lines())
    at = lines.index(f"    ✗ {project}/config.yml:3: teacher cannot be loaded")
    assert lines[at + 1 : at + 5] == [
        f"        teacher.path: {project}/teacher has no weights (*.safetensors or "
        "pytorch_model*.bin)",
        "✓ plan        each number with what it is from",
        "    steps           6  (from the settings)",
        "    rollouts        384  (from the settings)",
    ]
    # The sizes are here, and so is what is kept on disk; how long it takes depends on where.
    assert lines[-3].startswith("    checkpoints ")
    assert lines[-1] == "    no time: where the models run is not settled, see devices"


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
        "this version; only distill is. To train this project so: dataset_type: distill, and a "
        "teacher: {path: MODEL}"
    )
    assert report.points[4].message == "dataset_type midtrain has no teacher"


@pytest.mark.parametrize("dataset_type", ["sft", "midtrain"])
def test_turns_need_no_tools_where_there_are_no_rollouts(project: Path, dataset_type: str) -> None:
    text = CONFIG.replace("teacher: {path: teacher}\n", f"dataset_type: {dataset_type}\n")
    (project / "config.yml").write_text(text.replace("rollout:\n", "rollout:\n  max_turns: 4\n"))
    report = check_project(project)
    assert outcomes(report)["tools"] == "ok"
    assert [problem for problem in problems(report) if "max_turns" in problem] == []


@pytest.mark.parametrize(
    ("teacher", "what"),
    [
        (
            "gpt-4o",
            "is a model behind an API, and its weights are needed here; take a Hugging Face "
            "id, as Qwen/Qwen3-32B, or a folder",
        ),
        (
            "cm3x8k2j40001abcdefghijkl",
            "is an id of a hosted service's model; download it with that "
            "service's client, and name the folder",
        ),
    ],
)
def test_a_teacher_without_weights_is_told_from_one_that_is_not_here(
    project: Path, teacher: str, what: str
) -> None:
    report = check_project(project, [f"teacher.path={teacher}"])
    assert report.points[-2].problems[0].message == (
        f"{teacher} cannot be loaded\n  teacher.path: {teacher} {what}"
    )
    far = check_project(project, ["teacher.path=Qwen/Qwen3-32B"])
    assert "is neither a folder nor in the Hugging Face cache" in problems(far)[-1]


def test_overrides_are_shown_beside_the_config_once(project: Path) -> None:
    lines = list(check_project(project, ["trainer.num_epochs=7"]).lines())
    assert lines[:2] == [
        f"✓ config      {project}/config.yml",
        "    trainer.num_epochs = 7 (was: 2)",
    ]


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
    (problem,) = report.points[6].problems
    assert (problem.line, problem.key) == (5, "rollout.max_context_window")


def test_a_project_that_can_keep_no_run_is_found(project: Path) -> None:
    (project / "runs").write_text("")
    assert problems(check_project(project)) == [
        f"{project}/config.yml: {project}/runs is no folder, and the run's files go there: move it "
        "away, or give the project another folder"
    ]
    (project / "runs").unlink()
    loaded = load_config(project)
    require_writable(loaded, project)
    if os.geteuid():  # root may write anywhere
        project.chmod(0o500)
        with pytest.raises(CheckpointError, match=r"^.* cannot be written, and a run keeps its "):
            require_writable(loaded, project)
        project.chmod(0o700)
