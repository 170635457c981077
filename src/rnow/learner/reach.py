"""How many weights a network has of which kind, and which LoRA reaches: counted without them, on
torch's meta device.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnow.errors import ModelError
from rnow.networks.rope import load_network_config
from rnow.runtime.logs import quiet_transformers

_KINDS = ("adapted", "experts", "tables", "others")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Weights of a network by what they are.

    Reach(num_adapted=6_900_000_000, num_experts=0, num_tables=1_200_000_000, num_others=400_000)
    """

    num_adapted: int  # of linear layers, which an adapter stands beside
    num_experts: int  # of a mixture's experts, which are no linear layers
    num_tables: int  # of the embedding and the LM head
    num_others: int  # norms, biases, convolutions
    num_routed: int = 0  # of all these, what is in experts of which a token meets a few
    num_beside: int = 0  # in none of these: of the parts that only see or hear, which servers load
    lora_width: int = 0  # inputs and outputs of all adapted layers: an adapter's weights a rank

    @property
    def num_all(self) -> int:
        return self.num_adapted + self.num_experts + self.num_tables + self.num_others

    def line(self) -> str:
        """Say it in a line. Experts that no adapter reaches are most of a mixture."""
        adapted, experts = self.num_adapted / self.num_all, self.num_experts / self.num_all
        text = f"LoRA adapts {adapted:.0%} of the student's {_short(self.num_all)} weights"
        if self.num_experts:
            return (
                f"{text}: its experts are {experts:.0%}, and no adapter reaches them; to train "
                "them, set model.tuning to full"
            )
        return f"{text}: all linear layers but the LM head"


def lora_reach(folder: Path) -> Reach:
    """Count the weights of the model in `folder`; only its config.json is read.

    Raises ModelError where no causal language model can be made of it.
    """
    return count_weights(load_network_config(folder, window=None), file=f"{folder}/config.json")


def count_weights(config: Any, *, file: str) -> Reach:
    """Count the weights of the network that transformers makes of `config`, which is of `file`."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # A configuration whose numbers do not go together fails in any line of any family.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{file}: no network can be made of it: {reason}") from error
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            is_table = module is head or module is embedding
            kind = _kind(module, parameter, is_table=is_table)
            counts[kind] += parameter.numel()
            counts["routed"] += parameter.numel() if ".experts" in name else 0
            counts["lora_width"] += sum(parameter.shape) if kind == "adapted" else 0
    return Reach(
        num_adapted=counts["adapted"],
        num_experts=counts["experts"],
        num_tables=counts["tables"],
        num_others=counts["others"],
        num_routed=counts["routed"],
        num_beside=_count_beside(config, sum(counts[kind] for kind in _KINDS)),
        lora_width=counts["lora_width"],
    )


def takes_our_attention(folder: Path) -> bool:
    """Whether the network in `folder` asks transformers for its attention, as newer ones do.

    Others have their own (ALiBi's mostly) and would run past the local engine's.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(load_network_config(folder, window=None)), None)
    if kinds is None:
        return True  # no causal model at all: whoever makes the network says so
    kind = kinds[0] if isinstance(kinds, tuple) else kinds
    return bool(getattr(kind, "_supports_attention_backend", False))


def _count_beside(config: Any, num_text: int) -> int:
    """Return the weights that a model which also sees has beyond its text network."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return 0
    with quiet_transformers(), torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    return max(0, int(whole.num_parameters()) - num_text)


def _kind(module: nn.Module, parameter: nn.Parameter, *, is_table: bool) -> str:
    if is_table:
        return "tables"
    if parameter.dim() == 3 and not isinstance(module, nn.Conv1d):
        return "experts"
    return "adapted" if isinstance(module, nn.Linear) and parameter.dim() == 2 else "others"


def _short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
