"""VllmEngine and LocalEngine on the same weights and the same ids: the same log-probabilities.

One real vLLM server for all tests, in this order: adapters, then whole models, then its death. It
serves the clinic's student in untied form, so that whole models can follow.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from processes import PATIENCE_S, wait_until
from scripted_tools import ScriptedTools
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_pair import TOLERANCE, Pair, make_ids, open_pair, save_adapter, save_model, scoring_of
from vllm_real import alive_in_group

from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.engines.base import SampleRequest
from rnow.engines.vllm.engine import VllmEngine
from rnow.errors import EngineError
from rnow.records import (
    EndReason,
    Message,
    Prompt,
    RolloutId,
    StopReason,
)
from rnow.rollout.attempt import Attempt, run_rollout

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

PAGES = {
    "http://clinic.test/trial/7": 'Trial 7: "Arvexin" 5 mg < 10 mg & placebo\n\n  Größe: 120 漢字 ',
    "http://clinic.test/drug/3": '{"drug": "Arvexin", "maker": "Norvia"}',
}


def search(query: str) -> str:
    """Find pages."""
    return "\n".join(PAGES) if query == "trial 7" else ""


def browse(url: str) -> str:
    """Read a page."""
    return PAGES[url]


def asking(thinking: str, *calls: tuple[str, dict[str, str]]) -> Message:
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {
        "role": "assistant",
        "content": "",
        "reasoning_content": thinking,
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


# Each turn thinks: with reasoning switched off, Qwen3's template opens every turn with an empty
# thought, and drops it from all turns but the last when it renders the conversation again.
CONVERSATION: tuple[Message, ...] = (
    {"role": "system", "content": "You look things up."},
    {"role": "user", "content": "Which company makes the drug of trial 7?"},
    asking("I search first.", ("search", {"query": "trial 7"})),
    {"role": "tool", "content": "\n".join(PAGES)},
    asking("Two pages.", *(("browse", {"url": url}) for url in PAGES)),
    *({"role": "tool", "content": page} for page in PAGES.values()),
    asking("Is there more?", ("search", {"query": "Norvia"})),
    {"role": "tool", "content": ""},
    {"role": "assistant", "content": "Company: Norvia", "reasoning_content": "Now I know."},
)


def rendering_of_transformers(model: Path, tools: ScriptedTools) -> tuple[list[int], int]:
    """Return the conversation's ids up to the end of its last turn, and the id of that end."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids: list[int] = tokenizer.apply_chat_template(
        list(CONVERSATION), tools=[tool.as_openai() for tool in tools.schemas], return_dict=False
    )
    end_of_turn: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(ids[-2:]) == "<|im_end|>\n"  # a newline that nobody samples
    return ids[:-1], end_of_turn


def save_overfitted(model: Path, folder: Path, ids: list[int]) -> Path:
    """Save the model once each token of one sequence is the likeliest after those before it."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    sequence = torch.tensor([ids])
    for _ in range(400):
        logits = network(input_ids=sequence).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, sequence[0, 1:], reduction="none")
        if losses.max() < 0.5:
            break
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    assert losses.max() < 0.5  # nats: more likely than all other tokens together
    network.save_pretrained(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path_factory.mktemp("vllm"), dtype="float32") as opened:
        yield opened


async def test_the_start_shows_what_the_server_says(pair: Pair) -> None:
    assert len(pair.progress) > 3
    assert any(pair.progress)


async def test_start_weights_agree(pair: Pair) -> None:
    await pair.check_agreement(0)
    request = scoring_of(make_ids(40), start=1)
    scores = await pair.vllm.score(request)
    ours = await pair.local.score(request)
    assert np.abs(scores.logprobs - ours.logprobs).max() < TOLERANCE
    # The build for CPUs has no compact scoring, and says so by a 400 that is recognized.
    assert pair.vllm.at(pair.server.url).scores_compactly is False


async def test_a_seed_decides_what_is_sampled(pair: Pair) -> None:
    draws = [
        await pair.vllm.sample(
            SampleRequest(
                token_ids=tuple(make_ids(40)),
                session="draw",
                max_tokens=40,
                stop_token_ids=(),
                seed=seed,
                policy_version=0,
                temperature=2.0,
            )
        )
        for seed in (1, 1, 2**63 - 1)
    ]
    first, again, other = (draw.token_ids.tolist() for draw in draws)
    assert first == again != other


async def test_only_the_stop_tokens_asked_for_end_a_generation(pair: Pair) -> None:
    """The model's own end token included, which the server would stop at by itself."""
    completion = await pair.sample(make_ids(40), version=0)
    assert completion.stop_reason is StopReason.LENGTH
    ids = completion.token_ids.tolist()
    stop = ids[20]
    stopped = await pair.vllm.sample(
        SampleRequest(
            token_ids=tuple(make_ids(40)),
            session="t",
            max_tokens=60,
            stop_token_ids=(stop,),
            seed=11,
            policy_version=0,
        )
    )
    assert stopped.token_ids.tolist() == ids[: ids.index(stop) + 1]
    assert stopped.stop_reason is StopReason.STOP


async def test_a_session_of_several_turns_gives_back_its_very_ids(pair: Pair) -> None:
    ids = make_ids(30)
    for turn in range(4):
        completion = await pair.vllm.sample(
            SampleRequest(
                token_ids=tuple(ids),
                session="turns",
                max_tokens=20,
                stop_token_ids=(),
                seed=turn,
                policy_version=0,
            )
        )
        assert completion.prompt_ids.tolist() == ids
        sampled = completion.token_ids.tolist()
        ours = await pair.local.score(scoring_of([*ids, *sampled], start=len(ids)))
        assert np.abs(completion.logprobs - ours.logprobs).max() < TOLERANCE
        ids = [*ids, *sampled, *make_ids(7)]
    await pair.vllm.release("turns")


async def test_a_generation_is_cut_at_its_deadline_and_keeps_the_first_of_its_tokens(
    pair: Pair,
) -> None:
    """Each of several, running together: with its ids, its log-probabilities, and no others."""
    requests = [
        SampleRequest(
            token_ids=tuple(make_ids(20)),
            session=f"cut.{seed}",
            max_tokens=490,
            stop_token_ids=(),
            seed=seed,
            policy_version=0,
        )
        for seed in (1, 2, 3, 4)
    ]
    begin = time.monotonic()
    every = await asyncio.gather(*(pair.vllm.sample(request) for request in requests))
    cut, limit_s = every, time.monotonic() - begin
    # Half of what it takes here and now; where it takes less by then, as on a machine that was
    # busy, half of that.
    while all(len(one.token_ids) == 490 for one in cut):
        limit_s /= 2
        short = VllmEngine([pair.server.url], request_timeout_s=limit_s)
        try:
            cut = await asyncio.gather(*(short.sample(request) for request in requests))
        finally:
            await short.aclose()
    for whole, one in zip(every, cut, strict=True):
        num = len(one.token_ids)
        assert one.stop_reason is StopReason.LENGTH
        assert one.prompt_ids.tolist() == make_ids(20)
        assert one.token_ids.tolist() == whole.token_ids[:num].tolist()
        assert np.abs(one.logprobs - whole.logprobs[:num]).max() < TOLERANCE


async def test_what_the_server_refuses_is_told_in_its_words(pair: Pair) -> None:
    with pytest.raises(EngineError) as caught:
        await pair.vllm.score(scoring_of([1, 2, 5000], start=1))
    assert str(caught.value) == (
        f"POST {pair.server.url}/inference/v1/generate answered 400: "
        "Token id 5000 is out of vocabulary"
    )


async def test_an_adapter_folder_without_weights_is_an_error(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"/v1/load_lora_adapter answered \d{3}: "):
        await pair.vllm.load_policy(tmp_path, 77)


async def test_three_adapters_follow_each_other(pair: Pair, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        folder = save_adapter(pair.model, tmp_path / str(version), seed=version)
        await pair.load(folder, version)
        await pair.check_agreement(version)
        if version > 1:  # what began on the version before ends on it
            await pair.check_agreement(version - 1)
            await pair.vllm.unload_policy(version - 1)
    await pair.check_agreement(0)


async def test_whole_models_follow_each_other_head_included(pair: Pair, tmp_path: Path) -> None:
    for version in (4, 5):
        folder = save_model(pair.model, tmp_path / str(version), seed=version)
        await pair.load(folder, version)
        await pair.check_agreement(version)


async def test_two_tools_in_four_turns_give_the_very_ids_of_the_templates_own_rendering(
    pair: Pair, tmp_path: Path
) -> None:
    tools = ScriptedTools({"search": search, "browse": browse})
    own, end_of_turn = rendering_of_transformers(pair.model, tools)
    await pair.load(save_overfitted(pair.model, tmp_path / "6", own), 6)
    chat = ChatTemplate.load(pair.model)
    trajectory = await run_rollout(
        Attempt(
            prompt=Prompt(index=0, line=1, messages=CONVERSATION[:2], tools=None),
            id=RolloutId(0, 0, 0),
            policy_version=6,
            temperature=0.0,
        ),
        engine=pair.vllm,
        chat=chat,
        tools=tools,
        limits=RolloutSettings(
            max_turns=8,
            max_tokens=120,
            max_context_window=512,
            termination_policy="last_tool",
            rollout_timeout=60,
        ),
        run_seed=0,
    )
    ids = trajectory.token_ids.tolist()
    assert chat.decode(ids) == chat.decode(own)
    assert ids == own
    assert trajectory.num_drift_tokens == 0
    assert trajectory.end_reason is EndReason.ANSWER
    assert [[call.name for call in turn.tool_calls] for turn in trajectory.turns] == [
        ["search"],
        ["browse", "browse"],
        ["search"],
        [],
    ]
    stretches = [ids[turn.start : turn.end] for turn in trajectory.turns]
    assert trajectory.token_ids[trajectory.action_mask].tolist() == [
        token for stretch in stretches for token in stretch
    ]
    assert [stretch[-1] for stretch in stretches] == [end_of_turn] * 4
    assert [stretch.count(end_of_turn) for stretch in stretches] == [1] * 4
    ours = await pair.local.score(scoring_of(ids, start=1, policy_version=6))
    theirs = trajectory.sampler_logprobs[trajectory.action_mask]
    assert np.abs(theirs - ours.logprobs[trajectory.action_mask[1:]]).max() < TOLERANCE


async def test_a_server_killed_in_mid_generation_is_named_with_its_last_words(pair: Pair) -> None:
    leader = pair.server.pid
    for process in alive_in_group(leader):
        pid = int(process.split()[0])
        if pid != leader:  # the workers: what is asked now stays under way
            os.kill(pid, signal.SIGSTOP)
    sampling = [
        asyncio.create_task(pair.sample(make_ids(40), version=6, session=str(number)))
        for number in range(8)
    ]
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in sampling)
    os.kill(leader, signal.SIGKILL)
    for result in await asyncio.gather(*sampling, return_exceptions=True):
        assert isinstance(result, EngineError)
        assert "the vLLM server of the student has ended (killed by SIGKILL); " in str(result)
        assert len(str(result).splitlines()) > 3
    assert "killed by SIGKILL" in await asyncio.wait_for(pair.server.wait_ended(), PATIENCE_S)
    # Killed at once; a busy machine takes a moment to free what they held.
    await asyncio.to_thread(wait_until, lambda: alive_in_group(leader) == [])
