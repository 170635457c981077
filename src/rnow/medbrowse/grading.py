"""The grader `medbrowse`: each task of the benchmark has its line, and a rule for its values.

    task                          label        equal when
    ingredient                    INGREDIENT   same ingredients once salts are stripped
    company, applicant_full_name  COMPANY      same words once legal forms and spellings are
    patent_expire_date_text       DATE         same year
    date, exclusivity_date        DATE         same day
    open_on_approval              PRICE        within 1 % of the expected price
    any other                     none         same text, case and spaces apart

An answer of "NA" equals an expected one of NA, Not_Listed, none in all tasks that have a label. A
value that does not parse is wrong, never nearly right.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from rnow.core import grader, is_not_available, labelled_line, same_text
from rnow.medbrowse.answer_values import (
    normalize_company,
    normalize_ingredient,
    parse_day,
    parse_price,
    parse_year,
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a task is graded: the labels of its line, and when two values are the same."""

    labels: tuple[str, ...]
    same: Callable[[str, str], bool]  # (expected, answered)


def _value(answer: str, metadata: Mapping[str, Any]) -> str | None:
    rule = _rule_of(metadata)
    return answer if rule is None else labelled_line(answer, *rule.labels)


@grader(extract=_value)
def medbrowse(expected: str, answered: str, metadata: Mapping[str, Any]) -> bool:
    """Compare two values by the rule of `metadata.task_name`."""
    rule = _rule_of(metadata)
    if rule is None:
        return same_text(expected, answered)
    if is_not_available(expected) or is_not_available(answered):
        return is_not_available(expected) and is_not_available(answered)
    return rule.same(expected, answered)


def normalize_task_name(label: str) -> str:
    """Return the one name of a task: published labels vary between splits, in case and suffix.

    >>> normalize_task_name("Applicant_Full_Name_prompt")
    'applicant_full_name'
    """
    words = re.findall(r"[a-z0-9]+", label.casefold())
    return "_".join(words[:-1] if words[-1:] in (["prompt"], ["prompts"]) else words)


def _rule_of(metadata: Mapping[str, Any]) -> _Rule | None:
    return _RULES.get(normalize_task_name(str(metadata.get("task_name", ""))))


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
