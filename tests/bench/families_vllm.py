"""Every family on a real vLLM server beside the trainer, as the table of docs/models.md.

    python tests/bench/families_vllm.py [--families gemma3] [--logs logs] [--out families.json]

For each family and each tuning a server is started as a run starts it, asked before a publication
(as a teacher is) and after one, and compared with the trainer's log-probabilities in float32. A
family that is not served is told with the last words of vLLM's log. Exits 1 where one is served
and is more than 1e-4 nats off: that has to be refused before a run.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from families import FAMILIES
from vllm_families import Agreement, train_and_serve

from rnow.errors import RnowError

TOLERANCE = 1e-4  # nats, float32
Row = dict[str, str | float | None]


async def measure(family: str, tuning: str, folder: Path) -> Row:
    row: Row = {"family": family, "tuning": tuning, "refused": None}
    try:
        first, then = await train_and_serve(family, folder, tuning=tuning)
    except RnowError as error:
        return {**row, "refused": str(error)}
    return {**row, **numbers("start", first), **numbers("published", then)}


def numbers(name: str, agreement: Agreement) -> Row:
    return {
        f"{name} mismatch_kl": agreement.mismatch_kl,
        f"{name} worst": agreement.worst,
        f"{name} effect": agreement.effect,
    }


def told(row: Row) -> str:
    head = f"{row['family']:10} {row['tuning']:5}"
    if row["refused"] is not None:
        return f"{head} not served: {str(row['refused'])[-600:]}"
    return (
        f"{head} start {row['start worst']:.1e}  published {row['published worst']:.1e}"
        f"  mismatch_kl {row['published mismatch_kl']:.1e}  effect {row['published effect']:.2g}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--tuning", nargs="*", default=["lora", "full"])
    parser.add_argument("--logs", type=Path, help="keep models and servers' logs in this folder")
    parser.add_argument("--out", type=Path, help="also write the numbers there, as JSON")
    asked = parser.parse_args()
    rows: list[Row] = []
    for family in asked.families:
        for tuning in asked.tuning:
            with tempfile.TemporaryDirectory() as temporary:
                folder = (asked.logs or Path(temporary)) / f"{family}-{tuning}"
                rows.append(asyncio.run(measure(family, tuning, folder)))
            print(told(rows[-1]), flush=True)
            if asked.out is not None:
                asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = [
        row
        for row in rows
        if row["refused"] is None
        and max(float(row["start worst"] or 0), float(row["published worst"] or 0)) > TOLERANCE
    ]
    for row in wrong:
        print(f"served, and wrong: {row['family']} {row['tuning']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
