"""Write docs/configuration.md from the settings in src/rnow/config/settings.py.

python scripts/make_configuration_doc.py            # writes the page
python scripts/make_configuration_doc.py --check    # exit 1 if the page is out of date
"""

import json
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from rnow.config.keys import section_keys, settings_by_key, type_in_words
from rnow.config.old_keys import IGNORED_KEYS, TRANSLATED_KEYS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """\
# Settings of config.yml

<!-- Made by scripts/make_configuration_doc.py from src/rnow/config/settings.py: change that. -->

A file for distillation needs no more than this; everything else has a default:

```yaml
data: {batch_size: 16}
model: {path: Qwen/Qwen3-8B}
teacher: {path: Qwen/Qwen3-32B}
trainer: {num_epochs: 3}
```

rnow reads `config.yml`, or `config.json` where there is none. On the command line any setting can
be given as `key=value`, as in `rnow run trainer.num_epochs=5 'tools.env=[API_KEY]'`: `true`,
`false`, `null`, numbers (`1e-4` too), lists and mappings in YAML's brackets; anything else is text.
Unknown keys and keys that stand twice are errors.
"""

FOOT = """\
## Old keys

Files written for the hosted service load. These keys are ignored, each with a line that says so:

{ignored}

These are read as the setting of today, with a line that says so:

{translated}

A list as `model.path` and the flat `params:` form are refused. So is `temperature`, `top_p` or
`top_k` with a value that changes sampling: the log-probabilities of student and teacher are
compared at temperature 1.

Limits of the hosted service (`data.batch_size` 32, `data.group_size` 64, `model.qlora_rank` 128)
are warnings, and any model may be named.
"""


def make_page() -> str:
    settings = settings_by_key()
    sections = {key: section for key, section in section_keys().items() if "." not in key}
    parts = [HEAD]
    for name in ("", *sections):
        section = sections.get(name)
        rows = [
            _row(key, field)
            for key, field in settings.items()
            if (key.startswith(f"{name}.") if name else "." not in key)
        ]
        title = (
            f"`{name}`: {_lower(section.__doc__)}"
            if section and section.__doc__
            else "Top of the file"
        )
        parts += [f"## {title}\n", "| key | takes | default | what it does |", "|---|---|---|---|"]
        parts += [*rows, ""]
    parts.append(
        FOOT.format(
            ignored=_list(IGNORED_KEYS),
            translated=_list(TRANSLATED_KEYS),
        )
    )
    return "\n".join(parts)


def _row(key: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_default(field.default)}`"
    return f"| `{key}` | {type_in_words(field)} | {default} | {field.description} |"


def _default(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _list(reasons: dict[str, str]) -> str:
    return "\n".join(f"- `{key}`: {reason}" for key, reason in reasons.items())


if __name__ == "__main__":
    from generated_page import write_or_check

    sys.exit(write_or_check(PAGE, make_page, script=__file__, about=__doc__))
