"""rollout.mcp_url: its shapes, what is wrong with others; no message shows what it holds."""

import re
from pathlib import Path

import pytest

from rnow.config.load import LoadedConfig, load_config
from rnow.config.mcp_servers import McpServer
from rnow.config.settings import Config
from rnow.errors import ConfigError

MINIMAL = """\
data: {batch_size: 16}
model: {path: student}
teacher: {path: teacher}
trainer: {num_epochs: 3}
"""
SECRET = "sk-0123456789"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(value: str, *overrides: str) -> LoadedConfig:
    Path("config.yml").write_text(f"{MINIMAL}rollout:\n  mcp_url: {value}\n")
    return load_config(Path(), overrides=overrides)


def servers(value: str, *overrides: str) -> list[McpServer]:
    return load(value, *overrides).config.rollout.mcp_url


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("null", []),
        ("[]", []),
        # As files of the hosted service have it.
        ("localhost:8931", [McpServer(url="http://localhost:8931")]),
        ("127.0.0.1:8931/mcp", [McpServer(url="http://127.0.0.1:8931/mcp")]),
        ("http://localhost:8931", [McpServer(url="http://localhost:8931")]),
        (
            '"https://mcp.tavily.com/mcp/?tavilyApiKey=${TAVILY_API_KEY}"',
            [McpServer(url="https://mcp.tavily.com/mcp/?tavilyApiKey=${TAVILY_API_KEY}")],
        ),
        (
            "[http://a.test/mcp, 'http://b.test/sse']",
            [McpServer(url="http://a.test/mcp"), McpServer(url="http://b.test/sse")],
        ),
        (
            "{url: http://a.test/mcp, headers: {Authorization: 'Bearer ${KEY}'}, tools: [find]}",
            [
                McpServer(
                    url="http://a.test/mcp",
                    headers={"Authorization": "Bearer ${KEY}"},
                    tools=["find"],
                )
            ],
        ),
        (
            "[{command: npx, args: [-y, '@playwright/mcp'], env: {KEY: '${KEY}'}}]",
            [McpServer(command="npx", args=["-y", "@playwright/mcp"], env={"KEY": "${KEY}"})],
        ),
    ],
)
def test_shapes_of_servers(value: str, expected: list[McpServer]) -> None:
    loaded = load(value)
    assert (loaded.config.rollout.mcp_url, loaded.notices) == (expected, ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a.test:8931", "server 1 has a url that is not one, as http://127.0.0.1:8000/mcp"),
        ("[http://a.test, 7]", "server 2 must be a URL, {url: …} or {command: …}"),
        ("[{}]", "server 1 must have either a url or a command"),
        (
            "{url: http://a.test, command: npx}",
            "server 1 must have either a url or a command",
        ),
        ("{url: http://a.test, args: [a]}", "server 1 has args, which belongs to a command"),
        ("{command: npx, headers: {A: b}}", "server 1 has headers, which belongs to a url"),
        ("{command: npx, transport: sse}", "server 1 has transport, which belongs to a url"),
        (
            "{command: npx, cwd: .}",
            "server 1 has no setting cwd; it has url, transport, headers, command, args, env, "
            "tools",
        ),
        (
            "{command: npx, args: [1]}",
            "server 1: args.0 is not right: Input should be a valid string",
        ),
        (
            "{url: http://a.test, transport: websocket}",
            "server 1: transport is not right: Input should be 'auto', 'http' or 'sse'",
        ),
        (
            "{command: npx, tools: []}",
            "server 1: tools is not right: List should have at least 1 item after validation, "
            "not 0",
        ),
    ],
)
def test_what_is_no_server(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(value)
    assert str(raised.value) == f"config.yml:6: rollout.mcp_url: {message}"


def test_a_url_that_ends_in_sse_is_spoken_to_that_way() -> None:
    urls = ("http://a.test/sse", "http://a.test/sse/?k=v", "http://a.test/mcp", "http://a.test")
    assert [McpServer(url=url).is_sse_at(url) for url in urls] == [True, True, False, False]
    assert not McpServer(url=urls[0], transport="http").is_sse_at(urls[0])
    assert McpServer(url=urls[2], transport="sse").is_sse_at(urls[2])


def test_no_message_shows_a_servers_texts() -> None:
    url = f"https://me:{SECRET}@a.test/{SECRET}/mcp?key={SECRET}"
    assert McpServer(url=url).name == "https://a.test"
    assert McpServer(url="${SERVER_URL}/mcp").name == "${SERVER_URL}"
    assert McpServer(command="npx", args=[SECRET], env={"KEY": SECRET}).name == "npx"
    for value in (f"{{command: npx, key: {SECRET}}}", f"ftp://{SECRET}", f"{{a: [{SECRET}]}}"):
        with pytest.raises(ConfigError) as raised:
            load(value)
        assert SECRET not in str(raised.value)
    loaded = load(url, f"rollout.mcp_url={url}")
    assert loaded.overrides == ("rollout.mcp_url = … (was: …)",)
    with pytest.raises(ConfigError) as raised:
        load("null", f"rollout.mcp_url=ftp://{SECRET}")
    assert str(raised.value) == (
        "override rollout.mcp_url=…: rollout.mcp_url: server 1 has a url that is not one, as "
        "http://127.0.0.1:8000/mcp"
    )


def test_a_runs_folder_keeps_the_server_without_its_secrets() -> None:
    value = f"[{{url: 'http://a.test/mcp?k={SECRET}', headers: {{A: {SECRET}}}}}, {{command: npx}}]"
    config = load(value).config
    kept = config.model_dump(mode="json")
    assert kept["rollout"]["mcp_url"] == [
        {"url": "http://a.test", "tools": None},
        {"command": "npx", "tools": None},
    ]
    again = Config.model_validate(kept).rollout.mcp_url
    assert again == [McpServer(url="http://a.test", tools=None), McpServer(command="npx")]


def test_the_page_has_each_field_of_a_server() -> None:
    page = (Path(__file__).parents[3] / "docs" / "mcp.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named == McpServer.model_fields.keys()


def test_an_override_names_several_servers() -> None:
    override = 'rollout.mcp_url=["http://a.test/mcp?a=1&b=2", {command: npx}]'
    assert servers("http://b.test", override) == [
        McpServer(url="http://a.test/mcp?a=1&b=2"),
        McpServer(command="npx"),
    ]


HOSTED = """\
project_id: 0b5b
project_name: web
dataset_id: 1
dataset_name: d
organization_id: o
dataset_type: {dataset_type}
data: {{batch_size: 4, group_size: 16, train_file: train.jsonl}}
model: {{path: Qwen/Qwen3-8B, qlora_rank: 32, name: m}}
{teacher}algorithm: {{loss_fn: ppo, adv_estimator: grpo, kl_penalty_coef: 0.01}}
rollout:
  max_turns: 10
  max_tokens: 2048
  max_tool_response_chars: 4000
  mcp_url: {mcp_url}
trainer: {{num_epochs: 30, learning_rate: 0.0001, save_step: 0, eval_step: 0, max_billing: 5}}
"""


@pytest.mark.parametrize("dataset_type", ["rl", "distill"])
@pytest.mark.parametrize(
    "mcp_url",
    [
        "localhost:8931",
        "http://localhost:8931",
        "https://mcp.tavily.com/mcp/?tavilyApiKey=${TAVILY_API_KEY}",
        "[http://localhost:8931, https://mcp.example.com/sse]",
    ],
)
def test_a_file_of_the_hosted_client_loads_with_its_servers(
    dataset_type: str, mcp_url: str
) -> None:
    teacher = "teacher: {path: Qwen/Qwen3-32B}\n" if dataset_type == "distill" else ""
    text = HOSTED.format(dataset_type=dataset_type, teacher=teacher, mcp_url=mcp_url)
    Path("config.yml").write_text(text)
    loaded = load_config(Path())
    assert len(loaded.config.rollout.mcp_url) == 1 + mcp_url.count(",")
    told = {problem.key: problem.severity for problem in loaded.warnings}
    assert told == dict.fromkeys(
        (
            *("project_id", "dataset_id", "dataset_name", "organization_id", "model.name"),
            *("rollout.max_tool_response_chars", "trainer.save_step", "trainer.max_billing"),
        ),
        "warning",
    )
