"""Updates by a student of two ranks, wherever those are, and what is compared of two such runs."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType

import rank_cases

from rnow.config.settings import Config
from rnow.learner.checkpoint import load_checkpoint
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal
from rnow.training.ranks.places import RanksHere
from rnow.training.ranks.processes import RankSettings
from rnow.training.ranks.student import RankedStudent

NUM_STEPS = 3


def settings_of(
    folder: Path,
    model: Path,
    *,
    tuning: str = "lora",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> RankSettings:
    """A run in `folder`, with the journals of its steps; `environment` is each rank's."""
    run = RunDirectory(folder / "run")
    run.logs.mkdir(parents=True)
    for step in range(NUM_STEPS):
        journal = Journal(run.trajectories(step))
        for scored in rank_cases.batch(step=step).scored:
            journal.append(scored)
        journal.close()
    config = Config.model_validate(
        {
            "data": {"batch_size": 1},
            "model": {"path": str(model), "tuning": tuning, "qlora_rank": 4},
            "trainer": {
                "num_epochs": 1,
                "learning_rate": 1e-2,
                "max_tokens_per_micro_batch": 60,
                "num_ranks": 2,
            },
        }
    )
    return RankSettings(
        config=config,
        student=model,
        device="cpu",
        run=run,
        num_steps=NUM_STEPS,
        is_sharded=tuning == "full",
        environments=(environment, environment),
        place=RanksHere(num=2, run=run.path, logs=run.logs),
    )


class Killer:
    """Has each generation of ranks die at its own point; afterwards none does."""

    def __init__(self, points: Sequence[str]) -> None:
        self.said: list[str] = []
        self.environment: dict[str, str] = {}  # of every rank
        self._points: Iterator[str] = iter(points)
        self._next()

    def say(self, line: str) -> None:
        """Called when a rank has ended, before the next ones are started."""
        self.said.append(line)
        self._next()

    def _next(self) -> None:
        self.environment.pop("RNOW_KILL_AT", None)
        if (point := next(self._points, None)) is not None:
            self.environment["RNOW_KILL_AT"] = point


def steps(student: RankedStudent, run: RunDirectory) -> list[object]:
    """Make all updates as a run does, each published, probed and saved."""
    found: list[object] = []
    for step in range(NUM_STEPS):
        found.append(student.update(rank_cases.batch(step=step)))
        student.save(run.policy(step + 1))
        found.append(student.probe_logprobs(range(3, 20), start=1).tolist())
        student.save_checkpoint(run.latest, step=step + 1, scalars={})
    kept = load_checkpoint(run.latest)
    tensors = {**kept.weights, **kept.optimizer}
    found += [kept.step, kept.scalars]
    found.append({name: tensor.numpy().tobytes() for name, tensor in tensors.items()})
    found.append(sorted((path.name, path.read_bytes()) for path in run.policy(3).iterdir()))
    return found


async def train(settings: RankSettings, say: Callable[[str], None]) -> list[object]:
    """Open the student and make all updates; return what came of them, to the bit."""
    student = await RankedStudent.open(settings, say=say)
    async with aclosing(student):
        return await asyncio.to_thread(steps, student, settings.run)
