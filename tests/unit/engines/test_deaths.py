import pytest

from rnow.engines.vllm.deaths import Deaths
from rnow.errors import ServerError


def test_the_third_death_says_what_to_try_and_in_a_run_that_it_can_go_on() -> None:
    messages = []
    for in_run in (True, False):
        deaths = Deaths(in_run=in_run)
        deaths.count("it was {killed}")
        deaths.count("it was {killed}")
        with pytest.raises(ServerError) as caught:
            deaths.count("it was {killed}")
        messages.append(str(caught.value))
    assert messages == [
        "vLLM servers ended 3 times without a finished step in between. The last time, it was "
        "{killed}\nIf memory ran out: lower engine.gpu_memory_utilization, or begin another run "
        "with a smaller rollout.max_context_window (--fresh). If requests take too long: raise "
        "engine.request_timeout_s. What is done is saved; the same command goes on",
        "vLLM servers ended 3 times. The last time, it was {killed}\nIf memory ran out: lower "
        "engine.gpu_memory_utilization or rollout.max_context_window. If "
        "requests take too long: raise engine.request_timeout_s",
    ]


def test_a_finished_step_forgets_the_deaths_before_it() -> None:
    deaths = Deaths()
    for _ in range(3):
        deaths.count("it was killed")
        deaths.count("it was killed")
        deaths.forget()
