"""Model folders that come with Python of their own (`auto_map`): rnow runs none of it, ever.

Many of them are of a family that transformers has since learnt; then the folder's code is not
needed. What is left cannot be loaded, and is told before anything is.
"""

import json
from pathlib import Path


def own_code_of(folder: Path) -> str | None:
    """Say why the model in `folder` cannot be loaded without running its own code, if so.

    transformers is imported for folders that have such code, and for no others.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # told by whoever reads what stands in it
    if not isinstance(config, dict) or not config.get("auto_map"):
        return None
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in CONFIG_MAPPING_NAMES:
        return None
    return (
        f"{folder} needs Python code of its own (auto_map in its config.json; its model_type "
        f"{kind!r} is none that transformers knows), and rnow never runs a model folder's code; "
        "take a model that transformers knows by itself"
    )
