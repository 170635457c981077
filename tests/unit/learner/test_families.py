"""Every family that people train: the trainer's numbers are the model's own."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import load_policy
from families import FAMILIES, tiny_model

from rnow.learner.packable import why_not_packed
from rnow.learner.skippable import bears_skipping

IDS = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
ACTIONS = torch.tensor([3, 17, 39, 45, 79])


LENGTHS = (25, 1, 30, 24)  # of sequences one after another; windows are of 8 tokens


def read_apart(model: Any) -> torch.Tensor:
    """Logits of each sequence of the packed row read alone: [80, vocab]."""
    parts = IDS.reshape(1, 80).split(LENGTHS, dim=1)
    return torch.cat([model(input_ids=part, use_cache=False).logits[0] for part in parts])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradient_are_those_of_the_model_itself(
    family: str, packed: bool, tmp_path: Path
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    # Several families make their norms and softmax in float32, whatever the weights are in.
    # Experts' grouped products are not there in float64.
    is_wide = family not in ("qwen3-moe", "gpt-oss")
    dtype, close = ("float64", 3e-6) if is_wide else ("float32", 3e-5)
    model = model.double() if is_wide else model
    model.set_attn_implementation("eager")
    policy = load_policy(tmp_path, tuning="full", dtype=dtype, chunk_tokens=2)
    assert not policy.pads
    if packed:
        row, positions = IDS.reshape(1, 80), torch.cat([torch.arange(n) for n in LENGTHS])[None]
        mine = policy.action_logprobs(row, position_ids=positions, action_index=ACTIONS)
        logits = read_apart(model)
    else:
        positions = torch.arange(40).expand(2, 40)
        mine = policy.action_logprobs(IDS, position_ids=positions, action_index=ACTIONS)
        logits = model(input_ids=IDS, position_ids=positions, use_cache=False).logits.flatten(0, 1)
    following = logits.log_softmax(-1)[ACTIONS - 1]
    expected = following.gather(1, IDS.flatten()[ACTIONS, None])[:, 0]
    torch.testing.assert_close(mine, expected, rtol=0, atol=close)
    mine.square().sum().backward()
    expected.square().sum().backward()
    theirs = dict(model.named_parameters())
    for name, parameter in policy.trained_parameters().items():
        wanted, found = theirs[name].grad, parameter.grad
        assert (wanted is None) == (found is None), name
        if wanted is not None:
            assert found is not None
            assert (found - wanted).norm() <= 10 * close * (1 + wanted.norm()), name


def test_a_network_with_a_state_beside_its_attention_is_padded_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import transformers

    config = transformers.FalconH1Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        pad_token_id=0,
    )
    transformers.FalconH1ForCausalLM(config).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="rnow.learner.policy"):
        policy = load_policy(tmp_path, tuning="full", dtype="float32")
    assert policy.pads
    ours = [record for record in caplog.records if record.name == "rnow.learner.policy"]
    assert [record.getMessage() for record in ours] == [
        f"{tmp_path}: trajectories are padded, not packed: it has layers of kind hybrid"
    ]


def test_a_convolution_that_no_configuration_shows_is_seen_at_work(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path)
    network = load_policy(tmp_path, tuning="full", dtype="float32").network
    assert why_not_packed(network) is None
    network.body.layers[0].register_forward_hook(
        lambda module, inputs, hidden: hidden + 0.1 * hidden.roll(1, dims=1)
    )
    reason = why_not_packed(network)
    assert reason is not None
    assert reason.startswith("what stands before a trajectory in its row changes it: by 0.")


def test_the_last_layer_computes_what_is_asked_for_alone(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path)
    policy = load_policy(tmp_path, tuning="full", dtype="float32", activation_checkpointing=True)
    seen = {}
    for number, layer in enumerate(policy.network.body.layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
            layer.get_submodule(name).register_forward_hook(
                lambda module, inputs, made, at=(number, name): seen.update({at: made[..., 0]})
            )
    positions = torch.arange(40).expand(2, 40)
    logprobs = policy.action_logprobs(IDS, position_ids=positions, action_index=ACTIONS)
    counts = {at: made.numel() for at, made in seen.items() if at[0] == 1}
    assert counts == {
        (1, "self_attn.q_proj"): len(ACTIONS),
        (1, "self_attn.k_proj"): 80,
        (1, "self_attn.o_proj"): len(ACTIONS),
        (1, "mlp.down_proj"): len(ACTIONS),
    }
    assert {made.numel() for at, made in seen.items() if at[0] == 0} == {80}
    seen.clear()
    logprobs.sum().backward()
    assert {at[0] for at in seen} == {0}  # what backward computes again


def test_a_layer_that_mixes_tokens_leaves_out_none(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path)
    network = load_policy(tmp_path, tuning="full", dtype="float32").network
    assert network.skips_rows
    assert bears_skipping(network)
    network.body.layers[-1].mlp.up_proj.register_forward_hook(
        lambda module, inputs, made: made + 0.1 * made.roll(1, dims=1)
    )
    assert not bears_skipping(network)
