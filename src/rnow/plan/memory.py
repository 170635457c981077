"""How much GPU memory the trainer and an engine's server take, from a model's figures alone.

    trainer    weights + adapter + gradients + AdamW's moments + the larger of
                 one forward and backward:  a checkpoint a layer, one layer's own, LM head chunks
                 one optimizer step:        a copy of what is trained
    server     weights + adapter slots + one pass over the scheduled tokens + KV cache
                 + for a teacher, prompt log-probs: [scheduled tokens, vocabulary]

What a layer keeps per token (`_LAYER_PEAK`, `_LAYER_KEPT`) was not guessed but counted: rnow's own
policy at the real sizes of Qwen3 from 1.7B to 32B, every allocation of a forward and backward
followed on tensors without storage. The unit tests do so again and hold the formula to 3 % for LoRA
and between nothing and 12 % too much for full fine-tuning. It is the count of causal attention
through a fused kernel: a mask [tokens, tokens] has no place in it. On an H100 all of the card that
the trainer took was 96 to 99.9 % of this estimate (docs/gpu.md). What a server adds to its tensors
(`_SERVER_OVERHEAD`) comes from vLLM's documents and code; with small models it was half a GiB.
"""

from dataclasses import astuple, dataclass
from typing import Literal

from rnow.engines.vllm.command import ADAPTER_RANKS, NUM_ADAPTERS_AT_ONCE
from rnow.plan.figures import ModelFigures

GIB = 2**30

# Bytes a token of one layer's forward and backward in bfloat16: factors of (intermediate size,
# hidden size, query size, key-value size). Weights in float32 make a float32 residual stream.
_LAYER_PEAK = {  # while one layer's backward runs
    "lora": (12, 15, 8, 8),
    "full": (14, 30, 10, 9),
}
_LAYER_KEPT = {  # by each further layer, where activations are not recomputed
    "lora": (8, 13, 8, 8),
    "full": (8, 19, 10, 9),
}
# Of a mixture, each chosen expert reads a copy of the token and gives one back: with it the
# formula is an eighth too high for Qwen3-30B-A3B.
_EXPERT_COPIES = 8
_FORWARD_SHARE = 0.5  # of the peak: what a layer's forward takes

_CUDA_CONTEXT = 1.0  # GiB: the driver's context, cuBLAS, what is cached and not in use
_FRAGMENTATION = 0.1  # of the trainer's activations: memory in pieces too small to be used again
_LM_HEAD_CHUNK = 1.5 * (1 << 25) * 4  # one chunk of logits in float32, half as much in bfloat16

_SERVER_OVERHEAD = 2.0  # GiB: context, CUDA graphs, attention workspace
_PARALLEL_OVERHEAD = 1.0  # GiB: NCCL and all-reduce buffers of a server over several GPUs
_SAMPLER_BYTES = 20  # an entry of [sequences, vocabulary]: logits, log-probs, a sort
_PROMPT_LOGPROB_BYTES = 8  # an entry of [tokens, vocabulary]: logits, float32 log-probs, compares
_KV_BLOCK = 16  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """Bytes that a role takes on each of its GPUs.

    RoleMemory(weights=16381470720, kv_cache=4831838208, …).total
    """

    weights: int
    lora: int = 0  # the adapter; for a server its slots
    gradients: int = 0
    optimizer: int = 0  # AdamW's moments
    activations: int = 0  # trainer: peak of a forward and backward, or of the optimizer's step
    kv_cache: int = 0
    prompt_logprobs: int = 0  # the teacher's, beyond what vLLM reserves for itself
    overhead: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerLoad:
    """What the trainer's memory depends on beside the student's figures."""

    tuning: Literal["lora", "full"]
    lora_rank: int
    dtype_bytes: int  # of the matrix products
    max_tokens: int  # in one forward: a trajectory longer than a micro-batch goes alone
    checkpointing: bool
    num_parts: int = 1  # GPUs over which the weights are cut


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLoad:
    """What a server's memory depends on beside its model's figures."""

    dtype_bytes: int
    quantization: Literal["fp8"] | None
    max_model_len: int
    max_num_batched_tokens: int  # scheduled at once
    max_num_seqs: int
    lora_rank: int | None  # None: no adapters
    scores: bool  # the teacher's role

    @property
    def min_kv_tokens(self) -> int:
        """Tokens of the smallest KV cache with which vLLM starts: one sequence of full length."""
        return (-(-self.max_model_len // _KV_BLOCK) + 1) * _KV_BLOCK


def trainer_memory(figures: ModelFigures, load: TrainerLoad) -> RoleMemory:
    """Estimate the trainer on one GPU, or on each of those that it has."""
    full = load.tuning == "full"
    trained = figures.num_parameters if full else figures.num_lora_parameters(load.lora_rank)
    # What is trained is in float32 whatever the products are in, and so are gradients and moments.
    parts = load.num_parts
    held = -(-trained // parts) if full else trained  # an adapter is on every GPU whole
    transient = _transient_bytes(figures, load, num_trained=held)
    weight_bytes = 4 if full else load.dtype_bytes
    if parts > 1:
        transient += _gathered_bytes(figures, weight_bytes, full=full)
    return RoleMemory(
        weights=-(-figures.num_parameters // parts) * weight_bytes,
        lora=0 if full else trained * 4,
        gradients=held * 4,
        optimizer=held * 8,
        activations=transient,
        overhead=int(_CUDA_CONTEXT * GIB + _FRAGMENTATION * transient),
    )


def server_memory(figures: ModelFigures, load: ServerLoad, *, num_gpus: int = 1) -> RoleMemory:
    """Estimate a vLLM server over `num_gpus` GPUs, without its KV cache."""
    weights = figures.weight_bytes(load.dtype_bytes, quantization=load.quantization)
    lora = 0
    if load.lora_rank is not None:
        rank = next((rank for rank in ADAPTER_RANKS if rank >= load.lora_rank), load.lora_rank)
        lora = NUM_ADAPTERS_AT_ONCE * figures.num_lora_parameters(rank) * load.dtype_bytes
    # One layer's at a time: gate, up and their product; residual, norm, attention's in and output;
    # what each expert of a mixture gives back.
    per_token = 3 * figures.intermediate_size + 4 * figures.query_size
    per_token += (4 + figures.num_chosen) * figures.hidden_size
    forward = load.max_num_batched_tokens * per_token * load.dtype_bytes
    sampler = load.max_num_seqs * figures.vocab_size * _SAMPLER_BYTES
    scored = load.max_num_batched_tokens if load.scores else 0
    parallel = _PARALLEL_OVERHEAD if num_gpus > 1 else 0.0
    return RoleMemory(
        weights=-(-weights // num_gpus),
        lora=lora,  # of each matrix of a pair one is cut and one is whole; counted as whole
        activations=forward + sampler,
        # Every GPU gathers the whole vocabulary.
        prompt_logprobs=scored * figures.vocab_size * _PROMPT_LOGPROB_BYTES,
        overhead=int((_SERVER_OVERHEAD + parallel) * GIB),
    )


def local_memory(figures: ModelFigures, load: ServerLoad, *, num_policies: int) -> RoleMemory:
    """Estimate a local engine, which is in the trainer's process, without its KV cache.

    `num_policies` are held beside the first weights: as adapters, or as weights of their own where
    all are trained or an adapter is merged (engines/local/weights.py).
    """
    copies, lora = 1 + num_policies, 0
    if load.lora_rank is not None and load.dtype_bytes < 4:
        copies = 1
        lora = num_policies * figures.num_lora_parameters(load.lora_rank) * load.dtype_bytes
    return RoleMemory(
        weights=copies * figures.weight_bytes(load.dtype_bytes, quantization=None),
        lora=lora,
        activations=load.max_num_seqs * figures.vocab_size * _SAMPLER_BYTES,
        overhead=0,
    )


def _transient_bytes(figures: ModelFigures, load: TrainerLoad, *, num_trained: int) -> int:
    full = load.tuning == "full"
    width = load.dtype_bytes / 2  # the factors were counted in bfloat16
    peak = _layer_bytes(figures, _LAYER_PEAK[load.tuning]) * width
    hidden_bytes = 4 if full else load.dtype_bytes  # float32 weights make a float32 residual stream
    further = figures.num_layers * figures.hidden_size * hidden_bytes
    if not load.checkpointing:
        kept_each = _layer_bytes(figures, _LAYER_KEPT[load.tuning]) * width
        further = int((figures.num_layers - 1) * kept_each)
    kept = load.max_tokens * further
    layer = load.max_tokens * peak
    if not full:
        return int(kept + max(layer, _LM_HEAD_CHUNK))
    # Autocast keeps a narrow copy of every float32 weight until the forward ends; the backward
    # makes one of the layer that it computes again, and narrow gradients of it.
    narrow = 0 if load.dtype_bytes == 4 else figures.num_linear_parameters * load.dtype_bytes
    of_layer = narrow / figures.num_layers
    # Of weights that are cut it keeps none (learner/network.py).
    forward = kept + layer * _FORWARD_SHARE + (narrow if load.num_parts == 1 else of_layer)
    backward = kept + layer + 2 * of_layer
    # The head's gradient beside its last one, its narrow copy, and one chunk's product.
    head = kept + figures.vocab_size * figures.hidden_size * 8 + _LM_HEAD_CHUNK
    return int(max(forward, backward, head, num_trained * 4))


def _gathered_bytes(figures: ModelFigures, weight_bytes: int, *, full: bool) -> int:
    """Return what is whole for a while of weights that are cut: embedding, head, two layers.

    And where they are trained, the gradients of these before they are summed over the GPUs. An
    estimate: on no machine of several GPUs has it been measured.
    """
    outer = figures.num_other_parameters
    layer = figures.num_linear_parameters // figures.num_layers
    return (outer + 2 * layer) * (weight_bytes + (4 if full else 0))


def _layer_bytes(figures: ModelFigures, factors: tuple[int, int, int, int]) -> int:
    sizes = (figures.intermediate_size, figures.hidden_size, figures.query_size, figures.kv_size)
    copies = _EXPERT_COPIES * figures.num_chosen * figures.hidden_size
    return copies + sum(factor * size for factor, size in zip(factors, sizes, strict=True))
