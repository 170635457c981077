"""Rows of a measurement: printed, and handed to the runner that asks for them (parts.py)."""

import json
import math
import os
from pathlib import Path
from typing import Any

FILE_VARIABLE = "RNOW_BENCH_ROWS"


def row(
    name: str,
    value: float,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
    beside: str = "",
    note: str = "",
) -> bool:
    """Print a figure with its bounds, hand it on, and say whether they hold.

    `beside`: what was measured in the same run for comparison; `note`: what differs, a footnote of
    the table. A figure that is no number holds nothing.
    """
    holds = math.isfinite(value)
    holds = holds and (most is None or value <= most) and (least is None or value >= least)
    signs = (("<=", most), (">=", least))
    bound = ", ".join(f"{sign} {limit:g}" for sign, limit in signs if limit is not None)
    stated = f" (bound {bound})" if bound else ""
    against = f"; {beside}" if beside else ""
    broken = "" if holds else " BROKEN"
    print(f"{name}: {value:.4g} {unit}{stated}{against}{broken}", flush=True)
    hand_on(name=name, value=value, unit=unit, bound=bound, ok=holds, beside=beside, note=note)
    return holds


def hand_on(**fields: Any) -> None:
    """Add a line to the runner's file, where there is one."""
    if file := os.environ.get(FILE_VARIABLE):
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fields) + "\n")


def rows_in(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file; who wrote it may have been killed in the middle of one."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
