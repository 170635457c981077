"""What in a run's numbers should make its owner look. Pure: lines of metrics.jsonl in, text out.

A collapse shows in length and format before it shows in accuracy: rollouts grow to several times
their length, calls stop parsing, the gap to the teacher stops falling.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

Line = Mapping[str, float]

WINDOW = 3  # steps averaged at each end
MIN_STEPS_FOR_KL = 10
SHARE_FAILED = 0.9  # of a run's calls
MIN_CALLS = 8


def alarms(history: Sequence[Line]) -> dict[str, str]:
    """Return what is alarming about the last step, as {name: sentence}."""
    found: dict[str, str] = {}
    # A step whose numbers were not finite was skipped and has none to look at.
    history = [line for line in history if not line.get("trainer/skipped")]
    if not history:
        return found
    last = history[-1]
    for name, sentence in (("tools", failing_tools(history)), ("pages", failing_pages(history))):
        if sentence is not None:
            found[name] = sentence
    if last["tokens/drift"] > 0:
        found["drift"] = (
            f"tokens/drift is {last['tokens/drift']:.0f}: the engine did not receive the ids of "
            "the ledger; nothing learned from such a step can be trusted"
        )
    if last["mismatch_kl"] > 0.015:
        found["mismatch"] = (
            f"mismatch_kl is {last['mismatch_kl']:.3g} (healthy: below 0.01): engine and trainer "
            "disagree about the same weights; compare their dtypes"
        )
    if len(history) < 2 * WINDOW:
        return found
    length_before, length_now = _ends(history, "rollout/action_tokens")
    if length_now > 1.8 * length_before:
        found["length"] = (
            f"rollouts grew from {length_before:.0f} to {length_now:.0f} sampled tokens: the "
            "student may be collapsing; lower trainer.learning_rate"
        )
    if last.get("tool/offered") and not any(line["tool/calls"] for line in history[-2 * WINDOW :]):
        found["calls"] = (
            f"no tool was called in {2 * WINDOW} steps (offered: {last['tool/offered']:.0f}): "
            "the student does not write calls as its chat template does, or does not "
            "want to; look at the transcripts"
        )
    calls = max(1.0, last["tool/calls"])
    if last["tool/calls"] and last["tool/model_error"] / calls > 0.3:
        found["format"] = (
            f"{last['tool/model_error']:.0f} of {last['tool/calls']:.0f} tool calls were malformed "
            "or had wrong arguments; look at the transcripts"
        )
    if len(history) >= MIN_STEPS_FOR_KL:
        kl_before, kl_now = _ends(history, "reverse_kl")
        if kl_now >= kl_before > 0:
            found["reverse_kl"] = (
                f"reverse_kl does not fall: {kl_before:.3f} at first, {kl_now:.3f} now; compare "
                "the chat templates of student and teacher, then trainer.learning_rate"
            )
    return found


def failing_tools(history: Sequence[Line]) -> str | None:
    """Return what to say where nearly all calls of a run failed in the tool; None: nothing."""
    failed = total(history, "tool/error") + total(history, "tool/timeout")
    calls = failed + total(history, "tool/ok")  # malformed ones never came to the tool
    if calls < MIN_CALLS or failed / calls < SHARE_FAILED:
        return None
    return (
        f"{failed:.0f} of {calls:.0f} tool calls failed in the tool itself, so the student learns "
        "to work without an answer; read logs/tools.log, and try the tool with rnow test"
    )


def failing_pages(history: Sequence[Line]) -> str | None:
    """Return what to say where nearly all reads of a run gave no page; None: nothing."""
    pages = sum(total(history, f"browser/{name}") for name in ("fetched", "stored", "shared"))
    errors: dict[str, float] = defaultdict(float)
    for line in history:
        for name, count in line.items():
            if name.startswith("browser/error_"):
                errors[name.removeprefix("browser/error_")] += count
    failed = sum(errors.values())
    if failed < MIN_CALLS or failed / (failed + pages) < SHARE_FAILED:
        return None
    code = max(errors, key=lambda name: errors[name])
    return (
        f"{failed:.0f} of {failed + pages:.0f} reads gave no page, most of them {code}; try the "
        "address with rnow browse, and see browser.allow_hosts and docs/browsing.md"
    )


def total(history: Sequence[Line], name: str) -> float:
    """Return the sum of what has that name in all steps."""
    return float(sum(line.get(name, 0) for line in history))


def _ends(history: Sequence[Line], name: str) -> tuple[float, float]:
    first = [line[name] for line in history[:WINDOW]]
    last = [line[name] for line in history[-WINDOW:]]
    return sum(first) / len(first), sum(last) / len(last)
