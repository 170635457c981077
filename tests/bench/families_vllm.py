"""Every family on a real vLLM server beside the trainer, as the table of docs/models.md.

    python tests/bench/families_vllm.py [--families gemma3] [--logs logs] [--out numbers.json]
    python tests/bench/families_vllm.py --table numbers.json

For each family and each tuning a server is started as a run starts it, asked before a publication
(as a teacher is) and after one, and compared with the trainer's log-probabilities in float32. What
`rnow check` refuses is not served, unless --refused-too. Exits 1 where one that is not refused is
not served, or is more than 1e-4 nats off.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from families import FAMILIES, refusal, tiny_model
from vllm_families import Agreement, train_and_serve

from rnow.errors import RnowError
from rnow.learner.reach import lora_reach

TOLERANCE = 1e-4  # nats, float32
Row = dict[str, str | float | None]
_HEAD = (
    "| family | local engine | LoRA adapts | vLLM: adapters | vLLM: whole | vLLM: teacher |",
    "|---|---|---|---|---|---|",
)


async def measure(family: str, tuning: str, folder: Path) -> Row:
    try:
        first, then = await train_and_serve(family, folder, tuning=tuning)
    except RnowError as error:
        return {"failed": str(error)}
    return {**numbers("start", first), **numbers("published", then)}


def numbers(name: str, agreement: Agreement) -> Row:
    return {
        f"{name} mismatch_kl": agreement.mismatch_kl,
        f"{name} worst": agreement.worst,
        f"{name} effect": agreement.effect,
    }


def told(row: Row) -> str:
    head = f"{row['family']:10} {row['tuning']:5}"
    if row.get("failed"):
        return f"{head} not served: {str(row['failed'])[-600:]}"
    if "start worst" not in row:
        return f"{head} refused: {row['refused']}"
    return (
        f"{head} start {row['start worst']:.1e}  published {row['published worst']:.1e}"
        f"  mismatch_kl {row['published mismatch_kl']:.1e}  effect {row['published effect']:.2g}"
    )


def is_wrong(row: Row) -> bool:
    if row["refused"]:
        return False
    off = [float(row[name] or 0) for name in ("start worst", "published worst") if name in row]
    return bool(row.get("failed")) or max(off) > TOLERANCE


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table in docs/models.md; of two rows for one cell the last counts."""
    yield from _HEAD
    cells = {(row["family"], row["tuning"]): row for row in rows}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            tiny_model(family).config.save_pretrained(folder)
            reach = lora_reach(Path(folder))
        adapted = "attention, no experts" if reach.num_experts else "all linear layers"
        trained = [cell(cells.get((family, tuning)), "published") for tuning in ("lora", "full")]
        teacher = cell(cells.get((family, "full")), "start")
        yield f"| {family} | < 1e-9 | {adapted} | {' | '.join(trained)} | {teacher} |"


def cell(row: Row | None, name: str) -> str:
    if row is None:
        return ""
    if name == "published" and row["refused"]:
        return "refused"
    worst = row.get(f"{name} worst")
    return "not served" if worst is None else f"{worst:.0e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--tuning", nargs="*", default=["lora", "full"])
    parser.add_argument("--refused-too", action="store_true", help="serve what check refuses, too")
    parser.add_argument("--logs", type=Path, help="keep models and servers' logs in this folder")
    parser.add_argument("--out", type=Path, help="also write the numbers there, as JSON")
    parser.add_argument("--table", type=Path, nargs="*", help="print the table of such files")
    asked = parser.parse_args()
    if asked.table:
        told_rows = [row for file in asked.table for row in json.loads(file.read_text())]
        print("\n".join(table(told_rows)))
        return 0
    rows: list[Row] = []
    for family in asked.families:
        for tuning in asked.tuning:
            row: Row = {"family": family, "tuning": tuning, "refused": refusal(family, tuning)}
            if asked.refused_too or not row["refused"]:
                with tempfile.TemporaryDirectory() as temporary:
                    folder = (asked.logs or Path(temporary)) / f"{family}-{tuning}"
                    row |= asyncio.run(measure(family, tuning, folder))
            rows.append(row)
            print(told(row), flush=True)
            if asked.out is not None:
                asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(map(is_wrong, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
