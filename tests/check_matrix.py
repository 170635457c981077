"""Small projects of every template, vocabulary and tool use: what check says, and what a run does.

A cell is a project folder with two tiny networks of random weights and the tokenizers of one
template. `rnow check` and `rnow run` must say the same of it: a run that ends with the sampler's
numbers in the trainer, or one refusal in one set of words.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

from builders import qwen3, real_template, real_templates, template_folder
from rich.console import Console
from short_runs import metrics
from tokenizers import AddedToken, Tokenizer

from rnow.commands.check.project import check_project
from rnow.commands.run import train_project
from rnow.config.load import load_config
from rnow.errors import RnowError

CONFIG = """\
data: {batch_size: 2, group_size: 2}
model: {path: student, qlora_rank: 4, dtype: float32}
teacher: {path: teacher}
engine: {kind: local, dtype: float32}
rollout: {max_context_window: 4096, max_turns: TURNS, max_tokens: 8}
trainer: {num_epochs: 1}
"""
TOOLS = '''\
from rnow.core import tool


@tool
def browse(url: str) -> str:
    """Read a page."""
    return url
'''
QUESTIONS = ("Which company runs the trial?", "When does the patent end?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """How one model's vocabulary differs from what its template needs."""

    num_extra_tokens: int = 0  # of the tokenizer
    num_spare_rows: int = 0  # of the embedding, beside one a token; below 0: too few


# Name -> student, teacher.
VOCABULARIES = {
    "same": (Side(), Side()),
    "padded": (Side(num_spare_rows=200), Side(num_spare_rows=100)),
    "larger student": (Side(num_extra_tokens=200), Side()),
    "larger teacher": (Side(), Side(num_extra_tokens=200)),
}
# What no model that anyone can use has, apart from the matrix.
SHORT = {
    "short student": (Side(num_spare_rows=-1), Side()),
    "short teacher": (Side(), Side(num_spare_rows=-1)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    template: str
    vocabulary: str
    has_tools: bool

    def __str__(self) -> str:
        return f"{self.template}, {self.vocabulary}, {'tools' if self.has_tools else 'no tools'}"


CELLS = tuple(
    Cell(template=template, vocabulary=vocabulary, has_tools=has_tools)
    for template in real_templates()
    for vocabulary in VOCABULARIES
    for has_tools in (False, True)
)


def write_project(folder: Path, cell: Cell) -> Path:
    write_files(folder, has_tools=cell.has_tools)
    template = real_template(f"{cell.template}.jinja")
    sides = zip(("student", "teacher"), (VOCABULARIES | SHORT)[cell.vocabulary], strict=True)
    for seed, (name, side) in enumerate(sides):
        write_model(folder / name, template, side, seed=seed)
    return folder


def write_files(folder: Path, *, has_tools: bool) -> None:
    """Write a project's files, but for its models."""
    folder.mkdir()
    (folder / "config.yml").write_text(CONFIG.replace("TURNS", "2" if has_tools else "1"))
    asked = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in asked))
    if has_tools:
        (folder / "tools.py").write_text(TOOLS)


def write_model(
    folder: Path, template: str, side: Side, *, seed: int, eos: str = "<|endoftext|>"
) -> None:
    """Write a tiny network of random weights, and the tokenizer of a template."""
    template_folder(folder, template, eos=eos)
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    extra = [f"<extra_{number}>" for number in range(side.num_extra_tokens)]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in extra])
    tokenizer.save(file)
    network = qwen3(
        seed=seed,
        vocab_size=tokenizer.get_vocab_size() + side.num_spare_rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        head_dim=8,
        max_position_embeddings=4096,
    )
    network.save_pretrained(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the two commands made of a cell."""

    problems: tuple[str, ...]  # that check tells
    refusal: str | None  # what the run ends with; None: it is finished
    steps: tuple[dict[str, float], ...]  # the run's metrics

    @property
    def disagreement(self) -> str | None:
        """How check and run differ; None where they do not."""
        if self.problems or self.refusal is not None:
            said = self.refusal or ""
            same = any(problem in said for problem in self.problems)
            return None if same else f"check: {self.problems}; run: {self.refusal!r}"
        (step,) = self.steps
        if not step["mismatch_kl"] < 1e-6:
            return f"the trainer's numbers are not the sampler's: {step['mismatch_kl']}"
        return None


def try_cell(folder: Path, cell: Cell) -> Verdict:
    """Check and run a cell's project in this process: its imports take longer than most cells."""
    project = write_project(folder, cell)
    points = check_project(project).points
    problems = [p for point in points for p in point.problems if p.severity == "error"]
    refusal, steps = None, []
    try:
        console = Console(file=io.StringIO(), width=100)
        train_project(load_config(project), project, name="run", fresh=False, console=console)
        steps = metrics(project / "runs" / "run")
    except RnowError as error:
        refusal = str(error)
    messages = tuple(problem.message for problem in problems)
    return Verdict(problems=messages, refusal=refusal, steps=tuple(steps))
