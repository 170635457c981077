"""VllmEngine against a small real HTTP server that answers wrongly in every way known."""

import asyncio
import base64
import dataclasses
import io
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import until
from safetensors.numpy import save_file
from vllm_fake import FakeVllm, Json, error, logprob_of, serve_fake

from rnow.engines.base import Completion, SampleRequest, ScoreRequest, Scores
from rnow.engines.vllm import cutting
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.http import VllmClient
from rnow.engines.vllm.weight_routes import load_adapter
from rnow.errors import DeadlineError, EngineError
from rnow.records import StopReason

ROUTE = "/inference/v1/generate"


@pytest.fixture
async def fake() -> AsyncIterator[FakeVllm]:
    async with serve_fake() as server:
        yield server


@pytest.fixture
async def engine(fake: FakeVllm) -> AsyncIterator[VllmEngine]:
    opened = make_engine(fake)
    yield opened
    await opened.aclose()


def make_engine(*fakes: FakeVllm, **settings: Any) -> VllmEngine:
    chosen = {"request_timeout_s": 60.0, "pauses_s": (0.01, 0.01), **settings}
    return VllmEngine([fake.url for fake in fakes], **chosen)


async def sample(
    engine: VllmEngine, ids: tuple[int, ...] = (9, 5), *, session: str = "0.0.0", version: int = 0
) -> Completion:
    return await engine.sample(
        SampleRequest(
            token_ids=ids,
            session=session,
            max_tokens=3,
            stop_token_ids=(3,),
            seed=7,
            policy_version=version,
        )
    )


async def score(engine: VllmEngine, ids: list[int], **asked: int) -> Scores:
    return await engine.score(ScoreRequest(token_ids=tuple(ids), **asked))


def adapter(folder: Path, name: str = "adapter") -> Path:
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text("{}")
    return folder / name


def whole_model(folder: Path) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder / "model"


def fail_times(num: int, response: Callable[[], Any]) -> Callable[[], Any]:
    left = [num]

    def fault() -> Any:
        left[0] -= 1
        return response() if left[0] >= 0 else None

    return fault


def here(fake: FakeVllm, route: str = ROUTE, method: str = "POST") -> str:
    return f"{method} {fake.url}{route}"


# Sampling.


async def test_a_completion_is_what_the_server_says_it_received_and_sampled(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    completion = await sample(engine)
    assert completion.prompt_ids.tolist() == [9, 5]
    assert completion.token_ids.tolist() == [4, 3]
    assert completion.logprobs.tolist() == pytest.approx([-(4 + 2) / 100, -(3 + 3) / 100])
    assert completion.stop_reason is StopReason.STOP
    assert completion.policy_version == 0
    (name,) = (body["request_id"] for body in fake.bodies(ROUTE))
    assert fake.bodies(ROUTE) == [
        {
            "model": "base",
            "token_ids": [9, 5],
            "request_id": name,
            "return_token_ids": True,
            "sampling_params": {
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "detokenize": False,
                "max_tokens": 3,
                "temperature": 1.0,
                "seed": 7,
                "logprobs": 0,
                "stop_token_ids": [3],
                "ignore_eos": True,
            },
        }
    ]


async def test_a_generation_that_no_stop_token_ends_has_the_length_asked_for(
    engine: VllmEngine,
) -> None:
    completion = await sample(engine, (9,))
    assert completion.token_ids.tolist() == [8, 7, 6]
    assert completion.stop_reason is StopReason.LENGTH


def one_token_less(answer: Json) -> None:
    answer["choices"][0]["token_ids"].pop()
    answer["choices"][0]["logprobs"]["content"].pop()


def no_logprob(answer: Json) -> None:
    answer["choices"][0]["logprobs"]["content"].pop()


def others_ids(answer: Json) -> None:
    answer["choices"][0]["logprobs"]["content"][0]["token_id"] = 77


def stand_in_for_nan(answer: Json) -> None:
    answer["choices"][0]["logprobs"]["content"][1]["logprob"] = -9999.0


def nan(answer: Json) -> None:
    answer["choices"][0]["logprobs"]["content"][1]["logprob"] = float("nan")


def another_model(answer: Json) -> None:
    answer["model"] = "policy-7"


def aborted(answer: Json) -> None:
    answer["choices"][0]["finish_reason"] = "abort"


def no_choices(answer: Json) -> None:
    del answer["choices"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            one_token_less,
            "the server ended with 'stop' after 1 tokens, the last of them 4; at most 3 and a "
            "stop token of [3] were asked for",
        ),
        (
            no_logprob,
            "the server sampled 2 tokens and gave 1 log-probabilities, which are not of the same "
            "tokens",
        ),
        (
            others_ids,
            "the server sampled 2 tokens and gave 2 log-probabilities, which are not of the same "
            "tokens",
        ),
        (
            stand_in_for_nan,
            "the log-probability of sampled token 1 is not finite (the server gave -9999)",
        ),
        (nan, "the log-probability of sampled token 1 is not finite (the server gave nan)"),
        (another_model, "model base was asked, policy-7 answered"),
        (
            aborted,
            "the server ended with 'abort' after 2 tokens, the last of them 3; at most 3 and a "
            "stop token of [3] were asked for",
        ),
        (no_choices, "the server's answer is not a completion: KeyError: 'choices'"),
    ],
)
async def test_an_answer_that_is_no_completion_is_an_error_not_a_number(
    fake: FakeVllm, engine: VllmEngine, change: Callable[[Json], None], message: str
) -> None:
    fake.change = change
    with pytest.raises(EngineError) as caught:
        await sample(engine)
    assert str(caught.value) == f"{here(fake)}: {message}"


async def test_a_generation_shorter_than_asked_for_is_an_error(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    fake.change = one_token_less
    with pytest.raises(EngineError, match="ended with 'length' after 2 tokens"):
        await sample(engine, (9,))


async def test_what_does_not_fit_is_not_sent(fake: FakeVllm, engine: VllmEngine) -> None:
    with pytest.raises(EngineError) as caught:
        await sample(engine, tuple([5] * 98))
    assert str(caught.value) == (
        "98 tokens and 3 to sample exceed the server's --max-model-len of 100; lower "
        "rollout.max_context_window"
    )
    assert fake.bodies(ROUTE) == []


# Scoring.


async def test_scores_are_looked_up_by_id(fake: FakeVllm, engine: VllmEngine) -> None:
    ids = [7, 1, 4, 2]
    scores = await score(engine, ids, start=2, num_top=2)
    assert scores.logprobs.tolist() == pytest.approx([logprob_of(2, 4), logprob_of(3, 2)])
    assert scores.top_ids.tolist() == [[50, 51], [50, 51]]
    assert scores.top_logprobs == pytest.approx(np.array([[-0.1, -0.2]] * 2))


async def test_the_compact_route_is_asked_for_once_where_it_is_missing(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    for _ in range(3):
        scores = await score(engine, [7, 1, 4, 2], start=2)
        assert scores.logprobs.tolist() == pytest.approx([logprob_of(2, 4), logprob_of(3, 2)])
        assert scores.top_ids.shape == (2, 0)
    asked = [set(body["sampling_params"]) & COMPACT for body in fake.bodies(ROUTE)]
    assert asked == [COMPACT, set(), set(), set()]


COMPACT = {"prompt_logprob_token_ids", "prompt_logprob_start"}


def encode(values: Any) -> str:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype=np.float32))
    return base64.b64encode(file.getvalue()).decode()


async def test_the_compact_route_is_used_where_it_is(fake: FakeVllm, engine: VllmEngine) -> None:
    fake.compact = lambda asked: encode([[-0.5], [-0.25]])
    for _ in range(2):
        scores = await score(engine, [7, 1, 4, 2], start=2)
        assert scores.logprobs.tolist() == [-0.5, -0.25]
    sent = [body["sampling_params"] for body in fake.bodies(ROUTE)]
    assert [params["prompt_logprob_token_ids"] for params in sent] == [[[4], [2]]] * 2
    assert [params["prompt_logprob_start"] for params in sent] == [1, 1]


async def test_a_server_that_ignores_the_compact_route_is_asked_the_long_way(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    fake.ignores_compact = True
    for _ in range(2):
        scores = await score(engine, [7, 1, 4], start=1)
        assert scores.logprobs.tolist() == pytest.approx([logprob_of(1, 1), logprob_of(2, 4)])
    assert asks_compactly(fake) == [True, False, False]


async def test_numbers_that_a_server_drops_once_do_not_turn_the_compact_route_off(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    """vLLM drops those of a request that it put off for others."""
    answers = [encode([[-0.5], [-0.25]]), None, encode([[-0.125], [-0.25]])]
    fake.compact = lambda asked: answers.pop(0)
    scores = [await score(engine, [7, 1, 4], start=1) for _ in range(3)]
    assert scores[0].logprobs.tolist() == [-0.5, -0.25]
    assert scores[1].logprobs.tolist() == pytest.approx([logprob_of(1, 1), logprob_of(2, 4)])
    assert scores[2].logprobs.tolist() == [-0.125, -0.25]
    assert asks_compactly(fake) == [True, True, False, True]


async def test_a_failure_does_not_turn_the_compact_route_off(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    fake.compact = lambda asked: encode([[-0.5], [-0.25]])
    fake.fault = fail_times(3, lambda: error(500, "out of memory"))
    with pytest.raises(EngineError, match="answered 500"):
        await score(engine, [7, 1, 4], start=1)
    assert (await score(engine, [7, 1, 4], start=1)).logprobs.tolist() == [-0.5, -0.25]
    assert asks_compactly(fake) == [True] * 4


def asks_compactly(fake: FakeVllm) -> list[bool]:
    return [bool(set(body["sampling_params"]) & COMPACT) for body in fake.bodies(ROUTE)]


@pytest.mark.parametrize("is_compact", [False, True])
async def test_of_what_a_server_scores_the_positions_asked_are_returned(
    fake: FakeVllm, engine: VllmEngine, is_compact: bool
) -> None:
    ids = (7, 1, 4, 2, 9)
    fake.change = score_stand_in  # at a position that nobody asks for
    if is_compact:
        fake.compact = lambda asked: encode([[logprob_of(2, 4)], [-np.inf], [logprob_of(4, 9)]])
    request = ScoreRequest(token_ids=ids, start=2, positions=(2, 4))
    scores = await engine.score(request)
    assert scores.logprobs.tolist() == pytest.approx([logprob_of(2, 4), logprob_of(4, 9)])
    assert scores.top_ids.shape == scores.top_logprobs.shape == (2, 0)
    if not is_compact:
        best = await engine.score(dataclasses.replace(request, num_top=2))
        assert best.top_ids.tolist() == [[50, 51], [50, 51]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[-0.5]], "the server gave (1, 1) log-probabilities, not (2, 1)"),
        (
            [[-0.5], [-np.inf]],
            "the log-probability of token 3 is not finite (the server gave -inf)",
        ),
    ],
)
async def test_compact_scores_are_read_without_trust(
    fake: FakeVllm, engine: VllmEngine, values: Any, message: str
) -> None:
    fake.compact = lambda asked: encode(values)
    with pytest.raises(EngineError) as caught:
        await score(engine, [7, 1, 4, 2], start=2)
    assert str(caught.value) == f"{here(fake)}: {message}"


def one_position_less(answer: Json) -> None:
    answer["prompt_logprobs"].pop()


def another_id(answer: Json) -> None:
    answer["prompt_logprobs"][2] = {"77": {"logprob": -0.5, "rank": 1}}


def score_stand_in(answer: Json) -> None:
    if answer["prompt_logprobs"]:
        answer["prompt_logprobs"][3]["2"]["logprob"] = -9999.0


def null_position(answer: Json) -> None:
    answer["prompt_logprobs"][2] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_position_less, "the server scored 3 positions of 4 tokens"),
        (another_id, "the server gave no log-probability of token 2, id 4 (given: 77)"),
        (null_position, "the server gave no log-probability of token 2, id 4 (given: none)"),
        (
            score_stand_in,
            "the log-probability of token 3 is not finite (the server gave -9999)",
        ),
    ],
)
async def test_scores_that_are_none_are_an_error_not_a_number(
    fake: FakeVllm, engine: VllmEngine, change: Callable[[Json], None], message: str
) -> None:
    fake.change = lambda answer: change(answer) if answer["prompt_logprobs"] else None
    with pytest.raises(EngineError) as caught:
        await score(engine, [7, 1, 4, 2], start=2)
    assert str(caught.value) == f"{here(fake)}: {message}"


# What passes, and what does not.


async def test_a_server_that_fails_for_a_while_is_asked_again(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    fake.fault = fail_times(2, lambda: error(500, "out of sorts"))
    assert (await sample(engine)).token_ids.tolist() == [4, 3]
    assert len(fake.bodies(ROUTE)) == 3


async def test_a_server_that_goes_on_failing_is_asked_three_times(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    fake.fault = fail_times(99, lambda: error(500, "out of sorts"))
    with pytest.raises(EngineError) as caught:
        await sample(engine)
    assert str(caught.value) == f"{here(fake)} answered 500: out of sorts"
    assert len(fake.bodies(ROUTE)) == 3


async def test_what_the_server_refuses_is_not_asked_again(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    fake.fault = fail_times(99, lambda: error(400, "Token id 900 is out of vocabulary"))
    with pytest.raises(EngineError) as caught:
        await sample(engine)
    assert str(caught.value) == f"{here(fake)} answered 400: Token id 900 is out of vocabulary"
    assert len(fake.bodies(ROUTE)) == 1


async def test_a_server_that_never_answers_ends_in_a_deadline_with_a_name(
    fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_GRACE_S", 0.5)  # for the answer to an abort
    engine = make_engine(fake, request_timeout_s=0.2)
    fake.hangs = True
    with pytest.raises(DeadlineError) as caught:
        await sample(engine)
    assert str(caught.value) == (f"engine.sample of session 0.0.0 at {fake.url} has waited 0.2 s")
    with pytest.raises(DeadlineError) as caught:
        await score(engine, [1, 2], start=1)
    assert str(caught.value) == f"engine.score of 2 tokens at {fake.url} has waited 0.2 s"
    await engine.aclose()


async def test_a_generation_is_cut_at_its_deadline_and_keeps_what_it_sampled(
    fake: FakeVllm,
) -> None:
    engine = make_engine(fake, request_timeout_s=0.2)
    fake.sampled_by_then = 2
    completion = await sample(engine, (9, 8))
    assert completion.token_ids.tolist() == [7, 6]
    assert completion.logprobs.tolist() == pytest.approx([-0.09, -0.09])
    assert completion.stop_reason is StopReason.LENGTH
    assert len(fake.bodies(ROUTE)) == 1
    (name,) = (body["request_id"] for body in fake.bodies(ROUTE))
    assert fake.bodies("/inference/v1/abort_requests") == [
        {"request_ids": [f"generate-tokens-{name}"]}
    ]
    await engine.aclose()


@pytest.mark.parametrize("can_abort", [True, False])
async def test_a_generation_that_has_nothing_at_its_deadline_or_cannot_be_cut_is_a_deadline(
    fake: FakeVllm, can_abort: bool
) -> None:
    engine = make_engine(fake, request_timeout_s=0.2)
    fake.sampled_by_then, fake.can_abort = 0, can_abort
    with pytest.raises(DeadlineError) as caught:
        await sample(engine)
    assert str(caught.value) == f"engine.sample of session 0.0.0 at {fake.url} has waited 0.2 s"
    await engine.aclose()


async def test_an_abort_that_was_not_asked_for_is_no_answer(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    """A server on its way out aborts what is under way: that is not the end of a rollout."""

    def abort(answer: dict[str, Any]) -> None:
        answer["choices"][0]["finish_reason"] = "abort"

    fake.change = abort
    with pytest.raises(EngineError, match="the server ended with 'abort' after 2 tokens"):
        await sample(engine)


async def test_a_port_where_nobody_listens_is_an_error_with_its_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        engine = VllmEngine([url], request_timeout_s=600, pauses_s=(0.01, 0.01))
        with pytest.raises(EngineError, match=r"\(3 attempts\)$") as caught:
            await sample(engine)
        assert str(caught.value).startswith(f"GET {url}/v1/models: Cannot connect to host")
        await engine.aclose()


async def test_the_death_of_a_server_is_told_in_its_own_words(fake: FakeVllm) -> None:
    ended: list[str] = []
    engine = make_engine(fake, why_ended=lambda url: ended[0] if ended else None)

    def die() -> Any:
        ended.append("the vLLM server of the student has ended (killed by SIGKILL)")
        return error(500, "EngineDeadError")

    fake.fault = die
    with pytest.raises(EngineError) as caught:
        await sample(engine)
    assert str(caught.value) == ended[0]
    assert len(fake.bodies(ROUTE)) == 1
    await engine.aclose()


async def test_closing_breaks_off_what_is_under_way(fake: FakeVllm) -> None:
    engine = make_engine(fake)
    await sample(engine)
    fake.hangs = True
    waiting = asyncio.create_task(sample(engine))
    while len(fake.bodies(ROUTE)) < 2:
        await asyncio.sleep(0.01)
    await engine.aclose()
    with pytest.raises(EngineError, match=r"^the engine was closed$"):
        await waiting
    with pytest.raises(EngineError, match=r"^the engine was closed$"):
        await sample(engine)


async def test_hundreds_of_requests_are_under_way_at_once(
    fake: FakeVllm, engine: VllmEngine
) -> None:
    num, num_there, all_there = 300, 0, asyncio.Event()

    async def wait_for_all() -> None:
        nonlocal num_there
        num_there += 1
        if num_there == num:
            all_there.set()
        await all_there.wait()

    fake.gate = wait_for_all
    done = await asyncio.gather(*(sample(engine, session=str(n)) for n in range(num)))
    assert len(done) == num


# Weights.


async def test_a_session_ends_on_the_adapter_it_began_with(
    fake: FakeVllm, engine: VllmEngine, tmp_path: Path
) -> None:
    await engine.load_policy(adapter(tmp_path, "one"), 1)
    await sample(engine, session="old", version=1)
    await engine.load_policy(adapter(tmp_path, "two"), 2)
    await engine.unload_policy(1)
    await sample(engine, session="old", version=1)
    await sample(engine, session="new", version=2)
    models = [body["model"] for body in fake.bodies(ROUTE)]
    assert [model[: len("policy-1")] for model in models] == ["policy-1", "policy-1", "policy-2"]
    assert models[0] == models[1]
    with pytest.raises(EngineError) as caught:
        await sample(engine, session="late", version=1)
    assert str(caught.value) == "policy version 1 is not loaded (loaded: 0, 2)"
    assert set(fake.adapters.values()) == {str(tmp_path / "one"), str(tmp_path / "two")}
    await engine.release("old")
    await until(lambda: set(fake.adapters.values()) == {str(tmp_path / "two")})


async def test_an_adapter_that_a_network_file_system_shows_late_is_asked_for_again(
    fake: FakeVllm, tmp_path: Path
) -> None:
    client = VllmClient(fake.url)
    fake.num_looks = 2
    await load_adapter(client, "policy-1", adapter(tmp_path), pauses_s=(0.01, 0.01))
    assert fake.adapters == {"policy-1": str(tmp_path / "adapter")}
    fake.num_looks = 3
    with pytest.raises(EngineError) as caught:
        await load_adapter(client, "policy-2", tmp_path / "late", pauses_s=(0.01, 0.01))
    assert str(caught.value) == (
        f"POST {fake.url}/v1/load_lora_adapter answered 404: Loading lora policy-2 failed: "
        f"No adapter found for {tmp_path / 'late'}"
    )
    await client.aclose()


async def test_a_version_published_again_has_another_name(
    fake: FakeVllm, engine: VllmEngine, tmp_path: Path
) -> None:
    """vLLM's prefix cache knows weights by name: one name must not mean two adapters."""
    folder = adapter(tmp_path)
    await engine.load_policy(folder, 1)
    await sample(engine, session="a", version=1)
    await engine.release("a")
    await engine.load_policy(folder, 1)
    await sample(engine, session="b", version=1)
    first, second = (body["model"] for body in fake.bodies(ROUTE))
    assert first != second
    await until(lambda: list(fake.adapters) == [second])


async def test_a_whole_model_replaces_the_weights_and_empties_the_cache(
    fake: FakeVllm, engine: VllmEngine, tmp_path: Path
) -> None:
    folder = whole_model(tmp_path)
    await sample(engine, session="old")
    await engine.load_policy(folder, 1)
    assert [path for path, _ in fake.requests][-2:] == ["/collective_rpc", "/reset_prefix_cache"]
    assert fake.bodies("/collective_rpc") == [
        {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    ]
    for session in ("old", "new"):
        with pytest.raises(EngineError, match=r"^policy version 0 is not loaded \(loaded: 1\)$"):
            await sample(engine, session=session)
    with pytest.raises(EngineError, match="started with are replaced"):
        await score(engine, [1, 2], start=1)
    assert (await sample(engine, session="new", version=1)).policy_version == 1
    await engine.unload_policy(0)  # gone already, as it should be
    with pytest.raises(EngineError, match=r"^policy version 0 is not loaded \(loaded: 1\)$"):
        await engine.unload_policy(0)


async def test_untied_forms_are_kept_as_long_as_they_are_loaded(
    fake: FakeVllm, tmp_path: Path
) -> None:
    engine = make_engine(fake, untied=tmp_path / "untied")
    (tmp_path / "untied" / "policy-0").mkdir(parents=True)  # what the server was started on
    for version in (1, 2, 3):
        folder = tmp_path / str(version)
        folder.mkdir()
        (folder / "config.json").write_text('{"tie_word_embeddings": true}')
        save_file({"model.embed_tokens.weight": np.ones((2, 2))}, folder / "model.safetensors")
        await engine.load_policy(folder, version)
    assert fake.bodies("/collective_rpc")[-1]["kwargs"] == {
        "weights_path": str(tmp_path / "untied" / "policy-3")
    }
    kept = sorted(folder.name for folder in (tmp_path / "untied").iterdir())
    assert kept == ["policy-0", "policy-3"]
    await engine.aclose()


async def test_a_whole_model_waits_for_nothing_under_way(
    fake: FakeVllm, engine: VllmEngine, tmp_path: Path
) -> None:
    await sample(engine)
    fake.hangs = True
    waiting = asyncio.create_task(sample(engine))
    await asyncio.sleep(0.05)
    with pytest.raises(EngineError, match=r"^1 requests are under way: a whole model replaces"):
        await engine.load_policy(whole_model(tmp_path), 1)
    waiting.cancel()


async def test_a_cache_that_keeps_its_contents_is_an_error(
    fake: FakeVllm, engine: VllmEngine, tmp_path: Path
) -> None:
    fake.empties_cache = False
    with pytest.raises(EngineError, match=r"/reset_prefix_cache did not empty the cache"):
        await engine.load_policy(whole_model(tmp_path), 1)
    with pytest.raises(EngineError, match=r"^policy version 1 is not loaded \(loaded: none\)$"):
        await sample(engine, version=1)


async def test_a_server_without_the_routes_for_weights_is_told_how_to_start(
    fake: FakeVllm, engine: VllmEngine, tmp_path: Path
) -> None:
    fake.has_dev_routes = False
    with pytest.raises(EngineError) as caught:
        await engine.load_policy(whole_model(tmp_path), 1)
    assert str(caught.value) == (
        f'{here(fake, "/collective_rpc")} answered 404: {{"detail": "Not Found"}}; start that '
        "server with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and "
        "VLLM_SERVER_DEV_MODE=1"
    )


async def test_a_folder_without_weights_is_an_error(engine: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        await engine.load_policy(tmp_path, 1)
    assert str(caught.value) == (
        f"{tmp_path} holds neither adapter_config.json nor config.json: no weights to load"
    )


# Several servers.


async def test_sessions_spread_over_servers_and_stay(fake: FakeVllm) -> None:
    async with serve_fake() as other:
        engine = make_engine(fake, other)
        for session in ("a", "b", "c", "a", "a"):
            await sample(engine, session=session)
        assert (len(fake.bodies(ROUTE)), len(other.bodies(ROUTE))) == (4, 1)
        await engine.release("b")
        await sample(engine, session="d")
        assert len(other.bodies(ROUTE)) == 2
        await engine.aclose()


async def test_scoring_goes_where_the_least_is_under_way(fake: FakeVllm) -> None:
    async with serve_fake() as other:
        engine = make_engine(fake, other)
        await sample(engine)
        fake.hangs = True
        waiting = asyncio.create_task(sample(engine))
        await asyncio.sleep(0.05)
        for _ in range(3):
            await score(engine, [1, 2], start=1)
        assert len(other.bodies(ROUTE)) == 4  # the first time also the compact route
        waiting.cancel()
        await engine.aclose()


async def test_a_server_known_to_have_ended_gets_no_new_session(fake: FakeVllm) -> None:
    async with serve_fake() as other:
        engine = make_engine(
            fake, other, why_ended=lambda url: "ended" if url == fake.url else None
        )
        for session in "abc":
            await sample(engine, session=session)
        assert len(other.bodies(ROUTE)) == 3
        await engine.aclose()


async def test_a_server_that_is_suspended_hands_its_sessions_over(fake: FakeVllm) -> None:
    async with serve_fake() as other:
        engine = make_engine(fake, other)
        await sample(engine, session="a")
        assert len(fake.bodies(ROUTE)) == 1
        engine.at(fake.url).is_open = False
        await sample(engine, session="a")
        engine.at(fake.url).is_open = True
        await sample(engine, session="a")  # stays where its text is in the cache now
        assert (len(fake.bodies(ROUTE)), len(other.bodies(ROUTE))) == (1, 2)
        await engine.aclose()


PROBE = ScoreRequest(token_ids=(1, 2), start=1, policy_version=0)


async def test_a_probe_asks_every_server_or_the_one_that_is_named(fake: FakeVllm) -> None:
    async with serve_fake() as other:
        engine = make_engine(fake, other)
        other.change = lambda answer: answer["prompt_logprobs"][1].update(
            {"2": {"logprob": -3.0, "rank": 1}}
        )
        answers = await engine.probe(PROBE)
        ours = np.float32(logprob_of(1, 2))
        assert [answer.logprobs.tolist() for answer in answers] == [[ours], [-3.0]]
        (answer,) = await engine.probe(PROBE, url=other.url)
        assert answer.logprobs.tolist() == [-3.0]
        await engine.aclose()


async def test_a_server_started_anew_gets_the_versions_of_the_others(
    fake: FakeVllm, tmp_path: Path
) -> None:
    async with serve_fake() as other:
        engine = make_engine(fake, other)
        await engine.load_policy(adapter(tmp_path), 1)
        other.adapters.clear()
        await engine.restore(other.url)
        assert other.adapters == fake.adapters
        assert len(other.adapters) == 1
        await engine.aclose()


def test_an_engine_without_a_server_is_an_error() -> None:
    with pytest.raises(EngineError, match=re.escape("needs the url of at least one vLLM server")):
        VllmEngine([], request_timeout_s=600)
