"""Log-probabilities of chosen tokens straight from hidden states: `[tokens, vocab]` never exists.

The hidden states go through the LM head a chunk at a time. Forward keeps one normalizer for each
token and throws the logits away; backward makes them again and turns them into the gradient:

    d logprob(target) / d logits = onehot(target) − softmax(logits)

Only the last chunk's are kept, since backward begins with them: what fits in one chunk is computed
once. Where the head itself is not trained (LoRA), nothing is computed twice: a token's gradient
with regard to its hidden state is its slope, made in forward at once, times one number.

Peak memory beyond inputs and gradients is one `chunk × vocab` in float32, whatever the number of
tokens. On a CPU in full precision a frozen head is read in blocks of its vocabulary, with a running
maximum and sum: what the passes of a softmax go over stays in the cache, and so does the weight.

Some families do one thing more before the softmax: Granite and Cohere scale their logits, Gemma
bends them towards a cap. That is a `LogitMap`; its slope is one more `chunk × vocab` in backward.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Entries of one chunk of logits: 128 MiB in float32. Below that matrix products get slower, above
# it nothing gets faster.
_CHUNK_ENTRIES = 1 << 25
_BLOCK_ENTRIES = 1 << 19  # of logits in a CPU's cache: 2 MiB in float32
_BLOCK_ROWS = 1024  # that read a block of the weight together
_WIDENED_ROWS = 4096  # of a bfloat16 head, at once, on a CPU

# What configurations call a factor of the logits; some multiply by it, some divide.
_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_CAP = "final_logit_softcapping"


@dataclass(frozen=True, slots=True)
class LogitMap:
    """What a model does to the products of its LM head: cap · tanh(scale · x / cap)."""

    scale: float = 1.0
    cap: float | None = None  # None: scale · x

    def apply_(self, logits: Tensor) -> Tensor:
        """Map `logits` in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def slope(self, mapped: Tensor) -> Tensor | float:
        """Return the derivative where the map's value is `mapped`."""
        if self.cap is None:
            return self.scale
        return mapped.div(self.cap).square_().neg_().add_(1.0).mul_(self.scale)


def find_logit_map(config: Any, products: Tensor, logits: Tensor) -> LogitMap | None:
    """Return the map that makes the model's own `logits` of the head's `products`: [.., vocab].

    Its numbers are those of `config`, a model's configuration; None where no map of them fits.
    """

    def error(candidate: LogitMap) -> float:
        mapped = candidate.apply_(products.float().clone())
        return float((mapped - logits.float()).abs().max())

    # The plainest last: where a small logit lies within rounding of its capped self, it is capped.
    best = min(_candidates(config), key=error)
    mapped = best.apply_(products.float().clone())
    return best if torch.allclose(mapped, logits.float(), rtol=1e-3, atol=1e-5) else None


def _candidates(config: Any) -> Iterator[LogitMap]:
    said = [getattr(config, name, None) for name in _FACTORS]
    scales = [scale for value in said if value for scale in (1 / value, value)]
    cap = getattr(config, _CAP, None)
    for chosen, scale in product([cap, None] if cap else [None], [*scales, 1.0]):
        yield LogitMap(scale=float(scale), cap=None if chosen is None else float(chosen))


def default_chunk_tokens(vocab_size: int) -> int:
    """Return how many tokens go through the head at once: 220 for a vocabulary of 152k."""
    return max(1, _CHUNK_ENTRIES // vocab_size)


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None,
    chunk_tokens: int,
    logit_map: LogitMap = LogitMap(),
) -> Tensor:
    """Return log softmax(map(hidden @ weight.T + bias))[targets], nats, [tokens], float32 at least.

    `hidden` [tokens, width] gives the precision of the matrix products (a wider `weight` is rounded
    to it), `weight` [vocab, width] that of its own gradient. Differentiable in hidden, weight and
    bias.
    """
    # torch has no types for apply.
    logprobs: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, targets, weight, bias, chunk_tokens, logit_map
    )
    return logprobs


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chunk_tokens: int,
        logit_map: LogitMap,
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        narrow_weight = weight.to(hidden.dtype)
        needs_hidden, _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        is_frozen = not (needs_weight or needs_bias)
        if is_frozen and not hidden.is_cuda and hidden.dtype == dtype:
            found, gradient = _in_blocks(
                hidden, targets, narrow_weight, bias, chunk_tokens, logit_map, slopes=needs_hidden
            )
            ctx.save_for_backward(gradient)
            return found
        normalizers = hidden.new_empty(len(targets), dtype=dtype)
        logprobs = torch.empty_like(normalizers)
        slopes = torch.empty_like(hidden) if is_frozen and needs_hidden else None
        slope: Tensor | float = 1.0
        probs: Tensor | None = None
        for chunk in _chunks(len(targets), chunk_tokens):
            del probs  # else the next chunk's logits exist beside it
            logits = logit_map.apply_(_logits(hidden[chunk], narrow_weight, bias, dtype))
            if slopes is not None:
                slope = logit_map.slope(logits)
            chosen = logits.gather(1, targets[chunk, None]).squeeze(1)
            highest = logits.amax(1)
            exponentials = logits.sub_(highest[:, None]).exp_()
            sums = exponentials.sum(1)
            normalizers[chunk] = sums.log() + highest
            logprobs[chunk] = chosen - normalizers[chunk]
            probs = exponentials.div_(sums[:, None])
            del logits, exponentials
            if slopes is not None:
                grad_logits = _slope_of_logits(probs, targets[chunk], slope).to(hidden.dtype)
                torch.mm(grad_logits, narrow_weight, out=slopes[chunk])
                del grad_logits
        if slopes is not None:
            ctx.save_for_backward(slopes)
            return logprobs
        ctx.save_for_backward(hidden, targets, weight, bias, normalizers)
        # The slope of a cap is made from the logits, so they are computed again there.
        ctx.last_probs = probs if logit_map.cap is None else None
        ctx.chunk_tokens = chunk_tokens
        ctx.logit_map = logit_map
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (slopes,) = ctx.saved_tensors
            grad = (slopes * grad_logprobs[:, None]).to(slopes.dtype)
            return grad, None, None, None, None, None
        hidden, targets, weight, bias, normalizers = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        narrow_weight = weight.to(hidden.dtype)
        probs, ctx.last_probs = ctx.last_probs, None  # written over below
        for chunk in reversed(_chunks(len(targets), ctx.chunk_tokens)):
            slope: Tensor | float = ctx.logit_map.scale
            if probs is None:
                logits = _logits(hidden[chunk], narrow_weight, bias, normalizers.dtype)
                slope = ctx.logit_map.slope(ctx.logit_map.apply_(logits))
                probs = logits.sub_(normalizers[chunk, None]).exp_()
                del logits
            probs = _slope_of_logits(probs, targets[chunk], slope)
            grad_logits = probs.mul_(grad_logprobs[chunk, None]).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, narrow_weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                # Summed in the weight's own precision, so that the number of chunks does not show.
                grad_weight += grad_logits.t() @ hidden[chunk]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            del grad_logits
            probs = None
        return grad_hidden, None, grad_weight, grad_bias, None, None


def _in_blocks(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chunk_tokens: int,
    logit_map: LogitMap,
    *,
    slopes: bool,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities, and their slopes with regard to `hidden` if these are wanted."""
    logprobs, gradient = hidden.new_empty(len(targets)), torch.empty_like(hidden)
    for chunk in _chunks(len(targets), max(chunk_tokens, _BLOCK_ROWS)):
        rows, wanted = hidden[chunk], targets[chunk, None]
        highest = rows.new_full(wanted.shape, torch.finfo(rows.dtype).min)
        sums, chosen, own = (torch.zeros_like(highest) for _ in range(3))
        mixed = torch.zeros_like(rows)  # rows of the weight by exp(logit - highest) and slope
        for block in _chunks(len(weight), max(256, _BLOCK_ENTRIES // len(rows))):
            part = weight[block]
            shift = None if bias is None else bias[block]
            logits = logit_map.apply_(_logits(rows, part, shift, rows.dtype))
            slope = logit_map.slope(logits)
            place = wanted - block.start
            is_here = (place >= 0) & (place < len(part))
            place = place.clamp(0, len(part) - 1)
            chosen = torch.where(is_here, logits.gather(1, place), chosen)
            here = slope.gather(1, place) if isinstance(slope, Tensor) else slope
            own = torch.where(is_here, here, own)
            former, highest = highest, torch.maximum(highest, logits.amax(1, keepdim=True))
            shrunk = (former - highest).exp_()
            exponentials = logits.sub_(highest).exp_()
            sums.mul_(shrunk).add_(exponentials.sum(1, keepdim=True))
            if slopes:
                if isinstance(slope, Tensor) or slope != 1.0:
                    exponentials.mul_(slope)
                mixed.mul_(shrunk).addmm_(exponentials, part)
            del logits, exponentials, slope  # else the next block's exist beside them
        logprobs[chunk] = (chosen - (sums.log() + highest)).squeeze(1)
        if slopes:
            gradient[chunk] = own * weight[targets[chunk]] - mixed / sums
    return logprobs, gradient


def _slope_of_logits(probs: Tensor, targets: Tensor, slope: Tensor | float) -> Tensor:
    """Write d logprob / d product over `probs`: [chunk, vocab]."""
    probs.neg_().scatter_add_(1, targets[:, None], probs.new_ones(len(probs), 1))
    return probs.mul_(slope) if isinstance(slope, Tensor) or slope != 1.0 else probs


def _chunks(num_tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, start + chunk_tokens) for start in range(0, num_tokens, chunk_tokens)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[chunk, vocab], a fresh tensor that may be written over.

    Sums of bfloat16 products are kept as they are, in float32: rounded, a logit of 20 would be off
    by up to 0.06, and the engine's are not rounded either.
    """
    if hidden.dtype == dtype:
        return linear(hidden, weight, bias)
    if hidden.is_cuda:
        logits = torch.mm(hidden, weight.t(), out_dtype=dtype)
    else:
        logits = hidden.new_empty(len(hidden), len(weight), dtype=dtype)
        wide = hidden.to(dtype)
        # Here only float32 gives float32; piece by piece, so that no second weight is in memory.
        for rows in _chunks(len(weight), _WIDENED_ROWS):
            torch.mm(wide, weight[rows].to(dtype).t(), out=logits[:, rows])
    return logits if bias is None else logits.add_(bias.to(dtype))
