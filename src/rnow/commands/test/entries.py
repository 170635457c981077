"""Which lines of the prompts' file `rnow test` rolls out. Pure.

Entries are counted from 0. Without a choice they are drawn, from the run's seed: the same ones each
time, none twice before all have been.
"""

from collections.abc import Sequence

from rnow.errors import UsageError
from rnow.records import derive_seed


def choose_entries(
    wanted: Sequence[str], *, all_: bool, num_rollouts: int, num_entries: int, seed: int, file: str
) -> tuple[int, ...]:
    """Return the entry of each rollout.

    `wanted`: what followed -e, each a number or several with commas; they, or with `all_` all
    entries, are rolled out `num_rollouts` times each. Raises UsageError for one that is not there.
    """
    if wanted and all_:
        raise UsageError("-e and --all both say which entries; give one of them")
    if wanted:
        words = [word.strip() for text in wanted for word in text.split(",") if word.strip()]
        chosen = [_entry(word, num_entries=num_entries, file=file) for word in words]
        if not chosen:
            raise UsageError("-e names no entry; give numbers from 0, as -e 0,2")
        return tuple(entry for entry in chosen for _ in range(num_rollouts))
    if all_:
        return tuple(entry for entry in range(num_entries) for _ in range(num_rollouts))
    order = sorted(range(num_entries), key=lambda entry: derive_seed(seed, "test entry", entry))
    return tuple(order[number % num_entries] for number in range(num_rollouts))


def _entry(word: str, *, num_entries: int, file: str) -> int:
    try:
        entry = int(word)
    except ValueError as error:
        raise UsageError(f"Invalid entry index: {word}; entries are numbers from 0") from error
    if not 0 <= entry < num_entries:
        raise UsageError(
            f"Entry index {entry} out of range. "
            f"{file} has {num_entries} entries (0-{num_entries - 1})"
        )
    return entry
