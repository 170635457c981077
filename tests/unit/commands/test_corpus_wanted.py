import asyncio
import json
import re
from pathlib import Path

import pytest
from yarl import URL

from rnow.commands.corpus.fetch import estimate_s
from rnow.commands.corpus.wanted import Wanted, urls_in, wanted_pages
from rnow.config.load import load_config
from rnow.errors import UsageError

CONFIG = """\
data: {batch_size: 1}
model: {path: a}
teacher: {path: b}
trainer: {num_epochs: 1}
browser: {allow_hosts: [a.test, registry.test], contact: me@example.org}
"""


def write_project(folder: Path, *contents: str, metadata: object = None) -> Path:
    (folder / "config.yml").write_text(CONFIG)
    system = {"role": "system", "content": "Try https://a.test/EXAMPLE or T-0."}
    with (folder / "train.jsonl").open("w") as file:
        for content in contents:
            messages = [system, {"role": "user", "content": content}]
            file.write(json.dumps({"messages": messages, "metadata": metadata or {}}) + "\n")
    return folder


async def find(texts: list[str]) -> list[list[str]]:
    """Name a page for each trial of a text, as a worker with a page finder would."""
    return [
        [f"https://registry.test/{number}" for number in re.findall(r"T-\d+", text)]
        for text in texts
    ]


def wanted(folder: Path, **options: Path) -> Wanted:
    return asyncio.run(wanted_pages(folder, load_config(folder).config, find, **options))


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("no page", []),
        ("See HTTPS://a.test/x.", ["HTTPS://a.test/x"]),
        ("(https://a.test/x), https://a.test/y_(z)?q=1!", ["https://a.test/x", "https://a.test/y_(z)?q=1"]),
        ("[here](https://a.test/x) <https://a.test/y>", ["https://a.test/x", "https://a.test/y"]),
        ('"https://a.test/x"', ["https://a.test/x"]),
    ],
)  # fmt: skip
def test_urls_are_found_in_sentences(text: str, urls: list[str]) -> None:
    assert list(urls_in(text)) == urls


def test_a_page_is_on_the_list_once_and_system_messages_name_none(tmp_path: Path) -> None:
    project = write_project(
        tmp_path,
        "What is T-1? See https://A.test:443/x#part and https://a.test/x.",
        "And T-1, http://evil.test/, https://evil.test/2, http://[?",
        metadata={"sources": [{"url": "https://a.test/from-metadata"}], "n": 1},
    )
    assert wanted(project) == Wanted(
        urls=(
            URL("https://a.test/x"),
            URL("https://registry.test/T-1"),
            URL("https://a.test/from-metadata"),
        ),
        left_out={"evil.test": 2},
    )


def test_held_out_prompts_count_where_there_are_some(tmp_path: Path) -> None:
    project = write_project(tmp_path, "https://a.test/1")
    text = (project / "train.jsonl").read_text().replace("/1", "/2")
    (project / "val.jsonl").write_text(text)
    assert wanted(project).urls == (URL("https://a.test/1"), URL("https://a.test/2"))


def test_a_file_adds_pages(tmp_path: Path) -> None:
    project = write_project(tmp_path, "none")
    (tmp_path / "more.txt").write_text("# comment\n\nhttps://a.test/1\r\n https://a.test/2 \n")
    assert wanted(project, urls_file=tmp_path / "more.txt").urls == (
        URL("https://a.test/1"),
        URL("https://a.test/2"),
    )
    with pytest.raises(UsageError) as refused:
        wanted(project, urls_file=tmp_path / "none.txt")
    assert str(refused.value).endswith("give one URL a line")


def test_a_folder_without_trajectories_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        wanted(write_project(tmp_path, "none"), run=tmp_path / "runs")
    assert str(refused.value) == (
        f"--from-run {tmp_path / 'runs'}: there are no trajectories of a run in it"
    )


def test_the_slowest_host_says_how_long_it_takes() -> None:
    trials = [URL(f"https://registry.test/{number}") for number in range(600)]
    drugs = [URL(f"https://drugs.test/{number}") for number in range(200)]
    paces = {"registry.test": 1.0, "drugs.test": 5.0}
    assert estimate_s(trials, paces) == 600
    assert estimate_s([*trials, *drugs], paces) == 1_000
    assert estimate_s([], {}) == 0
