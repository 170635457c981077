"""What overlapping steps gain: the true loop over devices that only take time.

    python tests/bench/bench_overlap.py                  # exit code 1 where a bound does not hold
    python tests/bench/bench_overlap.py --scale 0.05   # on a busy machine

Student, teacher and trainer sleep as long as a role takes on eight H100s (estimated from bandwidth
and FLOPs, and from measured updates: docs/gpu.md), by student + teacher + trainer GPUs and rollouts
a step; `--scale` seconds stand for one. With lag 1 the epoch has to end within 1.1 x the longest
role's own time; lag 0 is beside it. Publication, journals, the health check and saving are the
loop's own, and so in the bound, as are the first step's rollouts, beside which nothing is learned.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from overlap_lab import GROUP, PROBE, Lab
from rows import row

from rnow.rollout.attempt import Attempt

NUM_STEPS = 20
MAX_OF_LONGEST = 1.1


@dataclass(frozen=True)
class Case:
    """Seconds of a step of each role alone."""

    name: str
    num_rollouts: int
    rollout: float  # until the last of all side by side ends; the first takes a quarter of it
    score: float  # of one trajectory, one after the other
    update: float

    def own(self) -> dict[str, float]:
        scored = self.num_rollouts * self.score
        return {"student": self.rollout, "teacher": scored, "trainer": self.update}


# 20 k tokens of a trajectory are 2.8 s of a GPU of a 32B teacher, and 3.5 s of one of the trainer.
CASES = (
    Case(name="16 rollouts, 4 + 3 + 1 GPUs", num_rollouts=16, rollout=125, score=0.9, update=56),
    Case(name="64 rollouts, 4 + 3 + 1 GPUs", num_rollouts=64, rollout=176, score=0.9, update=223),
    Case(name="64 rollouts, 4 + 2 + 2 GPUs", num_rollouts=64, rollout=176, score=1.4, update=112),
    # A teacher as busy as the student, which begins a quarter of a step after it.
    Case(name="64 rollouts, 4 + 1 + 3 GPUs", num_rollouts=64, rollout=183, score=2.8, update=74),
)
SAVE_S = 2.0


def measure(case: Case, lag: int, scale: float) -> float:
    """Return the seconds of an epoch, in a process of its own: they sleep side by side."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run_epoch(case, lag=lag, scale=scale, folder=Path(folder)))


async def run_epoch(case: Case, *, lag: int, scale: float, folder: Path) -> float:
    loop = asyncio.get_running_loop()
    free_at = 0.0  # when the teacher has done what it was given: a device does not oversleep

    async def on_roll(attempt: Attempt) -> None:
        place = (attempt.prompt.index * GROUP + attempt.id.rollout) / (case.num_rollouts - 1)
        await asyncio.sleep(scale * case.rollout * (0.25 + 0.75 * place))

    async def on_score(num_tokens: int) -> None:
        if num_tokens <= len(PROBE):  # of the health check
            return
        nonlocal free_at
        free_at = max(free_at, loop.time()) + scale * case.score
        await asyncio.sleep(free_at - loop.time())

    lab = Lab(
        folder,
        num_steps=NUM_STEPS,
        lag=lag,
        prompts_a_step=case.num_rollouts // GROUP,
        on_roll=on_roll,
        on_score=on_score,
        update_s=scale * case.update,
        save_s=scale * SAVE_S,
    )
    started = time.perf_counter()
    await lab.train()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=0.02)
    scale = parser.parse_args().scale
    held = []
    with ProcessPoolExecutor(2 * len(CASES)) as pool:
        found = {case: [pool.submit(measure, case, lag, scale) for lag in (0, 1)] for case in CASES}
    for case, epochs in found.items():
        role, seconds = max(case.own().items(), key=lambda item: item[1])
        longest = NUM_STEPS * scale * seconds
        took = [epoch.result() for epoch in epochs]
        beside = f"{role} {longest:.1f} s, lag 1 {took[1]:.1f} s, lag 0 {took[0]:.1f} s"
        note = "Devices sleep as long as eight H100s are estimated to work."
        name = f"lag 1 / longest role, {case.name}"
        held.append(row(name, took[1] / longest, "", most=MAX_OF_LONGEST, beside=beside, note=note))
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
