from rnow.training.alarms import alarms

HEALTHY = {
    "tokens/drift": 0,
    "mismatch_kl": 1e-6,
    "rollout/action_tokens": 50.0,
    "tool/calls": 100,
    "tool/model_error": 2,
}


def history(num_steps: int, **last: float) -> list[dict[str, float]]:
    """A healthy run whose gap falls; `last` (slashes as __) overrides its last three steps."""
    lines = [{**HEALTHY, "reverse_kl": 1.0 - 0.05 * step} for step in range(num_steps)]
    changed = {name.replace("__", "/"): value for name, value in last.items()}
    return lines[:-3] + [{**line, **changed} for line in lines[-3:]]


def test_a_healthy_run_alarms_nobody() -> None:
    assert alarms(history(12)) == {}
    assert alarms([]) == {}


def test_rollouts_that_grow_to_twice_their_length_are_an_alarm() -> None:
    assert alarms(history(12, rollout__action_tokens=138.0)) == {
        "length": "rollouts grew from 50 to 138 sampled tokens: the student may be collapsing; "
        "lower trainer.learning_rate"
    }


def test_malformed_tool_calls_are_an_alarm() -> None:
    assert alarms(history(12, tool__model_error=31)) == {
        "format": "31 of 100 tool calls were malformed or had wrong arguments; look at the "
        "transcripts"
    }


def test_tools_that_fail_are_an_alarm_from_the_first_step_on() -> None:
    failing = {**HEALTHY, "reverse_kl": 1.0, "tool/error": 50, "tool/timeout": 4, "tool/ok": 2}
    assert alarms([failing]) == {
        "tools": "54 of 56 tool calls failed in the tool itself, so the student learns to work "
        "without an answer; read logs/tools.log, and try the tool with rnow test"
    }
    assert alarms([{**failing, "tool/ok": 7}]) == {}
    assert alarms([{**failing, "tool/error": 1, "tool/ok": 0}]) == {}  # too few to say


def test_pages_that_fail_are_an_alarm_from_the_first_step_on() -> None:
    line = {
        **HEALTHY,
        "reverse_kl": 1.0,
        "browser/error_http_status": 8,
        "browser/error_timeout": 3,
    }
    assert alarms([line]) == {
        "pages": "11 of 11 reads gave no page, most of them http_status; try the address with "
        "rnow browse, and see browser.allow_hosts and docs/browsing.md"
    }


def test_tools_that_nobody_calls_are_an_alarm() -> None:
    silent = [{**line, "tool/calls": 0, "tool/model_error": 0} for line in history(6)]
    assert alarms([{**line, "tool/offered": 2} for line in silent]) == {
        "calls": "no tool was called in 6 steps (offered: 2): the student does not write "
        "calls as its chat template does, or does not want to; look at the transcripts"
    }
    assert alarms([{**line, "tool/offered": 0} for line in silent]) == {}
    called = [{**line, "tool/offered": 2} for line in (*history(1), *silent[1:])]
    assert alarms(called) == {}


def test_a_gap_that_does_not_fall_is_an_alarm() -> None:
    assert alarms(history(12, reverse_kl=1.1)) == {
        "reverse_kl": "reverse_kl does not fall: 0.950 at first, 1.100 now; compare the chat "
        "templates of student and teacher, then trainer.learning_rate"
    }
    assert alarms(history(9, reverse_kl=1.1)) == {}


def test_drift_and_mismatch_are_alarms_from_the_first_step() -> None:
    lines = [{**HEALTHY, "reverse_kl": 1.0, "tokens/drift": 3, "mismatch_kl": 0.02}]
    assert sorted(alarms(lines)) == ["drift", "mismatch"]
