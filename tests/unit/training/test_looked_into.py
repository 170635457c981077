"""What is kept of rollouts to be looked into, by the parts that a run has."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
from builders import make_trajectory, tokenizer_folder
from scored import make_scored
from scripted_engine import ScriptedEngine

from rnow.chat.template import ChatTemplate
from rnow.engines.base import ScoreRequest, Scores
from rnow.errors import EngineError
from rnow.records import Batch, Prompt, RolloutId, ScoredTrajectory
from rnow.runs.beside import read_beside
from rnow.runs.folder import RunDirectory
from rnow.training.looked_into import NUM_EXPLAINED, FavouriteKeeper, copier, keep_logprobs
from rnow.training.teacher import Teacher


def batch_of(num: int) -> Batch:
    """Trajectories whose teacher likes the later ones less."""
    scored = []
    for number in range(num):
        one = make_scored(RolloutId(3, number, 0)).trajectory
        scored.append(
            ScoredTrajectory(
                trajectory=one, teacher_logprobs=one.sampler_logprobs - np.float32(number)
            )
        )
    return Batch(step=3, scored=tuple(scored))


class Silent(ScriptedEngine):
    """Tells no favourites, as servers with a cap on them do."""

    num_asked = 0

    async def score(self, request: ScoreRequest) -> Scores:
        self.num_asked += 1
        raise EngineError("max_logprobs is 0")


def keeper(engine: ScriptedEngine, folder: Path, *, num: int) -> FavouriteKeeper:
    teacher = Teacher(engine, concurrency=4, tolerance=1e-3)
    return FavouriteKeeper(teacher, RunDirectory(folder), num=num)


def scripted() -> ScriptedEngine:
    return ScriptedEngine(lambda request, turn: [2])


async def test_favourites_are_kept_of_the_rollouts_that_the_teacher_likes_least(
    tmp_path: Path,
) -> None:
    await keeper(scripted(), tmp_path, num=2)(batch_of(6))
    lines = read_beside(RunDirectory(tmp_path).beside("favourites", 3))
    assert [line["prompt"] for line in lines] == [5, 4, 3, 2]
    assert len(lines) == NUM_EXPLAINED
    for line in lines:
        # One row a sampled token (9 2 · 6 2), the scripted teacher's best first: the token itself.
        assert [row[0] for row in line["ids"]] == [9, 2, 6, 2]
        assert {len(row) for row in (*line["ids"], *line["logprobs"])} == {2}
        assert all(best > next_ for best, next_ in line["logprobs"])


async def test_none_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    await keeper(Silent(lambda request, turn: [2]), tmp_path, num=0)(batch_of(2))
    assert not (tmp_path / "trajectories").exists()


async def test_a_teacher_that_does_not_tell_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Silent(lambda request, turn: [2])
    keep = keeper(engine, tmp_path, num=2)
    with caplog.at_level(logging.WARNING):
        await keep(batch_of(1))
        await keep(batch_of(1))
    assert engine.num_asked == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the teacher's favourites are not kept from here on: no favourites of 3.0.0: "
        "max_logprobs is 0"
    ]


class HalfSilent(Silent):
    """Fails for whoever asks first, and takes its time for the others."""

    num_under_way = 0

    async def score(self, request: ScoreRequest) -> Scores:
        if self.num_asked == 0:
            return await super().score(request)
        self.num_under_way += 1
        try:
            return await asyncio.Event().wait() or await super().score(request)
        finally:
            self.num_under_way -= 1


async def test_a_teacher_that_does_not_tell_is_not_asked_on(tmp_path: Path) -> None:
    engine = HalfSilent(lambda request, turn: [2])
    await keeper(engine, tmp_path, num=2)(batch_of(4))
    assert engine.num_asked == 1
    assert engine.num_under_way == 0


def test_what_the_trainer_gave_is_kept_by_rollout(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    keep_logprobs(run, batch_of(2), {1: np.array([-0.5, -1 / 3], dtype=np.float32)})
    assert read_beside(run.beside("update", 3)) == [
        {"prompt": 1, "rollout": 0, "logprobs": [-0.5, -0.3333]}
    ]


HINT = "look at the study page first and then at the page of its drug"


@pytest.mark.parametrize(
    ("metadata", "prompt", "said", "copies"),
    [
        ({"hint": HINT}, "Which?", f"I {HINT}", True),
        ({"steps": [{"do": HINT.title()}]}, "Which?", f"I {HINT}!", True),
        ({"call": 'now:\n"' + HINT.replace(" ", '"\n"')}, "Which?", HINT, True),
        ({"hint": HINT}, f"Which? {HINT}", f"I {HINT}", False),  # it was shown
        ({"hint": HINT}, "Which?", "I look at the study page first and then guess", False),
        ({"expected_answer": HINT}, "Which?", HINT, False),  # that is to be right
        ({"nct": "NCT0"}, "Which?", HINT, False),
        ({}, "Which?", HINT, False),
    ],
)
def test_a_rollout_that_writes_out_what_its_entry_hides(
    tmp_path: Path, metadata: dict[str, object], prompt: str, said: str, copies: bool
) -> None:
    chat = ChatTemplate.load(tokenizer_folder(tmp_path, "qwen3"))
    before, after = chat.encode(prompt), chat.encode(said)
    mask = [False] * len(before) + [True] * len(after)
    entry = Prompt(index=0, line=1, messages=(), tools=None, metadata=metadata)
    assert copier(chat)(entry, make_trajectory([*before, *after], mask)) is copies
