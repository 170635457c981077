"""config.yml and the command line's overrides -> one checked `Config`.

    read_source ─▶ apply_override ─▶ translate_old_keys ─▶ validate ─▶ LoadedConfig

Every problem of a file is found before the first one is shown, each with file, line, key, value and
remedy. What a setting is stands in settings.py; what an old key becomes in old_keys.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rnow.config.cautions import report_cautions
from rnow.config.keys import section_keys
from rnow.config.messages import validate
from rnow.config.old_keys import refuse_flat_form, take_project_name, translate_old_keys
from rnow.config.overrides import apply_override
from rnow.config.settings import Config, TeacherSettings
from rnow.config.source import ConfigSource, read_source, show
from rnow.config.surroundings import Surroundings
from rnow.errors import ConfigError, Problem, Severity

_WITHOUT_ROLLOUTS = ("sft", "midtrain")
# A local site that somebody else serves, in the place of a folder.
_OWN_SERVER = re.compile(r"127\.0\.0\.1:\d{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A checked configuration, with where it came from."""

    config: Config
    file: Path
    lines: Mapping[str, int]  # dotted key -> line in `file`, from 1
    project_name: str | None  # an old key that still says what the user calls the run
    warnings: tuple[Problem, ...]  # old keys and the like, for the user to read once
    overrides: tuple[str, ...]  # "trainer.num_epochs = 5 (was: 3)", in the order given
    surroundings: Surroundings = field(default_factory=Surroundings)  # a run's, where there is one

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(str(warning) for warning in self.warnings)

    def problem(self, key: str, message: str, severity: Severity = "error") -> Problem:
        """Make a problem that stands where `key` is set."""
        return Problem(
            file=str(self.file),
            line=self.lines.get(key),
            key=key,
            message=message,
            severity=severity,
        )


def load_config(directory: Path, *, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read `directory`'s config.yml, or its config.json, with `key=value` overrides laid over it.

    Raises ConfigError with all errors of the file, one a line; its problems hold the warnings too.

    >>> load_config(Path("clinic"), overrides=["trainer.num_epochs=5"]).config.trainer.num_epochs
    5
    """
    source = read_source(_find_file(directory))
    applied = [apply_override(source, text) for text in overrides]
    refuse_flat_form(source)
    project_name = take_project_name(source)
    translate_old_keys(source)
    _fill_in_sections(source)
    _check_dataset_type(source)
    _check_local_sites(source, directory)
    _check_urls(source)
    _check_ranks(source)
    config = validate(source)
    if config is not None:
        _check_policy_lag(source, config)
        report_cautions(source, config, directory)
    # As the file goes; what has no line (overrides, absent sections) comes last.
    problems = sorted(source.problems, key=lambda one: (one.line is None, one.line or 0))
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    if errors or config is None:
        raise ConfigError("\n".join(errors), problems=problems)
    return LoadedConfig(
        config=config,
        file=source.file,
        lines=source.lines,
        project_name=project_name,
        warnings=tuple(problems),
        overrides=tuple(line for line in applied if line is not None),
    )


def require_distill(loaded: LoadedConfig) -> TeacherSettings:
    """Return the teacher's settings; ConfigError where another kind of training is asked for."""
    key, kind = "dataset_type", loaded.config.dataset_type
    if kind != "distill":
        message = (
            f"{key} {kind} is read and checked, but not trained in this version; only distill is. "
            f"To train this project so: {key}: distill, and a teacher: {{path: MODEL}}"
        )
        raise ConfigError(problems=[loaded.problem(key, message)])
    return teacher_of(loaded.config)


def teacher_of(config: Config) -> TeacherSettings:
    """Return the teacher's settings of a config whose dataset_type is distill."""
    assert config.teacher is not None, "load_config refuses distill without a teacher"
    return config.teacher


def require_messages(loaded: LoadedConfig) -> None:
    """Refuse to roll out where prompts are texts: there is nothing to answer."""
    if loaded.config.dataset_type == "midtrain":
        key = "dataset_type"
        message = f"{key} midtrain has texts, and no prompts that a model could answer"
        line = loaded.lines.get(key)
        problem = Problem(file=str(loaded.file), line=line, key=key, message=message)
        raise ConfigError(problems=[problem])


def find_tools_file(loaded: LoadedConfig, *, directory: Path) -> Path | None:
    """Return `directory`'s tools.py, None where there is none: without MCP servers a rollout then
    has one turn.

    Raises ConfigError where more turns are asked for, since nothing could happen between them.
    """
    file = directory / "tools.py"
    if file.is_file():
        return file
    rollout = loaded.config.rollout
    max_turns = rollout.max_turns
    without = loaded.config.dataset_type in _WITHOUT_ROLLOUTS
    if max_turns == 1 or rollout.mcp_url or without:
        return None
    remedy = "write one, name an MCP server in rollout.mcp_url, or set rollout.max_turns to 1"
    if (directory / "env.py").is_file():
        remedy = "env.py is its old name: rename it to tools.py"
    key = "rollout.max_turns"
    message = f"{key} is {max_turns}, but there is no tools.py in {directory}; {remedy}"
    raise ConfigError(problems=[loaded.problem(key, message)])


def config_file(directory: Path) -> Path | None:
    """Return the file that holds a project's config; None where there is none."""
    files = (directory / name for name in ("config.yml", "config.json"))
    return next((file for file in files if file.is_file()), None)


def _find_file(directory: Path) -> Path:
    if (file := config_file(directory)) is not None:
        return file
    remedy = "rnow init makes a project"
    if (directory / "config.yaml").is_file():
        remedy = "rename config.yaml to config.yml"
    message = f"No config.yml or config.json found in {directory}; {remedy}"
    problem = Problem(file=str(directory), line=None, key=None, message=message)
    raise ConfigError(message, problems=[problem])


def _fill_in_sections(source: ConfigSource) -> None:
    """Let a section whose keys are all commented out, and a required one, be an empty mapping."""
    for name in (key for key in section_keys() if "." not in key):
        optional = name in ("teacher", "resources")
        if source.get(name) is None and source.has(name):
            source.pop(name)
        if not source.has(name) and not optional:
            source.values[name] = {}


def _check_dataset_type(source: ConfigSource) -> None:
    """Check the rules between dataset_type and the sections: they hold whatever else is wrong."""
    dataset_type = source.get("dataset_type") if source.has("dataset_type") else "distill"
    if dataset_type == "distill" and not source.has("teacher"):
        source.report(
            "dataset_type",
            "dataset_type: distill requires 'teacher' section; add teacher: {path: MODEL}",
        )
    if dataset_type in ("rl", "sft", "midtrain") and source.has("teacher"):
        source.report(
            "teacher",
            "'teacher' is only available for dataset_type: distill; "
            f"remove the section, or dataset_type: {dataset_type}",
        )
    if dataset_type in _WITHOUT_ROLLOUTS:
        for name in ("algorithm", "rollout"):
            if source.get(name):
                message = f"{name} is ignored: dataset_type {dataset_type} makes no rollouts"
                source.warn(name, message)


def _check_local_sites(source: ConfigSource, directory: Path) -> None:
    if source.get("browser.store_mode") == "replay":  # which asks no site, and serves none
        return
    sites = source.get("browser.local_sites")
    for host, folder in sites.items() if isinstance(sites, dict) else ():
        if not isinstance(folder, str) or _OWN_SERVER.fullmatch(folder):
            continue
        if not (directory / folder).is_dir():
            key = f"browser.local_sites.{host}"
            source.report(
                key,
                f"{key} is {show(folder)}, which is neither a folder in {directory} "
                "nor a server of your own as 127.0.0.1:PORT",
            )


def _check_policy_lag(source: ConfigSource, config: Config) -> None:
    """Refuse rollouts beside an update whose weights would take the place of theirs."""
    if config.trainer.max_policy_lag and config.model.tuning == "full":
        source.report(
            "trainer.max_policy_lag",
            "trainer.max_policy_lag 1 needs model.tuning: lora: all weights are replaced in place, "
            "so nothing can be sampled from the former ones meanwhile; set one of the two",
        )


def _check_ranks(source: ConfigSource) -> None:
    """Refuse two different numbers for one thing."""
    ranks, gpus = source.get("trainer.num_ranks"), source.get("resources.trainer.gpus")
    if None not in (ranks, gpus) and ranks != gpus:
        source.report(
            "trainer.num_ranks",
            f"trainer.num_ranks is {show(ranks)}, and resources.trainer.gpus is {show(gpus)}; a "
            "rank has one GPU: leave one of the two out",
        )


def _check_urls(source: ConfigSource) -> None:
    """Refuse a server of the user's own beside what contradicts it."""
    for url, kind in (("engine.url", "engine.kind"), ("teacher.url", "teacher.engine")):
        if source.get(url) is None:
            continue
        if source.get(kind) == "local":
            source.report(url, f"{url} is set, and {kind} says local; remove one of the two")
        for name in ("replicas", "args"):
            key = f"{url.partition('.')[0]}.{name}"
            if source.get(key):
                source.report(key, f"{key} is for servers that rnow starts; {url} names your own")
