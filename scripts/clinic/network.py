"""Qwen3 as plain functions of a dictionary of weights, begun so that small models learn to copy.

Names, shapes and results are those of transformers' Qwen3ForCausalLM (asserted by saving.py), so
what is trained here is saved as it is. Own functions, because a batch of rollouts needs a cache in
which every row has its own length.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a network."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    head_dim: int = 32
    rope_theta: float = 1_000_000.0
    eps: float = 1e-6


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def rope_tables(shape: Shape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [..., head_dim] for `positions` [...]."""
    half = shape.head_dim // 2
    speeds = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[..., None].float() * speeds
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


@dataclass(slots=True)
class Cache:
    """Keys and values of a batch: [layers][rows, kv_heads, room, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, shape: Shape, *, rows: int, room: int) -> "Cache":
        size = (rows, shape.kv_heads, room, shape.head_dim)
        return cls(
            [torch.zeros(size) for _ in range(shape.layers)],
            [torch.zeros(size) for _ in range(shape.layers)],
        )


def forward(
    weights: Weights,
    shape: Shape,
    ids: Tensor,
    *,
    cache: Cache | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Return hidden states after the last norm [rows, tokens, hidden] of `ids` [rows, tokens].

    With a cache, row r's tokens stand at starts[r], starts[r]+1, …; what the cache holds from there
    on is overwritten, so padding behind a row does no harm if the next call starts before it.
    """
    rows, tokens = ids.shape
    offsets = torch.arange(tokens)[None]
    positions = offsets if starts is None else starts[:, None] + offsets
    cos, sin = (table[:, None] for table in rope_tables(shape, positions))
    mask = None
    if cache is not None:
        room = int(positions.max()) + 1
        mask = torch.arange(room)[None, None, None] <= positions[:, None, :, None]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        y = rms_norm(x, weights[name + "input_layernorm.weight"], shape.eps)

        def heads(part: str, num: int, y: Tensor = y, name: str = name) -> Tensor:
            flat = F.linear(y, weights[f"{name}self_attn.{part}_proj.weight"])
            return flat.view(rows, tokens, num, shape.head_dim)

        q = rms_norm(heads("q", shape.heads), weights[name + "self_attn.q_norm.weight"], shape.eps)
        k = rms_norm(
            heads("k", shape.kv_heads), weights[name + "self_attn.k_norm.weight"], shape.eps
        )
        v = heads("v", shape.kv_heads).transpose(1, 2)
        q = rotate(q.transpose(1, 2), cos, sin)
        k = rotate(k.transpose(1, 2), cos, sin)
        if cache is not None:
            where = positions[:, None, :, None].expand_as(k)
            cache.keys[layer].scatter_(2, where, k)
            cache.values[layer].scatter_(2, where, v)
            k = cache.keys[layer][:, :, :room]
            v = cache.values[layer][:, :, :room]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=cache is None, enable_gqa=True
        )
        out = out.transpose(1, 2).reshape(rows, tokens, -1)
        x = x + F.linear(out, weights[name + "self_attn.o_proj.weight"])
        y = rms_norm(x, weights[name + "post_attention_layernorm.weight"], shape.eps)
        gate = F.silu(F.linear(y, weights[name + "mlp.gate_proj.weight"]))
        y = gate * F.linear(y, weights[name + "mlp.up_proj.weight"])
        x = x + F.linear(y, weights[name + "mlp.down_proj.weight"])
    return rms_norm(x, weights["model.norm.weight"], shape.eps)


def logits(weights: Weights, hidden: Tensor) -> Tensor:
    """Apply the tied head."""
    return F.linear(hidden, weights["model.embed_tokens.weight"])


def random_weights(shape: Shape, *, seed: int) -> Weights:
    """Return small random weights in which heads for copying are planted."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int, std: float) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    hidden, inner = shape.hidden, shape.inner
    q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = {"model.embed_tokens.weight": draw(shape.vocab_size, hidden, std=0.05)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        weights |= {
            name + "input_layernorm.weight": torch.ones(hidden),
            name + "self_attn.q_proj.weight": draw(q_size, hidden, std=hidden**-0.5),
            name + "self_attn.k_proj.weight": draw(kv_size, hidden, std=hidden**-0.5),
            name + "self_attn.v_proj.weight": draw(kv_size, hidden, std=0.5 * hidden**-0.5),
            name + "self_attn.o_proj.weight": draw(hidden, q_size, std=0.2 * q_size**-0.5),
            name + "self_attn.q_norm.weight": torch.ones(shape.head_dim),
            name + "self_attn.k_norm.weight": torch.ones(shape.head_dim),
            name + "post_attention_layernorm.weight": torch.ones(hidden),
            name + "mlp.gate_proj.weight": draw(inner, hidden, std=hidden**-0.5),
            name + "mlp.up_proj.weight": draw(inner, hidden, std=hidden**-0.5),
            name + "mlp.down_proj.weight": draw(hidden, inner, std=0.2 * inner**-0.5),
        }
    weights["model.norm.weight"] = torch.ones(hidden)
    _plant_copying(weights, shape, generator)
    return weights


def _plant_copying(weights: Weights, shape: Shape, generator: torch.Generator) -> None:
    """Begin with a circuit that goes on as the text did where its last two tokens stood before.

    The residual stream is cut in three: what a token is (half of it), what the one before it was,
    and the one before that (a quarter each). Layer 0's first heads look one and two places back,
    by rotation alone, and write what they find into the second and third part. Layer 1's first
    heads look for the place whose two previous tokens are the present two, and write what stands
    there into the first part, where the tied head reads it. Small networks that have to find this
    by themselves do not, within minutes.
    """
    half, quarter = shape.hidden // 2, shape.hidden // 4
    dim, group = shape.head_dim, shape.heads // shape.kv_heads
    code = min(quarter, dim)
    embed = weights["model.embed_tokens.weight"]
    embed[:, :half] = torch.randn(shape.vocab_size, half, generator=generator) * 0.25
    embed[:, 0] = 1.0  # a constant, for heads that look by place alone
    encode = torch.linalg.qr(torch.randn(half - 1, code, generator=generator)).Q.T  # [code, half-1]

    def project(layer: int, part: str) -> Tensor:
        return weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"]

    fast = torch.arange(3)  # pairs of dimensions that turn quickly: they tell places apart
    speeds = shape.rope_theta ** (-torch.arange(dim // 2, dtype=torch.float32) / (dim // 2))
    q, k, v, o = (project(0, part) for part in "qkvo")
    for head in range(2):
        angles = -(head + 1) * speeds[fast]
        q[head * dim : (head + 1) * dim] *= 0.05
        q[head * dim + fast, 0] = angles.cos()
        q[head * dim + dim // 2 + fast, 0] = angles.sin()
        begin = half + head * quarter
        o[begin : begin + quarter] *= 0.1
        o[begin : begin + code, head * dim : head * dim + code] += 0.25 * torch.eye(code)
    k[:dim] *= 0.05
    k[fast, 0] = 1.0
    v[:dim] *= 0.05
    v[:code, 1:half] += encode
    for norm in ("q_norm", "k_norm"):
        gain = weights[f"model.layers.0.self_attn.{norm}.weight"]
        gain[fast] = gain[dim // 2 + fast] = 2.5

    slow = torch.cat((torch.arange(6, dim // 2), dim // 2 + torch.arange(6, dim // 2)))
    q, k, v, o = (project(1, part) for part in "qkvo")
    first = torch.randn(len(slow), code, generator=generator) * code**-0.5
    second = torch.randn(len(slow), code, generator=generator) * code**-0.5
    for head in range(group):
        q[head * dim : (head + 1) * dim] *= 0.05
        q[head * dim + slow, 1:half] += first @ encode
        q[head * dim + slow, half : half + code] += second
        o[1:half, head * dim : head * dim + code] += 2.0 / group * encode.T
    k[:dim] *= 0.05
    k[slow, half : half + code] += first
    k[slow, half + quarter : half + quarter + code] += second
    v[:dim] *= 0.05
    v[:code, 1:half] += encode
    for norm in ("q_norm", "k_norm"):
        weights[f"model.layers.1.self_attn.{norm}.weight"].fill_(1.0)
        weights[f"model.layers.1.self_attn.{norm}.weight"][slow] = 1.6
