"""Which pages go to Chromium, with sources that answer from a table."""

import logging

import pytest
from yarl import URL

from rnow.browser.chain import RenderingSource
from rnow.browser.errors import BrowseError, NotRenderedError
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import RawPage
from rnow.browser.text.markdown import shows_at_least

SHELL = "<div id=app></div><script src=app.js></script>"
TEXT = "<p>" + "word " * 50


class Table:
    """A PageSource that knows some pages, and what it was asked for."""

    def __init__(self, source: str, answers: dict[str, str | BrowseError]) -> None:
        self.source = source
        self.answers = answers
        self.asked: list[str] = []
        self.is_closed = False

    async def fetch(self, url: URL) -> RawPage:
        self.asked.append(str(url))
        answer = self.answers[url.path]
        if isinstance(answer, BrowseError):
            raise answer
        kind = "application/json" if url.path.endswith(".json") else "text/html"
        return RawPage(
            url=url,
            status=200,
            content_type=kind,
            charset="utf-8",
            body=answer.encode(),
            source=self.source,
        )

    async def aclose(self) -> None:
        self.is_closed = True


async def source_of(
    html: str, *, browser: Table | None = None, path: str = "/", **settings: object
) -> tuple[str, list[str]]:
    """Return who gave a page that plain HTTP finds as `html`, and what plain HTTP was asked."""
    http = Table("http", {path: html})
    rules = BrowserSettings(**settings)  # type: ignore[arg-type]  # keywords of one test
    page = await RenderingSource(http, browser, rules).fetch(URL(f"https://a.test{path}"))
    return page.source, http.asked


@pytest.mark.parametrize(
    ("html", "source"),
    [
        (SHELL, "browser"),
        ("<meta http-equiv='refresh' content='0;url=/x'>", "browser"),
        (f"<p>{'x' * 199}{SHELL}", "browser"),
        (f"<p>{'x' * 200}{SHELL}", "http"),
        (TEXT + "<script>1</script>", "http"),
        ("<p>short, and nothing in it that could make it longer", "http"),
        (f"<nav>{TEXT}</nav>{SHELL}", "browser"),
        (f"<div hidden>{TEXT}</div>{SHELL}", "browser"),
    ],
)
async def test_a_page_that_its_scripts_fill_goes_to_chromium(html: str, source: str) -> None:
    browser = Table("browser", {"/": TEXT})
    assert (await source_of(html, browser=browser))[0] == source
    assert browser.asked == (["https://a.test/"] if source == "browser" else [])


async def test_only_html_goes_to_chromium() -> None:
    browser = Table("browser", {})
    found = await source_of('{"a": "<script>"}', browser=browser, path="/x.json")
    assert found == ("http", ["https://a.test/x.json"])


async def test_some_hosts_go_to_chromium_at_once() -> None:
    for hosts in (("a.test",), ("*.test",), ("*",)):
        browser = Table("browser", {"/": TEXT})
        assert await source_of(TEXT, browser=browser, render_hosts=hosts) == ("browser", [])
    browser = Table("browser", {"/": TEXT})
    assert (await source_of(TEXT, browser=browser, render_hosts=("b.test",)))[0] == "http"


async def test_what_chromium_does_not_show_comes_from_plain_http() -> None:
    browser = Table("browser", {"/": NotRenderedError("unsupported_type", "no page")})
    assert (await source_of(TEXT, browser=browser, render_hosts=("*",)))[0] == "http"


async def test_a_page_stays_as_plain_http_gave_it_where_chromium_fails() -> None:
    browser = Table("browser", {"/": BrowseError("timeout", "too slow")})
    assert (await source_of(SHELL, browser=browser))[0] == "http"
    with pytest.raises(BrowseError) as refused:
        await source_of(SHELL, browser=browser, render_hosts=("*",))
    assert refused.value.code == "timeout"


async def test_without_chromium_every_page_is_plain_http_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    http = Table("http", {"/": SHELL})
    source = RenderingSource(http, None, BrowserSettings(render_hosts=("a.test",)))
    with caplog.at_level(logging.WARNING):
        for host in ("a.test", "b.test", "a.test"):
            assert (await source.fetch(URL(f"https://{host}/"))).source == "http"
    assert caplog.messages == ["https://a.test/ needs a Chromium to be read, and there is none"]


async def test_closing_it_closes_both() -> None:
    http, browser = Table("http", {}), Table("browser", {})
    await RenderingSource(http, browser, BrowserSettings()).aclose()
    assert (http.is_closed, browser.is_closed) == (True, True)


def test_visible_characters_are_those_that_a_reader_sees() -> None:
    html = "<h1>A b</h1><script>no</script><p hidden>no</p> <p>c<!-- no -->&lt;d</p>"
    assert [shows_at_least(num, html) for num in (5, 6)] == [True, False]
