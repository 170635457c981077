import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rnow.engines.base import ScoreRequest, Scores
from rnow.engines.scripted import ScriptedEngine
from rnow.errors import PublicationError
from rnow.runs.folder import RunDirectory
from rnow.training.publish import Publisher

PROBE = [3, 1, 4, 1, 5]


def logprob(ids: Sequence[int]) -> float:
    return -0.1 * ids[-1]


def make_publisher(
    engine: ScriptedEngine, folder: Path, *, off_by: float = 0.0, config: str | None = None
) -> Publisher:
    def save(target: Path) -> None:
        target.mkdir(parents=True)
        (target / "weights").write_text("…")
        if config is not None:
            (target / "config.json").write_text(config)

    def probe(ids: list[int], start: int) -> np.ndarray:
        return np.array([logprob(ids[: i + 1]) + off_by for i in range(start, len(ids))])

    return Publisher(
        engine,
        save=save,
        probe=probe,
        run=RunDirectory(folder),
        probe_ids=PROBE,
        tolerance=1e-3,
    )


async def test_the_engine_gets_each_version_and_keeps_the_newest_alone(tmp_path: Path) -> None:
    engine = ScriptedEngine([], logprob=logprob)
    publisher = make_publisher(engine, tmp_path)
    for version in range(3):
        assert await publisher.publish(version) < 1e-6
    assert engine.policies == {2: tmp_path / "policies" / "000002"}
    assert sorted(path.name for path in (tmp_path / "policies").iterdir()) == ["000001", "000002"]
    assert engine.scores[-1].policy_version == 2


async def test_an_engine_with_other_weights_stops_the_run(tmp_path: Path) -> None:
    engine = ScriptedEngine([], logprob=logprob)
    publisher = make_publisher(engine, tmp_path, off_by=0.09)
    with pytest.raises(PublicationError) as caught:
        await publisher.publish(7)
    assert str(caught.value) == (
        "the engine does not hold version 7: on a fixed sequence it is 0.09 nats a token away from "
        "the trainer (tolerance 0.001, engine.probe_tolerance). Sampling from it would train "
        "on the wrong policy"
    )


async def test_a_probe_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    engine = ScriptedEngine([], logprob=logprob)
    with pytest.raises(PublicationError):
        await make_publisher(engine, tmp_path, off_by=float("nan")).publish(0)


class TwoServers(ScriptedEngine):
    """An engine with two copies of the weights, the second of them stale."""

    async def probe(self, request: ScoreRequest) -> tuple[Scores, ...]:
        (fresh,) = await super().probe(request)
        return fresh, dataclasses.replace(fresh, logprobs=fresh.logprobs - np.float32(0.2))


async def test_one_stale_server_of_several_stops_the_run(tmp_path: Path) -> None:
    engine = TwoServers([], logprob=logprob)
    with pytest.raises(PublicationError, match=r"it is 0\.2 nats a token away from the trainer "):
        await make_publisher(engine, tmp_path).publish(7)


async def test_a_tied_head_that_stayed_behind_is_named_as_the_likely_reason(
    tmp_path: Path,
) -> None:
    engine = ScriptedEngine([], logprob=logprob)
    publisher = make_publisher(
        engine, tmp_path, off_by=0.09, config='{"tie_word_embeddings": true}'
    )
    with pytest.raises(PublicationError) as caught:
        await publisher.publish(7)
    assert str(caught.value).endswith(
        "Sampling from it would train on the wrong policy. The model's LM head is its embedding: "
        "some builds of vLLM keep the old head when weights are replaced; leave engine.url out, so "
        "that rnow starts a server that does not"
    )
