"""Record and replay: whole runs without a network, and one fetch for all tool workers."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback import serve_pub
from short_runs import rnow

from rnow.browser.settings import BrowserSettings, StoreMode
from rnow.browser.store.store import INDEX_FILE
from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.engines.spec import EngineSpec
from rnow.evaluation.held_out import evaluate_model
from rnow.evaluation.subject import Subject
from rnow.records import RolloutId
from rnow.runs.archive import journals, read_bytes
from rnow.tools.base import ToolAnswer, ToolCall
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings

SHORT = ("data.batch_size=4", "data.group_size=2", "trainer.max_steps=2", "tools.workers=2")
BROWSE = (
    "from rnow import browser\n"
    "from rnow.core import tool\n"
    "@tool\n"
    "async def browse(url: str, page: int = 1) -> str:\n"
    "    'Read a page.'\n"
    "    return await browser.read(url, page)\n"
)


def without_network() -> list[str]:
    """Return the start of a command that runs where not even loopback is up, if this machine has
    one: as root, or where anybody may be root of a namespace of one's own.
    """
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"]).returncode == 0:
            return command
    return []


def transcripts(run: Path) -> list[bytes]:
    """Return the journals of a run, byte for byte but for what a clock or a cache counts."""
    volatile = ("duration_s", "counts")

    def keep(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: keep(inner) for name, inner in value.items() if name not in volatile}
        return [keep(inner) for inner in value] if isinstance(value, list) else value

    found = []
    for file in journals(run / "trajectories"):
        # Lines stand in the order in which rollouts ended.
        lines = (keep(json.loads(line)) for line in read_bytes(file).splitlines())
        ordered = sorted(lines, key=lambda line: (line["prompt"], line["rollout"]))
        found.append(json.dumps(ordered).encode())
    return found


def total(run: Path, name: str) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return sum(line.get(name, 0) for line in lines)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one recorded run, whose site is gone."""
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    rnow("run", folder, "--name", "recorded", *SHORT, "browser.store_mode=record")
    shutil.rmtree(folder / "site")
    return folder


@pytest.fixture(scope="module")
def replays(project: Path) -> list[Path]:
    runs = []
    for name in ("first", "second"):
        words = ("run", project, "--name", name, *SHORT, "browser.store_mode=replay")
        command = [*without_network(), sys.executable, "-m", "rnow", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        runs.append(project / "runs" / name)
    return runs


@pytest.mark.parametrize("number", [0, 1])
def test_a_recorded_run_is_replayed_byte_for_byte_without_a_network(
    project: Path, replays: list[Path], number: int
) -> None:
    recorded, replayed = project / "runs" / "recorded", replays[number]
    assert transcripts(recorded) == transcripts(replayed)
    assert (recorded / "model" / "adapter_model.safetensors").read_bytes() == (
        replayed / "model" / "adapter_model.safetensors"
    ).read_bytes()
    assert total(replayed, "browser/fetched") == 0
    assert total(replayed, "browser/stored") > 0
    assert total(replayed, "browser/error_not_in_corpus") == 0


def test_a_replay_says_which_pages_it_read_and_does_not_go_on_with_others(
    project: Path, replays: list[Path]
) -> None:
    run = replays[0]
    words = ("run", project, "--name", run.name, *SHORT, "browser.store_mode=replay")
    assert len(json.loads((run / "inputs.json").read_text())["browser.store"]) == 64
    assert "browser.store" not in json.loads(
        (project / "runs" / "recorded" / "inputs.json").read_text()
    )
    state = run / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "finished": False}))
    pages = shutil.copytree(project / "pages", project / "other")
    index = sqlite3.connect(pages / INDEX_FILE)
    index.execute("DELETE FROM pages WHERE key = (SELECT min(key) FROM pages)")
    index.commit()
    index.close()
    done = rnow(*words, "browser.store=other", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: browser.store changed since the unfinished run began; put the old content back to "
        "go on with it, or use --fresh to begin another run\n"
    )


@pytest.mark.slow
def test_prompts_answered_greedily_have_the_same_transcripts_from_a_recording(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "clinic"
    init_project(folder, template="clinic")
    spec = EngineSpec(
        role="teacher",
        model=(folder / "models" / "teacher").resolve(),
        dtype="float32",
        device="cpu",
        request_timeout_s=600.0,
        tolerance=0.001,
    )

    def answers(*overrides: str) -> list[bytes]:
        loaded = load_config(folder, overrides=overrides)
        evaluated = asyncio.run(
            evaluate_model(
                loaded,
                folder,
                subject=Subject(engine=spec),
                log_file=tmp_path / "tools.log",
                max_samples=24,
            )
        )
        return [answer.trajectory.token_ids.tobytes() for answer in evaluated.answers]

    live = answers()
    recorded = answers("browser.store_mode=record", "tools.workers=2")
    shutil.rmtree(folder / "site")
    replayed = answers("browser.store_mode=replay")
    assert len(live) == 24
    assert live == recorded == replayed


def test_without_pages_a_replay_is_refused_before_anything_is_loaded(project: Path) -> None:
    words = (project, "browser.store_mode=replay", "browser.store=nowhere")
    sentence = (
        "browser.store nowhere holds no pages, and browser.store_mode replay reads them "
        "there; fill it with rnow corpus build, or by a run with browser.store_mode=record"
    )
    done = rnow("run", *words, "--name", "none", check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: {sentence}\n")
    assert sentence in rnow("check", *words, check=False).stdout
    assert not (project / "nowhere").exists()


def settings(folder: Path, port: int, mode: StoreMode) -> WorkerSettings:
    (folder / "tools.py").write_text(BROWSE)
    return WorkerSettings(
        project_dir=folder,
        tool_timeout_s=60.0,
        max_tool_response=None,
        max_tool_response_chars=None,
        workers=2,
        concurrency=32,
        env_names=(),
        tokenizer_file=None,
        browser=BrowserSettings(
            local_sites={"pub.test": port}, store=str(folder / "pages"), store_mode=mode
        ),
        log_file=folder / "tools.log",
    )


async def ask(pool: ToolPool, number: int) -> ToolAnswer:
    # Prompts go to workers in turn, so these are eight rollouts on each.
    return await pool.call(
        ToolCall(name="browse", arguments={"url": "https://pub.test/page"}, raw=""),
        rollout=RolloutId(0, number % 2, number // 2),
        allowed=None,
        metadata={},
    )


async def test_sixteen_rollouts_on_two_workers_fetch_a_page_once(tmp_path: Path) -> None:
    async with serve_pub() as pub:
        pub.page("/page", "<h1>Title</h1><p>text")
        async with ToolPool(settings(tmp_path, pub.port, "record")) as pool:
            answers = await asyncio.gather(*(ask(pool, number) for number in range(16)))
        assert len(pub.requests) == 1
    assert {answer.text for answer in answers} == {
        "https://pub.test/page (status 200, page 1 of 1)\n\n# Title\ntext"
    }
    counts: dict[str, int] = {}
    for answer in answers:
        for name, number in answer.counts.items():
            counts[name] = counts.get(name, 0) + number
    assert counts == {"browser/fetched": 1, "browser/stored": 1, "browser/shared": 14}
    async with ToolPool(settings(tmp_path, pub.port, "replay")) as pool:
        replayed = await asyncio.gather(*(ask(pool, number) for number in range(16)))
    assert {answer.text for answer in replayed} == {answer.text for answer in answers}


async def test_without_the_store_each_worker_fetches_for_itself(tmp_path: Path) -> None:
    async with serve_pub() as pub:
        pub.page("/page", "<h1>Title</h1><p>text")
        async with ToolPool(settings(tmp_path, pub.port, "live")) as pool:
            await asyncio.gather(*(ask(pool, number) for number in range(16)))
        assert len(pub.requests) == 2


def test_this_machine_can_be_without_a_network() -> None:
    if os.getuid() != 0:
        return
    code = "import socket; socket.create_connection(('127.0.0.1', 1))"
    done = subprocess.run(
        [*without_network(), sys.executable, "-c", code], capture_output=True, text=True
    )
    assert "Network is unreachable" in done.stderr
