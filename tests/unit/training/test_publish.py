import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scripted_engine import ScriptedEngine
from vllm_fake import logprob_of, serve_fake

from rnow.engines.base import Completion, Engine, Sampled, SampleRequest, ScoreRequest, Scores
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.wire import ROUTE
from rnow.errors import PublicationError
from rnow.runs.folder import RunDirectory
from rnow.training.agreement import Agreement
from rnow.training.publish import Publisher

PROBE = [3, 1, 4, 1, 5]


def logprob(ids: Sequence[int]) -> float:
    return -0.1 * ids[-1]


def make_publisher(
    engine: Engine,
    folder: Path,
    *,
    off_by: float = 0.0,
    config: str | None = None,
    tolerance: float = 1e-3,
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
        agreement=Agreement(folder / "probe.json", tolerance=tolerance, allowed=None),
    )


async def test_the_engine_gets_each_version_and_keeps_the_newest_alone(tmp_path: Path) -> None:
    engine = ScriptedEngine([], logprob=logprob)
    publisher = make_publisher(engine, tmp_path)
    for version in range(3):
        figures = await publisher.publish(version)
        assert list(figures) == ["publish/probe", "publish/decode"]
        assert max(figures.values()) < 1e-6
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


class SkipsAdapter(ScriptedEngine):
    """From version 1 on it samples `apart` nats away from what it scores: alone, or 8 at once."""

    def __init__(self, *, alone: float = 0.0, together: float = 0.0, noise: float = 0.0) -> None:
        super().__init__([], logprob=logprob)
        self.apart = (alone, together)
        self.noise = noise

    async def probe_sampling(self, requests: Sequence[SampleRequest]) -> tuple[Sampled, ...]:
        assert [request.session for request in requests] == [f"probe.{n}" for n in range(8)]
        (sampled,) = await super().probe_sampling(requests)
        alone, together = (
            (self.noise, self.noise) if requests[0].policy_version == 0 else self.apart
        )
        return (
            dataclasses.replace(
                sampled,
                alone=shifted(sampled.alone, alone),
                together=tuple(shifted(one, together) for one in sampled.together),
            ),
        )


def shifted(completion: Completion, by: float) -> Completion:
    return dataclasses.replace(completion, logprobs=completion.logprobs + np.float32(by))


@pytest.mark.parametrize(
    ("alone", "together"), [(0.25, 0.0), (0.0, 0.25), (float("nan"), 0.0), (0.0, float("nan"))]
)
async def test_an_engine_that_samples_without_the_adapter_stops_the_run(
    tmp_path: Path, alone: float, together: float
) -> None:
    engine = SkipsAdapter(alone=alone, together=together)
    publisher = make_publisher(engine, tmp_path)
    await publisher.publish(0)
    with pytest.raises(PublicationError) as caught:
        await publisher.publish(1)
    assert re.sub(r"\d\.?\d*e-\d+", "0", str(caught.value)) == (
        "the script does not sample from version 1: what it says of sampled tokens is "
        f"{alone:.3g} nats a token away from the trainer where it decodes one sequence, "
        f"{together:.3g} where 8 at once (limit 0.0002; it was 0 at version 0). What it reads, it "
        "reads with the right weights. Graphs of decoding have left adapters out in some versions "
        "of vLLM: try engine.args.enforce-eager=true, or another version"
    )


async def test_the_limit_is_five_times_the_noise_before_the_first_update_and_kept(
    tmp_path: Path,
) -> None:
    engine = SkipsAdapter(noise=0.01, together=0.049)
    publisher = make_publisher(engine, tmp_path, tolerance=0.1)
    assert (await publisher.publish(0))["publish/decode"] == pytest.approx(0.01, rel=1e-3)
    assert (await publisher.publish(1))["publish/decode"] == pytest.approx(0.049, rel=1e-3)
    engine.apart = (0.0, 0.051)
    with pytest.raises(PublicationError, match=r"\(limit 0\.05; it was 0\.01 at version 0\)"):
        await publisher.publish(2)
    resumed = make_publisher(engine, tmp_path, tolerance=0.1)
    with pytest.raises(PublicationError, match=r"\(limit 0\.05; it was 0\.01 at version 0\)"):
        await resumed.publish(3)


async def test_the_noise_is_measured_once_a_run(tmp_path: Path) -> None:
    engine = SkipsAdapter(noise=0.01)
    await make_publisher(engine, tmp_path, tolerance=0.1).publish(0)
    shutil.rmtree(tmp_path / "policies")
    kept = (tmp_path / "probe.json").read_text()
    engine.noise = 0.04
    await make_publisher(engine, tmp_path, tolerance=0.1).publish(0)
    assert (tmp_path / "probe.json").read_text() == kept


async def test_a_run_without_a_measured_noise_has_the_tolerance_alone(tmp_path: Path) -> None:
    engine = SkipsAdapter(together=0.09)
    publisher = make_publisher(engine, tmp_path, tolerance=0.1)
    assert (await publisher.publish(4))["publish/decode"] == pytest.approx(0.09, rel=1e-3)
    engine.apart = (0.11, 0.0)
    with pytest.raises(PublicationError, match=r"\(tolerance 0\.1, engine\.probe_tolerance\)"):
        await publisher.publish(5)


async def test_a_server_whose_decoding_skips_the_adapter_is_named(tmp_path: Path) -> None:
    """A prompt is scored with the adapter, sampled tokens without: only sampling shows it."""
    async with serve_fake() as good, serve_fake() as bad:
        good.adapter_shift = bad.adapter_shift = -0.5
        bad.skips_adapter = True
        engine = VllmEngine([good.url, bad.url], request_timeout_s=600)

        def save(target: Path) -> None:
            target.mkdir(parents=True)
            (target / "adapter_config.json").write_text("{}")

        def probe(ids: list[int], start: int) -> np.ndarray:
            shift = -0.5
            return np.array([logprob_of(i, ids[i]) + shift for i in range(start, len(ids))])

        publisher = Publisher(
            engine,
            save=save,
            probe=probe,
            run=RunDirectory(tmp_path),
            probe_ids=PROBE,
            agreement=Agreement(tmp_path / "probe.json", tolerance=1e-3, allowed=None),
        )
        with pytest.raises(PublicationError) as caught:
            await publisher.publish(1)
        await engine.aclose()
    assert str(caught.value).startswith(
        f"{bad.url} does not sample from version 1: what it says of sampled tokens is 0.5 nats a "
        "token away from the trainer where it decodes one sequence, 0.5 where 8 at once (tolerance "
        "0.001, engine.probe_tolerance). "
    )
    asked = [body for body in good.bodies(ROUTE) if "seed" in body["sampling_params"]]
    assert [body["sampling_params"]["seed"] for body in asked] == [0, *range(8)]
    assert {tuple(body["token_ids"]) for body in asked} == {tuple(PROBE[:3])}
    assert {body["sampling_params"]["max_tokens"] for body in asked} == {2}


@pytest.mark.parametrize(("step", "stops"), [(0, True), (1, True), (2, False)])
def test_a_mismatch_beyond_health_stops_the_first_steps(
    tmp_path: Path, step: int, stops: bool
) -> None:
    agreement = Agreement(tmp_path / "probe.json", tolerance=0.1, allowed=None)
    agreement.check_step(step, {"mismatch_kl": 0.0099})
    agreement.check_step(step, {"trainer/skipped": 1.0, "mismatch_kl": float("nan")})
    if not stops:
        agreement.check_step(step, {"mismatch_kl": 0.3})
        return
    with pytest.raises(PublicationError) as caught:
        agreement.check_step(step, {"mismatch_kl": 0.3})
    assert str(caught.value) == (
        f"mismatch_kl of step {step} is 0.3, and healthy is at most 0.01: engine and trainer give "
        "sampled tokens different log-probabilities, so the run would train on a policy that is "
        "not its own. Compare model.dtype and engine.dtype (float32 in both has least of it) and "
        "look at engine.args; with engine.probe_tolerance above that number the run goes on as it "
        "is"
    )
    Agreement(tmp_path / "probe.json", tolerance=0.4, allowed=0.4).check_step(
        step, {"mismatch_kl": 0.3}
    )
