"""The trainer's RMSNorm beside the models' own: the same bits forward, the same gradients."""

from typing import Any

import pytest
import torch
from builders import qwen3
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rnow.learner import rms_norm
from rnow.learner.rms_norm import make_lean

KINDS = [Qwen3RMSNorm, LlamaRMSNorm]


def norm_of(kind: Any, width: int, *, frozen: bool = True) -> Any:
    torch.manual_seed(0)
    norm = kind(width, eps=1e-5)
    norm.weight.data.normal_(1.0, 0.3)
    return norm.requires_grad_(not frozen)


def is_lean(norm: torch.nn.Module) -> bool:
    return "forward" in vars(norm)


def run(norm: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the norm makes of `x`, and the gradient of a weighted sum by `x`."""
    x = x.detach().requires_grad_()
    y = norm(x)
    weights = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y.dtype)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), gradient


def strided(shape: tuple[int, ...]) -> torch.Tensor:
    """As the heads of a layer are: their numbers do not stand in the order of their dimensions."""
    return torch.randn(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 700, 96), (3, 17, 96), (1, 40, 6, 64), (2, 1, 33)])
@pytest.mark.parametrize("piece", [1, 1000, 1 << 19])
def test_values_have_the_same_bits_and_gradients_are_the_same(
    kind: Any, shape: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rms_norm, "_PIECE_ENTRIES", piece)
    plain, lean = norm_of(kind, shape[-1]), norm_of(kind, shape[-1])
    make_lean(lean)
    assert is_lean(lean)
    inputs = [3 * torch.randn(shape), torch.zeros(shape)]
    inputs += [strided(shape)] if len(shape) == 4 else []
    for x in inputs:
        (y, gradient), (expected, wanted) = run(lean, x), run(plain, x)
        assert y.numpy().tobytes() == expected.numpy().tobytes()
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_nothing_of_the_inputs_size_is_kept_but_the_input() -> None:
    norm = norm_of(Qwen3RMSNorm, 64)
    x = torch.randn(1, 100, 64, requires_grad=True)
    make_lean(norm)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    assert {one.data_ptr() for one in kept if one.numel() >= x.numel()} == {x.data_ptr()}


class Shifted(Qwen3RMSNorm):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + 0.01


class BiasedRMSNorm(Qwen3RMSNorm):  # type: ignore[misc]
    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        self.bias = torch.nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + self.bias


Shifted.__name__ = "ShiftedRMSNorm"


@pytest.mark.parametrize("kind", [Gemma2RMSNorm, Shifted, BiasedRMSNorm])
def test_a_norm_that_does_more_or_something_else_is_left_as_it_is(kind: Any) -> None:
    norm = norm_of(kind, 32)
    make_lean(norm)
    assert not is_lean(norm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_another_precision_and_where_it_is_trained_it_is_the_models_own(
    dtype: torch.dtype,
) -> None:
    norm = norm_of(Qwen3RMSNorm, 32).to(dtype)
    x = torch.randn(1, 9, 32, dtype=dtype)
    expected = run(norm, x)
    make_lean(norm)
    for one, other in zip(run(norm, x), expected, strict=True):
        assert torch.equal(one, other)
    trained = norm_of(Qwen3RMSNorm, 32, frozen=False)
    make_lean(trained)
    trained(x.float()).sum().backward()
    assert trained.weight.grad is not None


def test_every_norm_of_a_network_is_found() -> None:
    model = qwen3()
    make_lean(model.base_model)
    norms = [one for one in model.modules() if type(one) is Qwen3RMSNorm]
    assert len(norms) == 2 * 4 + 1
    assert all(is_lean(one) for one in norms)
