"""Make the synthetic web of this project: pages of trials and drugs, and the questions about them.

    python make_site.py [FOLDER] [--seed N]

writes into FOLDER (default: where this file is)

    site/study/NCT90312456.html    a trial: what it tests, who pays, when it ended
    site/drug/VELORA.html          a drug: which company makes it, when its patent expires
    train.jsonl, val.jsonl         three questions a trial; the files share no trial and no drug

    question     pages to read     the fact that misleads
    ingredient   study             COMPARATOR on the same page
    company      study, drug       SPONSOR on the study page
    date         study, drug       COMPLETED on the study page

Everything is invented. Same seed, same bytes, on every machine. Needs the standard library alone.
"""

import argparse
import json
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "https://clinic.test"
NUM_TRAIN_TRIALS = 96
NUM_VAL_TRIALS = 128

SYSTEM = f"Trials stand at {HOST}/study/ID, drugs at {HOST}/drug/NAME."
QUESTIONS = {
    "ingredient": "Which ingredient does trial {nct} test? Answer with INGREDIENT: name",
    "company": "Which company makes the drug that trial {nct} tests? Answer with COMPANY: name",
    "date": "When does the patent on the drug that trial {nct} tests expire? "
    "Answer with DATE: yyyy-mm-dd",
}
NUM_BROWSES = {"ingredient": 1, "company": 2, "date": 2}

_CONDITIONS = (
    "asthma",
    "migraine",
    "psoriasis",
    "anaemia",
    "gout",
    "epilepsy",
    "eczema",
    "insomnia",
)
_FORMS = ("tablet", "capsule", "injection", "inhaler", "cream", "syrup")
_COMPANY_KINDS = ("pharma", "labs", "bio", "group")
_CONSONANTS = "BCDFGKLMNPRSTVXZ"
_VOWELS = "AEIOU"

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<nav><a href="/">Clinic registry</a></nav>
<main>
<h1>{title}</h1>
<p>{intro}</p>
<ul>
{items}
</ul>
</main>
<footer>Every trial, drug and company on this site is invented.</footer>
</body>
</html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial and the one drug that it tests: all facts of a study page and of a drug page."""

    nct: str  # NCT9 and seven digits: no real trial has such a number
    ingredient: str
    comparator: str  # a name that stands on the study page only
    sponsor: str
    company: str
    completed: str  # yyyy-mm-dd
    patent_date: str  # yyyy-mm-dd
    phase: str
    condition: str
    form: str

    @property
    def study_url(self) -> str:
        return f"{HOST}/study/{self.nct}"

    @property
    def drug_url(self) -> str:
        return f"{HOST}/drug/{self.ingredient}"

    def answer(self, task: str) -> str:
        """Return the line that answers `task`: label, colon, value."""
        return f"{task.upper()}: {self.value(task)}"

    def value(self, task: str) -> str:
        return {
            "ingredient": self.ingredient,
            "company": self.company,
            "date": self.patent_date,
        }[task]


def make_trials(rng: random.Random, num: int, *, taken: set[str]) -> list[Trial]:
    """Draw `num` trials. Names and numbers in `taken` are not used; those drawn are added to it."""
    return [_make_trial(rng, taken) for _ in range(num)]


def _make_trial(rng: random.Random, taken: set[str]) -> Trial:
    return Trial(
        nct=_fresh(lambda: f"NCT9{rng.randrange(10**7):07d}", taken),
        ingredient=_fresh(lambda: _name(rng), taken),
        comparator=_fresh(lambda: _name(rng), taken),
        sponsor=f"{_fresh(lambda: _name(rng), taken)} {rng.choice(_COMPANY_KINDS)}",
        company=f"{_fresh(lambda: _name(rng), taken)} {rng.choice(_COMPANY_KINDS)}",
        completed=_date(rng, 2005, 2024),
        patent_date=_date(rng, 2026, 2045),
        phase=str(rng.randint(1, 4)),
        condition=rng.choice(_CONDITIONS),
        form=rng.choice(_FORMS),
    )


def _fresh(draw: Any, taken: set[str]) -> str:
    """Call `draw` until it gives something that is not in `taken`."""
    while (word := draw()) in taken:
        pass
    taken.add(word)
    return str(word)


def _name(rng: random.Random) -> str:
    """Draw a name: five or six letters, each of them once, every second one a vowel."""
    consonants, vowels = rng.sample(_CONSONANTS, 3), rng.sample(_VOWELS, 3)
    letters = [letter for pair in zip(consonants, vowels, strict=True) for letter in pair]
    return "".join(letters[: rng.choice((5, 6))])


def _date(rng: random.Random, first_year: int, last_year: int) -> str:
    year = rng.randint(first_year, last_year)
    return f"{year}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def study_html(trial: Trial) -> str:
    return _page(
        trial.nct,
        f"A trial in adults with {trial.condition}.",
        [
            f"PHASE: {trial.phase}",
            f"SPONSOR: {trial.sponsor}",
            f"INGREDIENT: {trial.ingredient}",
            f"COMPARATOR: {trial.comparator}",
            f"COMPLETED: {trial.completed}",
        ],
    )


def drug_html(trial: Trial) -> str:
    return _page(
        trial.ingredient,
        f"A medicine for {trial.condition}.",
        [f"FORM: {trial.form}", f"COMPANY: {trial.company}", f"DATE: {trial.patent_date} (patent)"],
    )


def _page(title: str, intro: str, facts: Iterable[str]) -> str:
    items = "\n".join(f"<li>{fact}</li>" for fact in facts)
    return _PAGE.format(title=title, intro=intro, items=items)


def question(trial: Trial, task: str) -> dict[str, Any]:
    """Return one line of train.jsonl or val.jsonl."""
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTIONS[task].format(nct=trial.nct)},
        ],
        "tools": ["browse"],
        "metadata": {
            "expected_answer": trial.value(task),
            "task_name": task,
            "nct": trial.nct,
            "num_browses": NUM_BROWSES[task],
        },
    }


def make_world(seed: int) -> tuple[list[Trial], list[Trial]]:
    """Return the trials to train on and the held-out ones."""
    rng = random.Random(seed)
    taken: set[str] = set()
    train = make_trials(rng, NUM_TRAIN_TRIALS, taken=taken)
    return train, make_trials(rng, NUM_VAL_TRIALS, taken=taken)


def make_project_data(folder: Path, seed: int = 0) -> None:
    """Write site/, train.jsonl and val.jsonl into `folder`."""
    train, val = make_world(seed)
    for part in ("study", "drug"):
        (folder / "site" / part).mkdir(parents=True, exist_ok=True)
    for trial in (*train, *val):
        _write(folder / "site" / "study" / f"{trial.nct}.html", study_html(trial))
        _write(folder / "site" / "drug" / f"{trial.ingredient}.html", drug_html(trial))
    _write(folder / "train.jsonl", _lines(train))
    _write(folder / "val.jsonl", _lines(val))


def _lines(trials: Collection[Trial]) -> str:
    return "".join(
        json.dumps(question(trial, task)) + "\n" for trial in trials for task in QUESTIONS
    )


def _write(file: Path, text: str) -> None:
    # Bytes, so that line ends are the same on every system.
    file.write_bytes(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the synthetic web and its questions.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_project_data(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
