"""robots.txt: what a site asks programs to leave alone.

Read once for each host and kept for a day, by protego, as RFC 9309 says: where the site has none
(4xx) everything may be read, where it cannot be read (5xx, no connection) nothing may. It is asked
for under the same guard and at the same pace as a page. Local sites are not asked, nor are
interfaces that are made for programs, which adapters read.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from rnow.browser.errors import BrowseError

MAX_ROBOTS_BYTES = 500_000  # RFC 9309 wants as much to be read; what is behind it is ignored
_AGENT = "rnow"
_KEPT_S = 86_400.0
_FAILURE_KEPT_S = 300.0

ReadRobots = Callable[[URL], Awaitable[str]]  # "" where there is none; raises BrowseError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    parsed: Protego | None  # None: they could not be read
    failure: BrowseError | None  # why not
    until: float


class Robots:
    """The rules of all hosts of one browser.

    delay_s = await robots.check(URL("https://a.test/x"), read)
    """

    def __init__(self) -> None:
        self._rules: dict[str, _Rules] = {}
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def check(self, url: URL, read: ReadRobots) -> float:
        """Return the seconds that the site wants between two requests, 0 where it says nothing.

        Raises BrowseError where this URL may not be read.
        """
        place = str(url.origin())
        async with self._reading[place]:
            rules = self._rules.get(place)
            if rules is None or rules.until < time.monotonic():
                rules = self._rules[place] = await self._read(URL(place) / "robots.txt", read)
        if rules.parsed is None:
            sentence = "what this site allows programs cannot be read."
            raise BrowseError("unreachable", sentence) from rules.failure
        if not rules.parsed.can_fetch(str(url), _AGENT):
            sentence = "the site asks programs not to read this page."
            raise BrowseError("blocked_by_site", sentence, is_lasting=True)
        return rules.parsed.crawl_delay(_AGENT) or 0.0

    async def _read(self, url: URL, read: ReadRobots) -> _Rules:
        try:
            text = await read(url)
        except BrowseError as error:
            if error.code == "rate_limited":  # by our own pace: says nothing of the site
                raise
            until = time.monotonic() + _FAILURE_KEPT_S
            return _Rules(parsed=None, failure=error, until=until)
        until = time.monotonic() + _KEPT_S
        return _Rules(parsed=Protego.parse(text), failure=None, until=until)
