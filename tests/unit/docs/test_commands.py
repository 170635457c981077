"""Every command in README and docs is one that rnow has, and is run by a test or marked why not."""

import re
import shlex

import pytest
import typer
from docs_blocks import MARKS, PAGES, ROOT, Block, blocks, is_run, words_of

from rnow import cli
from rnow.config.keys import section_keys, settings_by_key

SHELLS = {"bash", "sh", "shell", "console", "zsh"}
ROOT_COMMAND = typer.main.get_command(cli.app)
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL_BLOCKS = [block for block in BLOCKS if block.info and block.info[0] in SHELLS]


def wrong_in(words: list[str]) -> str | None:
    """Say what of a command line rnow does not have; None where all is there."""
    command, rest = ROOT_COMMAND, list(words)
    while rest and (found := getattr(command, "commands", {}).get(rest[0])) is not None:
        command = found
        rest.pop(0)
    if command is ROOT_COMMAND and rest and not rest[0].startswith("-"):
        return f"no command {rest[0]}"
    options = {name for option in command.params for name in option.opts} | {"--help", "--version"}
    for word in rest:
        if word.startswith("-") and word.partition("=")[0] not in options:
            return f"no option {word}"
        key, is_override, _ = word.partition("=")
        known = settings_by_key().keys() | section_keys().keys()
        if is_override and re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key) and key not in known:
            return f"no setting {key}"
    return None


def test_each_shell_block_is_run_or_says_why_not() -> None:
    for block in SHELL_BLOCKS:
        assert block.info[0] == "bash", f"{block.place}: write bash"
        assert set(block.info[1:]) <= MARKS.keys(), f"{block.place}: marks are {', '.join(MARKS)}"
    assert len(SHELL_BLOCKS) > 15


def test_the_blocks_that_are_run_call_rnow_alone() -> None:
    run = [block for block in BLOCKS if is_run(block)]
    assert {block.page.name for block in run} >= {"README.md", "quickstart.md", "your-task.md"}
    for block in run:
        for command in block.commands:
            assert command.startswith("rnow "), f"{block.place}: {command}"


def test_a_block_without_a_language_holds_no_command() -> None:
    for block in BLOCKS:
        if not block.info or block.info[0] == "text":
            for line in block.text.splitlines():
                is_call = re.match(r"rnow [a-z]+(?! ───)( |$)", line)  # no drawing
                assert not is_call, f"{block.place}: {line}; a command stands in a bash block"


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.place)
def test_what_a_block_calls_is_there(block: Block) -> None:
    for command in block.commands:
        if re.match(r"rnow\b", command):
            assert (block.place, wrong_in(words_of(command))) == (block.place, None)


def test_what_a_text_calls_is_there() -> None:
    num_seen, wrong = 0, []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for said in re.findall(r"`(rnow [^`]+)`", text):
            line = re.sub(r"\s+", " ", said)
            try:
                words = shlex.split(line)[1:]
            except ValueError:
                continue
            num_seen += 1
            words = [word for word in words if not re.search(r"[…\[\]|]", word)]
            if (why := wrong_in(words)) is not None:
                wrong.append(f"{page.name}: {line}: {why}")
    assert wrong == []
    assert num_seen > 40


def test_wrong_commands_are_seen() -> None:
    assert wrong_in(["runn", "my-project"]) == "no command runn"
    assert wrong_in(["run", "p", "--frsh"]) == "no option --frsh"
    assert wrong_in(["run", "p", "trainer.num_epoch=1"]) == "no setting trainer.num_epoch"
    assert wrong_in(["corpus", "build", ".", "--from-run", "first"]) is None
    assert (ROOT / "docs" / "quickstart.md").is_file()
