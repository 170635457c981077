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
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "ConstantAnswer",
    "Grade",
    "best_constants",
    "constant_answer_accuracy",
    "grade",
    "is_not_available",
    "normalize_company",
    "normalize_ingredient",
    "normalize_task_name",
    "wilson_interval",
]


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
    """How a task is graded: its labels, and what two equal values have in common."""

    labels: tuple[str, ...]
    key: Callable[[str], Hashable | None]  # None: the value does not parse
    equal: Callable[[Hashable, Hashable], bool] = lambda expected, answered: expected == answered


def grade(task_name: str, expected: str, answer_text: str) -> Grade:
    """Compare the model's answer (thinking included or not) with the expected value."""
    rule = _RULES.get(normalize_task_name(task_name))
    text = answer_text.rpartition("</think>")[2]
    if rule is None:
        extracted = text.strip()
        same = _plain(extracted) == _plain(expected)
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
    return _plain(value).replace("_", " ").strip(" .") in _NOT_AVAILABLE


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


def wilson_interval(num_correct: int, num: int, *, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share, by default at 95 %.

    Unlike share ± z·σ it stays within 0 and 1, and is honest at 0 of 30 and 30 of 30.
    """
    if not 0 <= num_correct <= num or num == 0:
        raise ValueError(f"{num_correct} correct of {num} is not a share")
    share, spread = num_correct / num, z * z / num
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / num + spread / (4 * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def normalize_ingredient(text: str) -> tuple[str, ...]:
    """Return the ingredients in `text`, sorted, without salts, case and bracketed remarks.

    >>> normalize_ingredient("Imatinib Mesylate (Gleevec)")
    ('imatinib',)
    """
    parts = re.split(r"\s*(?:[;,/+&]|\band\b)\s*", _without_brackets(_fold(text)))
    return tuple(sorted({_without_salts(part) for part in parts} - {""}))


def normalize_company(text: str) -> tuple[str, ...]:
    """Return the words of a company's name that tell it from others.

    >>> normalize_company("The Velora Pharms, Inc.")
    ('velora', 'pharmaceuticals')
    """
    spelled = re.sub(r"[.'’]", "", _without_brackets(_fold(text)))
    words = [_COMPANY_SPELLINGS.get(word, word) for word in re.findall(r"\w+|&", spelled)]
    if words[:1] == ["the"]:
        words = words[1:]
    while len(words) > 1 and words[-1] in _LEGAL_FORMS:
        words = words[:-1]
    return tuple(words)


def _same(rule: _Rule, expected: str, answered: str) -> bool:
    if is_not_available(expected) or is_not_available(answered):
        return is_not_available(expected) and is_not_available(answered)
    wanted, given = rule.key(expected), rule.key(answered)
    return wanted is not None and given is not None and rule.equal(wanted, given)


def _best_constant(task: str, values: list[str]) -> ConstantAnswer:
    rule = _RULES.get(task, _Rule((), _plain))
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
    found = re.findall(rf"(?i)(?<!\w)(?:{label})[*_` ]*:[*_` ]*(.*)", text)
    values = [value.strip(" \t*_`\"'").rstrip(".") for value in found]
    return next((value for value in reversed(values) if value), None)


def _fold(text: str) -> str:
    """Return `text` in lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _plain(text: str) -> str:
    return " ".join(_fold(text).split())


def _without_brackets(text: str) -> str:
    return re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)


def _without_salts(ingredient: str) -> str:
    words = re.findall(r"\w+", ingredient)
    # Where nothing but salt words is left (sodium chloride), the salt is the ingredient.
    return " ".join([word for word in words if word not in _SALTS] or words)


def _year(text: str) -> Hashable | None:
    years = set(re.findall(r"(?<!\d)(?:19|20|21)\d\d(?!\d)", text))
    return years.pop() if len(years) == 1 else None


def _day(text: str) -> Hashable | None:
    """Return (year, month, day) of the one date in `text`, in any form that people write."""
    days = set()
    for pattern, order in _DATE_FORMS:
        for match in re.finditer(pattern, _fold(text)):
            parts = dict(zip(order, match.groups(), strict=True))
            month = _MONTHS.get(parts["month"][:3]) or int(parts["month"])
            days.add((int(parts["year"]), month, int(parts["day"])))
    return days.pop() if len(days) == 1 else None


def _price(text: str) -> Hashable | None:
    match = re.search(r"\d[\d,]*(?:\.\d+)?|\.\d+", _without_brackets(text))
    return float(match[0].replace(",", "")) if match else None


def _within_one_percent(expected: Hashable, answered: Hashable) -> bool:
    assert isinstance(expected, float)
    assert isinstance(answered, float)
    # The slack is far below a cent: it lets 101 stand for 100 in spite of binary fractions.
    return abs(answered - expected) <= 0.01 * abs(expected) + 1e-9


_NOT_AVAILABLE = {
    "na",
    "n/a",
    "none",
    "null",
    "nan",
    "not available",
    "not applicable",
    "not listed",
}

_SALTS = frozenset(
    """
    acetate anhydrous besylate benzoate bitartrate bromide calcium camsylate carbonate chloride
    citrate dihydrate dihydrochloride dimaleate disodium ditosylate edisylate esylate ethanolate
    fumarate gluconate hcl hemihydrate hydrate hydrobromide hydrochloride hydroxide isethionate
    lactate magnesium malate maleate mesylate monohydrate monohydrochloride napsylate nitrate olamine
    oxalate palmitate pamoate phosphate potassium salt sodium stearate succinate sulfate sulphate
    tartrate tosylate trihydrate tromethamine zinc
    """.split()
)

_LEGAL_FORMS = frozenset(
    """
    ab ag and as bv co company corp corporation gmbh inc incorporated kg kgaa limited llc lp ltd nv
    oy plc pty sa sarl se spa srl
    """.split()
)

_COMPANY_SPELLINGS = {
    "&": "and",
    "pharm": "pharmaceuticals",
    "pharma": "pharmaceuticals",
    "pharms": "pharmaceuticals",
    "pharmaceutical": "pharmaceuticals",
    "lab": "laboratories",
    "labs": "laboratories",
    "laboratory": "laboratories",
    "intl": "international",
}

_MONTHS = dict(
    jan=1, feb=2, mar=3, apr=4, may=5, jun=6, jul=7, aug=8, sep=9, oct=10, nov=11, dec=12
)
_MONTH = rf"((?:{'|'.join(_MONTHS)})[a-z]*)\.?"

# Numbers with a dash or a slash are read month first, as the questions ask (MM-DD-YYYY).
_DATE_FORMS = (
    (r"(?<!\d)(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)", ("year", "month", "day")),
    (r"(?<!\d)(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})(?!\d)", ("month", "day", "year")),
    (rf"\b{_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}})(?!\d)", ("month", "day", "year")),
    (
        rf"(?<!\d)(\d{{1,2}})(?:st|nd|rd|th)? {_MONTH},? (\d{{4}})(?!\d)",
        ("day", "month", "year"),
    ),
)

_INGREDIENT = _Rule(("ingredient",), lambda text: normalize_ingredient(text) or None)
_COMPANY = _Rule(("company",), lambda text: normalize_company(text) or None)
_DAY = _Rule(("date",), _day)

_RULES: Mapping[str, _Rule] = {
    "ingredient": _INGREDIENT,
    "company": _COMPANY,
    "applicant_full_name": _COMPANY,
    "patent_expire_date_text": _Rule(("date",), _year),
    "date": _DAY,
    "exclusivity_date": _DAY,
    "open_on_approval": _Rule(
        ("price", "open price", "opening price", "stock price", "open"), _price, _within_one_percent
    ),
}
