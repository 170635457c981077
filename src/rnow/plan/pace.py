"""How long each role works in a step, estimated: from models' figures and a table of devices.

    student   reads prompts and results, then samples: each token reads the weights, and the KV
              cache of all that are sampled beside it
    teacher   reads every token once; a mixture also has to read its experts' weights
    trainer   forward and backward over every token

Rollouts and their scoring overlap, the update comes after both:

    step = max(student, teacher) + trainer, and student + teacher where the two share a GPU

Tools are in none of it. Every number is an estimate; measured steps say better (costs.py).
"""

from dataclasses import dataclass
from typing import Literal

from rnow.plan.device_table import (
    ATTENTION_SHARE,
    READ_SHARE,
    SCORED_SHARE,
    TOKEN_OVERHEAD_S,
    TRAINED_SHARE,
    TRAINED_SHARE_FLOAT32,
    Device,
)
from rnow.plan.figures import ModelFigures

# Assumptions of a rollout; a project's own steps replace them.
TOKENS_A_TURN = 400
TOKENS_A_RESULT = 2000
PROMPT_TOKENS = 1000  # tools included, where nothing has been rendered yet

_PASSES = {"lora": 4, "full": 6}  # FLOPs a weight and token; an adapter needs no weights' gradient
_LAYER_SYNC_S = 20e-6  # of a server over several GPUs, a layer and token
_SHARDED_SHARE = 0.9  # of the pace that ranks have which exchange nothing but gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTokens:
    """What one step asks for. StepTokens(rollouts=64, concurrency=64, sampled=4000, read=19000)"""

    rollouts: float
    concurrency: int
    sampled: float  # tokens of a rollout
    read: float  # besides: its prompt and the results of tools

    @property
    def each(self) -> float:
        return self.sampled + self.read

    @property
    def all(self) -> float:
        return self.rollouts * self.each


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """The GPUs of a role. Gang(figures=…, device=…, num_servers=4, size=1)"""

    figures: ModelFigures
    device: Device
    num_servers: int = 1  # or ranks of the trainer
    size: int = 1  # GPUs of a server
    dtype_bytes: int = 2
    quantization: Literal["fp8"] | None = None
    max_tokens: int | None = None  # that a server's KV cache holds; None: enough
    samples: bool = True  # else it scores
    is_sharded: bool = False  # a trainer's ranks: each has a part of the weights


def assumed_tokens(
    *,
    max_turns: int,
    max_tokens: int,
    max_result_tokens: int | None,
    room: int,
) -> tuple[float, float]:
    """Return the tokens of a rollout, sampled and of results, in `room` behind its prompt."""
    a_turn, a_result = assumed_sizes(max_tokens, max_result_tokens)
    turns = assumed_turns(
        max_turns=max_turns, max_tokens=max_tokens, max_result_tokens=max_result_tokens, room=room
    )
    return min(turns * a_turn, max(0, room)), max(0.0, turns - 1) * a_result


def assumed_sizes(max_tokens: int, max_result_tokens: int | None) -> tuple[int, int]:
    """Return the tokens of a turn, and of a tool's result."""
    a_result = min(TOKENS_A_RESULT, max_result_tokens or TOKENS_A_RESULT)
    return min(TOKENS_A_TURN, max_tokens), a_result


def assumed_turns(
    *, max_turns: int, max_tokens: int, max_result_tokens: int | None, room: int
) -> float:
    """Return how many turns find room, a last one in part: more never make fewer tokens."""
    a_turn, a_result = assumed_sizes(max_tokens, max_result_tokens)
    return min(max_turns, (max(0, room) + a_result) / (a_turn + a_result))


def student_s(gang: Gang, tokens: StepTokens) -> float:
    """Return how long the servers of a student take for a step's rollouts."""
    context = tokens.each / 2  # in the mean of a rollout's life
    servers = min(gang.num_servers, tokens.rollouts)  # of others nothing is asked
    batch = min(tokens.rollouts, tokens.concurrency) / servers
    if gang.max_tokens is not None:
        batch = min(batch, max(1.0, gang.max_tokens / context))  # what has no room waits
    waves = max(1.0, tokens.rollouts / (batch * servers))
    read = tokens.rollouts * tokens.read / servers * _reading_s(gang, tokens.each)
    return waves * tokens.sampled * token_s(gang, batch=batch, context=context) + read


def token_s(gang: Gang, *, batch: float, context: float) -> float:
    """Return the seconds of one sampled token each of `batch` texts of `context` tokens."""
    figures = gang.figures
    whole = figures.weight_bytes(gang.dtype_bytes, quantization=gang.quantization)
    # Experts that none of the batch meets are not read.
    unmet = figures.num_unmet_parameters / max(1, figures.num_routed_parameters)
    idle = figures.num_routed_parameters * float(unmet**batch) / max(1, figures.num_parameters)
    remembered = figures.kv_bytes(int(context), dtype_bytes=gang.dtype_bytes, num_shards=gang.size)
    read = whole * (1 - idle) / gang.size + batch * remembered
    sync = figures.num_layers * _LAYER_SYNC_S if gang.size > 1 else 0.0
    return read / (READ_SHARE * gang.device.bytes_s) + TOKEN_OVERHEAD_S + sync


def teacher_s(gang: Gang, tokens: StepTokens) -> float:
    """Return how long the servers of a teacher take to score a step's rollouts."""
    servers = min(gang.num_servers, tokens.rollouts)
    return tokens.all / servers * _reading_s(gang, tokens.each)


def trainer_s(gang: Gang, tokens: StepTokens, *, tuning: Literal["lora", "full"]) -> float:
    """Return how long forward and backward take; `num_servers` of the gang are its ranks."""
    figures = gang.figures
    matrices = figures.num_linear_parameters - figures.num_unmet_parameters
    head = figures.vocab_size * figures.hidden_size * tokens.sampled / tokens.each
    # Two products forward and four back, each 2 FLOPs for a query's entry and half of all keys.
    attention = 6 * figures.num_layers * figures.query_size * tokens.each
    flops = _PASSES[tuning] * (matrices + head) + attention
    share = TRAINED_SHARE if gang.dtype_bytes < 4 else TRAINED_SHARE_FLOAT32
    pace = (
        gang.device.flops * share * gang.num_servers * (_SHARDED_SHARE if gang.is_sharded else 1.0)
    )
    return tokens.all * flops / pace


def _reading_s(gang: Gang, length: float) -> float:
    """Return the seconds of one token of a text of `length` that is read, on one server."""
    figures = gang.figures
    matrices = figures.num_linear_parameters - figures.num_unmet_parameters
    products = 2 * matrices / (SCORED_SHARE * gang.device.flops)
    attention = 2 * figures.num_layers * figures.query_size * length
    attention_s = attention / (ATTENTION_SHARE * gang.device.flops)
    whole = figures.weight_bytes(gang.dtype_bytes, quantization=gang.quantization)
    read = whole / _TOKENS_A_PASS / (READ_SHARE * gang.device.bytes_s)
    return (max(products, read) + attention_s) / gang.size


_TOKENS_A_PASS = 2048  # that a server reads at once
