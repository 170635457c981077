"""The local engine on a tiny random Qwen3: what it samples, what never changes it, how it fails."""

import asyncio
import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from builders import load_policy, qwen3
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rnow.engines.base import Completion, SampleRequest, ScoreRequest, Scores
from rnow.engines.local import worker
from rnow.engines.local.attention import ATTENTION_NAME
from rnow.engines.local.batch import DecodingBatch, DecodingRow, invariant_sizes, read
from rnow.engines.local.engine import LocalEngine
from rnow.engines.local.head import Head
from rnow.engines.local.sampling import draw_tokens, uniform_stream
from rnow.engines.local.scoring import read_text, score_texts
from rnow.errors import DeadlineError, EngineError, ModelError
from rnow.records import StopReason

VOCAB = 128
# Around the blocks of 128 keys, and past 300 tokens, where MKL begins to cut long sums by the
# padded length.
PROMPT_LENGTHS = (3, 20, 90, 126, 131, 300, 420)


def tiny_model(**changes: Any) -> Qwen3ForCausalLM:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "initializer_range": 0.1,
    }
    return qwen3(**(sizes | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    return path


@pytest.fixture
async def engine(folder: Path):
    loaded = LocalEngine(folder, request_timeout_s=600)
    yield loaded
    await loaded.aclose()


def some_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(0, VOCAB, length).tolist()


async def generate(engine: LocalEngine, ids: Sequence[int], **changes: object) -> Completion:
    settings = {
        "session": "s",
        "max_tokens": 8,
        "stop_token_ids": (),
        "seed": 1,
        "policy_version": 0,
    }
    return await engine.sample(SampleRequest(token_ids=tuple(ids), **(settings | changes)))


async def score(engine: LocalEngine, ids: Sequence[int], **asked: int) -> Scores:
    return await engine.score(ScoreRequest(token_ids=tuple(ids), **asked))


async def roll_out(engine: LocalEngine, index: int, *, delay_s: float = 0.0) -> list[Completion]:
    """Three turns with text appended between them; everything follows from `index`."""
    ids = some_ids(PROMPT_LENGTHS[index % len(PROMPT_LENGTHS)], index // len(PROMPT_LENGTHS) % 2)
    turns = []
    for turn in range(3):
        await asyncio.sleep(delay_s)
        seed = index * 10 + turn
        completion = await generate(
            engine, ids, session=str(index), max_tokens=3 + index % 3, seed=seed
        )
        turns.append(completion)
        ids = [*ids, *completion.token_ids.tolist(), *some_ids(1 + index % 40, seed)]
    await engine.release(str(index))
    return turns


def bits(turns: Sequence[Completion]) -> list[tuple[bytes, bytes]]:
    return [(turn.token_ids.tobytes(), turn.logprobs.tobytes()) for turn in turns]


def reference_logprobs(model: torch.nn.Module, ids: Sequence[int]) -> np.ndarray:
    """log p(ids[i] | ids[:i]) for i >= 1 by a plain forward of everything at once."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


# Batch invariance


async def test_a_trajectory_has_the_same_bits_whatever_runs_beside_it(engine: LocalEngine) -> None:
    alone = [bits(await roll_out(engine, index)) for index in range(9)]
    among_7 = await asyncio.gather(*(roll_out(engine, index) for index in range(7)))
    assert [bits(turns) for turns in among_7] == alone[:7]
    among_64 = await asyncio.gather(*(roll_out(engine, index) for index in range(64)))
    assert [bits(turns) for turns in among_64[:9]] == alone
    reversed_64 = await asyncio.gather(*(roll_out(engine, index) for index in reversed(range(64))))
    assert [bits(turns) for turns in reversed_64[::-1]] == [bits(turns) for turns in among_64]


async def test_windows_and_caps_leave_a_trajectory_its_bits(tmp_path: Path) -> None:
    families.tiny_model("gemma2", sliding_window=100).save_pretrained(tmp_path)
    engine = LocalEngine(tmp_path, request_timeout_s=600)
    alone = [bits(await roll_out(engine, index)) for index in range(5)]
    among_20 = await asyncio.gather(*(roll_out(engine, index) for index in range(20)))
    assert [bits(turns) for turns in among_20[:5]] == alone
    await engine.aclose()


def decode(
    model: torch.nn.Module, texts: Sequence[tuple[Any, torch.Tensor]], sizes: Sequence[int]
) -> list[bytes]:
    """Decode three tokens after each of `texts` side by side; what each sampled, in bits."""
    batch, rows = DecodingBatch(model, sizes), []
    for index, (key_values, logits) in enumerate(texts):
        length = key_values[0][0].shape[2]
        row = DecodingRow(length=length, uniforms=uniform_stream(index), temperature=1.0)
        row.draw(logits)
        batch.add(row, key_values)
        rows.append(row)
    for _ in range(3):
        batch.step()
    return [np.array([*row.token_ids, *row.logprobs]).tobytes() for row in rows]


@torch.inference_mode()
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_how_many_rows_a_step_runs_changes_no_bit(family: str) -> None:
    model = tiny_model() if family == "qwen3" else families.tiny_model(family, sliding_window=100)
    model.set_attn_implementation(ATTENTION_NAME)
    sizes = invariant_sizes(model, 32)
    assert sizes == (16, 24, 32)
    texts = [read(model, some_ids(3 + 7 * index % 150, index), ()) for index in range(32)]
    expected = decode(model, texts, (32,))
    for num in range(1, 33):
        assert decode(model, texts[:num], sizes) == expected[:num]


async def test_a_step_runs_no_more_rows_than_it_has_to(engine: LocalEngine) -> None:
    widths: list[tuple[int, ...]] = []
    engine.model.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    for num in (1, 16, 17, 25, 33):
        widths.clear()
        await asyncio.gather(
            *(generate(engine, [5, 6], session=str(k), max_tokens=3) for k in range(num))
        )
        rows = {1: [16], 16: [16], 17: [24], 25: [32], 33: [32, 16]}[num]
        assert [width for width in widths if width[1] == 1] == [(n, 1) for n in rows for _ in "ab"]


async def test_what_was_read_decodes_while_others_wait_to_be_read(engine: LocalEngine) -> None:
    widths: list[int] = []
    engine.model.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(kwargs["input_ids"].shape[1]),
        with_kwargs=True,
    )
    answers = [
        generate(engine, some_ids(300, index), session=str(index), max_tokens=3)
        for index in range(6)
    ]
    await asyncio.gather(*answers)
    # Two texts of 300 tokens, then a step. The first two end in the second, the last two alone.
    assert widths == [300, 300, 1, 300, 300, 1, 300, 300, 1, 1]


async def test_arrival_and_cancelled_neighbours_change_no_bit(engine: LocalEngine) -> None:
    alone = [bits(await roll_out(engine, index)) for index in range(7)]
    doomed = [asyncio.create_task(roll_out(engine, index)) for index in range(100, 120)]
    tasks = [
        asyncio.create_task(roll_out(engine, index, delay_s=0.003 * (index % 4)))
        for index in range(7)
    ]
    await asyncio.sleep(0.02)
    for task in doomed:
        task.cancel()
    assert [bits(await task) for task in tasks] == alone
    assert all(task.cancelled() for task in doomed)


async def test_another_engine_in_the_process_changes_no_bit(
    engine: LocalEngine, folder: Path
) -> None:
    alone = [bits(await roll_out(engine, index)) for index in range(4)]
    teacher = LocalEngine(folder, request_timeout_s=600)
    ids = some_ids(200)
    expected = (await score(teacher, ids, start=1)).logprobs
    *rolled, first, second = await asyncio.gather(
        *(roll_out(engine, index) for index in range(4)),
        score(teacher, ids, start=1),
        score(teacher, ids, start=1),
    )
    assert [bits(turns) for turns in rolled] == alone
    assert first.logprobs.tobytes() == second.logprobs.tobytes() == expected.tobytes()
    await teacher.aclose()


async def test_a_shared_prompt_read_once_gives_the_bits_of_one_read_anew(folder: Path) -> None:
    ids = some_ids(90)
    engine = LocalEngine(folder, request_timeout_s=600)
    group = [await generate(engine, ids, session=str(seed), seed=seed) for seed in range(3)]
    await engine.aclose()
    for seed, shared in enumerate(group):
        fresh = LocalEngine(folder, request_timeout_s=600)
        assert bits([await generate(fresh, ids, seed=seed)]) == bits([shared])
        await fresh.aclose()


def test_a_model_that_cannot_be_batch_invariant_is_named_in_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LocalEngine(folder, request_timeout_s=600)
    assert caplog.messages == []
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    LocalEngine(tmp_path, request_timeout_s=600)
    assert caplog.messages == [
        f"{tmp_path}: with {torch.get_num_threads()} threads the bits of a sequence change with "
        "its neighbours, so a resumed run may differ from an uninterrupted one. "
        "OMP_NUM_THREADS=1 helps, unless the model is a mixture of experts"
    ]


# What is sampled and scored


async def test_sampler_logprobs_are_those_of_score_and_of_a_plain_forward(
    engine: LocalEngine, folder: Path
) -> None:
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for index in range(7):
        turns = await roll_out(engine, index)
        ids = turns[-1].prompt_ids.tolist() + turns[-1].token_ids.tolist()
        scores = await score(engine, ids, start=1)
        np.testing.assert_allclose(scores.logprobs, reference_logprobs(model, ids), atol=1e-5)
        for turn in turns:
            start = len(turn.prompt_ids) - 1
            expected = scores.logprobs[start : start + len(turn.logprobs)]
            np.testing.assert_allclose(turn.logprobs, expected, atol=1e-5)


async def test_turns_of_a_session_continue_as_if_everything_were_read_anew(
    engine: LocalEngine,
) -> None:
    turns = await roll_out(engine, 5)
    last = turns[-1]
    anew = await generate(
        engine, last.prompt_ids.tolist(), max_tokens=len(last.token_ids), seed=52, session="anew"
    )
    assert anew.token_ids.tolist() == last.token_ids.tolist()
    np.testing.assert_allclose(anew.logprobs, last.logprobs, atol=1e-5)


async def test_prompt_ids_are_those_of_the_call_also_when_it_does_not_extend_the_last(
    engine: LocalEngine,
) -> None:
    first = await generate(engine, some_ids(20))
    extended = [*some_ids(20), *first.token_ids.tolist(), 5, 6]
    assert (await generate(engine, extended)).prompt_ids.tolist() == extended
    other = [9, *extended[1:], 7]
    diverged = await generate(engine, other)
    assert diverged.prompt_ids.tolist() == other
    assert bits([diverged]) == bits([await generate(engine, other, session="fresh")])


async def test_long_texts_are_scored_in_pieces(engine: LocalEngine, folder: Path) -> None:
    ids = some_ids(4300)
    model = Qwen3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    expected = reference_logprobs(model, ids)
    for start in (4000, 4200):  # before and behind the border of the first piece, at 4,096
        scores = await score(engine, ids, start=start)
        np.testing.assert_allclose(scores.logprobs, expected[start - 1 :], atol=1e-5)


@pytest.mark.parametrize("start", [300, 4090])
async def test_a_token_has_the_same_bits_scored_among_few_as_among_all(
    engine: LocalEngine, start: int
) -> None:
    """The border of pieces is at 4,096; few rows go through another matrix kernel than many."""
    ids = some_ids(4130)
    whole = await score(engine, ids, start=start, num_top=2)
    for num_asked in (1, 15, 16, 40):
        chosen = np.random.default_rng(num_asked).choice(len(ids) - start, num_asked, replace=False)
        rows = np.sort(chosen)
        places = tuple((start + rows).tolist())
        request = ScoreRequest(token_ids=tuple(ids), start=start, positions=places, num_top=2)
        some = await engine.score(request)
        assert some.logprobs.tobytes() == whole.logprobs[rows].tobytes()
        assert some.top_ids.tobytes() == whole.top_ids[rows].tobytes()
        assert some.top_logprobs.tobytes() == whole.top_logprobs[rows].tobytes()


async def test_positions_alone_reach_the_head(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = products_of(monkeypatch)
    places = tuple(range(20, 400, 10))
    await engine.score(ScoreRequest(token_ids=tuple(some_ids(500)), start=20, positions=places))
    assert made == [(len(places), slice(0, VOCAB))]


async def test_texts_that_wait_together_go_through_the_head_once_and_have_the_bits_of_one_alone(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some lengths, with few positions and many; those that ask for as many favourites."""
    requests = [
        ScoreRequest(token_ids=tuple(some_ids(length)), start=start, num_top=top)
        for length, start, top in ((40, 37, 0), (9, 1, 0), (500, 100, 0), (200, 20, 3), (77, 1, 3))
    ]
    alone = [await engine.score(request) for request in requests]
    made = products_of(monkeypatch)
    together = await asyncio.gather(*(engine.score(request) for request in requests))
    assert len(made) == 2
    for one, other in zip(alone, together, strict=True):
        assert one.logprobs.tobytes() == other.logprobs.tobytes()
        assert one.top_ids.tolist() == other.top_ids.tolist()
        assert one.top_logprobs.tobytes() == other.top_logprobs.tobytes()


async def test_a_text_that_cannot_be_read_fails_alone(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [tuple(some_ids(30)), (1, 2, 3), tuple(some_ids(50))]
    with monkeypatch.context() as patch:
        patch.setattr(worker, "read_text", failing_on(texts[1]))
        answers = await asyncio.gather(
            *(engine.score(ScoreRequest(token_ids=ids, start=1)) for ids in texts),
            return_exceptions=True,
        )
    assert str(answers[1]) == "the local engine failed: RuntimeError: no memory"
    assert [len(one.logprobs) for one in (answers[0], answers[2])] == [29, 49]


async def test_all_that_wait_hear_of_a_head_that_fails(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise RuntimeError("no memory")

    request = ScoreRequest(token_ids=tuple(some_ids(30)), start=1)
    with monkeypatch.context() as patch:
        patch.setattr(Head, "score", fail)
        answers = await asyncio.gather(
            *(engine.score(request) for _ in range(3)), return_exceptions=True
        )
    assert [str(one) for one in answers] == ["the local engine failed: RuntimeError: no memory"] * 3
    assert len((await engine.score(request)).logprobs) == 29


async def test_texts_of_versions_with_other_weights_are_not_put_together(
    engine: LocalEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    await engine.load_policy(tmp_path, 1)
    requests = [
        ScoreRequest(token_ids=tuple(some_ids(60)), start=1, policy_version=version)
        for version in (0, 1, 1, None)
    ]
    alone = [await engine.score(request) for request in requests]
    made = products_of(monkeypatch)
    together = await asyncio.gather(*(engine.score(request) for request in requests))
    assert [rows for rows, _ in made] == [59, 2 * 59, 59]
    assert [one.logprobs.tobytes() for one in together] == [one.logprobs.tobytes() for one in alone]
    assert alone[0].logprobs.tobytes() != alone[1].logprobs.tobytes()


async def test_where_a_rows_bits_change_with_its_neighbours_texts_are_scored_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with two threads and a hidden state of 900 numbers or more."""
    whole = Head._logits

    def shaky(self: Head, hidden: torch.Tensor, words: slice | None) -> torch.Tensor:
        logits = whole(self, hidden, words)
        return logits if len(hidden) < 200 else logits + 1e-6

    with monkeypatch.context() as patch:
        patch.setattr(Head, "_logits", shaky)
        engine = LocalEngine(folder, request_timeout_s=600)
    made = products_of(monkeypatch)
    request = ScoreRequest(token_ids=tuple(some_ids(60)), start=1)
    await asyncio.gather(*(engine.score(request) for _ in range(3)))
    assert [rows for rows, _ in made] == [59] * 3
    await engine.aclose()


def test_the_head_is_read_in_blocks_of_words_once_for_up_to_1024_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = qwen3(vocab_size=5000, hidden_size=16, num_hidden_layers=1)
    head = Head(model)
    made = products_of(monkeypatch)
    ids = some_ids(1400)
    scores = read_and_score(model, ids, places=range(40, 1097), head=head)
    blocks = [slice(0, 2048), slice(2048, 4096), slice(4096, 5000)]
    assert made == [(rows, words) for rows in (529, 528) for words in blocks]
    some = read_and_score(model, ids, places=[40, 568, 569, 1096], head=head)
    assert some.logprobs.tobytes() == scores.logprobs[[0, 528, 529, 1056]].tobytes()
    expected = reference_logprobs(model, ids)[39:1096]
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5)


def test_a_model_that_does_more_than_map_its_logits_has_its_head_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Chameleon, which forbids some words by their places; what memory allows is kept to."""

    class Forbidding(Qwen3ForCausalLM):  # type: ignore[misc]
        def forward(self, *given: Any, **named: Any) -> Any:
            output = super().forward(*given, **named)
            output.logits[..., 4321] = -50.0
            return output

    model = qwen3(vocab_size=5000, hidden_size=16, num_hidden_layers=1)
    model.__class__ = Forbidding
    monkeypatch.setattr("rnow.engines.local.head._MAX_LOGITS", 256 * 5000)
    head = Head(model)
    assert not head.is_invariant
    made = products_of(monkeypatch)
    ids = some_ids(300)
    scores = read_and_score(model, ids, places=range(40, 297), head=head)
    assert made == [(129, None), (128, None)]
    expected = reference_logprobs(model, ids)[39:296]
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["GPTNeoX", "GPT2"])
async def test_a_body_that_is_called_by_place_is_scored_too(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    network = type(transformers.AutoModelForCausalLM.from_config(config))
    network(config).eval().save_pretrained(tmp_path)
    engine = LocalEngine(tmp_path, request_timeout_s=600)
    ids = some_ids(60)
    scores = await score(engine, ids, start=1)
    expected = reference_logprobs(network.from_pretrained(tmp_path), ids)
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-4)
    await engine.aclose()


async def test_a_model_whose_head_cannot_be_asked_alone_samples_and_says_so_when_it_scores(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48}
    config = transformers.OPTConfig(**sizes, num_attention_heads=4, word_embed_proj_dim=32)
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    engine = LocalEngine(tmp_path, request_timeout_s=600)
    assert len((await generate(engine, some_ids(20))).token_ids)
    with pytest.raises(EngineError, match="the local engine failed: "):
        await score(engine, some_ids(20), start=1)
    await engine.aclose()


async def test_an_unloaded_version_is_not_kept_by_what_it_scored(
    engine: LocalEngine, tmp_path: Path
) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    await engine.load_policy(tmp_path, 1)
    loaded = weakref.ref(engine._worker.policies[1].model)
    await engine.score(ScoreRequest(token_ids=(1, 2, 3), start=1, policy_version=1))
    await engine.unload_policy(1)
    gc.collect()
    assert loaded() is None


async def test_more_favourites_than_words_are_refused(engine: LocalEngine) -> None:
    with pytest.raises(EngineError, match="129 favourites are asked of 128 words"):
        await score(engine, [1, 2, 3], start=1, num_top=129)


def test_words_that_can_never_follow_cost_no_number() -> None:
    model = qwen3(vocab_size=5000, hidden_size=16, num_hidden_layers=1)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(5000), requires_grad=False)
    model.lm_head.bias[:2100] = float("-inf")  # a block of 2,048 and more
    ids = [2500 + token for token in some_ids(40)]
    scores = read_and_score(model, ids, places=range(1, 40))
    np.testing.assert_allclose(scores.logprobs, reference_logprobs(model, ids), atol=1e-5)


def products_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, slice | None]]:
    """Return the rows and words of every product of a head from here on."""
    made: list[tuple[int, slice | None]] = []
    whole = Head._logits

    def noted(self: Head, hidden: torch.Tensor, words: slice | None) -> torch.Tensor:
        made.append((len(hidden), words))
        return whole(self, hidden, words)

    monkeypatch.setattr(Head, "_logits", noted)
    return made


def failing_on(ids: tuple[int, ...]) -> Callable[..., Any]:
    def read(model: Any, request: ScoreRequest) -> Any:
        if request.token_ids == ids:
            raise RuntimeError("no memory")
        return read_text(model, request)

    return read


@pytest.mark.parametrize("family", families.FAMILIES)
def test_what_a_family_does_to_its_logits_is_in_its_scores(family: str) -> None:
    model = families.tiny_model(family)
    model.set_attn_implementation(ATTENTION_NAME)
    head = Head(model)
    assert head._blocks[0] is not None  # as all families that are known here
    ids = [1 + token % 100 for token in some_ids(300)]
    places = [*range(20, 300, 20), 297, 298, 299]
    scores = read_and_score(model, ids, places=places, head=head)
    model.set_attn_implementation("eager")
    expected = reference_logprobs(model, ids)[np.array(places) - 1]
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-4)


def read_and_score(
    model: Any, ids: Sequence[int], *, places: Sequence[int], head: Head | None = None
) -> Scores:
    request = ScoreRequest(token_ids=tuple(ids), start=places[0], positions=tuple(places))
    with torch.inference_mode():
        (scores,) = score_texts(head or Head(model), [read_text(model, request)])
    return scores


@pytest.mark.parametrize("positions", [(), (0,), (2, 2), (3, 2), (1, 4)])
def test_positions_that_cannot_be_scored_are_refused(positions: tuple[int, ...]) -> None:
    with pytest.raises(EngineError) as caught:
        ScoreRequest(token_ids=(5, 6, 7, 8), start=1, positions=positions)
    assert str(caught.value) == (
        f"{len(positions)} positions are asked; with 4 tokens they are at least one, ascending, "
        "from 1 to 3"
    )


async def test_favourites_come_best_first(engine: LocalEngine, folder: Path) -> None:
    ids = some_ids(30)
    scores = await score(engine, ids, start=10, num_top=3)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0, 9:-1], -1)
    assert scores.top_ids.tolist() == table.topk(3).indices.tolist()
    np.testing.assert_allclose(scores.top_logprobs, table.topk(3).values, atol=1e-5)
    assert (await score(engine, ids, start=10)).top_ids.shape == (20, 0)


async def test_temperature_0_takes_the_likeliest_token(engine: LocalEngine) -> None:
    completion = await generate(engine, some_ids(20), temperature=0.0)
    ids = some_ids(20) + completion.token_ids.tolist()
    scores = await score(engine, ids, start=20, num_top=1)
    assert completion.token_ids.tolist() == scores.top_ids[:, 0].tolist()
    warm = await generate(engine, some_ids(20), session="warm")
    assert warm.token_ids.tolist() != completion.token_ids.tolist()


async def test_a_token_is_the_one_that_the_number_of_its_seed_falls_on(
    engine: LocalEngine, folder: Path
) -> None:
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for seed in (1, 2):
        completion = await generate(engine, some_ids(20), seed=seed, session=str(seed))
        ids = [*some_ids(20), *completion.token_ids.tolist()]
        with torch.no_grad():
            probs = torch.softmax(model(torch.tensor([ids])).logits[0, 19:-1].double(), -1)
        upper = probs.cumsum(-1).numpy()
        stream = uniform_stream(seed)
        for row, token in enumerate(completion.token_ids.tolist()):
            number = stream.random()
            lower = upper[row, token - 1] if token else 0.0
            assert lower - 1e-6 <= number <= upper[row, token] + 1e-6


async def test_a_sampled_stop_token_ends_the_turn_and_is_its_last_token(
    engine: LocalEngine,
) -> None:
    free = await generate(engine, some_ids(20), max_tokens=30)
    assert (len(free.token_ids), free.stop_reason) == (30, StopReason.LENGTH)
    stop = int(free.token_ids[17])
    where = free.token_ids.tolist().index(stop)
    stopped = await generate(
        engine, some_ids(20), max_tokens=30, stop_token_ids=[stop], session="t"
    )
    assert stopped.stop_reason is StopReason.STOP
    assert stopped.token_ids.tolist() == free.token_ids[: where + 1].tolist()
    assert (await generate(engine, some_ids(20), max_tokens=1, session="u")).token_ids.tolist() == [
        int(free.token_ids[0])
    ]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probs = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    logits = torch.tensor(np.log(np.maximum(probs, 1e-300)), dtype=torch.float32).expand(5000, 5)
    stream = uniform_stream(7)
    tokens, logprobs = draw_tokens(
        logits, uniforms=[stream.random() for _ in range(5000)], temperatures=[1.0] * 5000
    )
    counts = np.bincount(tokens, minlength=5)
    # Chi-square with 3 degrees of freedom exceeds 16.3 once in a thousand.
    assert ((counts[:4] - 5000 * probs[:4]) ** 2 / (5000 * probs[:4])).sum() < 16.3
    assert counts[4] == 0
    np.testing.assert_allclose(np.exp(logprobs), probs[tokens], atol=1e-6)


def test_temperature_changes_the_draw_and_not_the_logprob() -> None:
    logits = torch.tensor(
        [[0.0, math.log(3.0)]] * 3
    )  # 1/4 and 3/4; at temperature 1/2 1/10 and 9/10
    tokens, logprobs = draw_tokens(logits, uniforms=[0.2, 0.2, 0.2], temperatures=[1.0, 0.5, 0.0])
    assert tokens == [0, 1, 1]
    np.testing.assert_allclose(logprobs, np.log([0.25, 0.75, 0.75]), atol=1e-6)


# Weights


def save_adapter(folder: Path, target: Path, **changes: object) -> torch.nn.Module:
    """Save a random adapter with peft; return peft's own model."""
    import peft

    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    base = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(**(settings | changes))).eval()
    torch.manual_seed(3)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    model.save_pretrained(target)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"layers.1.mlp.up_proj": 2}},
    ],
)
async def test_a_merged_adapter_scores_as_peft_does(
    engine: LocalEngine, folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    model = save_adapter(folder, tmp_path, **changes)
    await engine.load_policy(tmp_path, 1)
    ids = some_ids(40)
    started = await score(engine, ids, start=1)
    adapted = await score(engine, ids, start=1, policy_version=1)
    np.testing.assert_allclose(adapted.logprobs, reference_logprobs(model, ids), atol=1e-5)
    assert np.abs(adapted.logprobs - started.logprobs).max() > 0.01
    assert np.array_equal((await score(engine, ids, start=1)).logprobs, started.logprobs)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")
async def test_an_adapter_with_biases_is_merged_into_none_of_the_base(tmp_path: Path) -> None:
    tiny_model(attention_bias=True).save_pretrained(tmp_path / "model")
    changes = {"lora_bias": True, "target_modules": ["q_proj"]}
    model = save_adapter(tmp_path / "model", tmp_path / "adapter", **changes)
    engine = LocalEngine(tmp_path / "model", request_timeout_s=600)
    ids = some_ids(40)
    started = await score(engine, ids, start=1)
    await engine.load_policy(tmp_path / "adapter", 1)
    adapted = await score(engine, ids, start=1, policy_version=1)
    again = await score(engine, ids, start=1)
    await engine.aclose()
    np.testing.assert_allclose(adapted.logprobs, reference_logprobs(model, ids), atol=1e-5)
    assert np.array_equal(again.logprobs, started.logprobs)


async def test_in_bfloat16_an_adapter_says_what_it_says_to_the_trainer(
    folder: Path, tmp_path: Path
) -> None:
    policy = load_policy(folder, dtype="bfloat16", qlora_rank=4, device="cpu")
    torch.manual_seed(3)
    for name, tensor in policy.trained_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    policy.save(tmp_path)
    engine = LocalEngine(folder, dtype="bfloat16", request_timeout_s=600)
    await engine.load_policy(tmp_path, 1)
    ids = some_ids(40)
    started = await score(engine, ids, start=1)
    adapted = await score(engine, ids, start=1, policy_version=1)
    await engine.aclose()
    with torch.no_grad():
        expected = policy.action_logprobs(
            torch.tensor([ids]),
            position_ids=torch.arange(40)[None],
            action_index=torch.arange(1, 40),
        )
    # Merged into weights of bfloat16 it is 0.008.
    assert np.abs(adapted.logprobs - expected.numpy()).mean() < 0.001
    assert np.abs(adapted.logprobs - started.logprobs).mean() > 0.01


async def test_a_trajectory_ends_on_the_weights_that_it_began_with(
    engine: LocalEngine, tmp_path: Path
) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    ids = some_ids(20)
    begun = asyncio.create_task(generate(engine, ids, session="old", max_tokens=200))
    await asyncio.sleep(0.01)
    await engine.load_policy(tmp_path, 1)
    await engine.unload_policy(0)
    new = await generate(engine, ids, session="new", policy_version=1, max_tokens=200)
    old = await begun
    assert (old.policy_version, new.policy_version) == (0, 1)
    old_ids = [*ids, *old.token_ids.tolist()]
    later = await generate(engine, old_ids, session="old")  # its weights are kept for it
    np.testing.assert_allclose(
        later.logprobs,
        (await score(engine, [*old_ids, *later.token_ids.tolist()], start=220)).logprobs,
        atol=1e-5,
    )
    with pytest.raises(EngineError, match=r"^policy version 0 is not loaded; loaded: 1$"):
        await generate(engine, ids, session="late")
    scores = await score(engine, [*ids, *new.token_ids.tolist()], start=20, policy_version=1)
    np.testing.assert_allclose(new.logprobs, scores.logprobs, atol=1e-5)


async def test_a_session_on_another_version_begins_anew(
    engine: LocalEngine, tmp_path: Path
) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    await engine.load_policy(tmp_path, 1)
    ids = some_ids(20)
    ids += [*(await generate(engine, ids)).token_ids.tolist(), 4]
    switched = await generate(engine, ids, policy_version=1)
    assert bits([switched]) == bits([await generate(engine, ids, session="t", policy_version=1)])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "model.layers.0.self_attn.q_proj is adapted as DoraLinearVariant"),
        (
            {"alora_invocation_tokens": [1]},
            "model.layers.0.self_attn.q_proj is adapted as ALoraLinearVariant",
        ),
        (
            {"target_modules": ["embed_tokens"]},
            "holds base_model.model.model.embed_tokens.base_layer.weight of the base weights "
            "as well",
        ),
        (
            {"modules_to_save": ["model.norm"]},
            "holds base_model.model.model.norm.weight of the base weights as well",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
async def test_adapters_of_another_kind_are_refused_and_the_base_stays_as_it_was(
    engine: LocalEngine, folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    save_adapter(folder, tmp_path, **changes)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    with pytest.raises(EngineError) as caught:
        await engine.load_policy(tmp_path, 1)
    assert str(caught.value) == f"{tmp_path}: {reason}, only plain LoRA on linear layers is applied"
    assert all(torch.equal(before[name], now) for name, now in engine.model.state_dict().items())


# peft says so too, once it has loaded what there is.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
async def test_policies_that_are_not_plain_lora_or_do_not_fit_are_refused(
    engine: LocalEngine, folder: Path, tmp_path: Path
) -> None:
    save_adapter(folder, tmp_path / "good")
    config = json.loads((tmp_path / "good" / "adapter_config.json").read_text())

    async def message(**changes: object) -> str:
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "good", bad)
        (bad / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(EngineError) as caught:
            await engine.load_policy(bad, 1)
        return str(caught.value).removeprefix(f"{bad}: ")

    only = "only plain LoRA on linear layers is applied"
    assert await message(peft_type="IA3") == f"peft_type is IA3, {only}"
    assert await message(init_lora_weights="pissa") == (
        f"init_lora_weights pissa changes the base weights as well, {only}"
    )
    first = "base_model.model.model.layers.0.mlp.down_proj"
    assert await message(target_modules=["q_proj"]) == (
        f"does not fit this model: {first}.lora_A.weight (24 such in all)"
    )
    assert await message(use_dora=True) == (
        f"does not fit this model: {first}.lora_magnitude_vector (14 such in all)"
    )
    with pytest.raises(EngineError) as caught:
        await engine.load_policy(tmp_path, 1)
    assert str(caught.value) == (
        f"{tmp_path}: holds neither adapter_config.json nor config.json, so it is no policy"
    )
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "small")
    with pytest.raises(EngineError, match="other names or shapes than the model"):
        await engine.load_policy(tmp_path / "small", 1)
    other = LocalEngine(tmp_path / "small", request_timeout_s=600)
    with pytest.raises(EngineError, match=r": does not fit this model: \S+\.layers\.1\."):
        await other.load_policy(tmp_path / "good", 1)
    await other.aclose()


# How it fails


async def test_requests_that_cannot_be_served_say_why(engine: LocalEngine) -> None:
    async def message(awaitable: object) -> str:
        with pytest.raises(EngineError) as caught:
            await awaitable
        return str(caught.value)

    assert await message(generate(engine, [])) == (
        "0 token ids from None to None; the model reads at least one, each from 0 to 127"
    )
    assert await message(generate(engine, [1, VOCAB])) == (
        "2 token ids from 1 to 128; the model reads at least one, each from 0 to 127"
    )
    assert await message(generate(engine, [1], max_tokens=8192)) == (
        "1 tokens and 8192 to sample exceed the model's 8192 positions; "
        "lower rollout.max_context_window"
    )
    assert await message(generate(engine, [1], max_tokens=0)) == (
        "max_tokens is 0; a generation has at least one token"
    )
    assert await message(generate(engine, [1], temperature=-1.0)) == (
        "temperature is -1.0; 0 is greedy, else it is positive"
    )
    assert await message(generate(engine, [1], policy_version=4)) == (
        "policy version 4 is not loaded; loaded: 0"
    )
    assert await message(score(engine, [1, 2], start=2)) == "start is 2; with 2 tokens it is 1 to 1"
    assert await message(engine.unload_policy(3)) == "policy version 3 is not loaded; loaded: 0"
    first = asyncio.create_task(generate(engine, [1], max_tokens=50))
    await asyncio.sleep(0)
    assert await message(generate(engine, [1])) == "session s has a generation under way already"
    assert len((await first).token_ids) == 50


async def test_a_generation_is_cut_at_its_deadline_and_keeps_what_it_sampled(
    folder: Path, engine: LocalEngine
) -> None:
    short = LocalEngine(folder, request_timeout_s=0.5)
    cut = await generate(short, [1], session="0.5.1", max_tokens=5000)
    num = len(cut.token_ids)
    assert 0 < num < 5000
    assert cut.stop_reason is StopReason.LENGTH
    # The first of what would have been sampled, and the next turn goes on from them.
    assert bits([cut]) == bits([await generate(engine, [1], session="0.5.1", max_tokens=num)])
    ids = [1, *cut.token_ids.tolist(), 5]
    turns = [await generate(each, ids, session="0.5.1") for each in (short, engine)]
    assert bits(turns[:1]) == bits(turns[1:])
    await short.release("0.5.1")
    assert short.describe() == "0 sequences decode, 0 wait for a row"
    await short.aclose()


async def test_a_deadline_names_what_waited_for_a_row(folder: Path) -> None:
    engine = LocalEngine(folder, request_timeout_s=60.0, rows=16)
    running = [
        asyncio.create_task(generate(engine, [1], session=f"0.4.{n}", max_tokens=5000))
        for n in range(16)
    ]
    while not engine.describe().startswith("16 "):
        await asyncio.sleep(0.01)
    engine._request_timeout_s = 0.05  # for what follows
    with pytest.raises(DeadlineError) as caught:
        await generate(engine, [1], session="0.5.1", max_tokens=5000)
    assert str(caught.value) == (
        "engine.sample of session 0.5.1 has waited 0.05 s, the limit of engine.request_timeout_s "
        "(16 sequences decode, 1 wait for a row)"
    )
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await engine.aclose()


async def test_a_cancelled_session_starts_anew(engine: LocalEngine) -> None:
    prompt = some_ids(20)
    whole = await generate(engine, prompt, session="other", max_tokens=300)
    task = asyncio.create_task(generate(engine, prompt, max_tokens=300))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # What the cancelled turn had sampled by then is the beginning of these ids.
    ids = [*prompt, *whole.token_ids.tolist()]
    assert bits([await generate(engine, ids)]) == bits([await generate(engine, ids, session="t")])


class BrokenNorm(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")


async def test_an_error_in_the_forward_thread_reaches_every_caller_and_the_engine_goes_on(
    engine: LocalEngine,
) -> None:
    expected = await generate(engine, some_ids(20))
    tasks = [
        asyncio.create_task(generate(engine, some_ids(20), session=str(k), max_tokens=5000))
        for k in range(3)
    ]
    await asyncio.sleep(0.02)
    norm, engine.model.model.norm = engine.model.model.norm, BrokenNorm()
    for task in (*tasks, generate(engine, [1], session="t"), score(engine, [1, 2], start=1)):
        with pytest.raises(
            EngineError, match=r"^the local engine failed: RuntimeError: out of memory$"
        ):
            await task
    engine.model.model.norm = norm
    assert bits([await generate(engine, some_ids(20), session="u")]) == bits([expected])


async def test_numbers_that_are_not_finite_are_errors(engine: LocalEngine) -> None:
    engine.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(EngineError, match=r"^session s: the log-probability of token 1 is nan$"):
        await generate(engine, [1])
    with pytest.raises(EngineError, match=r"^the log-probability of token 1 is not finite$"):
        await score(engine, [1, 2], start=1)


async def test_closing_fails_what_is_under_way(folder: Path) -> None:
    engine = LocalEngine(folder, request_timeout_s=600)
    tasks = [
        asyncio.create_task(generate(engine, [1], session=str(k), max_tokens=5000))
        for k in range(40)
    ]
    tasks.append(asyncio.create_task(score(engine, some_ids(50), start=1)))
    await asyncio.sleep(0)
    await engine.aclose()
    await engine.aclose()
    for outcome in await asyncio.gather(*tasks[:40], return_exceptions=True):
        assert isinstance(outcome, EngineError)
        assert str(outcome) == "the engine was closed"
    await asyncio.gather(tasks[40], return_exceptions=True)
    with pytest.raises(EngineError, match=r"^the engine was closed$"):
        await engine.release("0")


def test_models_that_cannot_be_loaded_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ModelError) as caught:
            LocalEngine(path, request_timeout_s=600)
        return str(caught.value).removeprefix(f"{path}: ")

    assert message(tmp_path) == "has no config.json, so it is not a model folder"
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    shutil.copytree(folder, tmp_path / "torn")
    save_file(weights, tmp_path / "torn" / "model.safetensors", metadata={"format": "pt"})
    assert message(tmp_path / "torn") == (
        "lacks the weights model.layers.1.mlp.up_proj.weight (1 missing in all)"
    )
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, tmp_path / "torn" / "model.safetensors", metadata={"format": "pt"})
    assert message(tmp_path / "torn") == (
        "cannot be loaded as a causal language model: "
        "its weights have other shapes than its config.json says"
    )
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "torn" / "model.safetensors").write_bytes(whole[:-9])
    assert message(tmp_path / "torn") == (
        "cannot be loaded as a causal language model: a file of weights is damaged or cut short "
        "(Error while deserializing header: incomplete metadata, file not fully covered); "
        "fetch the model again"
    )
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    assert message(tmp_path).startswith("cannot be loaded as a causal language model: ")
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(folder / "model.safetensors", tmp_path)
    config |= {"layer_types": ["full_attention", "linear_attention"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert message(tmp_path) == (
        "has layers of kind linear_attention; the local engine runs causal attention with or "
        "without a sliding window, set engine.kind to vllm"
    )
    with pytest.raises(EngineError, match=r"^rows is 8: batch invariance needs at least 16$"):
        LocalEngine(folder, rows=8, request_timeout_s=600)
