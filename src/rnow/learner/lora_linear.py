"""A LoRA layer without passes over its output: y = x Wᵀ + s · (x Aᵀ) Bᵀ in one autograd node.

peft makes the adapter's part by itself, scales it and adds it: three passes over [tokens, outputs]
in forward, and in backward a scaled copy of the gradient and a second gradient of x to be added.
Here both products add into what the base layer's made, and the scale is put on [tokens, rank]. In
half precision forward rounds where peft rounds: an engine that runs peft's layer has the same bits.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


class PlainLora(Linear):  # type: ignore[misc]
    """peft's layer of one adapter and nothing beside, by another road. Made by `make_plain`."""

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        (name,) = self.active_adapters
        adapter = (self.lora_A[name].weight, self.lora_B[name].weight)
        tensors: tuple[Any, ...] = (x, base.weight, base.bias, *adapter)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            tensors = tuple(one if one is None else one.to(dtype) for one in tensors)
        # torch has no types for apply.
        return cast(Tensor, _PlainLora.apply(*tensors, self.scaling[name]))  # type: ignore[no-untyped-call]


def make_plain(module: nn.Module) -> None:
    """Let a layer of peft compute so, where that is all it does; its weights keep their names."""
    if _is_plain(module):
        module.__class__ = PlainLora


def _is_plain(module: Any) -> bool:
    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
        return False  # experts, quantized weights
    names = list(module.lora_A)
    parts = [part[name] for name in names for part in (module.lora_A, module.lora_B)]
    return (
        module.active_adapters == names
        and len(names) == 1
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and all(type(part) is nn.Linear and part.bias is None for part in parts)
        and not (module.lora_variant or module.merged or module.disable_adapters)
        and not (module.fan_in_fan_out or module.base_layer.weight.requires_grad)
    )


class _PlainLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [.., inputs]
        weight: Tensor,  # [outputs, inputs], frozen
        bias: Tensor | None,
        lora_a: Tensor,  # [rank, inputs]
        lora_b: Tensor,  # [outputs, rank]
        scale: float,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        inner = linear(rows, lora_a)
        y = linear(rows, weight, bias)
        if x.dtype.itemsize >= 4:
            y.addmm_(inner, lora_b.t(), alpha=scale)
        else:
            y.add_(linear(inner, lora_b).mul_(scale))
        ctx.save_for_backward(x, weight, lora_a, lora_b, inner)
        ctx.scale = scale
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, lora_b, inner = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        grad_inner = (grad @ lora_b).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, lora_a).view(x.shape)
        grad_a = grad_inner.t() @ x.flatten(0, -2)
        grad_b = grad.t() @ inner.mul(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None
