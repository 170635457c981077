"""What page finders name, and that one which fails is never passed over."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from yarl import URL

from rnow.browser import page_finder, page_finders
from rnow.errors import ToolDefinitionError
from rnow.medbrowse.clinicaltrials import studies


@pytest.fixture(autouse=True)
def _no_finders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_finders, "_FINDERS", [])


def test_all_finders_are_asked_and_what_they_name_is_written_as_the_guard_writes_it() -> None:
    @page_finder
    def one(text: str) -> list[str]:
        return [f"HTTPS://A.test:443/{text}#part"]

    @page_finder
    def two(text: str) -> Iterator[URL]:
        yield URL("http://b.test")

    assert page_finders.find_pages("x") == ["https://a.test/x", "http://b.test/"]
    assert one("y") == ["HTTPS://A.test:443/y#part"]  # it stays what it was


def a_failure(text: str) -> list[str]:
    raise KeyError(text)


def no_url(text: str) -> list[str]:
    return ["/trial/1"]


def one_url(text: str) -> str:
    return "registry.test/trial/1"


def a_number(text: str) -> Any:
    return 3


@pytest.mark.parametrize(
    ("find", "said"),
    [
        (a_failure, "KeyError: 'x'"),
        (no_url, "BrowseError: a URL must start with http:// or https:// and name a host."),
        (one_url, "BrowseError: a URL must start with http:// or https:// and name a host."),
        (a_number, "TypeError: 'int' object is not iterable"),
    ],
)
def test_a_finder_that_fails_is_named_with_its_line(find: Any, said: str) -> None:
    page_finder(find)
    with pytest.raises(ToolDefinitionError) as refused:
        page_finders.find_pages("x")
    line = find.__code__.co_firstlineno
    assert str(refused.value) == (
        f"test_page_finders.py:{line}: page finder '{find.__name__}' failed: {said.rstrip('.')}; "
        "mend it, or remove it"
    )


def test_what_is_no_plain_function_is_refused() -> None:
    async def later(text: str) -> Iterable[str]:
        return []

    for wrong in (later, "https://a.test/"):
        with pytest.raises(TypeError, match="@page_finder takes a plain function"):
            page_finder(wrong)  # type: ignore[type-var]


def test_a_study_is_found_by_its_number() -> None:
    text = "NCT90000001 and NCT90000002, NCT90000001, not NCT9 or XNCT900000012"
    base = "https://clinicaltrials.gov/study"
    assert studies(text) == [f"{base}/NCT90000001", f"{base}/NCT90000002"]
