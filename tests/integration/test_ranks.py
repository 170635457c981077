"""A trainer of two real processes: what ends one of them costs an update, and no bit."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
import rank_cases
from builders import qwen3
from processes import is_alive, wait_until
from rank_runs import Killer, settings_of, train
from short_runs import ForkedCli, assert_same_run

from rnow.commands.init import init_project
from rnow.errors import RankError
from rnow.training.ranks.places import RankHere
from rnow.training.ranks.processes import RankEnded, RankProcesses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    qwen3(seed=0, vocab_size=rank_cases.VOCAB).save_pretrained(folder)
    return folder


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
    alone = settings_of(tmp_path / "one", model, tuning=tuning)
    expected = asyncio.run(train(alone, untouched.say))
    assert untouched.said == []
    killer = Killer(CHAINS[tuning])
    kills = killer.environment
    settings = settings_of(tmp_path / "other", model, tuning=tuning, environment=kills)
    assert asyncio.run(train(settings, killer.say)) == expected
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
    monkeypatch.setenv("RNOW_KILL_AT", "rank1/update/micro_batch:1")

    def say(line: str) -> None:
        said.append(line)
        monkeypatch.setenv("PYTHONHOME", "/nowhere")  # the next ones do not even start

    with pytest.raises(RankError) as ended:
        asyncio.run(train(settings, say))
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
        pids = [rank.pid for rank in processes.ranks if isinstance(rank, RankHere)]
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


# With lag 1: after the first update, then as the weights before it are published once more.
KILLS = {0: ("publish/loaded:2",), 1: ("ahead/published:2", "former/published:1")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    return folder


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_on_two_ranks_killed_with_them_and_resumed_gives_the_same_bits(
    rnow: ForkedCli, project: Path, lag: int
) -> None:
    one, other = (project / "runs" / f"{name}-{lag}" for name in ("one", "other"))
    given = (*SHORT, f"trainer.max_policy_lag={lag}")
    done = rnow("run", project, "--name", one.name, *given)
    assert done.status == 0, done.output
    assert ranks_of(one) == []
    for point in KILLS[lag]:
        killed = rnow("run", project, "--name", other.name, *given, RNOW_KILL_AT=point)
        assert killed.status == -9, killed.output
        wait_until(lambda: ranks_of(other) == [])
    resumed = rnow("run", project, "--name", other.name, *given)
    assert resumed.status == 0, resumed.output
    for run in (one, other):
        (run / "evals.jsonl").touch()
    assert_same_run(one, other, num_steps=2)


def test_a_run_that_goes_on_with_another_number_of_ranks_says_so(
    rnow: ForkedCli, project: Path
) -> None:
    words = ("run", project, "--name", "fewer", *SHORT)
    killed = rnow(*words, RNOW_KILL_AT="publish/loaded:2")
    assert killed.status == -9, killed.output
    resumed = rnow(*words, "trainer.num_ranks=1")
    assert resumed.status == 0, resumed.output
    assert (
        "  ranks was 2, is 1: the run goes on, but not bit for bit as it would have"
    ) in resumed.output
    again = rnow(*words)
    assert "is finished" in again.output, again.output
