"""A trainer of two real processes: what ends one of them costs an update, and no bit."""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import rank_cases
from builders import qwen3
from processes import is_alive, wait_until
from short_runs import ForkedCli, assert_same_run

from rnow.commands.init import init_project
from rnow.config.settings import Config
from rnow.errors import RankError
from rnow.learner.checkpoint import load_checkpoint
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal
from rnow.runtime.kill_points import VARIABLE
from rnow.training.ranks.processes import RankEnded, RankProcesses, RankSettings
from rnow.training.ranks.student import RankedStudent

pytestmark = pytest.mark.slow

NUM_STEPS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    qwen3(seed=0, vocab_size=rank_cases.VOCAB).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_kill_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def settings_of(folder: Path, model: Path, *, tuning: str = "lora") -> RankSettings:
    """A run in `folder`, with the journals of its steps."""
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
        environments=({}, {}),
    )


class Killer:
    """Has each generation of ranks die at its own point; afterwards none does."""

    def __init__(self, points: Sequence[str]) -> None:
        self.said: list[str] = []
        self._points: Iterator[str] = iter(points)
        self._next()

    def say(self, line: str) -> None:
        """Called when a rank has ended, before the next ones are started."""
        self.said.append(line)
        self._next()

    def _next(self) -> None:
        os.environ.pop(VARIABLE, None)
        if (point := next(self._points, None)) is not None:
            os.environ[VARIABLE] = point


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


def train(settings: RankSettings, say: Callable[[str], None]) -> list[object]:
    async def run() -> list[object]:
        student = await RankedStudent.open(settings, say=say)
        async with aclosing(student):
            return await asyncio.to_thread(steps, student, settings.run)

    return asyncio.run(run())


CHAINS = {
    # No more than two ends between two finished updates: the third ends the run.
    "lora": (
        "rank1/update/micro_batch:1",
        "rank0/saved:2",
        "rank0/probed:1",
        "rank0/checkpoint/optimizer:2",
        "rank1/restored:1",
    ),
    "full": ("rank1/checkpoint/parts:2",),
}


@pytest.mark.parametrize("tuning", CHAINS)
def test_a_rank_killed_in_any_phase_costs_no_bit(tmp_path: Path, model: Path, tuning: str) -> None:
    untouched = Killer([])
    expected = train(settings_of(tmp_path / "one", model, tuning=tuning), untouched.say)
    assert untouched.said == []
    killer = Killer(CHAINS[tuning])
    settings = settings_of(tmp_path / "other", model, tuning=tuning)
    assert train(settings, killer.say) == expected
    assert len(killer.said) == len(CHAINS[tuning])
    for line, point in zip(killer.said, CHAINS[tuning], strict=True):
        rank = point[4]
        log = settings.run.logs / f"rank-{rank}.log"
        first, *_, last = line.split("\n")
        assert first.startswith(
            f"rank {rank} of the trainer's 2 has ended (killed by SIGKILL) at "
        ), line
        assert first.endswith(f"; {log} ends with:"), line
        assert last == "what it was at is done again by new processes, from the step's journal"


def test_ranks_that_end_three_times_in_one_update_end_the_run_with_advice(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, model)
    said: list[str] = []
    os.environ[VARIABLE] = "rank1/update/micro_batch:1"

    def say(line: str) -> None:
        said.append(line)
        monkeypatch.setenv("PYTHONHOME", "/nowhere")  # the next ones do not even start

    with pytest.raises(RankError) as ended:
        train(settings, say)
    words = str(ended.value).split("\n")
    assert re.fullmatch(
        "processes of the trainer ended 3 times without a finished step in between. The last "
        r"time, rank \d of the trainer's 2 has ended \(exit code 1\) at the beginning; .*/rank-\d"
        r"\.log ends with:",
        words[0],
    )
    assert "init_fs_encoding" in words[1]
    assert words[-1] == (
        "If memory ran out: lower trainer.max_tokens_per_micro_batch, or set "
        "trainer.shard_weights: true. If they were waited for too briefly: raise "
        "trainer.rank_timeout_s. What is done is saved; the same command goes on"
    )
    assert len(said) == 2
    assert said[0].startswith(
        "rank 1 of the trainer's 2 has ended (killed by SIGKILL) at micro-batch 1 of "
    )


def test_a_rank_that_stands_still_is_named_and_none_is_left(tmp_path: Path, model: Path) -> None:
    settings = settings_of(tmp_path, model)

    async def stop_one() -> tuple[str, list[int]]:
        processes = await RankProcesses.start(settings)
        pids = [channel.process.pid for channel in processes._channels]
        os.kill(pids[1], signal.SIGSTOP)
        processes._limit_s = 8.0  # before, a busy machine may take longer than that
        try:
            with pytest.raises(RankEnded) as ended:
                await processes.ask(
                    {"type": "probe", "token_ids": [1, 2, 3], "start": 1}, what="probe"
                )
        finally:
            await processes.end()
        return str(ended.value), pids

    sentence, pids = asyncio.run(stop_one())
    assert sentence == (
        "trainer: probe by 2 ranks has made no progress for 8 s, the limit of "
        "trainer.rank_timeout_s: rank 1 at the beginning; stacks are in "
        f"{settings.run.logs}/rank-1.log"
    )
    wait_until(lambda: not any(map(is_alive, pids)))
    assert b"most recent call first" in (settings.run.logs / "rank-0.log").read_bytes()


# A run with its command line

SHORT = ("data.batch_size=2", "data.group_size=2", "trainer.max_steps=2", "trainer.num_ranks=2")


def ranks_of(run: Path) -> list[int]:
    """Return the processes that work in a run's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == run and is_alive(int(process.name)):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_run_on_two_ranks_killed_with_them_and_resumed_gives_the_same_bits(
    rnow: ForkedCli, tmp_path: Path
) -> None:
    project = tmp_path / "clinic"
    init_project(project, template="clinic")
    one, other = project / "runs" / "one", project / "runs" / "other"
    done = rnow("run", project, "--name", "one", *SHORT)
    assert done.status == 0, done.output
    assert ranks_of(one) == []
    killed = rnow("run", project, "--name", "other", *SHORT, RNOW_KILL_AT="publish/loaded:2")
    assert killed.status == -9, killed.output
    wait_until(lambda: ranks_of(other) == [])
    resumed = rnow("run", project, "--name", "other", *SHORT)
    assert resumed.status == 0, resumed.output
    for run in (one, other):
        (run / "evals.jsonl").touch()
    assert_same_run(one, other, num_steps=2)
    on_one = rnow("run", project, "--name", "other", *SHORT, "trainer.num_ranks=1")
    assert "is finished" in on_one.output, on_one.output
