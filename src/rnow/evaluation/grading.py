"""Answers to correct or not, by rules alone: no model, no network, the same verdict every time.

A question asks for a labelled line (`INGREDIENT: name`). The value of the answer's last such line
is compared with the expected one by the rule of its task:

    task                          label        equal when
    ingredient                    INGREDIENT   same ingredients once salts are stripped
    company, applicant_full_name  COMPANY      same words once legal forms and spellings are
    patent_expire_date_text       DATE         same year
    date, exclusivity_date        DATE         same day
    open_on_approval              PRICE        within 1 % of the expected price
    any other                     none         same text, case and spaces apart

An answer of "NA" equals an expected one of NA, Not_Listed, none, whatever the task. A value that
does not parse is wrong, never nearly right. What is not done here: judging prose; an answer without
its labelled line counts as wrong, and `format_ok` says why.
"""

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from rnow.medbrowse.answer_values import (
    normalize_company,
    normalize_ingredient,
    normalize_text,
    parse_day,
    parse_price,
    parse_year,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The verdict on one answer. Grade(correct=True, extracted="Imatinib", format_ok=True)"""

    correct: bool
    extracted: str | None  # the value that was compared; None: the answer has no labelled line
    format_ok: bool  # the labelled line is there


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantAnswer:
    """The one answer that would be right most often, were it given to every question of a task."""

    answer: str
    num_correct: int
    num: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a task is graded: the labels of its line, and when two values are the same."""

    labels: tuple[str, ...]
    same: Callable[[str, str], bool]  # (expected, answered)


def grade(task_name: str, expected: str, answer_text: str) -> Grade:
    """Compare the model's answer with the expected value.

    `answer_text` may be a turn as it was decoded: thinking and the end-of-turn token are left out.
    """
    rule = _RULES.get(normalize_task_name(task_name))
    text = re.sub(r"(<\|\w+\|>\s*)+$", "", answer_text.rpartition("</think>")[2])
    if rule is None:
        extracted = text.strip()
        same = normalize_text(extracted) == normalize_text(expected)
        return Grade(correct=same, extracted=extracted or None, format_ok=bool(extracted))
    value = _labelled_value(text, rule.labels)
    if value is None:
        return Grade(correct=False, extracted=None, format_ok=False)
    return Grade(correct=_same(rule, expected, value), extracted=value, format_ok=True)


def normalize_task_name(label: str) -> str:
    """Return the one name of a task: published labels vary between splits, in case and suffix.

    >>> normalize_task_name("Applicant_Full_Name_prompt")
    'applicant_full_name'
    """
    words = re.findall(r"[a-z0-9]+", label.casefold())
    return "_".join(words[:-1] if words[-1:] in (["prompt"], ["prompts"]) else words)


def is_not_available(value: str) -> bool:
    """Say whether an expected value means that there is none. Such rows are counted apart."""
    return normalize_text(value).replace("_", " ").strip(" .") in _NOT_AVAILABLE


def best_constants(rows: Iterable[tuple[str, str]]) -> Mapping[str, ConstantAnswer]:
    """Return for each task of `rows` (task name, expected value) its best constant answer.

    A constant answer needs no browsing and no model, so it is the floor that a result must beat.
    """
    expected_of: dict[str, list[str]] = {}
    for task_name, expected in rows:
        expected_of.setdefault(normalize_task_name(task_name), []).append(expected)
    return {task: _best_constant(task, values) for task, values in sorted(expected_of.items())}


def constant_answer_accuracy(rows: Iterable[tuple[str, str]]) -> float:
    """Return the share of `rows` that the best constant answer of each task gets right."""
    constants = best_constants(rows).values()
    num = sum(constant.num for constant in constants)
    if num == 0:
        raise ValueError("there is no accuracy of no questions")
    return sum(constant.num_correct for constant in constants) / num


def wilson_interval(num_correct: float, num: int, *, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share, by default at 95 %.

    Unlike share ± z·σ it stays within 0 and 1, and is honest at 0 of 30 and 30 of 30.
    """
    if not 0 <= num_correct <= num or num == 0:
        raise ValueError(f"{num_correct} correct of {num} is not a share")
    share, spread = num_correct / num, z * z / num
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / num + spread / (4 * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def _same(rule: _Rule, expected: str, answered: str) -> bool:
    if is_not_available(expected) or is_not_available(answered):
        return is_not_available(expected) and is_not_available(answered)
    return rule.same(expected, answered)


def _best_constant(task: str, values: list[str]) -> ConstantAnswer:
    rule = _RULES.get(task, _Rule((), _equal_by(normalize_text)))
    candidates = dict.fromkeys(values)  # in order of appearance, so that a tie is always the same
    hits = {
        candidate: sum(_same(rule, expected, candidate) for expected in values)
        for candidate in candidates
    }
    answer = max(hits, key=lambda candidate: hits[candidate])
    return ConstantAnswer(answer=answer, num_correct=hits[answer], num=len(values))


def _labelled_value(text: str, labels: tuple[str, ...]) -> str | None:
    """Return what follows the last `LABEL:`, to the end of its line; markdown marks are dropped."""
    label = "|".join(re.escape(name).replace(r"\ ", r"[ _]") for name in labels)
    marks = " \t*_`\"'"
    found = re.findall(rf"(?i)(?<!\w)(?:{label})[*_` ]*:[*_` ]*(.*)", text)
    values = [value.lstrip(marks).rstrip(marks + ".") for value in found]
    return next((value for value in reversed(values) if value), None)


def _equal_by(parse: Callable[[str], Hashable]) -> Callable[[str, str], bool]:
    """Compare what `parse` makes of two texts; what it makes nothing of is equal to nothing."""

    def same(expected: str, answered: str) -> bool:
        wanted = parse(expected)
        return bool(wanted) and wanted == parse(answered)

    return same


def _same_price(expected: str, answered: str) -> bool:
    wanted, given = parse_price(expected), parse_price(answered)
    if wanted is None or given is None:
        return False
    # The slack is far below a cent: it lets 101 stand for 100 in spite of binary fractions.
    return abs(given - wanted) <= 0.01 * wanted + 1e-9


_NOT_AVAILABLE = (
    "na",
    "n/a",
    "none",
    "null",
    "not available",
    "not applicable",
    "not listed",
)

_INGREDIENT = _Rule(("ingredient",), _equal_by(normalize_ingredient))
_COMPANY = _Rule(("company",), _equal_by(normalize_company))
_DAY = _Rule(("date",), _equal_by(parse_day))

_RULES: Mapping[str, _Rule] = {
    "ingredient": _INGREDIENT,
    "company": _COMPANY,
    "applicant_full_name": _COMPANY,
    "patent_expire_date_text": _Rule(("date",), _equal_by(parse_year)),
    "date": _DAY,
    "exclusivity_date": _DAY,
    "open_on_approval": _Rule(("price", "opening price", "open price", "open"), _same_price),
}
