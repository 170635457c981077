import pytest

from rnow.commands.test.entries import choose_entries
from rnow.errors import UsageError


def chosen(*wanted: str, all_: bool = False, num: int = 1, of: int = 5, seed: int = 0) -> list[int]:
    return list(
        choose_entries(
            wanted, all_=all_, num_rollouts=num, num_entries=of, seed=seed, file="train.jsonl"
        )
    )


def test_entries_are_counted_from_0_and_named_one_by_one_or_with_commas() -> None:
    assert chosen("0", "2,4", " 1 , 3") == [0, 2, 4, 1, 3]
    assert chosen("3", num=2) == [3, 3]
    assert chosen(all_=True) == [0, 1, 2, 3, 4]


def test_drawn_entries_are_the_same_each_time_and_none_comes_twice_before_all_have() -> None:
    assert chosen(num=5) == [4, 1, 3, 0, 2]
    assert chosen(num=7)[5:] == chosen(num=2)
    assert len({tuple(chosen(num=5, seed=seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("wanted", "all_", "message"),
    [
        (["5"], False, "Entry index 5 out of range. train.jsonl has 5 entries (0-4)"),
        (["-1"], False, "Entry index -1 out of range. train.jsonl has 5 entries (0-4)"),
        (["0,x"], False, "Invalid entry index: x; entries are numbers from 0"),
        ([","], False, "-e names no entry; give numbers from 0, as -e 0,2"),
        (["0"], True, "-e and --all both say which entries; give one of them"),
    ],
)
def test_an_entry_that_is_not_there_is_one_sentence(
    wanted: list[str], all_: bool, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(*wanted, all_=all_)
    assert str(caught.value) == message
