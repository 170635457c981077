import pytest

from rnow.commands.pages import outcome_of
from rnow.records import ToolOutcome
from rnow.tools.base import ToolAnswer


@pytest.mark.parametrize(
    ("counts", "outcome", "code"),
    [
        ({"browser/fetched": 1}, ToolOutcome.OK, "ok"),
        ({"browser/restarts": 1, "browser/error_http_404": 1}, ToolOutcome.OK, "http_404"),
        ({}, ToolOutcome.TIMEOUT, "timeout"),
        ({"browser/restarts": 1}, ToolOutcome.ERROR, "error"),
    ],
)
def test_a_page_of_a_corpus_comes_to_one_code(
    counts: dict[str, int], outcome: ToolOutcome, code: str
) -> None:
    answer = ToolAnswer(text="", outcome=outcome, duration_s=1.0, truncated=False, counts=counts)
    assert outcome_of(answer) == code
