"""Runs rewards.py in a process of its own, one call at a time, each with a deadline.

    conversation ─▶ each reward that the entry names ─▶ number, "error" or "timeout" ─▶ total
    answer ─▶ the grader that the entry or data.grader names ─▶ graders.py

A total is the sum of the values, and 0 where a precondition's value is 0. As with the public client
a value that is no number counts as 0 in it, and is told: who does not want that looks at `errors`.
A process that a reward has hung or ended is replaced before the next one.
"""

import asyncio
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnow.config.load import LoadedConfig
from rnow.errors import DeadlineError, Problem, ToolDefinitionError
from rnow.records import Prompt
from rnow.runtime.channel import Channel
from rnow.runtime.deadline import within
from rnow.tools.env import load_dotenv, worker_environment
from rnow.tools.hanging import place_of_hang
from rnow.tools.settings import IMPORT_LIMIT_S

Functions = Mapping[str, Mapping[str, Any]]  # of rewards.py, by name: what is known of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """What the reward functions of an entry gave; Rewards(values={"accuracy": 1.0}, total=1.0)"""

    values: Mapping[str, float | str]  # "error" or "timeout" where there is no number
    total: float | None  # None: no rewards
    errors: tuple[str, ...] = ()  # one sentence for each that gave no number, and counts as 0


NO_REWARDS = Rewards(values={}, total=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """RewardSettings(project_dir=Path("."), timeout_s=60, env_names=(), log_file=Path("r.log"))"""

    project_dir: Path  # holds rewards.py and perhaps .env
    timeout_s: float  # rollout.reward_timeout; @reward(timeout=) goes before it
    env_names: tuple[str, ...]  # tools.env: variables of the shell that rewards may see
    log_file: Path  # what rewards print, and the tracebacks of what they raise
    start_timeout_s: float = IMPORT_LIMIT_S
    kept_environ: Mapping[str, str] = field(default_factory=dict)  # the run's, over all others

    @classmethod
    def of(cls, loaded: LoadedConfig, project_dir: Path, *, log_file: Path) -> "RewardSettings":
        config = loaded.config
        return cls(
            project_dir=project_dir,
            timeout_s=config.rollout.reward_timeout,
            env_names=tuple(config.tools.env),
            log_file=log_file,
            kept_environ=loaded.surroundings.environ,
        )


class RewardRunner:
    """async with RewardRunner(settings) as runner: rewards = await runner.reward(prompt, messages)

    Raises ToolDefinitionError where rewards.py cannot be used.
    """

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self._one_at_a_time = asyncio.Lock()
        self._worker: _Worker | None = None
        self._functions: Functions = {}
        self._graders: Functions = {}

    async def __aenter__(self) -> "RewardRunner":
        worker = await self._started()
        self._functions, self._graders = worker.rewards, worker.graders
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rewards and graders."""
        return (*self._functions, *self._graders)

    def reward_problems(self, prompts: Sequence[Prompt], *, file: str) -> list[Problem]:
        """Return one for each reward that an entry names and rewards.py has not."""
        has = ", ".join(self._functions) or "none"
        return [
            Problem(
                file=file,
                line=prompt.line,
                key="rewards",
                message=f"Reward '{name}' is referenced in {Path(file).name} but not defined in "
                f"rewards.py, which has: {has}",
            )
            for prompt in prompts
            for name in prompt.rewards
            if name not in self._functions
        ]

    def grader_problem(self, name: str) -> str | None:
        """Return what is wrong with the name of a grader, and what to do; None: nothing."""
        if name in self._graders:
            return None
        if near := difflib.get_close_matches(name, self._graders, n=1):
            remedy = f"did you mean '{near[0]}'?"
        else:
            remedy = "put @grader (from rnow.core) above a function of that name"
            remedy += f", or take one that is there: {', '.join(self._graders)}"
        return f"is '{name}', which is no grader of rewards.py; {remedy}"

    def knows(self, name: str) -> bool:
        return name in self._graders

    def takes_metadata(self, name: str) -> bool:
        return bool(self._graders[name]["takes_metadata"])

    async def ask(self, call: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        """Let graders answer, as rnow.tools.graders says."""
        if limit_s is None:
            limit_s = self._graders[call["row"]["grader"]]["timeout_s"] or self._settings.timeout_s
        answer = await self._ask(call, limit_s=limit_s)
        return {"error": answer["timeout"]} if "timeout" in answer else answer

    async def reward(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]]) -> Rewards:
        """Return the values of the rewards that the entry names; it may name none."""
        if not prompt.rewards:
            return NO_REWARDS
        values: dict[str, float | str] = {}
        errors: list[str] = []
        for name in prompt.rewards:
            values[name], error = await self._value(name, prompt, messages)
            if error is not None:
                errors.append(f"{name}: {error}")
        return Rewards(values=values, total=self._total(values), errors=tuple(errors))

    async def _value(
        self, name: str, prompt: Prompt, messages: Sequence[Mapping[str, Any]]
    ) -> tuple[float | str, str | None]:
        call = {
            "type": "reward",
            "name": name,
            "metadata": dict(prompt.metadata),
            "variables": dict(prompt.variables),
            "messages": list(messages),
        }
        limit_s = self._functions[name]["timeout_s"] or self._settings.timeout_s
        answer = await self._ask(call, limit_s=limit_s)
        if "value" in answer:
            return float(answer["value"]), None
        ((kind, sentence),) = answer.items()
        return kind, str(sentence)

    async def _ask(self, call: Mapping[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Return the answer; {"error": …} or {"timeout": …} where there is none."""
        async with self._one_at_a_time:
            worker = await self._started()
            try:
                async with within(limit_s, f"rewards.py: {call['type']}"):
                    answer = await worker.ask(call)
            except DeadlineError:
                await self._end()
                return {"timeout": f"took longer than {limit_s:g} s"}
            except BaseException:
                await self._end()  # its answer would be taken for that of the next call
                raise
            if answer is None:
                await self._end()
                return {"error": f"its process ended; see {self._settings.log_file}"}
            return answer

    def _total(self, values: Mapping[str, float | str]) -> float:
        numbers = {
            name: value if isinstance(value, float) else 0.0 for name, value in values.items()
        }
        gates = (value for name, value in numbers.items() if self._is_precondition(name))
        return 0.0 if 0.0 in gates else sum(numbers.values())

    def _is_precondition(self, name: str) -> bool:
        return bool(self._functions[name]["is_precondition"])

    async def _started(self) -> "_Worker":
        if self._worker is None:
            self._worker = await _Worker.start(self._settings)
        return self._worker

    async def _end(self) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.kill()


class _Worker:
    """One process that has imported rewards.py."""

    def __init__(self, channel: Channel) -> None:
        self.rewards: Functions = {}
        self.graders: Functions = {}
        self._channel = channel

    @classmethod
    async def start(cls, settings: RewardSettings) -> "_Worker":
        environment = worker_environment(
            settings.project_dir,
            shell=os.environ,
            names=settings.env_names,
            kept=settings.kept_environ,
        )
        log, folder = settings.log_file, settings.project_dir
        since = log.stat().st_size if log.exists() else 0
        worker = cls(
            await Channel.open(
                "rnow.tools.reward_worker", environment=environment, log_file=log, folder=folder
            )
        )
        try:
            async with within(settings.start_timeout_s, "rewards: the import of rewards.py"):
                await worker._introduce(settings)
        except DeadlineError as error:
            child = worker._channel.process
            try:
                place = await place_of_hang(child, log, since=since, folder=folder)
            finally:
                await worker.kill()
            said = f"{place}: {error}" if place else error
            raise DeadlineError(
                f"{said}; move what takes so long into a reward, where @reward(timeout=) gives it "
                "time"
            ) from error
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def ask(self, call: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the answer; None: the process is gone."""
        try:
            await self._channel.send(call)
        except ConnectionError:
            return None
        return await self._channel.receive()

    async def kill(self) -> None:
        await self._channel.close()

    async def _introduce(self, settings: RewardSettings) -> None:
        answer = await self.ask(
            {
                "file": str((settings.project_dir / "rewards.py").resolve()),
                "secrets": load_dotenv(settings.project_dir / ".env"),
            }
        )
        if answer is None:
            raise ToolDefinitionError(
                f"rewards.py: the process that imports it ended; see {settings.log_file}"
            )
        if answer["type"] == "unusable":
            raise ToolDefinitionError(answer["message"])
        self.rewards, self.graders = answer["rewards"], answer["graders"]
