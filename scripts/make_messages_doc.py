"""Write docs/messages.md, what rnow says and what to do, from the messages in src/rnow.

python scripts/make_messages_doc.py            # writes the page
python scripts/make_messages_doc.py --check    # exit 1 if the page is out of date

A message is a text that is raised, handed to what keeps or shows problems (TELLERS), or given back
or kept by a function as a sentence of MIN_WORDS words. What stands in its gaps is shown as `…`. Its
cause and its remedy are the two sides of its semicolon; of an error without one, the remedy is its
class's own, in src/rnow/errors.py.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rnow import errors
from rnow.errors import RnowError

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "rnow"
PAGE = ROOT / "docs" / "messages.md"

MIN_WORDS = 6
TERSE = {"config/messages.py"}  # where texts of two words are messages too
TELLERS = {"problem", "Problem", "warn", "report", "not_checked", "_problem"}
TELLERS |= {"_tools_problem", "BrowseError", "warning"}

_VERBS = (
    "add|call|choose|close|compare|correct|declare|define|delete|end|give|install|leave|look|lower|"
    "make|mend|move|name|pass|put|raise|read|remove|rename|return|run|say|see|set|start|take|train|"
    "try|use|wait|write"
)
_IMPERATIVE = re.compile(rf"([.:,]) (?=(?i:{_VERBS})\b)")

# Title -> what it is about, and packages or modules whose messages stand there.
SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "The command line": ("What stands after `rnow`.", ("cli.py", "commands", "__main__.py")),
    "config.yml": ("Every key: [configuration.md](configuration.md).", ("config",)),
    "tools.py and rewards.py": (
        "Writing them: [tools.md](tools.md), [mcp.md](mcp.md).",
        ("tools", "core"),
    ),
    "Prompts, templates, answers": (
        "The prompts' file: [data.md](data.md); chat templates: [models.md](models.md).",
        ("chat", "evaluation"),
    ),
    "Models and the machine": (
        "What fits where: [gpu.md](gpu.md); several machines: [cluster.md](cluster.md).",
        ("plan", "cluster", "learner", "networks"),
    ),
    "Engines": ("vLLM and the embedded engine: [engines.md](engines.md).", ("engines",)),
    "Browsing": (
        "What the model is told begins with `ERROR` and a code: [browsing.md](browsing.md).",
        ("browser", "medbrowse"),
    ),
    "Training": (
        "Alarms, and what `rnow status` and the report say is wrong, are here too: "
        "[reliability.md](reliability.md), [report.md](report.md).",
        ("training", "rollout", "reports"),
    ),
    "Runs on disk, and going on": (
        "[reliability.md](reliability.md)",
        ("runs", "runtime", "errors.py", "records.py", "models.py"),
    ),
}
HEAD = """\
# What it says, and what to do

<!-- Made by scripts/make_messages_doc.py from the messages in src/rnow: change those. -->

Search this page for words that rnow printed; `…` stands for names, numbers and places. Most
messages begin with the file and line that they are about. `rnow check` says most of them before
anything is loaded. Where the right side is empty, the message says all there is to do; the logs of
a run are in `logs/` of its folder.

| error | exit code | what it is about | if the message itself names no remedy |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Message(text="… holds no config.yml; name its folder", error="ConfigError", file="…")"""

    text: str
    error: str | None  # the class that is raised with it
    file: str  # below src/rnow

    @property
    def sides(self) -> tuple[str, str]:
        """Return the cause and the remedy."""
        cause, found, remedy = self.text.partition("; ")
        if not found:
            cause, found, remedy = _IMPERATIVE.sub(r"\1\n", self.text, count=1).partition("\n")
        if not found:
            kind = getattr(errors, self.error or "", None)
            if isinstance(kind, type) and issubclass(kind, RnowError):
                return self.text, f"*{kind.remedy}*"
            return self.text, ""
        return cause, remedy


def make_page() -> str:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    rows = [
        f"| {kind.__name__} | {kind.exit_code} | {kind.about} | {kind.remedy} |"
        for kind in kinds
        if issubclass(kind, RnowError) and kind is not RnowError
    ]
    parts = [HEAD + "\n".join(rows) + "\n"]
    found = messages()
    for title, (about, places) in SECTIONS.items():
        own = [one for one in found if one.file.split("/")[0] in places]
        unique = dict.fromkeys(one.sides for one in own)
        table = ["| it says | what to do |", "|---|---|"]
        table += [f"| {_cell(cause)} | {_cell(remedy)} |" for cause, remedy in sorted(unique)]
        parts.append(f"## {title}\n\n{about}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


@cache
def messages() -> tuple[Message, ...]:
    """Return all messages of src/rnow, file by file."""
    found: list[Message] = []
    for path in sorted(SOURCE.rglob("*.py")):
        if "templates" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            name = path.relative_to(SOURCE).as_posix()
            for text, error in _told(tree, min_words=2 if name in TERSE else MIN_WORDS):
                found.append(Message(text=text, error=error, file=name))
    return tuple(found)


def _told(tree: ast.Module, *, min_words: int) -> Iterator[tuple[str, str | None]]:
    """Yield each message of a module with the error that is raised with it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            error = _name(node.exc.func)
            for argument in (*node.exc.args, *(word.value for word in node.exc.keywords)):
                yield from ((text, error) for text in _texts(argument, min_words=2))
        elif isinstance(node, ast.Call) and _name(node.func) in TELLERS:
            for argument in (*node.args, *(word.value for word in node.keywords)):
                yield from ((text, None) for text in _texts(argument, min_words=3))
        elif isinstance(node, ast.Return | ast.Yield | ast.Assign | ast.AnnAssign) and node.value:
            yield from ((text, None) for text in _texts(node.value, min_words=min_words))


def _texts(node: ast.expr, *, min_words: int) -> Iterator[str]:
    """Yield the sentences that an expression may be, or holds."""
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
        text = re.sub(r"\s+", " ", _template(node) or "").strip()
        is_begun = not text.startswith(tuple(",.;:<([%")) or min_words < MIN_WORDS
        if len(re.findall(r"[A-Za-z]{2,}", text)) >= min_words and " " in text and is_begun:
            yield text
        return
    inner: list[ast.expr | None] = []
    if isinstance(node, ast.IfExp):
        inner = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        inner = [*node.values]
    elif isinstance(node, ast.List | ast.Tuple | ast.Set):
        inner = [*node.elts]
    elif isinstance(node, ast.Dict):
        inner = [*node.values]
    elif isinstance(node, ast.Starred):
        inner = [node.value]
    elif isinstance(node, ast.Call) and _name(node.func) == "Diagnosis":
        inner = [word.value for word in node.keywords]
    for each in inner:
        if each is not None:
            yield from _texts(each, min_words=min_words)


def _template(node: ast.expr) -> str | None:
    """Return the text of an expression with `…` for what is filled in; None for no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = _template(node.left), _template(node.right)
        return None if sides == (None, None) else "".join(side or "…" for side in sides)
    return None


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _cell(text: str) -> str:
    """Escape what would be markup in a table's cell; the words stay as they are printed."""
    return re.sub(r"([|<`*\\])", r"\\\1", text) if not text.startswith("*") else text


if __name__ == "__main__":
    from generated_page import write_or_check

    sys.exit(write_or_check(PAGE, make_page, script=__file__, about=__doc__))
