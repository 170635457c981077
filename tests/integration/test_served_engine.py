"""Servers that die, hang or fail under an engine: real processes, killed for real.

The servers speak as vLLM does (vllm_fake.py) and start in a moment; test_vllm_run.py does the same
with vLLM itself.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, until
from served_lab import Lab
from short_runs import ForkedCli
from vllm_fake import FakeVllm, serve_beside
from vllm_fake_process import requests_of
from vllm_real import alive_in_group

from rnow.commands.init import init_project
from rnow.engines.base import Completion, SampleRequest, ScoreRequest
from rnow.engines.vllm import cutting
from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.served import ServedEngine
from rnow.engines.vllm.starting import Server, start_here
from rnow.errors import DeadlineError, EngineError, PublicationError, RnowError, ServerError

ROUTE = "/inference/v1/generate"
IDS = (9, 5)
SCORING = ScoreRequest(token_ids=IDS, start=1)
OTHER = ScoreRequest(token_ids=(8, 4), start=1)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path / "servers")
    yield made
    for engine in made.engines:
        await engine.aclose()
    assert made.pids() == []


def adapter(folder: Path, name: str = "adapter") -> Path:
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text("{}")
    return folder / name


async def sample(engine: ServedEngine, *, version: int = 0, session: str = "0.0.0") -> Completion:
    return await engine.sample(sampling(version=version, session=session))


def sampling(*, version: int, session: str = "0.0.0") -> SampleRequest:
    return SampleRequest(
        token_ids=IDS,
        session=session,
        max_tokens=3,
        stop_token_ids=(),
        seed=7,
        policy_version=version,
    )


async def test_a_request_cut_by_the_death_of_its_server_is_sent_again(lab: Lab) -> None:
    engine = await lab.start()
    before = await sample(engine)
    (pid,) = lab.pids()
    after = await lab.killed(sample(engine))
    assert after.token_ids.tolist() == before.token_ids.tolist() == [4, 3, 2]
    log = lab.folder / "student-0.log"
    assert lab.said == [
        f"the vLLM server of the student has ended (killed by SIGKILL); {log} ends with:\n"
        "  (nothing)\nIt is started again; cut requests are sent again",
        "the vLLM server of the student serves again",
    ]
    assert lab.pids() != [pid]


async def test_scores_survive_the_death_of_their_server(lab: Lab) -> None:
    engine = await lab.start()
    before = await engine.score(SCORING)
    after = await lab.killed(engine.score(SCORING))
    assert after.logprobs.tobytes() == before.logprobs.tobytes()


async def test_a_server_that_is_started_again_gets_the_policy_version_in_use(
    lab: Lab, tmp_path: Path
) -> None:
    engine = await lab.start()
    await engine.load_policy(adapter(tmp_path), 4)
    await engine.probe(replace(SCORING, policy_version=4))
    after = await lab.killed(sample(engine, version=4))
    assert after.policy_version == 4
    names = [model for route, model in requests_of(lab.folder) if route == ROUTE]
    # Sampled, cut, the first request of the new server, its probe, sampled again: by one name.
    assert names[-1].startswith("policy-4-")
    assert names[-1] == names[-2]
    routes = [route for route, _ in requests_of(lab.folder)]
    assert routes.count("/v1/load_lora_adapter") == 2


async def test_a_server_that_comes_back_with_other_weights_stops_the_run(
    lab: Lab, tmp_path: Path
) -> None:
    engine = await lab.start()
    await engine.load_policy(adapter(tmp_path), 4)
    await engine.probe(replace(SCORING, policy_version=4))
    lab.set("stale")
    with pytest.raises(PublicationError) as caught:
        await lab.killed(sample(engine, version=4))
    assert str(caught.value) == (
        "the vLLM server of the student was started again and does not hold version 4: on a fixed "
        "sequence it is 1 nats a token away from what it answered before (tolerance 0.001)"
    )


async def test_a_server_that_comes_back_and_samples_without_the_adapter_stops_the_run(
    lab: Lab, tmp_path: Path
) -> None:
    engine = await lab.start()
    await engine.load_policy(adapter(tmp_path), 4)
    await engine.probe(replace(SCORING, policy_version=4))
    (sampled,) = await engine.probe_sampling([sampling(version=4)] * 8)
    assert sampled.alone.token_ids.tolist() == [4, 3, 2]
    assert len(sampled.together) == 8
    lab.set("skips")
    with pytest.raises(PublicationError) as caught:
        await lab.killed(sample(engine, version=4))
    assert str(caught.value) == (
        "the vLLM server of the student was started again and does not sample from version 4: what "
        "it says of sampled tokens is 0.5 nats a token away from its own scores of them (tolerance "
        "0.001)"
    )


async def test_a_server_that_never_answers_is_ended_and_its_requests_are_sent_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_GRACE_S", 0.5)  # for the answer to an abort
    engine = await lab.start(request_timeout_s=1.0)
    (pid,) = lab.pids()
    lab.set("hangs")
    samples = [asyncio.create_task(sample(engine, session=str(n))) for n in range(5)]
    await until(lambda: pid not in lab.pids())
    lab.unset("hangs")
    for completion in await asyncio.gather(*samples):
        assert completion.token_ids.tolist() == [4, 3, 2]
    assert "does not sample one token within 1 s, after: engine.sample of session " in lab.said[0]
    assert len([line for line in lab.said if "It is started again" in line]) == 1


async def test_a_server_that_hangs_after_it_has_served_others_is_noticed_by_all_who_wait(
    lab: Lab,
) -> None:
    engine = await lab.start(request_timeout_s=1.0)
    (pid,) = lab.pids()
    lab.set("stuck")
    waiting = asyncio.create_task(engine.score(SCORING))
    await asyncio.sleep(0.3)
    await engine.score(OTHER)  # served after the other was sent
    lab.set("hangs")
    await until(lambda: pid not in lab.pids())
    lab.unset("hangs")
    lab.unset("stuck")
    assert len((await waiting).logprobs) == 1


async def test_a_log_probability_that_is_no_number_is_no_reason_to_look_after_the_server(
    lab: Lab,
) -> None:
    engine = await lab.start()
    lab.set("nan")
    with pytest.raises(EngineError, match=r"log-probability of token 1 is not finite"):
        await engine.score(SCORING)
    scored = [model for route, model in requests_of(lab.folder) if route == ROUTE]
    assert len(scored) == 1 + 2  # at the start; the compact route, which it has not; the long one
    assert lab.said == []


async def test_a_server_that_serves_others_meanwhile_is_not_ended_for_one_that_waits(
    lab: Lab,
) -> None:
    engine = await lab.start(request_timeout_s=1.0)
    pids = lab.pids()
    lab.set("stuck")
    waiting = asyncio.create_task(engine.score(SCORING))
    while not waiting.done():
        await engine.score(OTHER)
        await asyncio.sleep(0.05)
    with pytest.raises(DeadlineError, match="has waited 1 s"):
        await waiting
    assert lab.pids() == pids
    assert lab.said == []


async def test_a_server_that_answers_500_for_a_while_is_left_alone(lab: Lab) -> None:
    engine = await lab.start()
    pids, num = lab.pids(), len(requests_of(lab.folder))
    lab.set("status", "500")
    sampling = asyncio.create_task(sample(engine))
    await until(lambda: len(requests_of(lab.folder)) > num + 1)  # /v1/models, then the route
    lab.unset("status")
    assert (await sampling).token_ids.tolist() == [4, 3, 2]
    assert lab.pids() == pids
    assert lab.said == []


async def test_one_request_that_is_answered_500_each_time_does_not_end_the_server(
    lab: Lab,
) -> None:
    engine = await lab.start()
    pids = lab.pids()
    lab.set("status", "500")
    with pytest.raises(EngineError, match=rf"{ROUTE} answered 500: internal$"):
        await engine.score(SCORING)
    scored = [model for route, model in requests_of(lab.folder) if route == ROUTE]
    assert len(scored) == 1 + 3 + 1  # at the start, three attempts, one token to see that it lives
    assert lab.pids() == pids
    assert lab.said == []


async def test_the_third_death_without_a_finished_step_ends_the_run(lab: Lab) -> None:
    engine = await lab.start()
    for _ in range(2):
        await lab.killed(sample(engine))
    with pytest.raises(ServerError) as caught:
        await lab.killed(sample(engine))
    log = lab.folder / "student-0.log"
    assert str(caught.value) == (
        "vLLM servers ended 3 times without a finished step in between. The last time, the vLLM "
        f"server of the student has ended (killed by SIGKILL); {log} ends with:\n  (nothing)\n"
        "If memory ran out: lower engine.gpu_memory_utilization, or begin another run with a "
        "smaller rollout.max_context_window (--fresh). If requests take too long: raise "
        "engine.request_timeout_s. What is done is saved; the same command goes on"
    )
    with pytest.raises(ServerError):
        await sample(engine)


async def test_deaths_with_a_finished_step_in_between_are_survived(lab: Lab) -> None:
    engine = await lab.start()
    for _ in range(4):
        await lab.killed(sample(engine))
        lab.deaths.forget()


async def test_a_server_that_cannot_be_started_again_ends_the_run_with_its_last_words(
    lab: Lab,
) -> None:
    engine = await lab.start()
    lab.set("broken")
    with pytest.raises(ServerError, match="RuntimeError: this GPU has no memory left"):
        await lab.killed(sample(engine))
    assert len([line for line in lab.said if "It is started again" in line]) == 2


async def test_while_one_of_two_servers_is_started_again_the_other_serves(lab: Lab) -> None:
    engine = await lab.start(2)
    first, second = lab.pids()
    await asyncio.gather(*(sample(engine, session=str(n)) for n in range(4)))
    lab.set("broken")  # the dead one stays dead for now
    os.kill(second, signal.SIGKILL)
    await until(lambda: bool(lab.said))
    for number in range(4):
        assert (await sample(engine, session=str(number))).token_ids.tolist() == [4, 3, 2]
    assert first in lab.pids()


async def test_a_second_server_that_cannot_start_leaves_the_first_not_running(lab: Lab) -> None:
    settings = VllmServerSettings(
        role="student",
        model=lab.folder,
        log_file=lab.folder / "student.log",
        max_model_len=100,
        python=lab.python,
        dtype="auto",
        deterministic=False,
        start_timeout_s=900.0,
    )
    broken = replace(settings, python="/nowhere/python", log_file=lab.folder / "student-1.log")
    with pytest.raises(RnowError, match="/nowhere/python"):
        await ServedEngine.start(lab.spec(settings, broken), deaths=lab.deaths, say=lab.said.append)
    await until(lambda: lab.pids() == [])


async def test_why_a_server_refuses_its_first_request_is_read_in_its_log(lab: Lab) -> None:
    lab.set("lacking")
    with pytest.raises(EngineError) as caught:
        await lab.start()
    why = (
        f"POST unix:SOCKET{ROUTE} answered 500: See stack trace (above) for the root cause.; "
        f"{lab.folder}/student-0.log ends with:\n  RuntimeError: no kernel for heads of 16"
    )
    assert re.sub(r"unix:\S+/http", "unix:SOCKET", str(caught.value)) == (
        f"{why}\n(It was the second start; the first failed so: {why})"
    )
    await until(lambda: lab.pids() == [])


async def test_a_first_start_that_fails_is_tried_once_more(lab: Lab) -> None:
    lab.set("fails-once")
    engine = await lab.start()
    log = lab.folder / "student-0.log"
    assert lab.said == [
        f"the vLLM server of the student has ended (exit code 1); {log} ends with:\n"
        "  RuntimeError: this GPU has no memory left\nIt is started once more"
    ]
    assert (await sample(engine)).token_ids.tolist() == [4, 3, 2]


async def test_a_start_that_fails_twice_says_both(lab: Lab) -> None:
    lab.set("broken")
    with pytest.raises(EngineError) as caught:
        await lab.start()
    log = lab.folder / "student-0.log"
    assert str(caught.value) == (
        f"the vLLM server of the student has ended (exit code 1); {log} ends with:\n"
        "  RuntimeError: this GPU has no memory left\n"
        "(It was the second start; the first failed in the same way)"
    )


async def test_one_server_of_a_role_starts_before_the_others(lab: Lab) -> None:
    events: list[str] = []

    async def starter(settings: VllmServerSettings, **more: Any) -> Server:
        events.append(f"begin {settings.log_file.stem}")
        server = await start_here(settings, **more)
        events.append(f"serves {settings.log_file.stem}")
        return server

    await lab.start(3, starter=starter)
    assert events[:4] == [
        "begin student-0",
        "serves student-0",
        "begin student-1",
        "begin student-2",
    ]


async def test_a_server_listens_where_no_other_user_comes_and_leaves_nothing(lab: Lab) -> None:
    engine = await lab.start()
    (folder,) = {Path(word).parent for word in lab.command_line() if word.endswith("/http")}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "http").is_socket()
    await engine.aclose()
    assert not folder.exists()


async def test_how_a_teacher_scores_is_found_out_and_said_at_its_start(lab: Lab) -> None:
    await lab.start(2, role="teacher")
    assert lab.said == [
        "the vLLM server of the teacher gives log-probabilities as an object for each token, not "
        "as one array: this build has no compact scoring"
    ]


async def test_closing_ends_every_server(lab: Lab) -> None:
    engine = await lab.start(2)
    groups = [os.getpgid(pid) for pid in lab.pids()]
    async with asyncio.timeout(PATIENCE_S):
        await engine.aclose()
    # A server has ended; its guardian, which was told to, may still have its last instant.
    await until(lambda: not any(alive_in_group(group) for group in groups))


def test_servers_behind_tunnels_are_one_engine(rnow: ForkedCli, tmp_path: Path) -> None:
    """As `ssh -N -L 8001:127.0.0.1:8000 gpu-1` makes them: ports of this machine's loopback."""
    project = tmp_path / "clinic"
    init_project(project, template="clinic")
    servers = [FakeVllm(), FakeVllm()]
    for server in servers:
        server.max_model_len = 100_000
    with serve_beside(servers[0]) as first, serve_beside(servers[1]) as second:
        done = rnow(
            *("eval", project, "--model", "base", "--max-samples", "6", "rollout.max_turns=1"),
            f"engine.url=[{first.url}, {second.url}]",
        )
    assert done.status == 0, done.output
    assert f"student: a server of your own ({first.url}, {second.url})" in done.output
    numbers = [len(server.bodies("/inference/v1/generate")) for server in servers]
    assert sum(numbers) == 6
    assert min(numbers) >= 1


async def test_whoever_waits_for_a_server_that_starts_again_has_a_limit_with_a_name(
    lab: Lab,
) -> None:
    starts = 0

    async def start(settings: VllmServerSettings, **more: Any) -> Server:
        nonlocal starts
        starts += 1
        if starts > 1:
            await asyncio.Event().wait()
        return await start_here(settings, **more)

    engine = await lab.start(starter=start)
    engine._again_limit_s = 0.2
    os.kill(lab.pids()[-1], signal.SIGKILL)
    await until(lambda: starts == 2)
    with pytest.raises(DeadlineError) as late:
        await sample(engine)
    assert str(late.value) == "engine: the new start of a server of the student has waited 0.2 s"
