from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_fake import FakeVllm, error, serve_beside

from rnow.commands.check.point import Outcome, Point
from rnow.commands.check.servers import check_servers
from rnow.config.load import load_config

CONFIG = """\
data: {batch_size: 1, group_size: 64}
trainer: {num_epochs: 1}
model: {path: models/student}
teacher: {path: models/Teacher}
rollout: {max_context_window: 99}
"""
TO_DO = "Start the server, correct teacher.url, or take it out with teacher.url=null"


@pytest.fixture(scope="module")
def served() -> Iterator[FakeVllm]:
    with serve_beside(FakeVllm("/data/teacher/")) as fake:
        yield fake


@pytest.fixture
def server(served: FakeVllm) -> Iterator[FakeVllm]:
    """The module's server, which a test may make worse than it is."""
    yield served
    served.hangs, served.has_dev_routes, served.fault = False, True, lambda: None


def ask(folder: Path, *overrides: str, is_offline: bool = False) -> Point | None:
    (folder / "config.yml").write_text(CONFIG)
    loaded = load_config(folder, overrides=overrides)
    return check_servers(loaded, is_offline=is_offline, deadline_s=0.5)


def refusal(folder: Path, *overrides: str) -> str:
    found = ask(folder, *overrides)
    assert found is not None
    assert found.outcome == Outcome.PROBLEM
    (problem,) = found.problems
    return problem.message


def test_without_servers_of_the_users_own_there_is_no_point(tmp_path: Path) -> None:
    assert ask(tmp_path) is None


def test_a_teacher_that_answers_is_named(tmp_path: Path, server: FakeVllm) -> None:
    found = ask(tmp_path, f"teacher.url={server.url}")
    assert found is not None
    assert (found.outcome, found.problems) == (Outcome.OK, ())
    assert found.message == f"teacher: {server.url} serves /data/teacher/, 100 tokens a request"


def test_a_server_with_another_name_for_its_model_is_a_warning(
    tmp_path: Path, server: FakeVllm
) -> None:
    found = ask(tmp_path, f"teacher.url={server.url}", "teacher.path=models/Qwen3-8B")
    assert found is not None
    assert found.outcome == Outcome.OK
    (problem,) = found.problems
    assert (problem.severity, problem.key) == ("warning", "teacher.url")
    assert problem.message == (
        f"{server.url} serves /data/teacher/; that it is the model of teacher.path, "
        "models/Qwen3-8B, nothing shows"
    )


def test_a_server_that_is_not_there_is_refused_with_what_to_do(
    tmp_path: Path, server: FakeVllm
) -> None:
    message = refusal(tmp_path, f"teacher.url=[{server.url}, http://127.0.0.1:1]")
    assert message.startswith(
        "a run could not use http://127.0.0.1:1: GET http://127.0.0.1:1/v1/models: Cannot connect "
    )
    assert message.endswith(f" (1 attempts). {TO_DO}")


def test_a_server_that_does_not_answer_has_a_deadline(tmp_path: Path, server: FakeVllm) -> None:
    server.hangs = True
    assert refusal(tmp_path, f"teacher.url={server.url}") == (
        f"a run could not use {server.url}: {server.url} has not answered in 0.5 s. {TO_DO}"
    )


def test_a_server_that_takes_shorter_texts_is_refused(tmp_path: Path, server: FakeVllm) -> None:
    url = f"teacher.url={server.url}"
    assert refusal(tmp_path, url, "rollout.max_context_window=100") == (
        f"a run could not use {server.url}: {server.url} takes 100 tokens, and a run asks for 101; "
        f"start it with --max-model-len 101, or lower rollout.max_context_window. {TO_DO}"
    )


def test_a_server_that_cannot_score_is_refused(tmp_path: Path, server: FakeVllm) -> None:
    server.fault = lambda: error(404, "no such route")
    assert refusal(tmp_path, f"teacher.url={server.url}") == (
        f"a run could not use {server.url}: POST {server.url}/inference/v1/generate answered 404: "
        f"no such route. {TO_DO}"
    )


@pytest.mark.parametrize(
    ("tuning", "route"), [("lora", "/v1/load_lora_adapter"), ("full", "/collective_rpc")]
)
def test_a_student_that_takes_no_weights_is_refused(
    tmp_path: Path, server: FakeVllm, tuning: str, route: str
) -> None:
    overrides = (f"engine.url={server.url}", f"model.tuning={tuning}", "model.path=teacher")
    found = ask(tmp_path, *overrides)
    assert found is not None
    assert found.message == f"student: {server.url} serves /data/teacher/, 100 tokens a request"
    server.has_dev_routes = False
    assert refusal(tmp_path, *overrides) == (
        f"a run could not use {server.url}: {server.url} has no route {route}; start that server "
        "with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and VLLM_SERVER_DEV_MODE=1. "
        "Start the server, correct engine.url, or take it out with engine.url=null"
    )


def test_who_is_offline_is_told_who_was_not_asked(tmp_path: Path) -> None:
    found = ask(tmp_path, "teacher.url=http://127.0.0.1:1", is_offline=True)
    assert found is not None
    assert (found.outcome, found.message) == (
        Outcome.NOT_CHECKED,
        "not asked: http://127.0.0.1:1",
    )
