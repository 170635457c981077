"""Nine bad runs, each with its very sentence, and ten good ones without any.

The files are what short runs of the demo wrote: a config, two lines of metrics. The bad ones were
made with a tools.py that raises, a teacher of other weights, a rate of 0.04, and so on:
bench/make_diagnoses.py makes them anew.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from rnow.commands.status import describe_runs
from rnow.reports.diagnoses import RULES, diagnose
from rnow.reports.evidence import Evidence
from rnow.runs.folder import RunDirectory

RUNS = Path(__file__).parents[2] / "fixtures" / "diagnoses"
GOOD = (
    "all_weights",
    "another_seed",
    "as_it_is",
    "discounted",
    "half_the_penalty",
    "high_rate",
    "importance_sampling",
    "low_rate",
    "one_rollout",
    "short_window",
)
SENTENCES = {
    "no_signal": (
        "algorithm.kl_penalty_coef is 0: the gap to the teacher is the only signal in "
        "distillation, so nothing is learned; set it to 1"
    ),
    "template": (
        "the teacher's chat template is not the student's; the student's is used for both. "
        "Line 6 is 'ovided with function signatures within <tools></tools> XML "
        "tags:\\\\n<tools>\" }}' in the student's, 'ovided with function signatures within "
        "<functions></tools> XML tags:\\\\n<functions' in the teacher's. The teacher judges "
        "words that it was not trained on; give both models one chat_template.jinja, or take "
        "a teacher of the student's own series"
    ),
    "family": (
        "the teacher is of another family (qwen2; the student: qwen3), and from the first "
        "step on they are 9.51 nats a token apart; take a teacher of the student's own "
        "family, trained on the same chat format"
    ),
    "tool_fails": (
        "16 of 16 tool calls failed in the tool itself, so the student learns to work without"
        " an answer; read logs/tools.log, and try the tool with rnow test"
    ),
    "pages_fail": (
        "16 of 16 reads gave no page, most of them host_not_allowed; try the address with "
        "rnow browse, and see browser.allow_hosts and docs/browsing.md"
    ),
    "no_calls": (
        "rollout.max_turns is 4, and not one tool was called: the student does not know the "
        "tools' format, or the entries name no tools; look at a transcript, and let the "
        "prompts say when to call"
    ),
    "cut": (
        "100% of the last step's rollouts were cut before their end, most of them by "
        "rollout.max_tokens (8): no answer is learned from these; raise it"
    ),
    "too_fast": (
        "trainer.learning_rate 0.04 is far too high: reverse_kl rose from 0.594 to 7.406, the"
        " student has come apart; begin again with --fresh at 0.0004"
    ),
    "no_better": (
        "the teacher is no better than the student: at the first step the two are 0.0000 (0.0000 "
        "to 0.0000 at 95 %) nats a token apart, so there is nothing to learn from it; take a "
        "larger or a trained teacher, and compare both with rnow eval"
    ),
    "no_better_other": (
        "the teacher is no better than the student: by the 64 graded rollouts of the first step, "
        "each weighed by how likely the teacher finds it, its share of right answers is the "
        "student's plus -0.095 (-0.134 to -0.057 at 95 %); take a larger or a trained teacher, and "
        "compare both with rnow eval"
    ),
    "copies": (
        "8 of 8 rollouts of the last step write out a hint that they were not shown, ten words in "
        "a row of their entry's metadata: the student knows it by heart, or imitates a teacher "
        "that sees it; take it out of the entries, or train fewer steps"
    ),
}
RULE_OF = {"no_better_other": "no_better"}  # of the others it has the file's name


def read(name: str) -> Evidence:
    return Evidence(**json.loads((RUNS / f"{name}.json").read_text(encoding="utf-8")))


def test_every_rule_has_its_run() -> None:
    assert SENTENCES.keys() == RULES.keys() | RULE_OF.keys()
    assert {path.stem for path in RUNS.iterdir()} == SENTENCES.keys() | set(GOOD)


@pytest.mark.parametrize("name", SENTENCES)
def test_a_bad_run_gets_its_sentence_and_no_other(name: str) -> None:
    rule = RULE_OF.get(name, name)
    assert [(one.name, one.sentence) for one in diagnose(read(name))] == [(rule, SENTENCES[name])]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_run_gets_none(name: str) -> None:
    assert diagnose(read(name)) == []


@pytest.mark.parametrize("name", SENTENCES)
def test_one_step_is_enough(name: str) -> None:
    run = read(name)
    found = diagnose(dataclasses.replace(run, metrics=run.metrics[:1]))
    assert [one.name for one in found] == [RULE_OF.get(name, name)]


def test_before_the_first_step_nothing_is_said() -> None:
    assert diagnose(dataclasses.replace(read("no_signal"), metrics=())) == []


def test_a_step_that_was_skipped_has_no_gap_to_judge() -> None:
    run = read("no_better")
    bare = {key: value for key, value in run.metrics[0].items() if "reverse_kl" not in key}
    assert diagnose(dataclasses.replace(run, metrics=(bare, *run.metrics[1:]))) == []


def test_a_rate_of_a_hundredth_that_took_it_apart_is_told_by_the_gap() -> None:
    run = read("as_it_is")
    lines = ({**run.metrics[0], "reverse_kl": 0.5}, {**run.metrics[1], "reverse_kl": 2.5})
    (found,) = diagnose(dataclasses.replace(run, metrics=lines))
    assert found.sentence == (
        "trainer.learning_rate 0.0004 is far too high: reverse_kl rose from 0.500 to 2.500, the "
        "student has come apart; begin again with --fresh at 4e-05"
    )


def test_status_tells_of_what_is_wrong(tmp_path: Path) -> None:
    bad = read("no_signal")
    run = RunDirectory(tmp_path / "runs" / "bad")
    run.open()
    run.write_config(bad.config)
    run.write_state(step=2, num_steps=2, finished=True)
    for line in bad.metrics:
        run.append_metrics(line)
    run.close()
    assert describe_runs(tmp_path) == [
        f"{run.path}: finished after 2 steps; its model is in {run.model}",
        f"  wrong: {SENTENCES['no_signal']}",
    ]
