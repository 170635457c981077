"""The tokenizer that both clinic models share: byte-level BPE, learned on the project's own texts.

Capitals and digits never merge, so that a name or a number is the same tokens in a question, in a
URL, on a page and in an answer: a model this small learns to copy token by token and nothing else.
Only labels (`COMPANY` before a colon) and `NCT` are whole. Everything else may merge across spaces,
so that the fixed text of a prompt is few tokens.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["ADDED", "END_OF_TURN", "PAD", "SPECIAL", "learn_tokenizer", "save_tokenizer"]

PAD = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL = (PAD, "<|im_start|>", END_OF_TURN)
# Qwen3 marks these as not special; the ids are as untouchable for page text all the same.
ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_PIECES = r"[A-Z]+(?=:)|NCT(?=\d)|[A-Z0-9]|\n  \* |\n+"
_MAX_TOKEN_CHARS = 32


def learn_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn merges from `texts`, in which added tokens have been taken out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_CHARS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ADDED])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, chat_template: str) -> None:
    """Write the files that AutoTokenizer and vLLM read."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
