"""The demo's questions through plain HTTP, Chromium and a recording of it: the same transcripts."""

import asyncio
import shutil
from pathlib import Path

import pytest
from chromium import chromium_executable

from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.engines.spec import EngineSpec
from rnow.evaluation.figures import Evaluation
from rnow.evaluation.held_out import evaluate_model
from rnow.evaluation.subject import Subject
from rnow.records import Prompt

NUM_PROMPTS = 96


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    return folder


def evaluate(project: Path, *overrides: str) -> Evaluation:
    """Let the teacher, which reads two pages for most questions, answer greedily."""
    loaded = load_config(project, overrides=overrides)
    spec = EngineSpec(
        role="teacher",
        model=(project / "models" / "teacher").resolve(),
        dtype="float32",
        device="cpu",
        request_timeout_s=600.0,
        tolerance=0.001,
    )
    return asyncio.run(
        evaluate_model(
            loaded,
            project,
            subject=Subject(engine=spec),
            log_file=project / "tools.log",
            max_samples=NUM_PROMPTS,
        )
    )


@pytest.mark.slow
def test_96_prompts_have_the_same_transcripts_through_plain_http_chromium_and_a_replay(
    project: Path,
) -> None:
    by_http = evaluate(project, "browser.executable=null")
    chromium = project / "chromium"  # tells that it has run
    chromium.write_text(f'#!/bin/sh\ntouch {project}/has-run\nexec {chromium_executable()} "$@"\n')
    chromium.chmod(0o755)
    through_chromium = ("browser.render_hosts=[clinic.test]", "rollout.concurrency=16")
    by_chromium = evaluate(
        project,
        f"browser.executable={chromium}",
        "browser.store_mode=record",
        *through_chromium,
    )
    assert (project / "has-run").exists()
    shutil.rmtree(project / "site")
    chromium.unlink()
    by_replay = evaluate(project, "browser.store_mode=replay", *through_chromium)
    assert len(by_http.answers) == NUM_PROMPTS
    assert sum(len(answer.trajectory.turns) for answer in by_http.answers) > 2 * NUM_PROMPTS
    for other in (by_chromium, by_replay):
        assert transcripts(other) == transcripts(by_http)


def transcripts(evaluation: Evaluation) -> list[tuple[Prompt, bytes, bytes]]:
    return [
        (
            answer.prompt,
            answer.trajectory.token_ids.tobytes(),
            answer.trajectory.action_mask.tobytes(),
        )
        for answer in evaluation.answers
    ]
