from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import rnow.medbrowse  # noqa: F401 — names the paces of its sites
from rnow.browser.errors import BrowseError
from rnow.browser.rules.politeness import Pacer, interval_s
from rnow.browser.settings import BrowserSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_requests_to_one_host_are_spaced_and_others_do_not_wait() -> None:
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=Clock())
    assert [pacer.reserve("hemonc.org") for _ in range(4)] == [0, 5, 10, 15]
    assert [pacer.reserve("clinicaltrials.gov") for _ in range(3)] == [0, 1, 2]
    assert [pacer.reserve("any.example") for _ in range(2)] == [0, 1]


def test_requests_that_leave_late_do_not_leave_together() -> None:
    clock = Clock()
    pacer = Pacer(BrowserSettings(max_wait_s=20, num_workers=2), now=clock)
    assert [pacer.reserve("any.example") for _ in range(3)] == [0, 2, 4]
    clock.now += 10  # a browser took so long to start
    assert [pacer.depart("any.example") for _ in range(3)] == [0, 2, 4]
    assert pacer.depart("other.example") == 0
    clock.now += 10
    assert pacer.depart("any.example") == 0


def test_workers_share_the_patience_of_a_site() -> None:
    pacer = Pacer(BrowserSettings(max_wait_s=20, num_workers=4), now=Clock())
    assert [pacer.reserve("clinicaltrials.gov") for _ in range(3)] == [0, 4, 8]


def test_a_site_may_ask_for_more_time_and_not_for_less() -> None:
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=Clock())
    pacer.slow_down("clinicaltrials.gov", 3.0)
    assert [pacer.reserve("clinicaltrials.gov") for _ in range(3)] == [0, 3, 6]
    pacer.slow_down("hemonc.org", 0.1)
    assert [pacer.reserve("hemonc.org") for _ in range(2)] == [0, 5]
    pacer.slow_down("a.test", 1e9)
    assert pacer.reserve("a.test") == 0
    with pytest.raises(BrowseError):
        pacer.reserve("a.test")


@pytest.mark.parametrize(
    ("host", "interval"),
    [
        ("eutils.ncbi.nlm.nih.gov", 0.5),
        ("clinicaltrials.gov", 1.0),
        ("api.fda.gov", 0.5),
        ("www.fda.gov", 5.0),
        ("www.accessdata.fda.gov", 5.0),
        ("accessdata.fda.gov", 5.0),
        ("hemonc.org", 5.0),
        ("any.example", 1.0),
    ],
)
def test_each_site_has_its_pace(host: str, interval: float) -> None:
    assert interval_s(host) == interval


def test_time_that_passes_is_counted() -> None:
    clock = Clock()
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=clock)
    pacer.reserve("hemonc.org")
    clock.now += 3
    assert pacer.reserve("hemonc.org") == 2
    clock.now += 60
    assert pacer.reserve("hemonc.org") == 0


def test_a_slot_too_far_away_is_refused_and_not_taken() -> None:
    clock = Clock()
    pacer = Pacer(BrowserSettings(max_wait_s=5), now=clock)
    assert [pacer.reserve("hemonc.org") for _ in range(2)] == [0, 5]
    for _ in range(3):
        with pytest.raises(BrowseError) as refused:
            pacer.reserve("hemonc.org")
        assert refused.value.text == (
            "ERROR rate_limited: this site is asked too often; try again later."
        )
    clock.now += 5
    assert pacer.reserve("hemonc.org") == 5


def test_retry_after_in_seconds_is_kept() -> None:
    clock = Clock()
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=clock)
    pacer.hold_off("a.test", "7")
    assert pacer.reserve("a.test") == 7
    assert pacer.reserve("b.test") == 0


def test_retry_after_as_a_date_is_kept() -> None:
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=Clock())
    pacer.hold_off(
        "a.test", format_datetime(datetime.now(UTC) + timedelta(seconds=15), usegmt=True)
    )
    assert 12 < pacer.reserve("a.test") <= 15


@pytest.mark.parametrize("retry_after", [None, "soon", "", "-1", "1e9", "Mon, 99 Foo 2000", "²"])
def test_a_retry_after_that_says_nothing_changes_nothing(retry_after: str | None) -> None:
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=Clock())
    pacer.hold_off("a.test", retry_after)
    assert pacer.reserve("a.test") == 0


def test_a_site_cannot_close_itself_for_ever() -> None:
    clock = Clock()
    pacer = Pacer(BrowserSettings(max_wait_s=20), now=clock)
    pacer.hold_off("a.test", "9" * 400)
    with pytest.raises(BrowseError):
        pacer.reserve("a.test")
    clock.now += 3_600
    assert pacer.reserve("a.test") == 0
