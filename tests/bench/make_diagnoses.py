"""Make anew what bad and good runs of the demo write: tests/fixtures/diagnoses.

    python tests/bench/make_diagnoses.py [NAME]...

Each is a real run of two steps of the demo's project, with one thing changed.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from short_runs import rnow

from rnow.commands.init import init_project
from rnow.reports.evidence import read_evidence
from rnow.runs.folder import RunDirectory

FIXTURES = Path(__file__).parents[1] / "fixtures" / "diagnoses"
SHORT = ("data.batch_size=4", "data.group_size=2", "trainer.max_steps=2", "trainer.eval_step=2")
WHOLE = ("data.batch_size=16", "data.group_size=4")  # as the demo has them
SECTIONS = ("seed", "dataset_type", "data", "model", "teacher", "algorithm", "rollout", "trainer")

PAGE = """A trial in adults with eczema.
  * PHASE: 1
  * SPONSOR: VODUFA bio
  * INGREDIENT: SABUM
  * COMPARATOR: BIFARO
  * COMPLETED: 2022-09-26
"""

Change = Callable[[Path], None]
Entry = dict[str, Any]


def as_it_is(project: Path) -> None:
    """Change nothing."""


def raise_in_tool(project: Path) -> None:
    tools = project / "tools.py"
    text = tools.read_text()
    tools.write_text(text.replace("return await", 'raise OSError("the disk is gone")\n    await'))


def first_call(entry: Entry) -> str:
    """Return what the student writes first."""
    url = f"https://clinic.test/study/{entry['metadata']['nct']}"
    call = json.dumps({"name": "browse", "arguments": {"url": url}})
    return f"<tool_call>\n{call}\n</tool_call>"


def answer_at_once(project: Path) -> None:
    """Let prompts hold a page already, after which the student guesses and calls no more."""

    def read(entry: Entry) -> Entry:
        nct = entry["metadata"]["nct"]
        page = f"https://clinic.test/study/{nct} (status 200, page 1 of 1)\n\n# {nct}\n{PAGE}"
        call = {"role": "assistant", "content": first_call(entry)}
        return entry | {"messages": [*entry["messages"], call, {"role": "tool", "content": page}]}

    rewrite(project, read)


def hide_the_call(project: Path) -> None:
    def hidden(entry: Entry) -> Entry:
        return entry | {"metadata": entry["metadata"] | {"solution": first_call(entry)}}

    rewrite(project, hidden)


def change_template(project: Path) -> None:
    file = project / "models" / "teacher" / "chat_template.jinja"
    file.write_text(file.read_text().replace("<tools>", "<functions>"))


def other_family(project: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = project / "models" / "teacher"
    own = json.loads((folder / "config.json").read_text())
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    names += ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]
    config = Qwen2Config(**{name: own[name] for name in names}, initializer_range=0.2)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def other_student(project: Path) -> None:
    """Let the teacher be the student, each weight off by a little: one that answers worse."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    teacher = project / "models" / "teacher"
    shutil.rmtree(teacher)
    shutil.copytree(project / "models" / "student", teacher)
    torch.manual_seed(0)
    weights = load_file(teacher / "model.safetensors")
    noisy = {name: one - 0.005 * torch.randn_like(one) for name, one in weights.items()}
    save_file(noisy, teacher / "model.safetensors", metadata={"format": "pt"})


def rewrite(project: Path, change: Callable[[Entry], Entry]) -> None:
    file = project / "train.jsonl"
    entries = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


BAD: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no_signal": (as_it_is, ("algorithm.kl_penalty_coef=0",)),
    "template": (change_template, ()),
    "family": (other_family, ()),
    "tool_fails": (raise_in_tool, ()),
    "pages_fail": (as_it_is, ("browser.local_sites={}",)),
    "no_calls": (answer_at_once, ()),
    "cut": (as_it_is, ("rollout.max_tokens=8",)),
    "too_fast": (as_it_is, ("trainer.learning_rate=0.04", "trainer.schedule=constant")),
    "no_better": (as_it_is, ("teacher.path=models/student",)),
    "no_better_other": (other_student, WHOLE),
    "copies": (hide_the_call, ()),
}
GOOD: dict[str, tuple[Change, tuple[str, ...]]] = {
    "as_it_is": (as_it_is, WHOLE),
    "another_seed": (as_it_is, ("seed=7", *WHOLE)),
    "all_weights": (as_it_is, ("model.tuning=full",)),
    "discounted": (as_it_is, ("algorithm.kl_discount=0.5",)),
    "half_the_penalty": (as_it_is, ("algorithm.kl_penalty_coef=0.5",)),
    "high_rate": (as_it_is, ("trainer.learning_rate=2e-3",)),
    "importance_sampling": (as_it_is, ("algorithm.loss_fn=importance_sampling",)),
    "low_rate": (as_it_is, ("trainer.learning_rate=1e-4",)),
    "one_rollout": (as_it_is, ("data.batch_size=8", "data.group_size=1")),
    "short_window": (as_it_is, ("rollout.max_turns=3", "rollout.max_context_window=700")),
}


def make(name: str, folder: Path) -> None:
    change, overrides = (BAD | GOOD)[name]
    project = folder / name
    init_project(project, template="clinic")
    held_out = (project / "val.jsonl").read_text().splitlines(keepends=True)
    (project / "val.jsonl").write_text("".join(held_out[:4]))
    change(project)
    rnow("run", project, "--name", name, *SHORT, *overrides)
    found = read_evidence(RunDirectory(project / "runs" / name))
    config = {key: found.config[key] for key in SECTIONS}
    values = {
        "name": name,
        "config": config,
        "state": {**found.state, "holder": None},
        "metrics": found.metrics,
        "evaluations": found.evaluations,
        "template_difference": found.template_difference,
        "families": found.families,
    }
    (FIXTURES / f"{name}.json").write_text(json.dumps(values) + "\n")
    print(name, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as at:
        for each in sys.argv[1:] or (*BAD, *GOOD):
            make(each, Path(at))
