"""Write docs/metrics.md from the rows in src/rnow/training/registry.py.

python scripts/make_metrics_doc.py            # writes the page
python scripts/make_metrics_doc.py --check    # exit 1 if the page is out of date
"""

import sys
from itertools import groupby
from pathlib import Path

from rnow.training.registry import METRICS, Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

HEAD = """\
# The numbers of a run

<!-- Made by scripts/make_metrics_doc.py from src/rnow/training/registry.py: change that. -->

`metrics.jsonl` in a run's folder has one line a step; all numbers of all steps are drawn by
`rnow report runs/NAME`. A name that ends in `*` stands for all that begin so. What a tools.py
counts ([tools.md](tools.md)) stands beside them under the name that it counts with.

"""


def make_page() -> str:
    parts = []
    for group, rows in groupby(METRICS, key=_group):
        table = ["| name | unit | what it is | healthy | what to do when it is not |"]
        table += ["|---|---|---|---|---|", *map(_row, rows)]
        parts.append(f"## {group}\n\n" + "\n".join(table) + "\n")
    return HEAD + "\n".join(parts)


def _group(row: Metric) -> str:
    room = row.name.partition("/")[0] if "/" in row.name else ""
    return f"`{room}/…`" if room and room != "reverse_kl" else _LOOSE.get(row.name, "The gap")


_LOOSE = {"step": "The step", "tokens_per_s": "`tokens/…`"}


def _row(row: Metric) -> str:
    return f"| `{row.name}` | {row.unit} | {row.what} | {row.healthy} | {row.remedy} |"


if __name__ == "__main__":
    from generated_page import write_or_check

    sys.exit(write_or_check(PAGE, make_page, script=__file__, about=__doc__))
