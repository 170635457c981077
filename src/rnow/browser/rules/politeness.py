"""How often a site is asked: a least time between two requests, and what the site demands.

Not aiolimiter's bucket: who asks must know beforehand how long it would wait, and a site may put
the next slot off.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from rnow.browser.errors import BrowseError
from rnow.browser.settings import BrowserSettings

_DEFAULT_INTERVAL_S = 1.0
_INTERVALS_S: dict[str, float] = {}  # of hosts that `pace` named
_MAX_RETRY_AFTER_S = 3_600.0
_MAX_CRAWL_DELAY_S = 60.0


class Pacer:
    """Gives out times to ask a host, in order, one interval apart.

    Of several workers each has a Pacer, and waits so many times longer.

    delay = pacer.reserve("site.test"); await asyncio.sleep(delay); get ready
    delay = pacer.depart("site.test"); await asyncio.sleep(delay); ask
    """

    def __init__(
        self, settings: BrowserSettings, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_wait_s = settings.max_wait_s
        self._num_workers = settings.num_workers
        self._now = now
        self._next_slot: defaultdict[str, float] = defaultdict(lambda: float("-inf"))
        self._next_departure: defaultdict[str, float] = defaultdict(lambda: float("-inf"))
        self._delays_s: dict[str, float] = {}  # that sites ask for

    def reserve(self, host: str) -> float:
        """Return the seconds to wait before asking; raise BrowseError where that is too long."""
        now = self._now()
        slot = max(now, self._next_slot[host])
        if slot - now > self._max_wait_s:
            raise BrowseError("rate_limited", "this site is asked too often; try again later.")
        self._next_slot[host] = slot + self._interval_s(host)
        return slot - now

    def depart(self, host: str) -> float:
        """Return the seconds to wait though it is one's turn, since those before left late.

        A browser that starts, or has no tab free, would else let them all go at once.
        """
        now = self._now()
        departure = max(now, self._next_departure[host])
        self._next_departure[host] = departure + self._interval_s(host)
        return departure - now

    def slow_down(self, host: str, delay_s: float) -> None:
        """Leave this host as long as its robots.txt asks for, if that is longer than our own."""
        self._delays_s[host] = min(delay_s, _MAX_CRAWL_DELAY_S)

    def hold_off(self, host: str, retry_after: str | None) -> None:
        """Ask this host nothing for as long as its Retry-After header says (seconds or a date)."""
        seconds = _seconds(retry_after)
        if seconds is not None:
            until = self._now() + min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)
            self._next_slot[host] = max(self._next_slot[host], until)

    def _interval_s(self, host: str) -> float:
        return self._num_workers * max(interval_s(host), self._delays_s.get(host, 0.0))


def pace(*hosts: str, interval_s: float) -> None:
    """Leave at least so many seconds between two requests to each of `hosts`; else it is one.

    pace("registry.test", interval_s=5.0)  # in tools.py
    """
    if not 0 < interval_s < math.inf:
        raise ValueError(f"pace: interval_s is {interval_s}; give seconds above 0")
    _INTERVALS_S.update(dict.fromkeys(hosts, interval_s))


def interval_s(host: str) -> float:
    """Return the least time between two requests to a host that asks for none itself."""
    return _INTERVALS_S.get(host, _DEFAULT_INTERVAL_S)


def _seconds(retry_after: str | None) -> float | None:
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return (date - datetime.now(date.tzinfo or UTC)).total_seconds() if date.tzinfo else None
