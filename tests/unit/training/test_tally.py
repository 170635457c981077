"""What is shown of rollouts while they run, and of GPUs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from builders import make_trajectory, tokenizer_folder
from processes import is_alive, until
from scored import make_scored

from rnow.chat.template import ChatTemplate
from rnow.errors import DeadlineError, EngineError
from rnow.records import Prompt, RolloutId, ScoredTrajectory, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.training import gpu_use
from rnow.training.gpu_use import GpuUse, read_use, watching_gpus
from rnow.training.tally import MAX_ANSWER_CHARS, Tally

ATTEMPT = Attempt(
    prompt=Prompt(index=0, line=1, messages=(), tools=None),
    id=RolloutId(0, 0, 0),
    policy_version=0,
)
NO_RATES = {"student_tokens_per_s": None, "teacher_tokens_per_s": None}


async def test_rollouts_are_counted_as_they_begin_end_and_fail(tmp_path: Path) -> None:
    chat = ChatTemplate.load(tokenizer_folder(tmp_path / "student", "qwen3"))
    said = "<think>Which\npage?</think>The \x1b[2Jcompany\n\nis " + "Acme " * 200
    ids = [*chat.encode("Which?"), *chat.encode(said)]
    num_prompt = len(chat.encode("Which?"))
    trajectory = make_trajectory(ids, [index >= num_prompt for index in range(len(ids))])
    may_end = asyncio.Event()

    async def roll(attempt: Attempt) -> Trajectory:
        await may_end.wait()
        if attempt.id.rollout:
            raise EngineError("server gone")
        return trajectory

    async def score(trajectory: Trajectory) -> ScoredTrajectory:
        return make_scored(trajectory.id)

    tally = Tally()
    rolled = tally.roll(roll, chat)
    failing = Attempt(prompt=ATTEMPT.prompt, id=RolloutId(0, 0, 1), policy_version=0)
    tasks = [asyncio.create_task(rolled(one)) for one in (ATTEMPT, failing)]
    await asyncio.sleep(0)
    assert tally.snapshot()["running"] == 2
    may_end.set()
    assert await tasks[0] is trajectory
    with pytest.raises(EngineError, match="server gone"):
        await tasks[1]
    await tally.score(score)(trajectory)
    answer = f"The ·[2Jcompany is {'Acme ' * 200}"[:MAX_ANSWER_CHARS]
    assert {**tally.snapshot(), **NO_RATES} == {
        "running": 0,
        "done": 1,
        "failed": 1,
        "turns": 1,
        "calls": {},
        "answer": answer,
        **NO_RATES,
    }
    assert tally.num_tokens == len(ids)
    tally.begin()
    assert (tally.snapshot()["done"], tally.num_tokens) == (0, 0)


async def test_gpus_are_asked_for_while_the_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "0, 71200, 81559, 98"\necho "1, [N/A], 81559, 3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told: list[list[GpuUse]] = []
    came = asyncio.Event()

    def tell(gpus: list[GpuUse]) -> None:
        told.append(gpus)
        came.set()

    async with watching_gpus(tell):
        await came.wait()
    assert told == [[{"index": 0, "used_mib": 71200, "total_mib": 81559, "use_percent": 98}]]
    assert read_use("NVIDIA-SMI has failed\n") == []


@pytest.mark.parametrize("is_late", [True, False])  # else the run ends
async def test_an_nvidia_smi_that_hangs_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    program, pids = tmp_path / "nvidia-smi", tmp_path / "pids"
    program.write_text(
        f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    limits: list[asyncio.Timeout] = []

    @asynccontextmanager
    async def limited(*_: object) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                yield
        except TimeoutError as error:
            raise DeadlineError("late") from error

    monkeypatch.setattr(gpu_use, "within", limited)
    told: list[list[GpuUse]] = []
    async with watching_gpus(told.append):
        await until(pids.exists)
        if is_late:
            limits[0].reschedule(0.0)
            await asyncio.sleep(0.01)
    assert told == []
    started = [int(pid) for pid in pids.read_text().split()]
    await until(lambda: not any(map(is_alive, started)))


async def test_without_nvidia_smi_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    told: list[list[GpuUse]] = []
    async with watching_gpus(told.append):
        await asyncio.sleep(0)
    assert told == []
