"""Charts that everyone can read, and none without a point."""

import json
import re
from pathlib import Path

import pytest

from rnow.reports.charts import COLOURS, charts
from rnow.reports.evidence import Evidence
from rnow.reports.statistics import Statistics

FIXTURES = Path(__file__).parents[2] / "fixtures" / "diagnoses"
CSS = Path(__file__).parents[3] / "src" / "rnow" / "reports" / "report.css"


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_line_is_seen_in_the_light_and_in_the_dark(colour: str) -> None:
    papers = re.findall(r"--paper: (#[0-9a-f]+)", CSS.read_text())
    assert papers == ["#fff", "#15171a"]
    for paper in ("#ffffff", "#15171a"):
        assert contrast(colour, paper) >= 3


def evidence(name: str, number: int) -> Evidence:
    values = json.loads((FIXTURES / f"{name}.json").read_text())
    return Evidence(**{**values, "name": f"run {number}"})


def test_runs_are_told_apart_without_colours_too() -> None:
    runs = [(evidence("as_it_is", number), Statistics()) for number in range(6)]
    lines = charts(runs)[0]["data"]
    assert [line["name"] for line in lines] == [f"run {number}" for number in range(6)]
    styles = [(line["line"]["dash"], line["marker"]["symbol"]) for line in lines]
    assert len(set(styles)) == 6


def test_a_chart_without_a_point_is_left_out() -> None:
    run = evidence("as_it_is", 0)
    titles = [figure["title"] for figure in charts([(run, Statistics())])]
    assert "Held-out accuracy, with its interval at 95 %" in titles
    assert not [title for title in titles if title.startswith("Gap by")]
    empty = Evidence(name="new", config={}, state={}, metrics=(), evaluations=())
    assert charts([(empty, Statistics())]) == []


def test_a_curve_has_its_interval() -> None:
    run = evidence("as_it_is", 0)
    (line,) = charts([(run, Statistics())])[0]["data"]
    assert line["y"] == [step["reverse_kl"] for step in run.metrics]
    assert line["error_y"]["array"] == [step["reverse_kl/within"] for step in run.metrics]
