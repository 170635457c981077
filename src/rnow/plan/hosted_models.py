"""Names of models whose weights are nowhere to be had: those of an API, and of a hosted service.

They stand in configs where here a Hugging Face id or a folder belongs, and look like one.
"""

import re

_OF_AN_API = re.compile(
    r"(?:(?:openai|azure|anthropic|google|gemini|xai|openrouter)/)*"
    r"(?:gpt-\d|chatgpt-|o[134](?:-|$)|claude-|gemini-|grok-\d)",
    re.IGNORECASE,
)
# Ids as databases make them: a UUID, a cuid.
_OF_A_SERVICE = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}|c[a-z0-9]{20,}")


def why_without_weights(name: str) -> str | None:
    """Say why no model of this name can be loaded; None where one may be.

    >>> why_without_weights("Qwen/Qwen3-8B")
    """
    if _OF_AN_API.match(name):
        return (
            f"{name} is a model behind an API, and its weights are needed here; take a Hugging "
            "Face id, as Qwen/Qwen3-32B, or a folder"
        )
    if _OF_A_SERVICE.fullmatch(name):
        return (
            f"{name} is an id of a hosted service's model; download it with that service's client, "
            "and name the folder"
        )
    return None
