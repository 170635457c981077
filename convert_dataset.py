"""Write train.jsonl and val.jsonl from MedBrowseComp, a benchmark of medical browsing questions.

    python convert_dataset.py                          605 questions, about 15 % of them held out
    python convert_dataset.py --val-split 0            all 605 to train on
    python convert_dataset.py --source FILE_OR_FOLDER  from a copy on this machine, no network

Needs Python and `datasets`, nothing else. The rows come from
huggingface.co/datasets/AIM-Harvard/MedBrowseComp at each run. Its authors want them kept out of
training corpora: do not commit or publish what is written here.

All trials of one ingredient have the same answers, so a split by row would test on what was trained
on. Whole ingredients are held out, in an order that follows from their names alone: the same rows
are split in the same way everywhere.
"""

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

DATASET = "AIM-Harvard/MedBrowseComp"
SPLITS = ("MedBrowseComp_605", "MedBrowseComp_50", "MedBrowseComp_CUA")
COLUMNS = ("prompt", "gold", "task_name")
READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
DEFAULT_SHARE = 0.15

SYSTEM_PROMPT = """\
You are a medical research assistant. You find single facts about clinical trials, drugs, \
approvals, patents, companies and prices by reading web pages with the browse tool.

Where to look:
- https://clinicaltrials.gov/study/NCT_NUMBER for a trial
- https://www.accessdata.fda.gov/scripts/cder/daf/index.cfm?searchterm=NAME for approved drugs and \
their companies
- https://www.accessdata.fda.gov/scripts/cder/ob/search_product.cfm?drugname=NAME for patents \
and exclusivity

Look things up rather than answer from memory. Give the answer on the last line, in exactly the \
form that the question asks for."""

OVERLAP_NOTE = (
    "Note: the trials of MedBrowseComp_50 are among those of MedBrowseComp_605, so a model that "
    "was trained on one cannot be tested on the other"
)
OTHER_RNOW_NOTE = (
    "Note: the rnow installed here is the package index's, a hosted service's client; what trains "
    "this project is the rnow of its repository: pip install -e FOLDER_OF_THE_REPOSITORY"
)


class ConversionError(Exception):
    """Something the user can put right; printed without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if has_other_rnow():
        print(OTHER_RNOW_NOTE, file=sys.stderr)
    try:
        convert(arguments)
    except ConversionError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write train.jsonl, val.jsonl from MedBrowseComp.")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help=f"{', '.join(SPLITS)}, or another of --source; default: the first, or the only one",
    )
    parser.add_argument("--output", type=Path, default=Path("train.jsonl"), metavar="FILE")
    parser.add_argument("--limit", type=int, default=0, help="first so many rows; 0: all")
    parser.add_argument(
        "--val-split",
        type=float,
        metavar="SHARE",
        help="hold out about this share of the rows, by ingredient, in val.jsonl beside --output; "
        f"default: {DEFAULT_SHARE:g}, or none where no ingredient is as small; 0: none",
    )
    parser.add_argument(
        "--source", type=Path, help="parquet, jsonl or csv file, or a folder with the dataset"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= (arguments.val_split or 0) < 1:
        parser.error("--val-split is a share of the rows, from 0 to below 1")
    if arguments.val_split != 0 and arguments.output.name == "val.jsonl":
        parser.error("held-out rows go to val.jsonl: give --output another name, or --val-split 0")
    if arguments.limit < 0:
        parser.error("--limit cannot be negative")
    return arguments


def convert(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    val_output = output.with_name("val.jsonl")
    print(f"Loading {arguments.source or DATASET}...")
    rows, split = load_rows(arguments.split, source=arguments.source, limit=arguments.limit)
    print(f"Converting {len(rows)} rows...")
    train, val = hold_out(rows, share=arguments.val_split)
    print(f"Writing {output}...")
    write_entries(output, (to_entry(row, split) for row in train))
    if val:
        print(f"Writing {val_output}...")
        write_entries(val_output, (to_entry(row, split) for row in val))
    elif val_output.exists() and val_output != output:
        print(f"Note: {val_output} is of an earlier conversion and may share answers with {output}")
    print("\nTask distribution:")
    for task, num in sorted(Counter(normalize_task_name(row["task_name"]) for row in rows).items()):
        print(f"  {task}: {num}")
    if split in SPLITS[:2] and not val:
        print(f"\n{OVERLAP_NOTE}")
    print(f"\nDone! {len(train)} rows to train on" + (f", {len(val)} held out" if val else ""))


def load_rows(
    split: str | None, *, source: Path | None, limit: int
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of one split, and its name.

    A single file is read whole, whatever splits its rows name.
    """
    if source is not None and not source.exists():
        raise ConversionError(f"there is no file or folder {source}")
    if source is not None and source.is_file() and source.suffix not in READERS:
        raise ConversionError(f"{source} is none of {', '.join(READERS)}")
    if find_spec("datasets") is None:
        raise ConversionError(
            f"{sys.executable} has no datasets; uv pip install datasets, or pip install datasets"
        )
    if source is None:
        check_hub()
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        if source is not None and source.is_file():
            reader = READERS[source.suffix]
            found = datasets.load_dataset(reader, data_files=str(source), streaming=True)
            name, rows = split or SPLITS[0], found["train"]
        else:
            found = datasets.load_dataset(str(source or DATASET), streaming=True)
            name = choose_split(split, list(found))
            rows = found[name]
        taken = [dict(row) for row in islice(rows, limit or None)]
    except ConversionError:
        raise
    except Exception as error:  # datasets passes on what its readers and the network raise
        raise ConversionError(
            f"{source or DATASET} cannot be read: {type(error).__name__}: {error}"
        ) from error
    return check_rows(taken), name


def choose_split(wanted: str | None, names: Sequence[str]) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if (wanted or SPLITS[0]) in names:
        return wanted or SPLITS[0]
    raise ConversionError(
        f"there is no split {wanted or SPLITS[0]}; take one with --split: {', '.join(names)}"
    )


def check_hub() -> None:
    """Find out at once that there is no network; `datasets` would retry for half a minute."""
    if getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise ConversionError(
            f"{address.hostname} cannot be reached ({error.strerror or error}). Where there is a "
            f"network: hf download {DATASET} --repo-type dataset --local-dir medbrowsecomp; then "
            "here: python convert_dataset.py --source medbrowsecomp"
        ) from error


def check_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows:
        raise ConversionError("there are no rows")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise ConversionError(
                f"row {number} has no column {missing[0]}; it has {', '.join(sorted(row))}"
            )
        if not row["prompt"] or not row["task_name"]:
            raise ConversionError(f"row {number} has an empty prompt or task_name")
        # Readers of CSV take the answer NA for a missing value.
        row["gold"] = "NA" if row["gold"] is None else str(row["gold"])
    return rows


def to_entry(row: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return one line of train.jsonl."""
    return {
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": row["prompt"]},
        ],
        "tools": ["browse"],
        "metadata": {
            "expected_answer": row["gold"],
            "task_name": normalize_task_name(row["task_name"]),
            "split": row.get("split") or split,
        },
    }


def hold_out(
    rows: Sequence[Mapping[str, Any]], *, share: float | None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return rows to train on, and rows to hold out: none of them where nobody asked and none fit.

    share: None where it was not given.
    """
    if share == 0:
        return rows, []
    try:
        train, val, unknown = split_by_ingredient(rows, share=share or DEFAULT_SHARE)
    except ConversionError as error:
        if share is not None:
            raise
        print(f"Note: no val.jsonl is written: {error}")
        return rows, []
    if unknown:
        print(f"Left out {unknown} rows whose ingredient is not known: they could be in both.")
    return train, val


def split_by_ingredient(
    rows: Sequence[Mapping[str, Any]], *, share: float
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], int]:
    """Return rows to train on, rows to hold out, and how many fit neither.

    A trial's ingredient is the answer to its ingredient question. Ingredients are held out in the
    order of their hash, as long as they fit in the share.
    """
    ingredients = {
        trial_of(row): normalize_ingredient(row["gold"])
        for row in rows
        if normalize_task_name(row["task_name"]) == "ingredient"
    }
    ingredients.pop(None, None)
    of_row = [ingredients.get(trial_of(row)) for row in rows]
    sizes = Counter(ingredient for ingredient in of_row if ingredient is not None)
    if len(sizes) < 2:
        raise ConversionError(
            f"two ingredients are needed to hold one out; these rows have trials of {len(sizes)}"
        )
    room = share * sizes.total()
    held_out = set()
    for ingredient in sorted(sizes, key=lambda name: hashlib.sha256(repr(name).encode()).digest()):
        if sizes[ingredient] <= room:
            held_out.add(ingredient)
            room -= sizes[ingredient]
    if not held_out:
        raise ConversionError(
            f"{share:g} of {sizes.total()} rows is less than the {min(sizes.values())} rows of any "
            "ingredient; take a larger --val-split"
        )
    pairs = list(zip(rows, of_row, strict=True))
    train = [row for row, name in pairs if name is not None and name not in held_out]
    val = [row for row, name in pairs if name in held_out]
    return train, val, of_row.count(None)


def trial_of(row: Mapping[str, Any]) -> str | None:
    found = re.search(r"NCT\d{8}", row["prompt"])
    return found[0] if found else None


def normalize_task_name(label: str) -> str:
    """Return the one name of a task: published labels vary between splits, in case and suffix."""
    words = re.findall(r"[a-z0-9]+", label.casefold())
    return "_".join(words[:-1] if words[-1:] in (["prompt"], ["prompts"]) else words)


def normalize_ingredient(text: str) -> tuple[str, ...]:
    """Return the ingredients in `text`, sorted, without salts, accents, case, bracketed remarks.

    Which ingredients are held out follows from what this returns: a change moves the split.
    """
    decomposed = unicodedata.normalize("NFKD", text)
    folded = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    bare = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", folded)
    parts = (re.findall(r"\w+", part) for part in re.split(r"\s*(?:[;,/+&]|\band\b)\s*", bare))
    salts = SALT_WORDS.split()
    # Where nothing but salt words is left (sodium chloride), the salt is the ingredient.
    names = (" ".join([word for word in part if word not in salts] or part) for part in parts)
    return tuple(sorted({*names} - {""}))


SALT_WORDS = """
acetate anhydrous besylate benzoate bitartrate bromide calcium camsylate carbonate chloride
citrate dihydrate dihydrochloride dimaleate disodium ditosylate edisylate esylate ethanolate
fumarate gluconate hcl hemihydrate hydrate hydrobromide hydrochloride hydroxide isethionate
lactate magnesium malate maleate mesylate monohydrate monohydrochloride napsylate nitrate
olamine oxalate palmitate pamoate phosphate potassium salt sodium stearate succinate sulfate
sulphate tartrate tosylate trihydrate tromethamine zinc
"""


def has_other_rnow() -> bool:
    """Say whether an rnow is installed that is not the one of this project."""
    spec = find_spec("rnow")
    folders = spec.submodule_search_locations if spec and spec.origin else None
    return bool(folders) and not any((Path(folder) / "medbrowse").is_dir() for folder in folders)


def write_entries(file: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as lines:
        for entry in entries:
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
    unfinished.replace(file)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of pyarrow that still run at the interpreter's end abort it: apache/arrow issue 45214.
    os._exit(status)
