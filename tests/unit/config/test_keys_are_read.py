"""Every setting is read by code: a key that nothing reads is a promise that nothing keeps."""

import ast
from collections.abc import Iterator
from pathlib import Path

from rnow.config.keys import settings_by_key

SOURCE = Path(__file__).resolve().parents[3] / "src" / "rnow"
# Where settings are defined, nothing is read.
DEFINITIONS = SOURCE / "config"

# Settings that are read where their section goes by another name.
HELD_AS = {
    "trainer.save_step": "_settings",
    "trainer.keep_last": "_settings",
    "trainer.checkpoint_minutes": "_settings",
    "trainer.keep_trajectories_gb": "_settings",
    "engine.url": "settings",
    "teacher.url": "settings",
    "engine.args": "settings",
    "teacher.args": "settings",
}


def attribute_chains(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield ("trainer", "num_epochs") for `config.trainer.num_epochs` and `trainer.num_epochs`.

    The text of comments and messages does not count.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            match node.value:
                case ast.Attribute(attr=holder) | ast.Name(id=holder):
                    yield holder, node.attr


def holder_of(key: str) -> str:
    """Name what a setting is read from: its section, "config" for those at the top."""
    return HELD_AS.get(key) or key.rpartition(".")[0].rpartition(".")[2] or "config"


def unread_settings() -> set[str]:
    read = set()
    for file in SOURCE.rglob("*.py"):
        if file.parent != DEFINITIONS and "templates" not in file.parts:
            read |= set(attribute_chains(ast.parse(file.read_text(encoding="utf-8"))))
    return {
        key for key in settings_by_key() if (holder_of(key), key.rpartition(".")[2]) not in read
    }


def test_every_setting_is_read_somewhere() -> None:
    assert unread_settings() == set()


def test_text_in_a_message_is_no_reading() -> None:
    tree = ast.parse("x = config.trainer.keep_last, 'trainer.save_step'  # trainer.max_steps")
    assert ("trainer", "keep_last") in set(attribute_chains(tree))
    assert not {"save_step", "max_steps"} & {name for _, name in attribute_chains(tree)}
