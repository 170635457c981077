"""What tests are made of: trajectories, tiny networks, and tokenizer folders.

A trajectory is built by `make_trajectory`, a network by `qwen3`: nowhere else by hand.

`tokenizer_folder(folder, family)` writes what `AutoTokenizer` needs: a byte-level BPE of a few
hundred tokens with the added tokens of that family (the same ones special and not), the family's
real chat template, and a generation_config.json: tests would otherwise download them. The templates
are files of the package trl, read without importing it.

`medbrowse_grading()` grades in this process by the grader of the reference project and the demo.
"""

import asyncio
import functools
import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from rnow.browser.text.markdown import html_to_markdown
from rnow.browser.text.pagination import Limiter, paginate, show_page
from rnow.chat.prompts import PromptFile, read_prompt_file
from rnow.config.settings import ModelSettings
from rnow.evaluation.grading import Grading
from rnow.medbrowse.grading import medbrowse
from rnow.records import EndReason, Prompt, RolloutId, StopReason, Trajectory, Turn
from rnow.tools.graders import Grade, LocalGraders

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rnow.core.grader import GraderFunction
    from rnow.learner.policy import Policy
    from rnow.learner.ranks.group import Ranks

# How Qwen cuts text into words before BPE.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = (
    "You may call one or more functions to assist with the user query.",
    "The trial of the drug was run by the company; the patent ends in 2031.",
    'assistant user system tool {"name": "browse", "arguments": {"url": "http://clinic.test/"}}',
    "<|im_start|>assistant <tool_response> <think> <tool_call> tool_call think im_end",
    "Let me look at the page. The answer is: Company. Error. Result.",
)


@dataclass(frozen=True)
class Family:
    """What sets one family of tokenizers apart."""

    template: str  # file under trl/chat_templates
    special: tuple[str, ...]  # added tokens with special=True
    ordinary: tuple[
        str, ...
    ]  # added tokens with special=False: text to most code, ids to the model
    eos: str
    also_ends: tuple[str, ...]  # further eos tokens of generation_config.json
    bos: str | None = None


_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")
FAMILIES = {
    "qwen3": Family(
        template="qwen3.jinja",
        special=_QWEN_SPECIAL,
        ordinary=(
            "<tool_call>",
            "</tool_call>",
            "<|fim_prefix|>",
            "<tool_response>",
            "</tool_response>",
            "<think>",
            "</think>",
        ),
        eos="<|im_end|>",
        also_ends=("<|endoftext|>",),
    ),
    "qwen2.5": Family(
        template="qwen2_5.jinja",
        special=_QWEN_SPECIAL,
        ordinary=("<tool_call>", "</tool_call>", "<|fim_prefix|>"),
        eos="<|im_end|>",
        also_ends=("<|endoftext|>",),
    ),
    "llama3.1": Family(
        template="llama3_1.jinja",
        special=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ),
        ordinary=(),
        eos="<|eot_id|>",
        also_ends=("<|end_of_text|>", "<|eom_id|>"),
        bos="<|begin_of_text|>",
    ),
}


def real_template(name: str) -> str:
    """Return a chat template as its makers wrote it, e.g. real_template("qwen3.jinja")."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None, "the test extra of rnow brings trl, whose templates these tests read"
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / name).read_text()


def real_templates() -> list[str]:
    """Return the names of all real templates; those that were changed for training are none."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
    return sorted(path.stem for path in folder.glob("*.jinja") if "_training" not in path.stem)


# What looks like a special token in the text of a template.
_MARKUP = re.compile(
    r"<\|[A-Za-z0-9_/]+\|>|<\|\"\|>|<\|[a-z_]+>|<[a-z_]+\|>|<\uff5c[^<>{}]{1,40}?\uff5c>|\[/?[A-Z_]{4,}\]"
    r"|</?(?:start_of_turn|end_of_turn|tool_call|tool_response|think|arg_key|arg_value|end_of_utterance)>"
)


def template_folder(folder: Path, template: str, *, eos: str = "<|endoftext|>") -> Path:
    """Write a tokenizer that has the markup of a template, `eos` and "<s>" as added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    markup = sorted({*_MARKUP.findall(template), eos, "<s>"})
    tokenizer = tiny_tokenizer(tuple(markup), ())
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@functools.cache
def tiny_tokenizer(special: Sequence[str], ordinary: Sequence[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of 256 bytes, some merges and the added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=512,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ordinary])
    return tokenizer


def tokenizer_folder(folder: Path, family: str, *, template: str | None = None) -> Path:
    """Write a tokenizer of `family` into `folder`; `template` replaces the real one."""
    kind = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(kind.special, kind.ordinary)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": kind.eos}
    if kind.bos is not None:
        config["bos_token"] = kind.bos
    ends = [tokenizer.token_to_id(text) for text in (kind.eos, *kind.also_ends)]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (folder / "chat_template.jinja").write_text(
        real_template(kind.template) if template is None else template
    )
    return folder


HOLLOW_CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


def write_hollow_model(folder: Path, *, num_bytes: int | None = None) -> Path:
    """Write the files of a model whose weights are a hole that takes no room on the disk.

    Its config.json has a row for each token of a tokenizer that is in `folder`. With `num_bytes` it
    is of one weight, and so large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        rows = {"vocab_size": 1024} if (folder / "tokenizer.json").exists() else {}
        (folder / "config.json").write_text(json.dumps(HOLLOW_CONFIG | rows))
    shapes = {"weight": ((num_bytes - 8 - 128) // 2,)} if num_bytes else _weights_of(folder)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).ljust(128).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def _weights_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each weight of the network that config.json describes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def model_settings(**settings: Any) -> ModelSettings:
    """Settings of a student; of float64 too, which tests compare in and no user may ask for."""
    return ModelSettings(path="student").model_copy(update=settings)


def load_policy(
    folder: str | Path,
    *,
    seed: int = 0,
    activation_checkpointing: Literal["auto"] | bool = "auto",
    device: str = "auto",
    chunk_tokens: int | None = None,
    window: int | None = None,
    ranks: "Ranks | None" = None,
    **settings: Any,
) -> "Policy":
    """Load the student in `folder`, with `settings` of config.yml's section `model`."""
    from rnow.learner.policy import Policy

    return Policy.load(
        folder,
        model_settings(path=str(folder), **settings),
        seed=seed,
        activation_checkpointing=activation_checkpointing,
        device=device,
        chunk_tokens=chunk_tokens,
        window=window,
        ranks=ranks,
    )


def qwen3_config(**sizes: Any) -> "Qwen3Config":
    """Sizes of a network that is built and run in milliseconds, but for the ones given."""
    from transformers import Qwen3Config

    tiny = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return Qwen3Config(**(tiny | sizes))


def qwen3(*, seed: int = 0, **sizes: Any) -> "Qwen3ForCausalLM":
    """A network of random weights that depend on `seed` alone."""
    import torch
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(qwen3_config(**sizes)).eval()


FIRST = RolloutId(0, 0, 0)


def make_trajectory(
    token_ids: ArrayLike,
    action_mask: ArrayLike,
    *,
    id: RolloutId = FIRST,
    turn_index: ArrayLike | None = None,
    sampler_logprobs: ArrayLike = -0.5,
    policy_version: int = 0,
    turns: tuple[Turn, ...] | None = None,
    end_reason: EndReason = EndReason.ANSWER,
    duration_s: float = 0.0,
) -> Trajectory:
    """A rollout that ended with an answer.

    `turn_index` None: all actions are one turn. `sampler_logprobs` count on action tokens alone.
    `turns` None: those that the two vectors tell of, without a tool call.
    """
    mask = np.asarray(action_mask, dtype=np.bool_)
    index = np.where(mask, 0, -1) if turn_index is None else np.asarray(turn_index)
    return Trajectory(
        id=id,
        token_ids=np.asarray(token_ids, dtype=np.int32),
        action_mask=mask,
        turn_index=index.astype(np.int32),
        sampler_logprobs=np.where(mask, sampler_logprobs, np.nan).astype(np.float32),
        policy_version=np.where(mask, policy_version, -1).astype(np.int32),
        turns=_turns(mask, index) if turns is None else turns,
        end_reason=end_reason,
        num_drift_tokens=0,
        duration_s=duration_s,
    )


def _turns(mask: np.ndarray, index: np.ndarray) -> tuple[Turn, ...]:
    spans = [np.flatnonzero(mask & (index == turn)) for turn in np.unique(index[mask])]
    return tuple(
        Turn(
            start=int(span[0]),
            end=int(span[-1]) + 1,
            stop_reason=StopReason.STOP,
            tool_calls=(),
            duration_s=0.0,
        )
        for span in spans
    )


def page_text(html: str, *, url: str, page: int = 1, limiter: Limiter | None = None) -> str:
    """Return what the model gets for page `page` of this HTML, as `rnow.browser.read` gives it."""
    text = html_to_markdown(html, url=url)
    return show_page(paginate(text, url=url, status=200, limiter=limiter), page)


def read_prompts(file: Path, **settings: Any) -> PromptFile:
    """Read prompts of dataset_type distill, but for the `settings` given."""
    chosen: Any = {"dataset_type": "distill", "drop_last_answer": False} | settings
    return read_prompt_file(file, **chosen)


def medbrowse_grading() -> Grading:
    graders = LocalGraders({"medbrowse": cast("GraderFunction", medbrowse)})
    return Grading(graders, default="medbrowse", include_thinking=False)


def graded_prompt(index: int, *, task: str, expected: str | None) -> Prompt:
    """A prompt with the metadata that evaluation reads."""
    metadata = {"task_name": task}
    if expected is not None:
        metadata["expected_answer"] = expected
    return Prompt(index=index, line=index + 1, messages=(), tools=None, metadata=metadata)


def medbrowse_grade(task: str, expected: str, said: str) -> Grade:
    prompt = graded_prompt(0, task=task, expected=expected)
    return asyncio.run(medbrowse_grading().grade(prompt, said))
