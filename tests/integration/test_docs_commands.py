"""Every command of README and docs that needs no GPU, network or person, as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from docs_blocks import PAGES, Block, blocks, is_run, words_of
from short_runs import shared_cli

from rnow.plan.devices import find_devices

README = Path(__file__).parents[2] / "README.md"
TEXTS = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A page's blocks are run one after the other in a folder of its own.
RUN = {
    page: [block for block in blocks(page) if is_run(block) or len(block.info) == 2]
    for page in PAGES
    if any(map(is_run, blocks(page)))
}


def shorten(project: Path) -> None:
    """Make the clinic's run one of a few rollouts: what it says and leaves behind is the same."""
    file = project / "config.yml"
    text = file.read_text()
    for written, now in (
        ("batch_size: 16", "batch_size: 2"),
        ("group_size: 4", "group_size: 2"),
        ("max_steps: 20", "max_steps: 1"),
    ):
        assert text.count(written) == 1
        text = text.replace(written, now)
    file.write_text(text)
    held_out = project / "val.jsonl"
    held_out.write_text("".join(held_out.read_text().splitlines(keepends=True)[:2]))


def follow(block: Block) -> None:
    """Write the file that a block is, or type its commands; each must succeed."""
    if not is_run(block):
        name = block.info[1]
        if "/" in name:
            Path(name).write_text(block.text)
        return
    for command in block.commands:
        done = shared_cli()(*words_of(command))
        assert done.status == 0, f"{block.place}: {command}\n{done.output}"
        if " init " in command:
            shorten(Path(shlex.split(command)[2]))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_can_be_followed_word_for_word(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in RUN[page]:
        follow(block)
    assert list(tmp_path.glob("*/runs/*/model"))


def without_figures(text: str, folder: Path) -> list[str]:
    """Return the lines with `N` for each number, below /tmp, and of steps without their times."""
    lines = text.replace(str(folder), "/tmp").splitlines()
    untimed = [re.sub(r"(step .* turns [\d.]+) .*", r"\1", line) for line in lines]
    return [re.sub(r"\b\d[\d.,]*(e-\d+)?", "N", line) for line in untimed]


@pytest.mark.slow
@pytest.mark.skipif(bool(find_devices().gpus), reason="shown is a run without a GPU")
def test_what_readme_shows_of_a_run_is_what_a_run_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = next(text for text in TEXTS.findall(README.read_text()) if text.startswith("$ rnow"))
    commands = [line[2:] for line in shown.splitlines() if line.startswith("$ ")]
    *_, printed = [shared_cli()(*words_of(command)).output for command in commands]
    lines = [line for line in shown.splitlines() if not line.startswith("$ ")]
    assert without_figures(printed, tmp_path) == without_figures("\n".join(lines), tmp_path)
