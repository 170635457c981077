"""What a model's folder says of its tokenizer, and which ids end a text."""

import json
from pathlib import Path
from typing import Any

from rnow.errors import ModelError, TemplateError


def load_tokenizer(model_path: str | Path) -> tuple[Any, frozenset[int]]:
    """Load the tokenizer of a model folder or hub name, and the model's eos ids."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    if Path(model_path).is_dir() and not (Path(model_path) / "tokenizer.json").is_file():
        # transformers would ask for packages that do not help.
        raise ModelError(
            f"{model_path} has no tokenizer.json; rnow needs a fast tokenizer, which "
            "transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…) writes there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=False)
        generation_config = cached_file(
            str(model_path),
            "generation_config.json",
            _raise_exceptions_for_missing_entries=False,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {model_path}: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{model_path} has no tokenizer.json; rnow needs a fast tokenizer")
    if not tokenizer.chat_template:
        raise TemplateError(
            f"{model_path} has no chat template; use an instruct model, "
            "or put a chat_template.jinja into its folder"
        )
    eos_ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if generation_config is not None:
        eos_ids |= eos_ids_in(Path(generation_config))
    return tokenizer, frozenset(eos_ids)


def eos_ids_of(folder: Path) -> frozenset[int]:
    """Return the ids that a model's files call an end, read without loading its tokenizer."""
    ids: set[int] = set()
    if (folder / "generation_config.json").is_file():
        ids |= eos_ids_in(folder / "generation_config.json")
    if (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        eos = config.get("eos_token")
        text = eos.get("content") if isinstance(eos, dict) else eos
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids |= {token["id"] for token in tokenizer["added_tokens"] if token["content"] == text}
    return frozenset(ids)


def eos_ids_in(file: Path) -> set[int]:
    """Return the ids of `eos_token_id` in a model's JSON file: one, several, or none."""
    eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list) else {int(eos)}
