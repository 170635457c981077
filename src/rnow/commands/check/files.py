"""The points of `rnow check` on what the user wrote: config.yml, tools.py, rewards.py, prompts."""

import asyncio
import re
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from rnow.chat.prompts import read_prompt_file
from rnow.commands.arguments import require_writable
from rnow.commands.check.point import Point, not_checked, point
from rnow.config.cautions import few_rollouts, long_generations
from rnow.config.load import (
    LoadedConfig,
    config_file,
    find_tools_file,
    load_config,
    require_distill,
)
from rnow.config.settings import Config, DataSettings
from rnow.config.source import ConfigSource, read_source
from rnow.config.types import DatasetType
from rnow.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeadlineError,
    Problem,
    ToolDefinitionError,
)
from rnow.evaluation.grading import name_problems, require_gradable
from rnow.records import Prompt
from rnow.rollout.environment import mcp_settings
from rnow.rollout.project_pages import chromium_notices, require_contact, require_pages
from rnow.runtime.deadline import waits
from rnow.runtime.logs import log_to
from rnow.runtime.main_task import run_main
from rnow.tools.base import ToolSchema
from rnow.tools.mcp.spec import McpSettings
from rnow.tools.pool import ToolPool
from rnow.tools.rewards import RewardRunner, RewardSettings
from rnow.tools.settings import WorkerSettings
from rnow.training.steps import prompts_by_step

Result = TypeVar("Result")

SAY_AFTER_S = 4.0  # of a wait, what it is for


def check_config(directory: Path, overrides: Sequence[str]) -> tuple[Point, LoadedConfig | None]:
    """Load config.yml; None where it has errors."""
    try:
        loaded = load_config(directory, overrides=overrides)
    except ConfigError as error:
        return point("config", "", _problems_of(error, directory)), None
    config, problems, notices = loaded.config, list(loaded.warnings), list[str]()
    checks: dict[str, Callable[[], object]] = {
        "project_name": lambda: require_writable(loaded, directory),
        "dataset_type": lambda: require_distill(loaded),
        "browser.contact": lambda: require_contact(loaded),
        "browser.executable": lambda: notices.extend(chromium_notices(config, directory)),
        "browser.store_mode": lambda: require_pages(config, directory),
    }
    for key, check in checks.items():
        try:
            check()
        except (ConfigError, CheckpointError) as error:
            own = error.problems if isinstance(error, ConfigError) else ()
            problems += own or [loaded.problem(key, str(error))]
    problems += [loaded.problem("browser.executable", text, "warning") for text in notices]
    return point("config", "\n".join((str(loaded.file), *loaded.overrides)), problems), loaded


def check_tools(
    directory: Path, loaded: LoadedConfig | None, *, say: Callable[[str], None]
) -> tuple[Point, tuple[ToolSchema, ...] | None]:
    """Import tools.py in a worker that asks MCP servers too; () where there is neither, None where
    they cannot be used.
    """
    file = directory / "tools.py"
    mcp = McpSettings() if loaded is None else mcp_settings(loaded)
    if not file.is_file() and not mcp.servers:
        try:
            if loaded is not None:
                find_tools_file(loaded, directory=directory)
        except ConfigError as error:
            return point("tools", "", _problems_of(error, directory)), ()
        return point("tools", "no tools.py: one turn a rollout"), ()
    with tempfile.TemporaryDirectory(prefix="rnow-check-") as scratch:
        settings = WorkerSettings(
            project_dir=directory,
            tool_timeout_s=60.0,  # of calls, of which none is made
            workers=1,
            concurrency=1,
            env_names=() if loaded is None else tuple(loaded.config.tools.env),
            log_file=Path(scratch) / "tools.log",
            mcp=mcp,
        )
        try:
            with log_to(Path(scratch) / "check.log"):
                schemas, notices = run_main(saying_waits(_describe_tools(settings), say))
        except (ToolDefinitionError, ConfigError, DeadlineError) as error:
            return point("tools", "", [_tools_problem(file, str(error))]), None
    names = ", ".join(schema.name for schema in schemas)
    warnings = [_tools_problem(file, text, is_error=False) for text in notices]
    return point("tools", names, warnings), schemas


def check_data(
    directory: Path, loaded: LoadedConfig | None, *, schemas: Sequence[ToolSchema] | None
) -> tuple[Point, dict[str, tuple[Prompt, ...]]]:
    """Read all prompts, and return those of each file; none where one of them has errors.

    A config.yml with errors may still say which file it is about.
    """
    settings = _data_settings(directory, loaded)
    if settings is None:
        return not_checked("data", "config.yml cannot be read"), {}
    dataset_type, train_file, val_file, batch_size = settings
    names = None if schemas is None else [schema.name for schema in schemas]
    files = [(directory / train_file, batch_size)]
    if (directory / val_file).exists():
        files.append((directory / val_file, None))
    problems: list[Problem] = []
    read: dict[str, tuple[Prompt, ...]] = {}
    for file, size in files:
        try:
            found = read_prompt_file(
                file,
                dataset_type=dataset_type,
                tool_names=names,
                batch_size=size,
                drop_last_answer=loaded is not None and loaded.config.data.drop_last_answer,
            )
        except DataError as error:
            problems += _problems_of(error, file)
        else:
            problems += found.warnings
            read[str(file)] = found.prompts
            if size is None and loaded is not None and loaded.config.trainer.eval_step:
                problems += _ungradable(found.prompts, file)
    if any(problem.severity == "error" for problem in problems):
        return point("data", "", problems), {}
    train, *held_out = read.values()
    sizes = [f"{len(train)} prompts"]
    if loaded is not None:
        sizes.append(f"{len(prompts_by_step(loaded.config, train))} steps")
        if (advice := few_rollouts(loaded.config)) is not None:
            problems.append(loaded.problem("data.batch_size", advice, "warning"))
        if (advice := long_generations(loaded.config)) is not None:
            problems.append(loaded.problem("rollout.max_tokens", advice, "warning"))
    sizes += [f"{len(prompts)} held-out prompts" for prompts in held_out]
    return point("data", ", ".join(sizes), problems), read


def _ungradable(prompts: Sequence[Prompt], file: Path) -> tuple[Problem, ...]:
    try:
        require_gradable(prompts, file=str(file))
    except DataError as error:
        return tuple(error.problems)
    return ()


def check_rewards(
    directory: Path,
    loaded: LoadedConfig,
    prompts: Mapping[str, tuple[Prompt, ...]],
    *,
    say: Callable[[str], None],
) -> Point:
    """Import rewards.py in its process, and look for the names that config.yml and entries give."""
    file = directory / "rewards.py"
    if not file.is_file():
        return point("rewards", "no rewards.py", name_problems(loaded, prompts, None))

    async def look() -> tuple[str, list[Problem]]:
        async with RewardRunner(settings) as runner:
            return ", ".join(runner.names), name_problems(loaded, prompts, runner)

    with tempfile.TemporaryDirectory(prefix="rnow-check-") as scratch:
        log_file = Path(scratch) / "rewards.log"
        settings = RewardSettings.of(loaded, directory, log_file=log_file)
        try:
            with log_to(Path(scratch) / "check.log"):
                return point("rewards", *run_main(saying_waits(look(), say)))
        except (ToolDefinitionError, ConfigError, DeadlineError) as error:
            return point("rewards", "", [_tools_problem(file, str(error))])


def _data_settings(
    directory: Path, loaded: LoadedConfig | None
) -> tuple[Any, str, str, int | None] | None:
    """Return dataset type, training file, validation file, batch size."""
    if loaded is not None:
        data = loaded.config.data
        return loaded.config.dataset_type, data.train_file, data.val_file, data.batch_size
    file = config_file(directory)
    try:
        source = read_source(file) if file else ConfigSource(directory)
    except ConfigError:
        return None
    kind = source.get("dataset_type")
    train, val = (
        name
        if isinstance(name := source.get(f"data.{key}"), str) and name
        else DataSettings.model_fields[key].default
        for key in ("train_file", "val_file")
    )
    known = kind in get_args(DatasetType)
    return kind if known else Config.model_fields["dataset_type"].default, train, val, None


async def saying_waits(
    work: Coroutine[Any, Any, Result], say: Callable[[str], None], *, after_s: float = SAY_AFTER_S
) -> Result:
    """Await `work`; where that takes long, say what is waited for."""

    def tell() -> None:
        for wait in waits()[:1]:
            say(f"waiting for {wait.what}, {wait.limit_s:g} s at most")

    telling = asyncio.get_running_loop().call_later(after_s, tell)
    try:
        return await work
    finally:
        telling.cancel()


async def _describe_tools(
    settings: WorkerSettings,
) -> tuple[tuple[ToolSchema, ...], tuple[str, ...]]:
    async with ToolPool(settings) as pool:
        return pool.schemas, pool.notices


def _tools_problem(file: Path, text: str, *, is_error: bool = True) -> Problem:
    """Take the place out of `tools.py:12: message`; an error of .env or tools.env has its own."""
    found = re.match(r"([\w.]+)(?::(\d+))?: (?s:(.*))", text)
    name, line, message = found.groups() if found else (file.name, None, text)
    return Problem(
        file=str(file.with_name(name)),
        line=int(line) if line else None,
        key=None,
        message=message,
        severity="error" if is_error else "warning",
    )


def _problems_of(error: ConfigError | DataError, file: Path) -> tuple[Problem, ...]:
    """Return the problems of `error`; those without a list are about `file` as a whole."""
    whole = Problem(file=str(file), line=None, key=None, message=str(error))
    return error.problems or (whole,)
