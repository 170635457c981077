"""Log-probabilities of chosen tokens straight from hidden states: `[tokens, vocab]` never exists.

The hidden states go through the LM head a chunk at a time. Forward keeps one normalizer for each
token and throws the logits away; backward makes them again and turns them into the gradient:

    d logprob(target) / d logits = onehot(target) − softmax(logits)

Only the last chunk's are kept, since backward begins with them: what fits in one chunk is computed
once. Peak memory beyond inputs and gradients is one `chunk × vocab` in float32, half as much again
where the products are in bfloat16, whatever the number of tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Entries of one chunk of logits: 128 MiB in float32. Below that matrix products get slower, above
# it nothing gets faster.
_CHUNK_ENTRIES = 1 << 25


def default_chunk_tokens(vocab_size: int) -> int:
    """Return how many tokens go through the head at once: 220 for a vocabulary of 152k."""
    return max(1, _CHUNK_ENTRIES // vocab_size)


def token_logprobs(
    hidden: Tensor, targets: Tensor, *, weight: Tensor, bias: Tensor | None, chunk_tokens: int
) -> Tensor:
    """Return log softmax(hidden @ weight.T + bias)[targets], nats, [tokens], at least float32.

    `hidden` [tokens, width] gives the precision of the matrix products (a wider `weight` is rounded
    to it), `weight` [vocab, width] that of its own gradient. Differentiable in hidden, weight and
    bias.
    """
    # torch has no types for apply.
    logprobs: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, targets, weight, bias, chunk_tokens
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
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        normalizers = hidden.new_empty(len(targets), dtype=dtype)
        logprobs = torch.empty_like(normalizers)
        narrow_weight = weight.to(hidden.dtype)
        probs: Tensor | None = None
        for chunk in _chunks(len(targets), chunk_tokens):
            del probs  # else the next chunk's logits exist beside it
            logits = _logits(hidden[chunk], narrow_weight, bias, dtype)
            chosen = logits.gather(1, targets[chunk, None]).squeeze(1)
            highest = logits.amax(1)
            exponentials = logits.sub_(highest[:, None]).exp_()
            sums = exponentials.sum(1)
            normalizers[chunk] = sums.log() + highest
            logprobs[chunk] = chosen - normalizers[chunk]
            probs = exponentials.div_(sums[:, None])
            del logits, exponentials
        ctx.save_for_backward(hidden, targets, weight, bias, normalizers)
        ctx.last_probs = probs
        ctx.chunk_tokens = chunk_tokens
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, normalizers = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        narrow_weight = weight.to(hidden.dtype)
        probs, ctx.last_probs = ctx.last_probs, None  # written over below
        for chunk in reversed(_chunks(len(targets), ctx.chunk_tokens)):
            if probs is None:
                logits = _logits(hidden[chunk], narrow_weight, bias, normalizers.dtype)
                probs = logits.sub_(normalizers[chunk, None]).exp_()
                del logits
            probs.neg_().scatter_add_(1, targets[chunk, None], probs.new_ones(len(probs), 1))
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
        return grad_hidden, None, grad_weight, grad_bias, None


def _chunks(num_tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, start + chunk_tokens) for start in range(0, num_tokens, chunk_tokens)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[chunk, vocab], a fresh tensor that may be written over."""
    narrow_bias = None if bias is None else bias.to(hidden.dtype)
    return linear(hidden, weight, narrow_bias).to(dtype)
