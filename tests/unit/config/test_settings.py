"""Settings: defaults, coercion, and the page that is made from them."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE_S
from pydantic import ValidationError

from rnow.config.keys import section_keys, settings_by_key, type_in_words
from rnow.config.settings import Config

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "configuration.md"
MINIMAL = {
    "data": {"batch_size": 4},
    "model": {"path": "student"},
    "trainer": {"num_epochs": 3},
}


def test_texts_are_coerced_to_the_types_of_their_settings() -> None:
    config = Config.model_validate(
        {
            "data": {"batch_size": "16", "group_size": 2.0},
            "model": {"path": "student"},
            "trainer": {
                "num_epochs": 3,
                "learning_rate": "5e-5",
                "activation_checkpointing": "true",
            },
        }
    )
    assert (config.data.batch_size, config.data.group_size) == (16, 2)
    assert config.trainer.learning_rate == 5e-5
    assert config.trainer.activation_checkpointing is True


def test_a_server_of_ones_own_may_listen_on_a_unix_socket() -> None:
    config = Config.model_validate({**MINIMAL, "engine": {"url": "unix:/home/me/vllm/http"}})
    assert config.engine.url == "unix:/home/me/vllm/http"


def test_a_config_does_not_change_once_made() -> None:
    config = Config.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.data.batch_size = 5  # type: ignore[misc]  # the point of the test


def test_every_default_is_a_value_that_its_setting_takes() -> None:
    resolved = Config.model_validate(MINIMAL).model_dump(mode="json")
    resolved["resources"] = {"student": {"gpus": 1}}
    resolved["teacher"] = {"path": "teacher"}
    again = Config.model_validate(resolved).model_dump(mode="json")
    again["resources"], again["teacher"] = resolved["resources"], resolved["teacher"]
    assert again == resolved


def test_every_setting_has_one_line_that_says_what_it_does() -> None:
    for key, field in settings_by_key().items():
        assert field.description, key
        assert "\n" not in field.description, key
        assert field.description.endswith("."), key


def test_settings_in_seconds_tokens_and_nats_name_their_unit() -> None:
    units = {
        "_s": "(seconds)",
        "timeout": "(seconds)",
        "max_tokens": "(tokens)",
        "max_context_window": "(tokens)",
        "max_tool_response": "(tokens)",
        "kl_clip": "(nats)",
        "probe_tolerance": "(nats)",
    }
    for key, field in settings_by_key().items():
        for ending, unit in units.items():
            if key.endswith(ending):
                assert unit in (field.description or ""), key


def test_the_page_has_every_setting_and_no_other() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(settings_by_key())
    for section in section_keys():
        if "." not in section:
            assert f"## `{section}`: " in page


def test_the_page_is_the_one_that_the_script_writes() -> None:
    script = ROOT / "scripts" / "make_configuration_doc.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data.batch_size", "a whole number of at least 1"),
        ("rollout.max_tokens", "a whole number of at least 1, or null"),
        ("trainer.learning_rate", "a number above 0"),
        ("trainer.max_dropped", "a number from 0 to 1"),
        ("trainer.activation_checkpointing", "auto, or true or false"),
        ("teacher.engine", "one of auto, vllm, local, or null"),
        ("engine.url", "a text, or a list of texts, or null"),
        ("engine.args", "a mapping"),
        ("teacher.quantization", "fp8, or null"),
        ("model.path", "a text that is not empty"),
        ("tools.env", "a list of texts"),
        ("browser.local_sites", "a mapping of texts to texts"),
    ],
)
def test_types_have_words(key: str, words: str) -> None:
    assert type_in_words(settings_by_key()[key]) == words


def test_reading_settings_imports_nothing_heavy() -> None:
    code = (
        "import sys, rnow.config;"
        "print([name for name in ('torch', 'numpy', 'transformers', 'crawl4ai', 'typer')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "[]\n"
