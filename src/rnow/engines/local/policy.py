"""`LoadedPolicy`: one version's weights, and what belongs to them."""

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from rnow.engines.local.batch import DecodingBatch, PromptCache
from rnow.engines.local.head import Head


@dataclass(slots=True, eq=False)
class LoadedPolicy:
    """Weights that can be sampled from; after an unload, sessions on them keep them alive."""

    version: int
    model: PreTrainedModel
    batch: DecodingBatch
    head: Head
    prompts: PromptCache = field(default_factory=PromptCache)
