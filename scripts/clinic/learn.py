"""Supervised learning on conversations: the loss stands on what the model says, on nothing else."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from clinic.network import Shape, Weights, forward, logits
from clinic.text import TURN
from clinic.tokenizer import END_OF_TURN, PAD
from tokenizers import Tokenizer
from torch import Tensor

# Gives the texts of one batch.
Draw = Callable[[random.Random, float], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """How long and how hard to learn."""

    steps: int
    learning_rate: float  # the highest
    seed: int  # of the examples


class Encoder:
    """Texts of conversations -> ids and the mask of what the model says in them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        pad, stop = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END_OF_TURN)
        assert pad is not None
        assert stop is not None
        self.pad, self.stop = pad, stop
        self._turn = tokenizer.encode(TURN).ids

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask [rows, tokens], padded at the end."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = torch.tensor(self._said(row))
        return ids, mask

    def _said(self, row: list[int]) -> list[bool]:
        said, size, speaking = [False] * len(row), len(self._turn), False
        for place, token in enumerate(row):
            said[place] = speaking
            if token == self.stop:
                speaking = False
            elif row[max(0, place + 1 - size) : place + 1] == self._turn:
                speaking = True
        return said


def learn(
    weights: Weights,
    shape: Shape,
    encoder: Encoder,
    draw: Draw,
    *,
    lessons: Lessons,
    log: Callable[[str], None],
) -> None:
    """Train `weights` in place: AdamW, 5 % warmup, then a cosine down to a twentieth."""
    rng, steps, learning_rate = random.Random(lessons.seed), lessons.steps, lessons.learning_rate
    for tensor in weights.values():
        tensor.requires_grad_(True)
    matrices = [tensor for tensor in weights.values() if tensor.dim() > 1]
    norms = [tensor for tensor in weights.values() if tensor.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    warmup, started = max(1, steps // 20), time.monotonic()
    for step in range(steps):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        scale = min(1.0, (step + 1) / warmup) * (
            0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        ids, mask = encoder.encode(draw(rng, step / steps))
        loss, right = action_loss(weights, shape, ids, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        if step % 25 == 24 or step == steps - 1:
            log(
                f"step {step + 1:4d}  loss {loss.item():.4f}  tokens right {right:.4f}"
                f"  {time.monotonic() - started:.0f} s"
            )
    for tensor in weights.values():
        tensor.requires_grad_(False)


def action_loss(weights: Weights, shape: Shape, ids: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Return the mean loss of said tokens (nats) and the share that are the favourite."""
    said = mask[:, 1:]
    scores = logits(weights, forward(weights, shape, ids[:, :-1])[said])
    wanted = ids[:, 1:][said]
    right = (scores.argmax(-1) == wanted).float().mean().item()
    return F.cross_entropy(scores, wanted), right
