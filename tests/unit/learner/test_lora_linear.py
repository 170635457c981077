"""A LoRA layer in one node against peft's own: bits, gradients, where it stands."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from builders import load_policy, qwen3
from families import FAMILIES, tiny_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from rnow.learner.lora_linear import PlainLora, make_plain
from rnow.learner.policy import Policy

IDS = torch.randint(0, 128, (1, 60), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.cat([torch.arange(n) for n in (25, 1, 34)])[None]  # three sequences in a row
ACTIONS = torch.tensor([3, 17, 24, 39, 59])


def wake(policy: Policy) -> None:
    """Give each B weights of its own: at 0 the adapter changes nothing and A has no gradient."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in policy.trainable_state().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.2, generator=generator)


def result(policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of actions, and the gradient of their squares' sum."""
    parameters = policy.trained_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    logprobs = policy.action_logprobs(IDS, position_ids=POSITIONS, action_index=ACTIONS)
    logprobs.square().sum().backward()
    grads = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    return logprobs.detach(), grads


def as_in_peft(policy: Policy) -> list[nn.Module]:
    """Give each layer peft's own forward again, whose input peft widens where it does so."""
    plain = [each for each in policy.network.modules() if type(each) is PlainLora]
    for module in plain:
        module.__class__ = Linear
    return plain


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradient_are_those_of_pefts_own_layers(
    family: str, checkpointing: bool, tmp_path: Path
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    # Experts' grouped products are not there in float64.
    dtype, close = ("float32", 1e-4) if family in ("qwen3-moe", "gpt-oss") else ("float64", 1e-11)
    policy = load_policy(
        tmp_path, dtype=dtype, qlora_rank=4, activation_checkpointing=checkpointing
    )
    wake(policy)
    found, gradients = result(policy)
    plain = as_in_peft(policy)
    assert len(plain) >= 8  # attention's alone where the MLP is one of experts
    expected, wanted = result(policy)
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    assert gradients.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (gradients[name] - grad).norm() <= close * (1 + grad.norm()), name


@pytest.mark.parametrize("widened", [False, True])
def test_under_autocast_forward_has_the_bits_of_peft(widened: bool, tmp_path: Path) -> None:
    """Whether or not peft keeps a float32 copy of what goes into an adapter."""
    qwen3().save_pretrained(tmp_path)
    policy = load_policy(tmp_path, dtype="bfloat16", qlora_rank=4)
    wake(policy)
    found, gradients = result(policy)
    for module in as_in_peft(policy):
        assert isinstance(module, LoraLayer)
        assert not module.cast_input_dtype_enabled
        module.cast_input_dtype_enabled = widened
    expected, wanted = result(policy)
    assert torch.equal(found, expected)
    assert {grad.dtype for grad in gradients.values()} == {torch.float32}
    for name, grad in wanted.items():
        assert (gradients[name] - grad).norm() <= 0.05 * grad.norm(), name


def lora(model: Any, **changes: Any) -> Any:
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **changes})
    return peft.get_peft_model(model, config)


def kinds(model: nn.Module) -> set[str]:
    for module in model.modules():
        make_plain(module)
    return {type(each).__name__ for each in model.modules() if isinstance(each, LoraLayer)}


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"lora_alpha": 3}], ids=["usual", "rslora", "alpha"]
)
def test_it_stands_where_an_adapter_is_plain(changes: dict[str, Any]) -> None:
    assert kinds(lora(qwen3(attention_bias=True), **changes)) == {"PlainLora"}


@pytest.mark.parametrize(
    "changes",
    [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}],
    ids=["dropout", "dora", "bias"],
)
def test_what_is_more_than_plain_is_left_to_peft(changes: dict[str, Any]) -> None:
    assert kinds(lora(qwen3(attention_bias=True), **changes)) == {"Linear"}


def test_several_adapters_merged_ones_and_trained_weights_are_left_to_peft() -> None:
    several = lora(qwen3())
    several.add_adapter("other", peft.LoraConfig(r=4, target_modules=["q_proj"]))
    merged = lora(qwen3())
    merged.merge_adapter()
    trained = lora(qwen3())
    trained.base_model.model.model.requires_grad_(True)
    assert [kinds(each) for each in (several, merged, trained)] == [{"Linear"}] * 3


def test_a_plain_layer_costs_no_pass_over_its_output_but_the_products() -> None:
    layer = next(m for m in lora(qwen3()).modules() if isinstance(m, Linear))
    make_plain(layer)
    x = torch.randn(2, 50, 32, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        layer(x).backward(torch.ones(2, 50, 32))
    counts = {
        event.key: event.count
        for event in profile.key_averages()
        if event.key in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::add", "aten::add_")
    }
    # Forward: x Wᵀ and x Aᵀ; backward: of inner, of x, of A and of B.
    assert counts == {"aten::mm": 6, "aten::addmm_": 2}
