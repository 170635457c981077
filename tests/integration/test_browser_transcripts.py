"""The demo's questions, answered through Chromium and through plain HTTP: the same transcripts."""

import asyncio
from pathlib import Path

import pytest
from chromium import chromium_executable

from rnow.config import load_config
from rnow.engines.spec import EngineSpec
from rnow.evaluating import evaluate_model
from rnow.evaluation import Evaluation
from rnow.scaffold import init_project
from rnow.subject import Subject

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
    subject = Subject(engine=spec)
    return asyncio.run(evaluate_model(loaded, project, subject=subject, max_samples=NUM_PROMPTS))


@pytest.mark.slow
def test_96_prompts_have_the_same_transcripts_through_chromium_and_plain_http(
    project: Path,
) -> None:
    by_http = evaluate(project, "browser.executable=null")
    chromium = project / "chromium"  # tells that it has run
    chromium.write_text(f'#!/bin/sh\ntouch {project}/has-run\nexec {chromium_executable()} "$@"\n')
    chromium.chmod(0o755)
    by_chromium = evaluate(
        project,
        f"browser.executable={chromium}",
        "browser.render_hosts=[clinic.test]",
        "rollout.concurrency=16",
    )
    assert (project / "has-run").exists()
    assert len(by_http.answers) == len(by_chromium.answers) == NUM_PROMPTS
    assert sum(len(answer.trajectory.turns) for answer in by_http.answers) > 2 * NUM_PROMPTS
    for one, other in zip(by_http.answers, by_chromium.answers, strict=True):
        assert one.prompt == other.prompt
        assert one.trajectory.token_ids.tobytes() == other.trajectory.token_ids.tobytes()
        assert one.trajectory.action_mask.tobytes() == other.trajectory.action_mask.tobytes()
