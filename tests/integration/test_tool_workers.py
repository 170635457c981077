"""Tool workers as real processes, with tools that do all that tools should not do."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import is_alive, until, within_until
from tokenizers import Tokenizer, models, pre_tokenizers

from rnow.browser.settings import BrowserSettings
from rnow.errors import ConfigError, DeadlineError, ToolDefinitionError
from rnow.records import RolloutId, ToolOutcome
from rnow.runtime.channel import Channel
from rnow.tools import process as worker_process
from rnow.tools.base import ToolAnswer, ToolCall
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings

TOOLS = '''
import asyncio, ctypes, datetime, os, signal, subprocess, sys, threading, time
from rnow.core import tool, ToolArgs
from rnow.core.counts import count

print("imported")

@tool
def echo(text: str, args: ToolArgs, times: int = 1) -> str:
    """Say it again."""
    return f"{text * times} {args.metadata}"

@tool
async def echo_async(text: str) -> dict:
    """Say it again, later."""
    await asyncio.sleep(0.01)
    count("echoes", 2)
    return {"text": text}

@tool
def weekday(day: datetime.date) -> str:
    """Say which day of the week it is."""
    return day.strftime("%u")

@tool
def pid() -> int:
    """The worker's process."""
    return os.getpid()

@tool(timeout=0.3)
def hang() -> str:
    """Never return."""
    time.sleep(1000)

@tool(timeout=0.3)
async def hang_async() -> str:
    """Never return, politely."""
    await asyncio.sleep(1000)

@tool(timeout=0.3)
async def hang_stubborn() -> str:
    """Refuse to be cancelled."""
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

@tool(timeout=0.3)
async def block_loop() -> str:
    """Stop the event loop."""
    time.sleep(1000)

@tool(timeout=0.3)
def hold_gil() -> str:
    """Stop the interpreter."""
    ctypes.PyDLL(None).sleep(1000)

@tool
def slow(seconds: float) -> str:
    """Take a while."""
    time.sleep(seconds)
    return "slow but done"

@tool
def fail(kind: str) -> str:
    """Raise."""
    count("tries")
    raise {"value": ValueError("no such trial"), "empty": RuntimeError(),
           "interrupt": KeyboardInterrupt(), "exit": SystemExit(3)}[kind]

@tool
async def fail_async(kind: str) -> str:
    """Raise, later."""
    await asyncio.sleep(0)
    fail(kind)

@tool
async def leave_bad_task() -> str:
    """Leave a task behind that ends the loop."""
    async def bad():
        sys.exit(7)
    asyncio.get_running_loop().create_task(bad())
    return "left"

@tool
def end_process(how: str) -> str:
    """End the process."""
    if how == "exit":
        os._exit(9)
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)

@tool
def garble() -> str:
    """Write into every open file, the protocol's socket among them."""
    for fd in range(3, 64):
        try:
            os.write(fd, b"\\xff" * 64)
        except OSError:
            pass
    return "done"

@tool
def browse(url: str) -> str:
    """Kill the worker the first time."""
    if not os.path.exists("seen"):
        open("seen", "w").close()
        os._exit(1)
    return "page of " + url

@tool
def big(kind: str) -> list:
    """Return 50 MB."""
    return "x" * 50_000_000 if kind == "text" else ["y" * 1000] * 50_000

@tool
def unserializable() -> dict:
    """Return a set."""
    return {1, 2}

@tool
def surrogate() -> str:
    """Return what is no text."""
    return "a\\ud800b"

@tool
def noise() -> str:
    """Print everywhere."""
    print("python print")
    os.write(1, b"raw write\\n")
    subprocess.run(["echo", "child print"])
    sys.stderr.write("python stderr\\n")
    return "quiet"

@tool
def environment(name: str) -> str:
    """Read a variable; of "*" the names of all."""
    return " ".join(os.environ) if name == "*" else os.environ.get(name, "unset")

@tool
def child() -> int:
    """Start a process that goes on."""
    return subprocess.Popen(["sleep", "1000"]).pid
'''


def make_settings(folder: Path, tools: str = TOOLS) -> WorkerSettings:
    (folder / "tools.py").write_text(textwrap.dedent(tools))
    return WorkerSettings(
        project_dir=folder,
        tool_timeout_s=20,
        max_tool_response=None,
        max_tool_response_chars=None,
        workers=1,
        concurrency=8,
        env_names=(),
        tokenizer_file=None,
        browser=BrowserSettings(),
        log_file=folder / "logs" / "tools.log",
        grace_s=0.4,
        start_timeout_s=40,
    )


async def ask(
    pool: ToolPool,
    name: str,
    /,
    *,
    prompt: int = 0,
    allowed: tuple[str, ...] | None = None,
    error: str | None = None,
    **arguments: Any,
) -> ToolAnswer:
    call = ToolCall(name=name, arguments=arguments, raw="", error=error)
    metadata = {"task": "t"}
    return await pool.call(
        call, rollout=RolloutId(0, prompt, 0), allowed=allowed, metadata=metadata
    )


def told(answer: ToolAnswer) -> tuple[ToolOutcome, str]:
    return answer.outcome, answer.text


async def wait_for_end(pid: int) -> None:
    await until(lambda: not is_alive(pid))


async def test_calls_sync_and_async_with_metadata_and_counts(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        answer = await ask(pool, "echo", text="ab", times="2")
        assert told(answer) == (ToolOutcome.OK, "abab {'task': 't'}")
        answer = await ask(pool, "echo_async", text="é")
        assert told(answer) == (ToolOutcome.OK, '{"text": "é"}')
        assert answer.counts == {"echoes": 2}
        answer = await ask(pool, "weekday", day="2026-01-31")
        assert told(answer) == (ToolOutcome.OK, "6")
        answer = await ask(pool, "weekday", day="2026-01")
        assert told(answer) == (
            ToolOutcome.MODEL_ERROR,
            "<tool_error>Tool 'weekday': argument 'day' is not valid: Input should be a valid date "
            "or datetime, input is too short.</tool_error>",
        )
        answer = await ask(pool, "echo_async", text="é")
        assert answer.truncated is False
        assert 0.01 <= answer.duration_s < 5
        assert pool.schemas[1].as_openai() == {
            "type": "function",
            "function": {
                "name": "echo_async",
                "description": "Say it again, later.",
                "parameters": {
                    "type": "object",
                    "properties": {"text": {"type": "string"}},
                    "required": ["text"],
                    "additionalProperties": False,
                },
            },
        }


async def test_what_the_model_did_wrong_never_reaches_a_worker(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        wrong = [
            await ask(pool, "nothing"),
            await ask(pool, "pid", allowed=("echo",)),
            await ask(pool, "", error="Invalid JSON in tool call: Expecting value"),
            await ask(pool, "echo"),
            await ask(pool, "slow", seconds="soon"),
            await ask(pool, "pid", verbose=True),
        ]
    assert [answer.outcome for answer in wrong] == [ToolOutcome.MODEL_ERROR] * 6
    assert [answer.text for answer in wrong] == [
        "<tool_error>Tool 'nothing' not found in registry</tool_error>",
        "<tool_error>Tool 'pid' not found in registry</tool_error>",
        "<tool_error>Invalid JSON in tool call: Expecting value</tool_error>",
        "<tool_error>Tool 'echo': missing required argument 'text'.</tool_error>",
        "<tool_error>Tool 'slow': argument 'seconds' expected type ['number'], got str."
        "</tool_error>",
        "<tool_error>Tool 'pid': unexpected argument 'verbose'.</tool_error>",
    ]


async def test_what_a_tool_raises_is_text_and_the_traceback_goes_to_the_log(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with ToolPool(settings) as pool:
        worker = (await ask(pool, "pid")).text
        for name in ("fail", "fail_async"):
            answer = await ask(pool, name, kind="value")
            assert told(answer) == (ToolOutcome.ERROR, "<tool_error>no such trial</tool_error>")
            assert answer.counts == {"tries": 1}
            texts = [
                (await ask(pool, name, kind=kind)).text for kind in ("empty", "interrupt", "exit")
            ]
            assert texts == [
                "<tool_error>RuntimeError</tool_error>",
                "<tool_error>KeyboardInterrupt</tool_error>",
                "<tool_error>SystemExit: 3</tool_error>",
            ]
        answer = await ask(pool, "unserializable")
        assert told(answer) == (
            ToolOutcome.ERROR,
            "<tool_error>Object of type set is not JSON serializable</tool_error>",
        )
        assert told(await ask(pool, "surrogate")) == (ToolOutcome.OK, "a?b")
        assert (await ask(pool, "leave_bad_task")).text == "left"
        assert (await ask(pool, "pid")).text == worker
        assert pool.num_replaced == 0
    log = settings.log_file.read_text()
    assert "tool 'fail_async' in rollout 0.0.0 raised:" in log
    assert "ValueError: no such trial" in log


async def test_50_mb_are_cut_to_1_mb(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        note = "\n[The rest of this result was cut.]"
        for kind, start in (("text", "xxx"), ("list", '["yyy')):
            answer = await ask(pool, "big", kind=kind)
            assert (answer.outcome, answer.truncated) == (ToolOutcome.OK, True)
            assert len(answer.text) == 1_000_000
            assert answer.text.startswith(start)
            assert answer.text.endswith(note)


@pytest.mark.parametrize("tool", ["hang", "hang_stubborn", "block_loop", "hold_gil"])
async def test_a_stuck_tool_times_out_and_its_worker_is_replaced(tmp_path: Path, tool: str) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        stuck = int((await ask(pool, "pid")).text)
        started = time.monotonic()
        answer = await ask(pool, tool)
        assert told(answer) == (
            ToolOutcome.TIMEOUT,
            f"<tool_error>Tool '{tool}' timed out after 0.3 s</tool_error>",
        )
        assert 0.3 <= time.monotonic() - started < 60
        assert int((await ask(pool, "pid")).text) != stuck
        await wait_for_end(stuck)
        assert pool.num_replaced == 1
    if tool != "hang_stubborn":  # a coroutine that waits is on no thread's stack
        assert f"in {tool}\n" in (tmp_path / "logs" / "tools.log").read_text()


async def test_an_async_tool_that_can_be_cancelled_costs_no_worker(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        before = (await ask(pool, "pid")).text
        answer = await ask(pool, "hang_async")
        assert told(answer) == (
            ToolOutcome.TIMEOUT,
            "<tool_error>Tool 'hang_async' timed out after 0.3 s</tool_error>",
        )
        assert (await ask(pool, "pid")).text == before


async def test_a_stuck_worker_lets_the_others_finish(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        stuck = int((await ask(pool, "pid")).text)
        slow = asyncio.create_task(ask(pool, "slow", seconds=1.0))
        assert (await ask(pool, "hang")).outcome is ToolOutcome.TIMEOUT
        assert not slow.done()
        assert told(await slow) == (ToolOutcome.OK, "slow but done")
        await wait_for_end(stuck)


@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
async def test_a_worker_that_dies_answers_what_it_held_and_is_replaced(
    tmp_path: Path, how: str
) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        left_behind = int((await ask(pool, "child")).text)
        bystander = asyncio.create_task(ask(pool, "slow", seconds=10))
        await asyncio.sleep(0.1)
        answer = await ask(pool, "end_process", how=how)
        failed = "failed: its process ended before it answered</tool_error>"
        assert told(answer) == (ToolOutcome.ERROR, f"<tool_error>Tool 'end_process' {failed}")
        assert told(await bystander) == (ToolOutcome.ERROR, f"<tool_error>Tool 'slow' {failed}")
        assert (await ask(pool, "echo", text="a")).text == "a {'task': 't'}"
        assert pool.num_replaced == 1
        await wait_for_end(left_behind)


async def test_a_tool_that_writes_into_the_protocol_costs_its_worker_only(tmp_path: Path) -> None:
    async with ToolPool(replace(make_settings(tmp_path), stop_timeout_s=0.2)) as pool:
        worker = int((await ask(pool, "pid")).text)
        assert told(await ask(pool, "garble")) == (
            ToolOutcome.ERROR,
            "<tool_error>Tool 'garble' failed: its process ended before it answered</tool_error>",
        )
        await wait_for_end(worker)
        assert (await ask(pool, "echo", text="a")).outcome is ToolOutcome.OK


async def test_a_call_that_waits_for_its_turn_is_not_lost_with_the_worker(tmp_path: Path) -> None:
    async with ToolPool(replace(make_settings(tmp_path), concurrency=1)) as pool:
        for tool, arguments in (("hang", {}), ("end_process", {"how": "exit"})):
            first = asyncio.create_task(ask(pool, tool, **arguments))
            await asyncio.sleep(0)
            assert (await ask(pool, "echo", text="a")).outcome is ToolOutcome.OK
            assert (await first).outcome is not ToolOutcome.OK
        assert pool.num_replaced == 2


async def test_browse_is_repeated_once_when_its_worker_dies(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        answer = await ask(pool, "browse", url="http://a")
        assert told(answer) == (ToolOutcome.OK, "page of http://a")
        assert pool.num_replaced == 1


async def test_prints_go_to_the_log_wherever_they_come_from(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with ToolPool(settings) as pool:
        assert (await ask(pool, "noise")).text == "quiet"
    lines = set(settings.log_file.read_text().splitlines())
    assert {"imported", "python print", "raw write", "child print", "python stderr"} <= lines


async def test_a_prompt_keeps_its_worker(tmp_path: Path) -> None:
    async with ToolPool(replace(make_settings(tmp_path), workers=2)) as pool:
        pids = [(await ask(pool, "pid", prompt=prompt)).text for prompt in (0, 1, 2, 3, 0)]
        assert pids[0] == pids[2] == pids[4]
        assert pids[1] == pids[3] != pids[0]
        # While its own worker is being replaced, the other one takes the call.
        await ask(pool, "end_process", how="exit", prompt=1)
        assert (await ask(pool, "pid", prompt=1)).text == pids[0]


async def test_no_more_calls_run_at_once_than_allowed(tmp_path: Path) -> None:
    async with ToolPool(replace(make_settings(tmp_path), concurrency=2)) as pool:
        started = time.monotonic()
        await asyncio.gather(*(ask(pool, "slow", seconds=0.3) for _ in range(4)))
        assert time.monotonic() - started >= 0.6


async def test_a_rollout_that_gives_up_leaves_the_call_to_its_deadline(tmp_path: Path) -> None:
    async with ToolPool(replace(make_settings(tmp_path), concurrency=1)) as pool:
        started = time.monotonic()
        given_up = asyncio.create_task(ask(pool, "slow", seconds=1.0))
        await asyncio.sleep(0.5)
        given_up.cancel()
        assert (await ask(pool, "echo", text="a")).outcome is ToolOutcome.OK
        assert time.monotonic() - started > 1.0


async def test_tools_see_dotenv_and_named_variables_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "aws_secret_x", "LC_PASSWORD", "XDG_KEY_HOME"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("MY_API_KEY", "listed")
    settings = replace(make_settings(tmp_path), env_names=("MY_API_KEY",))
    (tmp_path / ".env").write_text("PROJECT_SECRET=mine\n")
    async with ToolPool(settings) as pool:
        names = ("HF_TOKEN", "MY_API_KEY", "PROJECT_SECRET", "PATH")
        values = [(await ask(pool, "environment", name=name)).text for name in names]
        every = (await ask(pool, "environment", name="*")).text.split()
    assert values == ["unset", "listed", "mine", os.environ["PATH"]]
    like_a_secret = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
    assert sorted(filter(like_a_secret.search, every)) == ["MY_API_KEY", "PROJECT_SECRET"]
    monkeypatch.delenv("MY_API_KEY")
    with pytest.raises(ConfigError) as caught:
        await ToolPool(settings).start()
    assert str(caught.value) == (
        "config.yml: tools.env names MY_API_KEY, which is set neither in this shell nor in .env; "
        "set it or take the name out"
    )


async def test_tools_that_nest_event_loops_work(tmp_path: Path) -> None:
    nested = '''
        import asyncio, nest_asyncio
        from rnow.core import tool
        nest_asyncio.apply()

        async def fetch(n):
            await asyncio.sleep(0.05)
            return n

        @tool
        def browse(url: str) -> str:
            """The shape of many a tool: sync outside, async inside."""
            loop = asyncio.get_event_loop()
            return f"{asyncio.run(fetch(url))} {loop.run_until_complete(fetch(2))}"

        @tool
        async def nest(url: str) -> str:
            """A loop within the worker's loop."""
            return asyncio.run(fetch(url))

        @tool(timeout=0.3)
        async def hang() -> str:
            """Can be cancelled under a patched loop, too."""
            await asyncio.sleep(1000)
    '''
    async with ToolPool(make_settings(tmp_path, nested)) as pool:
        urls = [str(n) for n in range(8)]
        calls = [ask(pool, "browse", url=url) for url in urls]
        calls += [ask(pool, "nest", url=url) for url in urls]
        answers = await asyncio.gather(*calls)
        assert [told(answer) for answer in answers] == [
            *((ToolOutcome.OK, f"{url} 2") for url in urls),
            *((ToolOutcome.OK, url) for url in urls),
        ]
        assert (await ask(pool, "hang")).outcome is ToolOutcome.TIMEOUT
        assert (await ask(pool, "nest", url="again")).text == "again"
        assert pool.num_replaced == 0


async def test_plain_asyncio_run_in_a_sync_tool_works_and_an_awaitable_is_awaited(
    tmp_path: Path,
) -> None:
    plain = '''
        import asyncio
        from rnow.core import tool
        from rnow.core.counts import count

        async def fetch(n):
            count("fetched")
            await asyncio.sleep(0.01)
            return n

        @tool
        def run(n: int) -> int:
            """Run a loop of its own."""
            return asyncio.run(fetch(n))

        @tool
        def run_old(n: int) -> int:
            """Run a loop as it was done once."""
            return asyncio.get_event_loop().run_until_complete(fetch(n))

        @tool
        def give(n: int, /, *, more: int = 1) -> int:
            """Return a coroutine."""
            return fetch(n + more)
    '''
    async with ToolPool(make_settings(tmp_path, plain)) as pool:
        for name, text in (("run", "4"), ("run_old", "4"), ("give", "5")):
            answer = await ask(pool, name, n=4)
            assert (told(answer), answer.counts) == ((ToolOutcome.OK, text), {"fetched": 1})


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (
            "import os\nos._exit(5)",
            "tools.py: the process that imports it ended (exit code 5); it printed nothing",
        ),
        (
            "import os\nprint('no licence', flush=True)\nos._exit(5)",
            "tools.py: the process that imports it ended (exit code 5); it printed: no licence",
        ),
        ("import sys\nsys.exit(5)", "tools.py:2: SystemExit: 5"),
        ("x = 1 +\n", "tools.py:1: invalid syntax"),
        (
            "import no_such_package",
            "tools.py:1: ModuleNotFoundError: No module named 'no_such_package'; "
            "install it in the environment that rnow runs in",
        ),
    ],
)
async def test_a_tools_file_that_cannot_be_used_is_an_error_before_anything_runs(
    tmp_path: Path, tools: str, message: str
) -> None:
    settings = make_settings(tmp_path, tools)
    with pytest.raises(ToolDefinitionError) as caught:
        await ToolPool(settings).start()
    assert str(caught.value) == message


async def test_an_import_that_hangs_is_a_deadline_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    monkeypatch.setattr(worker_process, "within", within_until(here))
    settings = make_settings(
        tmp_path,
        "import time, os, pathlib\nprint(os.getpid())\n"
        f"pathlib.Path({str(here)!r}).touch(); time.sleep(1000)",
    )
    with pytest.raises(DeadlineError) as caught:
        await ToolPool(replace(settings, start_timeout_s=3)).start()
    assert str(caught.value) == (
        "tools.py:3: tools: the import of tools.py in tool worker 0 has waited 3 s; "
        "move what takes so long into a tool, where it has a deadline of its own"
    )
    await wait_for_end(int(settings.log_file.read_text().split()[0]))


async def test_an_import_that_hangs_in_a_library_is_at_the_line_that_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    monkeypatch.setattr(worker_process, "within", within_until(here))
    hang = f"touch {here}; sleep 1000"
    (tmp_path / "pages.py").write_text(f"import os\n\nos.system({hang!r})\n")
    settings = make_settings(
        tmp_path,
        """\
        from threading import Event, Thread
        Thread(target=Event().wait, daemon=True).start()

        import pages
        """,
    )
    with pytest.raises(DeadlineError, match=r"^pages\.py:3: tools: the import of tools\.py in "):
        await ToolPool(replace(settings, start_timeout_s=3)).start()


async def test_a_tools_file_changed_during_a_run_is_not_used(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with ToolPool(settings) as pool:
        (tmp_path / "tools.py").write_text(
            "from rnow.core import tool\n@tool\ndef other() -> str:\n    'Another.'\n"
        )
        await ask(pool, "end_process", how="exit")
        with pytest.raises(ToolDefinitionError) as caught:
            await ask(pool, "echo", text="a")
    assert str(caught.value) == (
        "tools.py: its tools are no longer those that this run began with; "
        "start a run anew to use the changed file"
    )


async def test_the_pool_leaves_no_process(tmp_path: Path) -> None:
    async with ToolPool(make_settings(tmp_path)) as pool:
        worker, left_behind = [int((await ask(pool, name)).text) for name in ("pid", "child")]
        waiting = asyncio.create_task(ask(pool, "slow", seconds=100))
        await asyncio.sleep(0.1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await wait_for_end(worker)
    await wait_for_end(left_behind)


async def test_a_worker_ends_by_itself_when_the_pool_closes(tmp_path: Path) -> None:
    tidy = '''
        import atexit, pathlib, time
        from rnow.core import tool

        @atexit.register
        def end():
            time.sleep(0.2)
            pathlib.Path("ended").write_text("well")

        @tool
        def nothing() -> None:
            """Do nothing."""
    '''
    async with ToolPool(make_settings(tmp_path, tidy)) as pool:
        assert told(await ask(pool, "nothing")) == (ToolOutcome.OK, "null")
    assert (tmp_path / "ended").read_text() == "well"


async def test_a_close_that_is_cancelled_leaves_no_worker(tmp_path: Path) -> None:
    pool = ToolPool(make_settings(tmp_path))
    await pool.start()
    pids = [int((await ask(pool, "pid")).text)]
    calls = [asyncio.create_task(ask(pool, "block_loop", prompt=number)) for number in range(2)]
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0.1)
    closing.cancel()
    await asyncio.wait([closing, *calls])
    for pid in pids:
        await wait_for_end(pid)
    await pool.aclose()


async def test_a_worker_whose_start_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    for part in range(1, 6):  # at each of the first turns of the event loop
        starting = asyncio.create_task(
            Channel.open(
                "rnow.tools.reward_worker",
                environment=dict(os.environ),
                log_file=tmp_path / "log",
                folder=tmp_path,
            )
        )
        for _ in range(part):
            await asyncio.sleep(0.005)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await starting.result().close()
    await until(lambda: num_open() <= before)


async def test_every_text_is_within_the_cap_on_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(file))
    settings = replace(make_settings(tmp_path), tokenizer_file=file, max_tool_response=50)
    async with ToolPool(settings) as pool:
        note = "\n[The rest of this result was cut.]"
        answer = await ask(pool, "echo", text="x" * 100)
        assert (answer.text, answer.truncated) == ("x" * 15 + note, True)
        answer = await ask(pool, "y" * 100)
        assert (answer.text, answer.truncated) == ("<tool_error>Too" + note, True)


async def test_the_browser_gets_its_settings_where_tools_use_it(tmp_path: Path) -> None:
    browsing = '''
        import rnow.browser
        from rnow.core import tool

        @tool
        async def browse(url: str) -> str:
            """Read a page."""
            return await rnow.browser.read(url)
    '''
    async with ToolPool(make_settings(tmp_path, browsing)) as pool:
        answer = await ask(pool, "browse", url="http://example.org/")
    assert answer.text.startswith("ERROR host_not_allowed: ")
    assert answer.counts == {"browser/error_host_not_allowed": 1}


CONTROLLER = """
import asyncio, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_tool_workers import ask, make_settings
from rnow.tools.pool import ToolPool

async def main():
    async with ToolPool(make_settings(Path({folder!r}))) as pool:
        print((await ask(pool, "pid")).text, (await ask(pool, "child")).text, flush=True)
        await ask(pool, {tool!r}, **{arguments!r})

asyncio.run(main())
"""


@pytest.mark.parametrize(("tool", "arguments"), [("slow", {"seconds": 1000}), ("hold_gil", {})])
async def test_workers_die_with_the_controller(
    tmp_path: Path, tool: str, arguments: Mapping[str, Any]
) -> None:
    path = [str(folder) for folder in Path(__file__).parents[:2]]
    program = CONTROLLER.format(path=path, folder=str(tmp_path), tool=tool, arguments=arguments)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdout is not None
        worker, left_behind = map(int, controller.stdout.readline().split())
        await asyncio.sleep(0.2)
        assert is_alive(worker)
        controller.send_signal(signal.SIGKILL)
    await wait_for_end(worker)
    await wait_for_end(left_behind)
