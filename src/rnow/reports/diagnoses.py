"""What is wrong with a run, why, and what to do: prepared sentences. Pure.

Each judges a run by its own lines alone and says nothing where it cannot know: an unusual run is no
bad one. One function a fault, and a row of RULES; what must hold at once (ids, dtypes) is
rnow.training.alarms' business, which speaks while the run goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rnow.reports.evidence import Evidence, Line
from rnow.training.alarms import MIN_CALLS, failing_pages, failing_tools, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Diagnosis(name="no_signal", sentence="algorithm.kl_penalty_coef is 0: …")"""

    name: str
    sentence: str


FAR_APART = 2.0  # nats a token at the first step; a student that can learn is below 1
SAME = 1e-3  # nats a token at the first step, the end of its interval
NO_MORE = 0.01  # of the answers: a teacher that is right so much more often is no better
MIN_COPIED = 0.1  # of a step's rollouts
SHARE_CUT = 0.3  # of a step's rollouts
BLOWN_UP = 3.0  # times the reverse KL of the first step
TOO_HIGH = 0.01  # learning rate; the default is a hundredth of it


def diagnose(evidence: Evidence) -> list[Diagnosis]:
    """Return what is wrong, the gravest first; nothing where no step was finished."""
    if not evidence.metrics:
        return []
    found = ((name, rule(evidence)) for name, rule in RULES.items())
    return [Diagnosis(name=name, sentence=text) for name, text in found if text is not None]


def _no_signal(run: Evidence) -> str | None:
    if run.setting("dataset_type") != "distill" or run.setting("algorithm.kl_penalty_coef") != 0:
        return None
    return (
        "algorithm.kl_penalty_coef is 0: the gap to the teacher is the only signal in "
        "distillation, so nothing is learned; set it to 1"
    )


def _template(run: Evidence) -> str | None:
    return run.template_difference and (
        f"{run.template_difference}. The teacher judges words that it was not trained on; give "
        "both models one chat_template.jinja, or take a teacher of the student's own series"
    )


def _family(run: Evidence) -> str | None:
    families, gap = run.families, _first_gap(run)
    if families is None or families[0] == families[1] or gap is None or gap < FAR_APART:
        return None
    return (
        f"the teacher is of another family ({families[1]}; the student: {families[0]}), and from "
        f"the first step on they are {gap:.2f} nats a token apart; take a teacher of the student's "
        "own family, trained on the same chat format"
    )


def _no_calls(run: Evidence) -> str | None:
    turns = run.setting("rollout.max_turns") or 1
    if _cut(run) is not None:  # what is cut cannot call
        return None
    if (
        turns == 1
        or total(run.metrics, "rollout/trajectories") < MIN_CALLS
        or total(run.metrics, "tool/calls")
    ):
        return None
    return (
        f"rollout.max_turns is {turns}, and not one tool was called: the student does not know the "
        "tools' format, or the entries name no tools; look at a transcript, and let the prompts "
        "say when to call"
    )


def _cut(run: Evidence) -> str | None:
    last = run.metrics[-1]
    ends = {key: last.get(f"rollout/end_{end}", 0) for end, key in _CUTS.items()}
    key = max(ends, key=lambda name: ends[name])
    share = sum(ends.values()) / max(1, last.get("rollout/trajectories", 0))
    if share <= SHARE_CUT:
        return None
    return (
        f"{share:.0%} of the last step's rollouts were cut before their end, most of them by {key} "
        f"({run.setting(key)}): no answer is learned from these; raise it"
    )


def _too_fast(run: Evidence) -> str | None:
    lines = [line for line in run.metrics if "reverse_kl" in line]
    rate = run.setting("trainer.learning_rate")
    if not lines or rate is None:
        return None
    first, last = lines[0]["reverse_kl"], lines[-1]["reverse_kl"]
    if _first_gap(run) is not None and last > BLOWN_UP * max(first, 0.1):
        what = f"reverse_kl rose from {first:.3f} to {last:.3f}, the student has come apart"
    elif rate >= TOO_HIGH:
        what = f"AdamW takes a LoRA adapter or a model apart from about {TOO_HIGH:g} on"
    else:
        return None
    return (
        f"trainer.learning_rate {rate:g} is far too high: {what}; begin again with --fresh at "
        f"{min(rate / 100, TOO_HIGH / 10) if rate >= TOO_HIGH else rate / 10:g}"
    )


def _no_better(run: Evidence) -> str | None:
    gap, first = _first_gap(run), run.metrics[0]
    # Of the few tokens before a cut, two models often think alike.
    if gap is None or _cut(run) is not None:
        return None
    within, gain = first.get("reverse_kl/within"), first.get("teacher/gain")
    if within is not None and abs(gap) + within < SAME:
        found = (
            f"at the first step the two are {_interval(abs(gap), within, 4)} nats a token apart, "
            "so there is nothing to learn from it"
        )
    elif gain is not None and gain + first["teacher/gain_within"] < NO_MORE:
        found = (
            f"by the {first['rollout/graded']:.0f} graded rollouts of the first step, each weighed "
            "by how likely the teacher finds it, its share of right answers is the student's "
            f"plus {_interval(gain, first['teacher/gain_within'], 3)}"
        )
    else:
        return None
    return (
        f"the teacher is no better than the student: {found}; take a larger or a trained teacher, "
        "and compare both with rnow eval"
    )


def _copies(run: Evidence) -> str | None:
    last = run.metrics[-1]
    copied, num = last.get("rollout/copied", 0), last.get("rollout/trajectories", 0)
    if copied < max(2, MIN_COPIED * num):
        return None
    return (
        f"{copied:.0f} of {num:.0f} rollouts of the last step write out a hint that they were not "
        "shown, ten words in a row of their entry's metadata: the student knows it by heart, or "
        "imitates a teacher that sees it; take it out of the entries, or train fewer steps"
    )


def _interval(value: float, within: float, digits: int) -> str:
    low, high = value - within, value + within
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f} at 95 %)"


RULES: dict[str, Callable[[Evidence], str | None]] = {
    "no_signal": _no_signal,
    "template": _template,
    "family": _family,
    # Said by the run itself, too.
    "tool_fails": lambda run: failing_tools(run.metrics),
    "pages_fail": lambda run: failing_pages(run.metrics),
    "no_calls": _no_calls,
    "cut": _cut,
    "too_fast": _too_fast,
    "no_better": _no_better,
    "copies": _copies,
}
_CUTS = {"max_tokens": "rollout.max_tokens", "context_full": "rollout.max_context_window"}


def _first_gap(run: Evidence) -> float | None:
    first: Line = run.metrics[0]
    gap = first.get("reverse_kl") if first.get("step") == 0 else None
    return None if gap is None else float(gap)
