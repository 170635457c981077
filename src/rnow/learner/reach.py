"""How much of a network LoRA reaches, counted without its weights: on torch's meta device."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rnow.errors import ModelError
from rnow.runtime.logs import quiet_transformers
from rnow.runtime.rope import load_network_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Weights of a network by what they are.

    Reach(num_adapted=6_900_000_000, num_experts=0, num_tables=1_200_000_000, num_others=400_000)
    """

    num_adapted: int  # of linear layers, which an adapter stands beside
    num_experts: int  # of a mixture's experts, which are no linear layers
    num_tables: int  # of the embedding and the LM head
    num_others: int  # norms, biases, convolutions

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
    from transformers import AutoModelForCausalLM

    config = load_network_config(folder, window=None)
    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # A configuration whose numbers do not go together fails in any line of any family.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder}/config.json: no network can be made of it: {reason}") from error
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                is_table = module is head or module is embedding
                counts[_kind(module, parameter, is_table=is_table)] += parameter.numel()
    return Reach(
        num_adapted=counts["adapted"],
        num_experts=counts["experts"],
        num_tables=counts["tables"],
        num_others=counts["others"],
    )


def _kind(module: nn.Module, parameter: nn.Parameter, *, is_table: bool) -> str:
    if is_table:
        return "tables"
    if parameter.dim() == 3:
        return "experts"
    return "adapted" if isinstance(module, nn.Linear) and parameter.dim() == 2 else "others"


def _short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
