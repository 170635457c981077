"""Reward functions in their real process, with rewards that do all that rewards should not do."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_alive, wait_until, within_until

from rnow.errors import DeadlineError, ToolDefinitionError
from rnow.records import Prompt
from rnow.tools import rewards as reward_runner
from rnow.tools.rewards import NO_REWARDS, RewardRunner, Rewards, RewardSettings

REWARDS = """
import asyncio, os, time
from rnow.core import RewardArgs, get_response, reward

print("on standard output nobody listens")

@reward
def accuracy(args: RewardArgs, messages: list) -> float:
    return 1.0 if args.metadata["expected"] in get_response(messages) else 0.0

@reward
async def half(args: RewardArgs, messages: list) -> float:
    await asyncio.sleep(0.01)
    return 0.5

@reward
def unawaited(args: RewardArgs, messages: list) -> float:
    return half(args, messages)

@reward(precondition=True)
def gate(args: RewardArgs, messages: list) -> float:
    return 0.0 if args.variables.get("closed") else 1.0

@reward
def secret(args: RewardArgs, messages: list) -> float:
    return float(args.secrets["WORTH"] == os.environ["WORTH"])

@reward
def raises(args: RewardArgs, messages: list) -> float:
    raise KeyError("no such page")

@reward
def leaves(args: RewardArgs, messages: list) -> float:
    raise SystemExit(3)

@reward
def nan(args: RewardArgs, messages: list) -> float:
    return float("nan")

@reward
def text(args: RewardArgs, messages: list) -> float:
    return "good"

@reward(timeout=0.3)
def hangs(args: RewardArgs, messages: list) -> float:
    time.sleep(1000)

@reward
def dies(args: RewardArgs, messages: list) -> float:
    os._exit(9)
"""

MESSAGES = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "ACME"}]


def settings(folder: Path, code: str = REWARDS) -> RewardSettings:
    (folder / "rewards.py").write_text(code)
    (folder / ".env").write_text("WORTH=7\n")
    return RewardSettings(
        project_dir=folder, timeout_s=20.0, env_names=(), log_file=folder / "rewards.log"
    )


def entry(*rewards: str, **variables: object) -> Prompt:
    return Prompt(
        index=0,
        line=4,
        messages=(),
        tools=None,
        metadata={"expected": "ACME"},
        variables=variables,
        rewards=rewards,
    )


async def test_values_are_summed_and_a_closed_gate_makes_them_nothing(tmp_path: Path) -> None:
    names = ("accuracy", "half", "unawaited", "gate", "secret")
    values = {"accuracy": 1.0, "half": 0.5, "unawaited": 0.5, "gate": 1.0, "secret": 1.0}
    async with RewardRunner(settings(tmp_path)) as runner:
        assert await runner.reward(entry(*names), MESSAGES) == Rewards(values=values, total=4.0)
        assert await runner.reward(entry(*names, closed=True), MESSAGES) == Rewards(
            values=values | {"gate": 0.0}, total=0.0
        )
        assert await runner.reward(entry(), MESSAGES) == NO_REWARDS


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("raises", "error", "raises: KeyError: 'no such page'"),
        ("leaves", "error", "leaves: SystemExit: 3"),
        ("nan", "error", "nan: returned nan, which is no finite number"),
        ("text", "error", "text: returned 'good', which is no finite number"),
        ("hangs", "timeout", "hangs: took longer than 0.3 s"),
        ("dies", "error", "dies: its process ended; see {log}"),
    ],
)
async def test_a_reward_without_a_number_is_told_and_the_next_ones_are_computed(
    tmp_path: Path, name: str, value: str, error: str
) -> None:
    async with RewardRunner(settings(tmp_path)) as runner:
        rewards = await runner.reward(entry("half", name, "accuracy"), MESSAGES)
    assert rewards == Rewards(
        values={"half": 0.5, name: value, "accuracy": 1.0},
        total=1.5,  # it counts as 0, as with the public client, and is told
        errors=(error.format(log=tmp_path / "rewards.log"),),
    )


async def test_a_reward_that_is_not_defined_is_named_before_anything_is_rolled_out(
    tmp_path: Path,
) -> None:
    code = REWARDS.partition("@reward\nasync")[0]
    async with RewardRunner(settings(tmp_path, code)) as runner:
        assert runner.reward_problems([entry("accuracy")], file="train.jsonl") == []
        (problem,) = runner.reward_problems([entry("accuracy"), entry("best")], file="train.jsonl")
    assert str(problem) == (
        "train.jsonl:4: Reward 'best' is referenced in train.jsonl but not defined in rewards.py, "
        "which has: accuracy"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_at_all", "rewards.py:1: ModuleNotFoundError: "),
        (
            "from rnow.core import reward\n@reward\ndef one(args) -> float:\n    return 1.0\n",
            "rewards.py:2: Reward registration failed: Reward 'one' must have exactly 2 parameters",
        ),
    ],
)
async def test_a_file_that_cannot_be_used_is_told_with_its_line(
    tmp_path: Path, code: str, message: str
) -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        async with RewardRunner(settings(tmp_path, code)):
            pass
    assert str(caught.value).startswith(message)


HOLDS_THE_LOCK = """
import ctypes, os
from pathlib import Path
from rnow.core import RewardArgs, reward

@reward
def holds(args: RewardArgs, messages: list) -> float:
    Path("holding").write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(1000)
    return 1.0
"""

CONTROLLER = """
import asyncio, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_rewards import MESSAGES, entry
from rnow.tools.rewards import RewardRunner, RewardSettings

async def main():
    folder = Path({folder!r})
    log = folder / "rewards.log"
    settings = RewardSettings(project_dir=folder, timeout_s=1000, env_names=(), log_file=log)
    async with RewardRunner(settings) as runner:
        await runner.reward(entry("holds"), MESSAGES)

asyncio.run(main())
"""


def test_a_reward_that_holds_the_interpreter_ends_with_a_killed_controller(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(HOLDS_THE_LOCK)
    path = [str(folder) for folder in Path(__file__).parents[:2]]
    program = CONTROLLER.format(path=path, folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program]) as controller:
        holding = tmp_path / "holding"
        wait_until(lambda: holding.exists() and bool(holding.read_text()))
        worker = int(holding.read_text())
        assert is_alive(worker)
        controller.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(worker))


async def test_an_import_that_hangs_is_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_runner, "within", within_until(tmp_path / "here"))
    (tmp_path / "rewards.py").write_text(
        "import time, pathlib\n\n"
        f"pathlib.Path({str(tmp_path / 'here')!r}).touch(); time.sleep(1000)\n"
    )
    settings = RewardSettings(
        project_dir=tmp_path,
        timeout_s=60,
        env_names=(),
        log_file=tmp_path / "rewards.log",
        start_timeout_s=3,
    )
    with pytest.raises(DeadlineError) as caught:
        await RewardRunner(settings).__aenter__()
    assert str(caught.value) == (
        "rewards.py:3: rewards: the import of rewards.py has waited 3 s; move what takes so long "
        "into a reward, where @reward(timeout=) gives it time"
    )
