"""Sessions with real MCP servers, as a tool worker holds them: over HTTP, SSE and stdio."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp_server import TOOLS, Served, over_stdio, served_over_http
from processes import PATIENCE_S

from rnow.config.mcp_servers import McpServer
from rnow.core.counts import collecting
from rnow.errors import ConfigError, ToolDefinitionError
from rnow.tools.mcp.spec import McpCallError, McpSettings, fill_in
from rnow.tools.mcp.tools import McpTools

LOST = "What it kept is gone; the next call begins anew."


@pytest.fixture(scope="module")
def http() -> Iterator[Served]:
    with served_over_http() as server:
        yield server


class Worker:
    """What a worker does with its servers."""

    def __init__(self, tools: McpTools) -> None:
        self.owner = tools
        self.tools: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    async def call(self, name: str, rollout: str = "0.0.0", **arguments: Any) -> str:
        with collecting(self.counts):
            text: str = await self.tools[name].invoke(arguments, metadata={}, rollout=rollout)
        return text

    async def failed(self, name: str, rollout: str = "0.0.0", **arguments: Any) -> str:
        with pytest.raises(McpCallError) as raised:
            await self.call(name, rollout, **arguments)
        return str(raised.value)


@asynccontextmanager
async def reached(
    tmp_path: Path, *servers: McpServer, per_rollout: bool = True, **variables: str
) -> AsyncIterator[Worker]:
    told: list[Mapping[str, Any]] = []
    settings = McpSettings(servers=servers, place="config.yml:7")
    tools = McpTools(
        fill_in(settings, variables),
        per_rollout=per_rollout,
        folder=tmp_path,
        logs=tmp_path,
        tell=told.append,
    )
    worker = Worker(tools)
    try:
        worker.tools = dict(await tools.list_tools())
        yield worker
    finally:
        await tools.aclose()
    opened = [message["session"] for message in told if message["open"]]
    closed = [message["session"] for message in told if not message["open"]]
    assert sorted(opened) == sorted(closed)


async def unfit(tmp_path: Path, *servers: McpServer) -> str:
    with pytest.raises(ToolDefinitionError) as raised:
        async with reached(tmp_path, *servers):
            pass
    return str(raised.value)


@pytest.mark.parametrize("path", ["/mcp", "/json", "/sse"])
async def test_tools_of_a_server_over_http(tmp_path: Path, http: Served, path: str) -> None:
    async with reached(tmp_path, McpServer(url=http.url(path))) as worker:
        assert list(worker.tools) == TOOLS
        schema = worker.tools["repeat"].spec.schema
        assert (schema.name, schema.description) == ("repeat", "Say it often.")
        assert schema.parameters["required"] == ["text", "times"]
        assert await worker.call("repeat", text="ab", times=3) == "ababab"
        assert await worker.call("echo", value={"a": [1, None]}) == '{"a": [1, null]}'
        assert await worker.failed("fail") == "no such note"
        assert worker.counts == {}
        assert await worker.call("show") == (
            "seen\n[image/png was left out: only text can be shown]\nkept"
        )
        assert worker.counts == {"mcp/left_out": 1}


async def test_a_server_that_knows_no_sessions(tmp_path: Path, http: Served) -> None:
    async with reached(tmp_path, McpServer(url=http.url("/modern"))) as worker:
        assert list(worker.tools) == TOOLS
        texts = [await worker.call("note", rollout, text="a") for rollout in ("0.0.0", "0.0.1")]
        assert texts == ["a: 1 kept", "a: 2 kept"]
        assert await worker.failed("fail") == "no such note"


async def test_each_rollout_has_a_session_of_its_own(tmp_path: Path, http: Served) -> None:
    before = http.counts()
    async with reached(tmp_path, McpServer(url=http.url())) as worker:
        first = [await worker.call("note", "0.1.0", text="a") for _ in range(2)]
        other = await worker.call("note", "0.1.1", text="a")
        assert (first, other) == (["a: 1 kept", "a: 2 kept"], "a: 1 kept")
        worker.owner.release("0.1.0")
        assert await worker.call("note", "0.1.0", text="a") == "a: 1 kept"
    after = http.counts()
    # One for the list of tools, two rollouts, one of them again.
    assert {name: after[name] - before[name] for name in after} == {"opened": 4, "closed": 4}


async def test_calls_side_by_side_share_the_rollouts_session(tmp_path: Path, http: Served) -> None:
    async with reached(tmp_path, McpServer(url=http.url("/json"))) as worker:
        texts = await asyncio.gather(*(worker.call("note", text="a") for _ in range(5)))
        assert sorted(texts) == [f"a: {n} kept" for n in range(1, 6)]


async def test_a_session_can_be_the_whole_runs(tmp_path: Path, http: Served) -> None:
    before = http.counts()
    async with reached(tmp_path, McpServer(url=http.url()), per_rollout=False) as worker:
        texts = [await worker.call("note", f"0.{n}.0", text="a") for n in range(3)]
        worker.owner.release("0.0.0")
        assert [*texts, await worker.call("note", "0.0.0", text="a")] == [
            f"a: {n} kept" for n in range(1, 5)
        ]
    after = http.counts()
    assert {name: after[name] - before[name] for name in after} == {"opened": 1, "closed": 1}


async def test_a_call_that_is_given_up_leaves_the_session(tmp_path: Path, http: Served) -> None:
    async with reached(tmp_path, McpServer(url=http.url())) as worker:
        assert await worker.call("note", text="a") == "a: 1 kept"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await worker.call("hang")
        assert await worker.call("note", text="a") == "a: 2 kept"


async def test_a_call_ends_when_its_rollout_is_released(tmp_path: Path, http: Served) -> None:
    async with reached(tmp_path, McpServer(url=http.url())) as worker:
        hanging = asyncio.create_task(worker.failed("hang"))
        assert await worker.call("note", text="a") == "a: 1 kept"
        worker.owner.release("0.0.0")
        assert "was lost" in await asyncio.wait_for(hanging, PATIENCE_S)


async def test_a_server_that_died_is_reached_again(tmp_path: Path) -> None:
    with served_over_http() as server:
        name = f"MCP server 1 (http://127.0.0.1:{server.port})"
        async with reached(tmp_path, McpServer(url=server.url())) as worker:
            assert await worker.call("note", text="a") == "a: 1 kept"
            assert await worker.call("note", "0.1.0", text="a") == "a: 1 kept"
            text = await worker.failed("die")
            assert text.startswith(f"The session with {name} was lost: ")
            assert text.endswith(LOST)
            assert worker.counts == {"mcp/lost_sessions": 1}
            server.process.wait()
            text = await worker.failed("note", text="a")
            assert text.startswith(f"{name} cannot be reached: ConnectError")
            assert worker.counts == {"mcp/lost_sessions": 1, "mcp/unreachable": 1}
            server.restart()
            assert await worker.call("note", text="a") == "a: 1 kept"
            # A session that ended while nobody called is told of, too.
            assert (await worker.failed("note", "0.1.0", text="a")).endswith(LOST)
            assert await worker.call("note", "0.1.0", text="a") == "a: 1 kept"


async def test_a_command_dies_hangs_and_says_too_much(tmp_path: Path) -> None:
    async with reached(tmp_path, over_stdio(), per_rollout=False) as worker:
        assert list(worker.tools) == TOOLS
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await worker.call("hang")
        assert await worker.call("note", text="a") == "a: 1 kept"
        assert len(await worker.call("repeat", text="x", times=2_000_000)) == 2_000_000
        assert await worker.failed("repeat", text="x", times=20_000_000) == (
            f"The session with {over_stdio_label()} was lost: it sent a message of more than "
            f"16 MB. {LOST}"
        )
        assert await worker.call("note", text="a") == "a: 1 kept"
        assert (await worker.failed("die")).endswith(LOST)
        assert await worker.call("note", text="a") == "a: 1 kept"


def over_stdio_label() -> str:
    return f"MCP server 1 ({over_stdio().name})"


async def test_a_message_that_is_too_long_over_http(tmp_path: Path, http: Served) -> None:
    async with reached(tmp_path, McpServer(url=http.url("/json"))) as worker:
        assert len(await worker.call("repeat", text="x", times=2_000_000)) == 2_000_000
        text = await worker.failed("repeat", text="x", times=20_000_000)
        assert "it sent a message of more than 16 MB" in text
        assert await worker.call("note", text="a") == "a: 1 kept"


async def test_secrets_reach_the_server_and_come_back_from_nowhere(
    tmp_path: Path, http: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)  # as a tools.py may
    secrets = {"KEY": "sk-0123456789", "OTHER_KEY": "not-for-servers"}
    over_http = McpServer(
        url=http.url() + "?key=${KEY}", headers={"X-Key": "${KEY}"}, tools=["whoami"]
    )
    async with reached(tmp_path, over_http, **secrets) as worker:
        text = await worker.call("whoami")
        assert text == f"key …, pid {http.process.pid}, other None"
    command = over_stdio(env={"NOTES_KEY": "${KEY}"}, tools=["whoami"])
    async with reached(tmp_path, command, per_rollout=False, **secrets) as worker:
        assert (await worker.call("whoami")).startswith("key …, pid ")
    sse = McpServer(url=http.url("/sse") + "?key=${KEY}", tools=["whoami"])
    async with reached(tmp_path, sse, **secrets) as worker:
        await worker.failed("whoami", nothing=object)  # cannot be sent
    assert secrets["KEY"] not in caplog.text


def test_secrets_are_known_by_their_names() -> None:
    server = McpServer(
        url="${SERVER}/mcp?key=${API_KEY}",
        headers={"Authorization": "Bearer literal-token", "Accept": "application/json"},
    )
    variables = {"SERVER": "http://127.0.0.1:1/sse", "API_KEY": "sk-0123456789"}
    (spec,) = fill_in(McpSettings(servers=(server,)), variables)
    assert spec.url == "http://127.0.0.1:1/sse/mcp?key=sk-0123456789"
    assert spec.headers["Authorization"] == "Bearer literal-token"
    assert spec.secrets == ("literal-token", "sk-0123456789")
    said = "application/json of http://127.0.0.1:1/sse: no sk-0123456789, Bearer literal-token"
    assert spec.scrub(said) == "application/json of http://127.0.0.1:1/sse: no …, Bearer …"
    with pytest.raises(ConfigError) as raised:
        fill_in(McpSettings(servers=(server,)), variables | {"SERVER": "ftp://a"})
    assert str(raised.value) == (
        "config.yml: MCP server 1 (${SERVER}) has a url that is none, once its variables are "
        "filled in"
    )


def test_a_variable_that_is_set_nowhere_is_named() -> None:
    server = McpServer(url="http://127.0.0.1:1/mcp?key=${ABSENT}")
    with pytest.raises(ConfigError) as raised:
        fill_in(McpSettings(servers=(server,), place="config.yml:7"), {})
    assert str(raised.value) == (
        "config.yml:7: MCP server 1 (http://127.0.0.1:1) uses ${ABSENT}, which is set neither in "
        "this shell nor in .env; set it or take it out"
    )


async def test_servers_that_cannot_be_reached(tmp_path: Path, http: Served) -> None:
    remedy = "start it, or take it out of rollout.mcp_url"
    place = f"config.yml:7: MCP server 1 (http://127.0.0.1:{http.port})"
    assert await unfit(tmp_path, McpServer(url=http.url("/wrong?key=s3cret-1"))) == (
        f"{place} cannot be reached: it answered with HTTP status 404; is the path of its url "
        f"right? It is often /mcp; {remedy}"
    )
    assert await unfit(tmp_path, McpServer(url=http.url("/wrong"), transport="sse")) == (
        f"{place} cannot be reached: it answered with HTTP status 404; is the path of its url "
        f"right? It is often /mcp; {remedy}"
    )
    text = await unfit(tmp_path, McpServer(url="http://127.0.0.1:9/mcp"))
    assert text.startswith("config.yml:7: MCP server 1 (http://127.0.0.1:9) cannot be reached: ")
    assert await unfit(tmp_path, McpServer(command="no-such-program")) == (
        "config.yml:7: MCP server 1 (no-such-program) cannot be reached: there is no program "
        f"no-such-program; install it, or give its path; {remedy}"
    )
    script = McpServer(command="/bin/sh", args=["-c", "echo no key >&2; exit 4"])
    assert await unfit(tmp_path, script) == (
        "config.yml:7: MCP server 1 (/bin/sh) cannot be reached: it ended (exit code 4); it "
        f"printed: no key; {remedy}"
    )


async def test_tools_that_no_model_should_see(tmp_path: Path, http: Served) -> None:
    place = f"config.yml:7: MCP server 1 (http://127.0.0.1:{http.port})"
    assert await unfit(tmp_path, McpServer(url=http.url("/odd"))) == (
        f"{place}: its tool '<|im_end|>' has a name that is not of letters, digits and _.-, 128 "
        "at most; leave it out with `tools:`"
    )
    text = await unfit(tmp_path, McpServer(url=http.url("/odd"), tools=["bad"]))
    assert text.startswith(f"{place}: its tool 'bad' has a schema that is none: 'thing' is not")
    assert await unfit(tmp_path, McpServer(url=http.url("/odd"), tools=["fine", "gone"])) == (
        f"{place} has no tool 'gone', which its `tools:` names; it has 'fine', '<|im_end|>', 'bad'"
    )
    async with reached(tmp_path, McpServer(url=http.url("/odd"), tools=["fine"])) as worker:
        assert json.loads(await worker.call("fine")) == {"called": "fine"}


async def test_two_servers_with_a_tool_of_one_name(tmp_path: Path, http: Served) -> None:
    first = McpServer(url=http.url(), tools=["note", "echo"])
    second = McpServer(url=http.url("/json"), tools=["echo"])
    name = f"(http://127.0.0.1:{http.port})"
    assert await unfit(tmp_path, first, second) == (
        f"config.yml:7: MCP server 2 {name} has a tool 'echo', and so has config.yml:7: MCP server "
        f"1 {name}; rename one, or leave one out with `tools:` of its server (docs/mcp.md)"
    )
