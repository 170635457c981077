"""What rollouts happen in: chat template, tools, local sites; for training and eval alike."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from types import MappingProxyType

from rnow.browser.chromium.executable import find_chromium
from rnow.browser.local_sites import LocalSites
from rnow.browser.settings import BrowserSettings
from rnow.chat.bridge_check import check_template
from rnow.chat.prompts import PromptFile, asked, read_prompt_file
from rnow.chat.rendering_limit import memory_held
from rnow.chat.template import ChatTemplate
from rnow.chat.vocabulary import Vocabulary, check_prompts, check_words, read_vocabulary
from rnow.config.load import LoadedConfig, find_tools_file
from rnow.config.settings import Config
from rnow.config.surroundings import TODAY
from rnow.engines.base import Engine
from rnow.plan.model_files import find_tokenizer
from rnow.records import Prompt
from rnow.rollout.attempt import run_rollout
from rnow.rollout.many import Roll
from rnow.rollout.project_pages import check_store, chromium_notices, store_folder
from rnow.tools.base import ToolSchema
from rnow.tools.mcp.spec import McpSettings
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Everything a rollout needs but the engine. Open while `open_environment` is."""

    config: Config
    directory: Path
    chat: ChatTemplate
    vocabulary: Vocabulary
    tools: ToolPool | None  # None: the project has no tools, or none are wanted; one turn
    checks_tool_names: bool = True  # that prompts name
    sites: LocalSites

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        return () if self.tools is None else self.tools.schemas

    def read_prompts(self, name: str, *, batch_size: int | None = None) -> PromptFile:
        """Read a file of prompts; tools that it names must exist, unless none are wanted.

        An example of dataset_type sft is a prompt up to its last message of the user.
        """
        names = [schema.name for schema in self.schemas]
        kind = self.config.dataset_type
        file = read_prompt_file(
            self.directory / name,
            dataset_type=kind,
            tool_names=names if self.checks_tool_names else None,
            batch_size=batch_size,
            drop_last_answer=self.config.data.drop_last_answer,
        )
        return replace(file, prompts=tuple(map(asked, file.prompts))) if kind == "sft" else file

    @memory_held()
    def check(self, files: Mapping[str, Sequence[Prompt]]) -> tuple[str, ...]:
        """Check that turns can be appended token by token, and that all prompts can be read.

        `files`: the prompts of each file, of the first of which there is one. Returns what the user
        should know.
        """
        own: tuple[str, ...] = ()
        if self.tools is not None:
            own = (*self.tools.notices, *chromium_notices(self.config, self.directory))
        limits = self.config.rollout
        first = next(iter(files.values()))[0].messages
        notices = check_template(self.chat, first, self.schemas, limits=limits)
        check_words(self.chat, self.schemas, vocabulary=self.vocabulary)
        for file, prompts in files.items():
            check_prompts(self.chat, prompts, self.schemas, vocabulary=self.vocabulary, file=file)
        return (*own, *self.vocabulary.notices, *notices)

    def gauges(self) -> dict[str, float]:
        """Return what the parts count over the whole run, for the step's line of metrics."""
        return {
            "tool/offered": len(self.schemas),
            "tool/restarts": 0 if self.tools is None else self.tools.num_replaced,
            "browser/local_requests": self.sites.num_requests,
        }

    def roll(self, engine: Engine) -> Roll:
        """Return what rolls out one attempt, sampled from `engine` with the config's seed."""
        return partial(
            run_rollout,
            engine=engine,
            chat=self.chat,
            tools=self.tools,
            limits=self.config.rollout,
            run_seed=self.config.seed,
            foreign_ids=frozenset(self.vocabulary.foreign_ids),
        )


@asynccontextmanager
async def open_environment(
    loaded: LoadedConfig,
    directory: Path,
    *,
    student: Path,
    teacher: Path | None = None,
    log_file: Path,
    with_tools: bool = True,
) -> AsyncIterator[Environment]:
    """Start local sites and tool workers; `student` is the folder with the tokenizer.

    With `teacher`, what the student writes must mean the same to it: ModelError.
    Without tools the student is shown none, whatever the prompts name.
    """
    config = loaded.config
    tools_file = find_tools_file(loaded, directory=directory) if with_tools else None
    mcp = mcp_settings(loaded)
    vocabulary = read_vocabulary(student, teacher)
    today = loaded.surroundings.today
    chat = load_chat(config, directory, student=student, today=today)
    async with AsyncExitStack() as stack:
        sites = await stack.enter_async_context(LocalSites(site_folders(config, directory)))
        check_store(config, directory)
        tools: ToolPool | None = None
        if tools_file is not None or (with_tools and mcp.servers):
            settings = worker_settings(
                config,
                directory,
                tokenizer_file=student / "tokenizer.json",
                ports=sites.ports,
                log_file=log_file,
            )
            settings = replace(settings, mcp=mcp, kept_environ=loaded.surroundings.environ)
            tools = await stack.enter_async_context(ToolPool(settings))
        yield Environment(
            config=config,
            directory=directory,
            chat=chat,
            vocabulary=vocabulary,
            tools=tools,
            checks_tool_names=with_tools,
            sites=sites,
        )


def mcp_settings(loaded: LoadedConfig) -> McpSettings:
    """Return the MCP servers of a project, and where they are set."""
    rollout, line = loaded.config.rollout, loaded.lines.get("rollout.mcp_url")
    return McpSettings(
        servers=tuple(rollout.mcp_url),
        per_rollout=rollout.mcp_session == "rollout",
        place=loaded.file.name if line is None else f"{loaded.file.name}:{line}",
    )


def load_chat(
    config: Config, directory: Path, *, student: Path, today: date = TODAY
) -> ChatTemplate:
    """Load the student's template; where the teacher would end a text, its rollouts end too.

    `today`: what it may write of the day.
    """
    path = None if config.teacher is None else config.teacher.path
    teacher = None if path is None else find_tokenizer(path, project=directory)
    mode = config.rollout.reasoning_mode
    return ChatTemplate.load(student, reasoning_mode=mode, teacher=teacher, today=today)


def worker_settings(
    config: Config,
    directory: Path,
    *,
    tokenizer_file: Path | None,
    ports: dict[str, int],
    log_file: Path,
) -> WorkerSettings:
    """Return what tool workers are told; `ports` are those of the local sites,
    none where none is served."""
    return WorkerSettings(
        project_dir=directory,
        tool_timeout_s=config.rollout.tool_timeout,
        max_tool_response=config.rollout.max_tool_response,
        max_tool_response_chars=config.rollout.max_tool_response_chars,
        workers=config.tools.workers,
        concurrency=config.tools.concurrency,
        env_names=tuple(config.tools.env),
        tokenizer_file=tokenizer_file,
        browser=browser_settings(config, directory, ports=ports),
        log_file=log_file,
    )


def browser_settings(
    config: Config, directory: Path, *, ports: Mapping[str, int] = MappingProxyType({})
) -> BrowserSettings:
    """Return the rules for the pages of a project; `ports` as in `worker_settings`."""
    chromium = find_chromium(config.browser.executable, directory=directory)
    return BrowserSettings(
        allow_hosts=tuple(config.browser.allow_hosts),
        contact=config.browser.contact,
        num_workers=config.tools.workers,
        local_sites=ports or dict.fromkeys(config.browser.local_sites, 0),
        render_hosts=tuple(config.browser.render_hosts),
        executable=None if chromium is None else str(chromium),
        store=str(store_folder(config, directory)),
        store_mode=config.browser.store_mode,
        ttl_s=config.browser.ttl_days * 86_400,
    )


def site_folders(config: Config, directory: Path) -> dict[str, str | Path]:
    """Return folder or 127.0.0.1:PORT of each host; folders are the project's.

    In a replay none is asked, so none is needed.
    """
    if config.browser.store_mode == "replay":
        return {}
    return {
        host: directory / place if (directory / place).is_dir() else place
        for host, place in config.browser.local_sites.items()
    }
