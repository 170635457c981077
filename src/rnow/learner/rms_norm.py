"""RMSNorm in one autograd node: y = x · r · w with r = 1 / √(mean(x²) + eps), on a CPU.

torch has no kernel for it there: forward goes over the input four times and backward some ten, a
twentieth of an update. Here a piece of rows stays in the cache from the first pass to the last.
With g the gradient of y:

    dx = r · (g · w − x · r² · mean(g · w · x))

Forward has the bits of the models' own code; backward is rounded otherwise.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

_PIECE_ENTRIES = 1 << 19  # 2 MiB in float32


def make_lean(body: nn.Module) -> None:
    """Let the norms of `body` that do just this compute it so; a trial says which do."""
    for module in body.modules():
        if type(module).__name__.endswith("RMSNorm") and _is_plain(module):
            module.forward = partial(_forward, module)


def _forward(module: Any, x: Tensor) -> Tensor:
    weight = module.weight
    dtypes = {x.dtype, weight.dtype}
    if x.device.type != "cpu" or dtypes != {torch.float32} or weight.requires_grad:
        return cast(Tensor, type(module).forward(module, x))
    return _norm(x, weight, _eps_of(module))


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Whether it has one weight and multiplies by it; some families add 1 to it first."""
    if [name for name, _ in module.named_parameters()] != ["weight"] or _eps_of(module) is None:
        return False
    weight = module.weight.float().cpu()
    # Small numbers, ordinary ones, large ones: eps counts among the first alone.
    x = torch.linspace(-2, 3, 3 * len(weight)).view(1, 3, -1)
    x = x * torch.tensor([1e-4, 1.0, 1e3]).view(1, 3, 1)
    try:
        theirs = module(x.to(module.weight.device, module.weight.dtype)).float().cpu()
    except (RuntimeError, TypeError, ValueError):  # it is called otherwise
        return False
    ours = _norm(x, weight, _eps_of(module))
    if module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
        return torch.equal(ours, theirs)
    return torch.allclose(ours, theirs, rtol=0.05, atol=1e-3)


def _eps_of(module: Any) -> float | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return None if eps is None else float(eps)


def _norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    # torch has no types for apply.
    return cast(Tensor, _RmsNorm.apply(x, weight, eps))  # type: ignore[no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scales = x.new_empty(x.shape), x.new_empty(*x.shape[:-1], 1)
        for rows, of_y, scale in _pieces(x, y, scales):
            torch.mean(rows.pow(2), -1, keepdim=True, out=scale)
            scale.add_(eps).rsqrt_()
            torch.mul(rows, scale, out=of_y).mul_(weight)
        ctx.save_for_backward(x, scales, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scales, weight = ctx.saved_tensors
        grad_x = x.new_empty(x.shape)
        for rows, scale, of_y, of_x in _pieces(x, scales, grad, grad_x):
            torch.mul(of_y, weight, out=of_x)
            along = (of_x * rows).mean(-1, keepdim=True).mul_(scale).mul_(scale)
            of_x.addcmul_(rows, along, value=-1).mul_(scale)
        return grad_x, None, None


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors [.., width] into the same rows."""
    size = max(1, _PIECE_ENTRIES // tensors[0].shape[-1])
    return zip(*(torch.split(one.flatten(0, -2), size) for one in tensors), strict=True)
