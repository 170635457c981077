from collections.abc import Iterator

import pytest

from rnow.core import (
    GRADER_REGISTRY,
    clear_grader_registry,
    grader,
    is_not_available,
    labelled_line,
    same_text,
)


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    before = dict(GRADER_REGISTRY)
    clear_grader_registry()
    yield
    GRADER_REGISTRY.clear()
    GRADER_REGISTRY.update(before)


def one(expected: str) -> bool: ...


def four(expected: str, answered: str, metadata: dict, more: int) -> bool: ...


def by_name(expected: str, *, answered: str) -> bool: ...


def numbers(expected: int, answered: int) -> bool: ...


def to_float(expected: str, answered: str) -> float: ...


def two(expected: str, answered: str) -> bool: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            one,
            "Grader 'one' must take (expected: str, answered: str), and one more where it wants "
            "the entry's metadata; it takes (expected).",
        ),
        (
            four,
            "Grader 'four' must take (expected: str, answered: str), and one more where it wants "
            "the entry's metadata; it takes (expected, answered, metadata, more).",
        ),
        (
            by_name,
            "Grader 'by_name' must take (expected: str, answered: str), and one more where it "
            "wants the entry's metadata; it takes (expected, answered).",
        ),
        (
            numbers,
            "Grader 'numbers': parameter 'expected' is a text; its type hint must be 'str'.",
        ),
        (to_float, "Grader 'to_float' must return 'bool', got '<class 'float'>'."),
    ],
)
def test_a_function_that_cannot_be_a_grader_is_refused(function: object, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        grader(function)  # type: ignore[call-overload]
    assert str(caught.value) == message
    assert [*GRADER_REGISTRY] == ["same_text"]


def test_label_and_extract_are_two_ways_to_say_one_thing() -> None:
    with pytest.raises(TypeError) as caught:
        grader(label="CITY", extract=str.strip)(two)
    assert str(caught.value) == "Grader 'two' has a label and an extract; give one of them."
    with pytest.raises(TypeError, match=r"^Grader 'two': its extract must take \(answer\), and "):
        grader(extract=lambda: None)(two)


def test_a_deadline_is_above_nothing() -> None:
    with pytest.raises(TypeError) as caught:
        grader(timeout=0)(two)
    assert str(caught.value) == "Grader 'two' has timeout=0. Give a number of seconds above 0."


def test_a_name_is_one_function_s() -> None:
    assert grader(two) is two
    grader(label="CITY")(two)  # the same function once more, as where a file is imported again

    def same_text(expected: str, answered: str) -> bool: ...

    with pytest.raises(TypeError) as caught:
        grader(same_text)
    assert str(caught.value) == (
        "Grader 'same_text' is there already; give the function another name."
    )
    assert [*GRADER_REGISTRY] == ["same_text", "two"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("CITY: Bern", "Bern"),
        ("city: Basel\nso\n**City:** `Bern`.", "Bern"),
        ("CITY: Bern\nCITY:", "Bern"),
        ("Home city : Bern", "Bern"),
        ("HOMECITY: Bern", None),
        ("Bern", None),
    ],
)
def test_the_last_labelled_line_that_says_something_counts(text: str, value: str | None) -> None:
    assert labelled_line(text, "CITY") == value


def test_several_labels_are_one() -> None:
    assert labelled_line("PRICE: 1\nOpening price: 2", "PRICE", "OPENING PRICE") == "2"


def test_the_same_text_differs_in_case_accents_and_spaces_at_most() -> None:
    assert same_text("Sanóva  Labs", " sanova labs\n")
    assert not same_text("Sanova", "Sanova Labs")


def test_expected_values_that_mean_none_are_known() -> None:
    assert [is_not_available(value) for value in ("NA", "Not_listed", "None", "N/A.")] == [True] * 4
    assert not is_not_available("nabilone")
