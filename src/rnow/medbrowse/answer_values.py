"""Answer texts to values that can be compared: ingredients, companies, years, days, prices.

Each function maps every spelling of one thing to one value, and text that it cannot read to None or
to an empty tuple. None of them guesses: two dates in one answer are no date.
"""

import re
from datetime import date
from functools import lru_cache

from rnow.core.grader import without_accents


@lru_cache(maxsize=10_000)
def normalize_ingredient(text: str) -> tuple[str, ...]:
    """Return the ingredients in `text`, sorted, without salts, case and bracketed remarks.

    >>> normalize_ingredient("Imatinib Mesylate (Gleevec)")
    ('imatinib',)
    """
    parts = re.split(r"\s*(?:[;,/+&]|\band\b)\s*", _without_brackets(without_accents(text)))
    return tuple(sorted({_without_salts(part) for part in parts} - {""}))


@lru_cache(maxsize=10_000)
def normalize_company(text: str) -> tuple[str, ...]:
    """Return the words of a company's name that tell it from others.

    >>> normalize_company("The Velora Pharms, Inc.")
    ('velora', 'pharmaceuticals')
    """
    spelled = re.sub(r"[.'’]", "", _without_brackets(without_accents(text)))
    words = [_COMPANY_SPELLINGS.get(word, word) for word in re.findall(r"\w+|&", spelled)]
    if words[:1] == ["the"]:
        words = words[1:]
    while len(words) > 1 and words[-1] in _LEGAL_FORMS:
        words = words[:-1]
    return tuple(words)


def parse_year(text: str) -> int | None:
    """Return the one year in `text`."""
    years = {int(year) for year in re.findall(r"(?<!\d)(?:19|20|21)\d\d(?!\d)", text)}
    return years.pop() if len(years) == 1 else None


@lru_cache(maxsize=10_000)
def parse_day(text: str) -> date | None:
    """Return the one date in `text`, in any form that people write."""
    folded = without_accents(text)
    days = {
        _to_date(**dict(zip(order, match.groups(), strict=True)))
        for pattern, order in _DATE_FORMS
        for match in re.finditer(pattern, folded)
    }
    return days.pop() if len(days) == 1 else None


def parse_price(text: str) -> float | None:
    """Return the first number in `text`, bracketed remarks apart."""
    match = re.search(r"\d[\d,]*(?:\.\d+)?|\.\d+", _without_brackets(text))
    return float(match[0].replace(",", "")) if match else None


def _to_date(*, year: str, month: str, day: str) -> date | None:
    try:
        return date(int(year), _MONTHS.get(month[:3]) or int(month), int(day))
    except ValueError:  # there is no such day
        return None


def _without_brackets(text: str) -> str:
    return re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)


def _without_salts(ingredient: str) -> str:
    words = re.findall(r"\w+", ingredient)
    # Where nothing but salt words is left (sodium chloride), the salt is the ingredient.
    return " ".join([word for word in words if word not in _SALTS] or words)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SALTS = _words(
    """
    acetate anhydrous besylate benzoate bitartrate bromide calcium camsylate carbonate chloride
    citrate dihydrate dihydrochloride dimaleate disodium ditosylate edisylate esylate ethanolate
    fumarate gluconate hcl hemihydrate hydrate hydrobromide hydrochloride hydroxide isethionate
    lactate magnesium malate maleate mesylate monohydrate monohydrochloride napsylate nitrate
    olamine oxalate palmitate pamoate phosphate potassium salt sodium stearate succinate sulfate
    sulphate tartrate tosylate trihydrate tromethamine zinc
    """
)

_LEGAL_FORMS = _words(
    """
    ab ag and as bv co company corp corporation gmbh inc incorporated kg kgaa limited llc lp ltd nv
    oy plc pty sa sarl se spa srl
    """
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

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
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
