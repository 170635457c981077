"""Local sites, and the browser that all of a process shares."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loopback import Pub, read, serve_pub
from processes import PATIENCE_S

from rnow import browser
from rnow.browser import BrowserSettings, shared
from rnow.browser.local_sites import LocalSites
from rnow.browser.reader import Browser
from rnow.core.counts import collecting
from rnow.errors import ConfigError

NOT_ALLOWED = "ERROR host_not_allowed: this host is not on the list of sites that may be read."


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        yield site


async def test_folders_are_served_as_sites(tmp_path: Path) -> None:
    site, other = tmp_path / "site", tmp_path / "other"
    (site / "study").mkdir(parents=True)
    other.mkdir()
    (tmp_path / "secret.html").write_text("secret")
    (site / "link.html").symlink_to(tmp_path / "secret.html")
    (site / "index.html").write_text("<p>Home")
    (site / "study" / "NCT1.html").write_text("<p>Study Zürich")
    (other / "index.html").write_text("<p>Other")
    async with LocalSites({"a.test": site, "b.test": str(other)}) as sites:
        rules = BrowserSettings(local_sites=sites.ports)
        async with Browser(rules) as opened:
            found = {
                path: (await read(opened, f"https://{path}")).split("\n")[-1]
                for path in ("a.test", "a.test/study/NCT1", "a.test/study/NCT1.html", "b.test/")
            }
            lost = [
                await read(opened, f"https://a.test{path}")
                for path in (
                    *("/study", "/study/NCT2", "/link", "/%2e%2e/secret", "/..%2fsecret.html"),
                    *("/study/..%2f..%2fsecret", "//etc/passwd", "/%00", "/" + "x" * 1_000),
                )
            ]
        assert sites.num_requests == 4 + 9
    assert found == {
        "a.test": "Home",
        "a.test/study/NCT1": "Study Zürich",
        "a.test/study/NCT1.html": "Study Zürich",
        "b.test/": "Other",
    }
    assert lost == ["ERROR http_404: the site answered with status 404."] * 9


async def test_a_server_of_ones_own_stands_for_a_folder(pub: Pub) -> None:
    pub.page("/", "<p>own")
    async with (
        LocalSites({"own.test": f"127.0.0.1:{pub.port}"}) as sites,
        Browser(BrowserSettings(local_sites=sites.ports)) as opened,
    ):
        assert (await read(opened, "https://own.test/")).endswith("own")
        assert sites.num_requests == 0


def test_a_site_without_a_folder_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError) as refused:
        LocalSites({"a.test": "no/such/folder"})
    assert str(refused.value) == (
        "browser.local_sites: a.test: no/such/folder is not a folder; make it, or name a server of "
        "your own as 127.0.0.1:PORT"
    )


async def test_the_browser_of_a_process_serves_every_loop_and_counts(pub: Pub) -> None:
    pub.page("/", "<p>x</p>")
    browser.configure(BrowserSettings(local_sites={"pub.test": pub.port}))
    counts: dict[str, int] = {}

    def sync_tool() -> str:
        return asyncio.run(browser.read("https://pub.test/"))

    try:
        with collecting(counts):
            texts = [await browser.read("https://pub.test/"), await asyncio.to_thread(sync_tool)]
            assert await browser.read("https://a.test/") == NOT_ALLOWED
    finally:
        shared.close()
    assert texts == ["https://pub.test/ (status 200, page 1 of 1)\n\nx"] * 2
    assert len(pub.requests) == 1
    assert counts == {
        "browser/fetched": 1,
        "browser/shared": 1,
        "browser/error_host_not_allowed": 1,
    }


async def test_the_browser_of_a_process_works_beside_nest_asyncio(pub: Pub) -> None:
    pub.page("/", "<p>x</p>")
    code = f"""if True:
        import asyncio
        from rnow import browser
        from rnow.browser import shared
        browser.configure(browser.BrowserSettings(local_sites={{"pub.test": {pub.port}}}))
        before = asyncio.run(browser.read("https://pub.test/"))
        import nest_asyncio
        nest_asyncio.apply()
        async def tool():
            return asyncio.run(browser.read("https://pub.test/?again"))
        print(before[-1], asyncio.run(tool())[-1])
        shared.close()
    """
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == ("x x\n", "")


def test_importing_the_browser_is_light() -> None:
    code = (
        "import sys, rnow.browser\n"
        "rnow.browser.configure(rnow.browser.BrowserSettings())\n"
        "print({'aiohttp', 'crawl4ai', 'lxml', 'torch'} & set(sys.modules))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=PATIENCE_S)
    assert printed == "set()\n"
