"""One row for each number of metrics.jsonl, and no row for a number that nothing writes."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import rnow
from rnow.records import EndReason, ToolOutcome
from rnow.training.registry import METRICS, Metric, find_metric

SOURCE = Path(rnow.__file__).parent
ROOT = Path(__file__).parents[3]
OWN = r"(tokens|rollout|tool|browser|teacher|trainer|time|eval|publish|reverse_kl)/[a-z_]+\*?"
WRITERS = ("training", "learner", "rollout", "browser", "tools", "evaluation")


def names_in_code() -> set[str]:
    """All texts of the writing packages that are a metric's name; f"time/{x}" is "time/*"."""
    found = set()
    for folder in WRITERS:
        for path in (SOURCE / folder).rglob("*.py"):
            if path.name == "registry.py":
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            # A place where tests kill a run has a name of the same shape.
            points = {
                argument
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "point"
                for argument in node.args
            }
            for node in ast.walk(tree):
                match node:
                    case _ if node in points:
                        continue
                    case ast.Constant(value=str(text)):
                        found.add(text)
                    case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
                        found.add(f"{text}*")
    return {text for text in found if re.fullmatch(OWN, text)}


def test_every_number_that_is_written_has_its_row() -> None:
    names = names_in_code()
    assert {"rollout/turns", "reverse_kl/turn_*", "publish/probe", "eval/failed"} <= names
    assert [name for name in names if find_metric(name) is None] == []


def test_a_name_without_a_row_is_found_out() -> None:
    assert find_metric("tokens/drift") is not None
    assert [find_metric(name) for name in ("tokens/drifted", "pages")] == [None, None]


def test_ends_and_outcomes_have_rows() -> None:
    ends = {f"rollout/end_{reason.value}" for reason in EndReason}
    names = ends | {f"tool/{outcome.value}" for outcome in ToolOutcome}
    assert [name for name in names if find_metric(name) is None] == []


def test_a_row_of_its_own_goes_before_a_family() -> None:
    assert find_metric("rollout/end_timeout") in METRICS
    names = [row.name for name in ("rollout/end_new", "time/eval", "time/step")
             if (row := find_metric(name))]  # fmt: skip
    assert names == ["rollout/end_*", "time/*", "time/step"]


def test_names_are_unique_and_what_has_a_range_has_a_remedy() -> None:
    assert len({row.name for row in METRICS}) == len(METRICS)
    assert [row.name for row in METRICS if row.healthy and not row.remedy] == []


@pytest.mark.parametrize(
    ("bounds", "words", "well", "ill"),
    [
        ((0.0, 0.0), "0", 0.0, 1.0),
        ((None, 0.01), "at most 0.01", 0.01, 0.02),
        ((1.0, None), "at least 1", 1.0, 0.0),
        ((0.9, 1.1), "0.9 to 1.1", 1.0, 1.2),
    ],
)
def test_a_range_in_words(
    bounds: tuple[float | None, float | None], words: str, well: float, ill: float
) -> None:
    row = Metric(name="x", unit="1", what="x", least=bounds[0], most=bounds[1])
    assert row.healthy == words
    assert (row.is_healthy(well), row.is_healthy(ill)) == (True, False)


def test_the_page_is_what_the_registry_says() -> None:
    spec = importlib.util.spec_from_file_location("page", ROOT / "scripts" / "make_metrics_doc.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == script.make_page()
