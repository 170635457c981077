"""What a model's folder says of its tokenizer, and which ids end a text."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rnow.errors import ModelError, TemplateError
from rnow.runtime.logs import quiet_transformers


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
        with quiet_transformers():
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
        named = eos_ids_in(Path(generation_config))
        _require_tokens(tokenizer.backend_tokenizer, named, file=generation_config)
        eos_ids |= named
    return tokenizer, frozenset(eos_ids)


def _require_tokens(tokenizer: Any, ids: Collection[int], *, file: str) -> None:
    """Refuse an end that no text can hold: tokenizer and model would be of different origin."""
    odd = [id for id in sorted(ids) if id < 0 or tokenizer.id_to_token(id) is None]
    if odd:
        raise ModelError(
            f"{file}: eos_token_id has {', '.join(map(str, odd))}, and the tokenizer beside it has "
            f"{tokenizer.get_vocab_size()} tokens and none of that id; take both from the same "
            "model, or take the id out"
        )


def eos_ids_of(folder: Path) -> frozenset[int]:
    """Return the ids that a model's files call an end, read without loading its tokenizer."""
    ids: set[int] = set()
    if (folder / "generation_config.json").is_file():
        ids |= eos_ids_in(folder / "generation_config.json")
    if (folder / "tokenizer_config.json").is_file():
        config = _read_object(folder / "tokenizer_config.json")
        eos = config.get("eos_token")
        text = eos.get("content") if isinstance(eos, dict) else eos
        tokenizer = _read_object(folder / "tokenizer.json")
        ids |= {token["id"] for token in tokenizer["added_tokens"] if token["content"] == text}
    return frozenset(ids)


def eos_ids_in(file: Path) -> set[int]:
    """Return the ids of `eos_token_id` in a model's JSON file: one, several, or none."""
    eos = _read_object(file).get("eos_token_id")
    if eos is None:
        return set()
    ids = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(id, int) for id in ids):
        raise ModelError(
            f"{file}: eos_token_id is {eos!r}; it must be a token id or a list of them"
        )
    return set(ids)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}; fetch it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} cannot be read: it holds no JSON object; fetch it again")
    return found
