"""Which sites check asks, once each, and what it says of those that cannot be read."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from builders import read_prompts
from loopback import Inner, Names, Pub, serve_inner, serve_pub

from rnow.browser.http import HttpSource
from rnow.browser.rules.guard import is_public
from rnow.commands.check.point import Outcome, Point
from rnow.commands.check.sites import check_sites
from rnow.config.load import load_config

CONFIG = """\
data: {batch_size: 1, group_size: 64}
trainer: {num_epochs: 1}
model: {path: student}
teacher: {path: teacher}
rollout: {max_turns: 2}
browser:
  contact: me@example.org
  allow_hosts: [a.test, b.test, "*.c.test"]
"""
QUESTION = (
    "What says http://a.test/open, and http://x.c.test/1? Or http://evil.test/, http://a.test/2?"
)
NO_NETWORK = (
    "look at the spelling and at this machine's network; where there is none, record pages "
    "elsewhere with rnow corpus build and set browser.store_mode: replay"
)


@pytest.fixture(scope="module")
def web_() -> Iterator[tuple[Pub, Inner]]:
    """A site, and a server inside, which nobody may reach."""
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def serve() -> tuple[Pub, Inner]:
        return (
            await stack.enter_async_context(serve_pub()),
            await stack.enter_async_context(serve_inner()),
        )

    yield asyncio.run_coroutine_threadsafe(serve(), loop).result()
    asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def pub(web_: tuple[Pub, Inner]) -> Pub:
    web_[0].requests, web_[0].pages = [], {}
    return web_[0]


def ask(
    folder: Path,
    *overrides: str,
    source: partial[HttpSource] | type[HttpSource] = HttpSource,
    question: str = QUESTION,
    is_offline: bool = False,
) -> Point | None:
    (folder / "config.yml").write_text(CONFIG)
    messages = [{"role": "system", "content": "As http://sample.test/"}]
    messages += [{"role": "user", "content": question}]
    train = folder / "train.jsonl"
    train.write_text(json.dumps({"messages": messages}) + "\n")
    loaded = load_config(folder, overrides=overrides)
    prompts = read_prompts(train, dataset_type="distill", tool_names=None).prompts
    return check_sites(
        loaded,
        folder,
        {str(train): prompts},
        is_offline=is_offline,
        open_source=source,
        deadline_s=2.0,
    )


def at_pub(pub: Pub, *hosts: str) -> partial[HttpSource]:
    names = Names({host: [[("127.0.0.1", pub.port)]] for host in hosts})
    return partial(HttpSource, resolver=names, may_dial=lambda address, port: port == pub.port)


def test_a_project_that_reads_no_sites_has_no_such_point(tmp_path: Path) -> None:
    assert ask(tmp_path, "browser.allow_hosts=[]") is None


def test_each_host_is_asked_once_and_for_its_robots_alone(tmp_path: Path, pub: Pub) -> None:
    (tmp_path / "tools.py").write_text('# reads "http://d.c.test/x" too\n')
    found = ask(
        tmp_path,
        'browser.allow_hosts=[a.test,"*.c.test"]',
        source=at_pub(pub, "a.test", "x.c.test", "d.c.test"),
    )
    assert found is not None
    assert (found.outcome, found.message) == (
        Outcome.OK,
        "may be read: a.test, x.c.test, d.c.test",
    )
    assert sorted((request.host, request.path) for request in pub.requests) == [
        ("a.test", "/robots.txt"),
        ("d.c.test", "/robots.txt"),
        ("x.c.test", "/robots.txt"),
    ]
    assert [problem.message for problem in found.problems] == [
        "train.jsonl: pages are named of evil.test, which may not be read; add what the model is "
        "to read to browser.allow_hosts, if it is public"
    ]


def test_what_cannot_be_read_is_said_by_kind_with_what_to_do(tmp_path: Path, pub: Pub) -> None:
    pub.page("/robots.txt", "User-agent: *\nDisallow: /open", content_type="text/plain")
    source = at_pub(pub, "a.test")
    found = ask(tmp_path, source=source, question=QUESTION.partition(" Or")[0])
    assert found is not None
    assert (found.outcome, found.message) == (Outcome.OK, "none of them can be read from here")
    assert [(one.line, one.severity, one.message) for one in found.problems] == [
        (
            8,
            "warning",
            "a.test: blocked_by_site, the site asks programs not to read this page; the model is "
            "refused there, unless an adapter in tools.py reads data that the site made for "
            "programs",
        ),
        (
            8,
            "warning",
            f"x.c.test, b.test: unreachable, there is no such host; {NO_NETWORK}",
        ),
    ]


def test_a_site_that_fails_is_named_by_how(tmp_path: Path, pub: Pub) -> None:
    pub.pages["/robots.txt"] = lambda _: web.Response(status=503)
    found = ask(
        tmp_path,
        "browser.allow_hosts=[a.test]",
        source=at_pub(pub, "a.test"),
        question="http://a.test/",
    )
    assert found is not None
    assert [problem.message for problem in found.problems] == [
        f"a.test: http_503, the site answered with status 503; {NO_NETWORK}"
    ]


def test_a_name_that_leads_inside_is_not_dialled(tmp_path: Path, web_: tuple[Pub, Inner]) -> None:
    inner = web_[1]
    addresses = [[("127.0.0.1", inner.port)], [("10.0.0.1", 80), ("93.184.216.34", 80)]]
    names = Names({"a.test": [addresses[0]], "b.test": [addresses[1]]})
    source = partial(HttpSource, resolver=names, may_dial=lambda address, port: is_public(address))
    found = ask(
        tmp_path,
        "browser.allow_hosts=[a.test,b.test,127.0.0.2]",
        source=source,
        question=f"http://a.test/, http://127.0.0.1:{inner.port}/ and http://127.0.0.2/",
    )
    assert found is not None
    assert [problem.message for problem in found.problems] == [
        "train.jsonl: pages are named of 127.0.0.2, which may not be read; add what the model is "
        "to read to browser.allow_hosts, if it is public",
        "a.test, b.test: blocked_address, this address is not on the public internet; rnow reads "
        "no inner address under a public name; serve such pages as one of browser.local_sites, "
        "or take the host out of browser.allow_hosts",
    ]
    assert inner.num_hits == 0
    assert sorted(names.asked) == ["a.test", "b.test"]


@pytest.mark.parametrize(
    ("overrides", "is_offline", "reason"),
    [
        ((), True, "--offline"),
        (("browser.contact=null",), False, "browser.contact is null"),
        (("browser.store_mode=replay",), False, "browser.store_mode is replay"),
    ],
)
def test_sites_are_not_asked_where_they_need_not_or_may_not_be(
    tmp_path: Path, pub: Pub, overrides: tuple[str, ...], is_offline: bool, reason: str
) -> None:
    source = at_pub(pub, "a.test", "b.test", "x.c.test")
    found = ask(tmp_path, *overrides, source=source, is_offline=is_offline)
    assert found is not None
    assert (found.outcome, found.message) == (
        Outcome.NOT_CHECKED,
        f"not asked, {reason}: a.test, x.c.test, b.test",
    )
    assert pub.requests == []


def test_sites_that_rnow_serves_itself_are_not_asked(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    sites = "browser.local_sites={a.test: pages}"
    found = ask(tmp_path, "browser.allow_hosts=[]", sites, question="See http://a.test/x.")
    assert found is not None
    assert (found.outcome, found.message, found.problems) == (
        Outcome.OK,
        "a.test: served from here",
        (),
    )


def test_a_thousand_hosts_are_not_all_asked(tmp_path: Path, pub: Pub) -> None:
    hosts = [f"h{number}.c.test" for number in range(60)]
    question = " ".join(f"http://{host}/" for host in hosts)
    source = at_pub(pub, *hosts)
    found = ask(tmp_path, 'browser.allow_hosts=["*.c.test"]', source=source, question=question)
    assert found is not None
    assert found.message == (
        "may be read: h0.c.test, h1.c.test, h2.c.test, h3.c.test, h4.c.test and 45 more\n"
        "not asked: 10 more hosts"
    )
    assert len(pub.requests) == 50
