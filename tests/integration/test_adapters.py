"""Adapters behind the whole browser, with invented data served on loopback."""

import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from loopback import Pub, read, serve_pub
from short_runs import ForkedCli
from yarl import URL

import rnow.medbrowse  # noqa: F401 — registers its adapters
from rnow import browser
from rnow.browser import BrowserSettings
from rnow.browser.adapters import ADAPTERS
from rnow.browser.reader import Browser
from rnow.commands.init import init_project
from rnow.records import RolloutId
from rnow.tools.base import ToolCall
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings

STUDY = (
    '{"protocolSection": {"identificationModule": {"nctId": "NCT90000001", "briefTitle": '
    '"A \\u200btitle"}}}'
)


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        site.page("/api/v2/studies/NCT90000001", STUDY, content_type="application/json")
        yield site


def opened(pub: Pub, *hosts: str, **settings: object) -> Browser:
    chosen = {"local_sites": dict.fromkeys(hosts, pub.port)} | settings
    return Browser(BrowserSettings(**chosen))  # type: ignore[arg-type]  # keywords of one test


async def test_a_study_page_is_made_of_the_interface_s_answer(pub: Pub) -> None:
    async with opened(pub, "clinicaltrials.gov") as browser:
        answer = await browser.read("https://clinicaltrials.gov/study/NCT90000001")
    assert answer.text == (
        "https://clinicaltrials.gov/study/NCT90000001 (status 200, page 1 of 1)\n\n"
        "# A title\n\nClinicalTrials.gov ID: NCT90000001"
    )
    assert (answer.source, answer.cache) == ("clinicaltrials", "none")
    assert [request.path for request in pub.requests] == ["/api/v2/studies/NCT90000001"]


async def test_a_study_is_replayed_as_it_was_recorded(pub: Pub, tmp_path: Path) -> None:
    url = "https://clinicaltrials.gov/study/NCT90000001"
    store = {"store": str(tmp_path)}
    async with opened(pub, "clinicaltrials.gov", **store, store_mode="record") as browser:
        recorded = await browser.read(url)
    async with opened(pub, "clinicaltrials.gov", **store, store_mode="replay") as browser:
        replayed = await browser.read(url)
    assert recorded.text == replayed.text
    assert (replayed.source, replayed.cache) == ("clinicaltrials", "store")
    assert len(pub.requests) == 1


async def test_a_study_that_is_not_there_and_data_that_are_none_are_errors(pub: Pub) -> None:
    pub.page("/api/v2/studies/NCT90000002", "<p>down for maintenance")
    async with opened(pub, "clinicaltrials.gov") as browser:
        assert await read(browser, "https://clinicaltrials.gov/study/NCT90000003") == (
            "ERROR http_404: the site answered with status 404."
        )
        assert await read(browser, "https://clinicaltrials.gov/study/NCT90000002") == (
            "ERROR unreadable: this page could not be turned into text."
        )


async def test_an_application_is_asked_of_openfda(pub: Pub) -> None:
    answer = '{"results": [{"application_number": "NDA900001", "sponsor_name": "EXAMPLE"}]}'
    pub.page("/drug/drugsfda.json", answer, content_type="application/json")
    url = "https://www.accessdata.fda.gov/scripts/cder/daf/index.cfm?event=x&ApplNo=900001"
    async with opened(pub, "www.accessdata.fda.gov", "api.fda.gov") as browser:
        assert await read(browser, url) == (
            f"{url} (status 200, page 1 of 1)\n\n# Drugs@FDA: NDA 900001\n\nCompany: EXAMPLE"
        )
    (request,) = pub.requests
    assert request.headers["Host"] == "api.fda.gov"
    assert request.query["search"] == (
        'application_number:"NDA900001" application_number:"ANDA900001" '
        'application_number:"BLA900001"'
    )


async def test_where_the_host_of_the_data_is_not_on_the_list_the_page_itself_is_read(
    pub: Pub,
) -> None:
    pub.page("/scripts/cder/daf/index.cfm", "<p>the page")
    url = "https://www.accessdata.fda.gov/scripts/cder/daf/index.cfm?ApplNo=900001"
    async with opened(pub, "www.accessdata.fda.gov") as browser:
        assert (await read(browser, url)).endswith("\n\nthe page")


async def test_the_orange_book_is_fetched_once_for_all_its_pages(pub: Pub) -> None:
    from io import BytesIO
    from zipfile import ZipFile

    archive = BytesIO()
    with ZipFile(archive, "w") as files:
        files.writestr("products.txt", "Ingredient~Trade_Name~Appl_Type~Appl_No\nX~XIN~N~900001\n")
        files.writestr("patent.txt", "Appl_Type~Appl_No\n")
        files.writestr("exclusivity.txt", "Appl_Type~Appl_No\n")
    body = archive.getvalue()
    pub.pages["/media/76860/download"] = lambda _: web.Response(
        body=body, headers={"Content-Type": "application/zip"}
    )
    base = "https://www.accessdata.fda.gov/scripts/cder/ob"
    async with opened(pub, "www.accessdata.fda.gov", "www.fda.gov") as browser:
        one = await read(browser, f"{base}/search_product.cfm?drugname=xin")
        other = await read(browser, f"{base}/patent_info.cfm?Appl_No=900001")
    assert "[N900001]" in one
    assert "There is no unexpired exclusivity for this product." in other
    assert len(pub.requests) == 1


async def test_data_are_bounded_as_pages_are(pub: Pub) -> None:
    pub.pages["/api/v2/studies/NCT90000002"] = lambda _: web.Response(
        body=gzip.compress(bytes(50_000_000), compresslevel=1),
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    async with opened(pub, "clinicaltrials.gov") as browser:
        assert await read(browser, "https://clinicaltrials.gov/study/NCT90000002") == (
            "ERROR too_large: this page is larger than 5 MB."
        )


async def test_the_adapter_of_the_documentation_serves_a_project_elsewhere(
    pub: Pub, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs/browsing.md").read_text()
    (block,) = re.findall(r"```python\n([^`]*@browser.adapter[^`]*)```", text)
    (tmp_path / "tools.py").write_text(block)
    pub.page("/api/trial/7", '{"title": "Trial 7", "summary": "Oncavex, once a day."}')
    settings = WorkerSettings(
        project_dir=tmp_path,
        tool_timeout_s=30,
        max_tool_response=None,
        max_tool_response_chars=4_000,
        workers=1,
        concurrency=1,
        env_names=(),
        tokenizer_file=None,
        log_file=tmp_path / "tools.log",
        browser=BrowserSettings(local_sites={"registry.test": pub.port}),
    )
    async with ToolPool(settings) as pool:
        answer = await pool.call(
            ToolCall(name="browse", arguments={"url": "https://registry.test/trial/7"}, raw=""),
            rollout=RolloutId(0, 0, 0),
            allowed=None,
            metadata={},
        )
    assert answer.text == (
        "https://registry.test/trial/7 (status 200, page 1 of 1)\n\n"
        "# Trial 7\n\nOncavex, once a day."
    )
    assert [request.path for request in pub.requests] == ["/api/trial/7"]


async def test_an_adapter_that_raises_is_named_with_its_reason_and_not_to_the_model(
    pub: Pub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pub.page("/record/1", "{}")

    def data_of(url: URL) -> URL:
        return url if url.path == "/record/1" else URL(url.query["data"])

    @browser.adapter("registry.test", data=data_of)
    def registry(page: browser.RawPage) -> str:
        return str(json.loads(page.body)["title"])

    monkeypatch.setitem(ADAPTERS, "registry", ADAPTERS.pop("registry"))  # gone after this test
    async with opened(pub, "registry.test") as opened_browser:
        for path, reason in (("/record/1", "'title'"), ("/record/2", "'data'")):
            url = f"https://registry.test{path}"
            assert await read(opened_browser, url) == (
                "ERROR unreadable: this page could not be turned into text."
            )
            assert f"{url} could not be read: adapter 'registry' raised KeyError: {reason}" in (
                caplog.messages
            )


def test_rnow_browse_says_why_an_adapter_gave_no_page(rnow: ForkedCli, tmp_path: Path) -> None:
    init_project(tmp_path / "clinic", template="clinic")
    with (tmp_path / "clinic" / "tools.py").open("a") as tools:
        tools.write(
            """

@browser.adapter("clinic.test", data=lambda url: url.with_path("/index.html"))
def records(page: browser.RawPage) -> str:
    raise ValueError("no record in here")
"""
        )
    (tmp_path / "clinic" / "site" / "index.html").write_text("<p>records")
    done = rnow("browse", "https://clinic.test/study/1", "-d", tmp_path / "clinic")
    assert done.status == 1
    assert "ERROR unreadable: this page could not be turned into text." in done.output
    assert (
        "https://clinic.test/study/1 could not be read: adapter 'records' raised ValueError: no "
        "record in here"
    ) in done.output
