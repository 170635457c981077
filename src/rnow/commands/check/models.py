"""The points of `rnow check` that concern the models: tokenizers, template, window, devices."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

from rnow.chat.bridge_check import check_template
from rnow.chat.rendering_limit import memory_held
from rnow.chat.template import ChatTemplate
from rnow.chat.vocabulary import Vocabulary, check_prompts, check_words, read_vocabulary
from rnow.cluster.machines import find_machines
from rnow.commands.check.point import Point, not_checked, point
from rnow.commands.check.site_pace import site_pace_problem
from rnow.config.load import LoadedConfig
from rnow.errors import ClusterError, ConfigError, ModelError, Severity, TemplateError
from rnow.plan.costs import Costs
from rnow.plan.model_files import find_tokenizer
from rnow.plan.placing import Placement, place_roles
from rnow.records import Prompt
from rnow.rollout.environment import load_chat
from rnow.tools.base import ToolSchema, allowed_schemas
from rnow.training.planned import find_figures, plan_costs
from rnow.training.steps import prompts_by_step

MIN_TOKENS_LEFT = 2000  # for the student's turns and the pages that it reads
SMALL_WINDOW = 8000  # below it a share of the window is asked for instead
_NUM_PROMPTS_MEASURED = 64


def check_tokenizers(loaded: LoadedConfig, directory: Path) -> Point:
    """Compare the token ids of student and teacher."""
    name = "tokenizers"
    if loaded.config.teacher is None:
        return not_checked(name, f"dataset_type {loaded.config.dataset_type} has no teacher")
    paths = {"model.path": loaded.config.model.path, "teacher.path": loaded.config.teacher.path}
    folders = {key: find_tokenizer(path, project=directory) for key, path in paths.items()}
    missing = [paths[key] for key, folder in folders.items() if folder is None]
    if missing:
        return not_checked(name, f"not on this machine: {', '.join(missing)}")
    student, teacher = folders.values()
    assert student is not None
    try:
        vocabulary = read_vocabulary(student, teacher)
    except ModelError as error:
        return point(name, "", [loaded.problem("teacher.path", str(error))])
    told = [loaded.problem("teacher.path", text, "warning") for text in vocabulary.notices]
    return point(name, f"{vocabulary.num_tokens} tokens, the same ids in student and teacher", told)


def check_chat(
    loaded: LoadedConfig,
    directory: Path,
    *,
    schemas: Sequence[ToolSchema] | None,
    files: Mapping[str, Sequence[Prompt]],
) -> list[Point]:
    """Check the student's template, and with it how much of the window the prompts of all files
    take.
    """
    path = loaded.config.model.path
    folder = find_tokenizer(path, project=directory)
    if folder is None:
        reason = f"not on this machine: {path}"
    elif schemas is None or not files:
        reason = "tools.py or the prompts have problems"
    else:
        known = _shared_vocabulary(loaded, folder, directory)
        return _check_chat(
            loaded, directory, folder, schemas=schemas, files=files, vocabulary=known
        )
    return [not_checked("template", reason), not_checked("window", reason)]


def check_devices(loaded: LoadedConfig, directory: Path) -> tuple[Point, Placement | None]:
    """Find out where each role would run on this machine; with GPUs the message is their plan."""
    if loaded.config.teacher is None:
        kind = loaded.config.dataset_type
        return not_checked("devices", f"dataset_type {kind} is not trained in this version"), None
    try:
        machines = find_machines(loaded.config, directory)
        placement = place_roles(loaded, directory, may_download=False, machines=machines)
    except ClusterError as error:
        problem = loaded.problem("resources.cluster", str(error))
        return point("devices", "", [problem]), None
    except (ModelError, ConfigError) as error:
        # One message for all roles; it stands where the first model that it names is set.
        keys = ("model.path", "teacher.path")
        key = next((key for key in keys if f"  {key}: " in str(error)), "engine.kind")
        return point("devices", "", [loaded.problem(key, str(error))]), None
    lines = [*placement.lines(), *placement.unseen, *_to_download(placement)]
    return point("devices", "\n".join(lines)), placement


def _to_download(placement: Placement) -> Iterator[str]:
    """Yield of which models nothing could be looked at but the name."""
    for role, model in placement.models.items():
        if model.folder is None and (role == "student" or placement.engines[role] != "url"):
            yield f"{model.key}: {model.path} is not on this machine: a run downloads it first"


def check_plan(
    loaded: LoadedConfig,
    directory: Path,
    placement: Placement | None,
    *,
    schemas: Sequence[ToolSchema] | None,
    prompts: Sequence[Prompt] | None,
    num_held_out: int,
    files: Mapping[str, Sequence[Prompt]],
) -> tuple[Point, Costs | None]:
    """Say what the run will take, each number with what it is from, and whether sites hold it up.

    `files`: all prompts, in whose texts pages are named.
    """
    name, config = "plan", loaded.config
    if config.teacher is None or prompts is None or schemas is None:
        return not_checked(name, "what it is made from has problems"), None
    make = partial(
        plan_costs,
        config,
        directory,
        placement,
        steps=prompts_by_step(config, prompts),
        num_held_out=num_held_out,
        schemas=schemas,
    )
    folder = find_tokenizer(config.model.path, project=directory)
    costs = None
    if folder is not None:
        with suppress(ModelError, TemplateError):  # the point `template` says what is wrong
            chat = ChatTemplate.load(folder, reasoning_mode=config.rollout.reasoning_mode)
            costs = make(chat=chat)
    costs = costs or make(chat=None)
    waited = site_pace_problem(loaded, directory, files, costs) if schemas else None
    lines = ["each number with what it is from", *costs.lines()]
    if placement is None:
        lines.append("no time: where the models run is not settled, see devices")
    lines += _unknown_sizes(directory, config.model.path, config.teacher.path)
    return point(name, "\n".join(lines), [] if waited is None else [waited]), costs


def _unknown_sizes(directory: Path, *paths: str) -> Iterator[str]:
    """Yield of which models nothing is known that time and disk are made from, and what to do."""
    for path in dict.fromkeys(paths):
        if find_figures(path, directory) is None:
            is_here = find_tokenizer(path, project=directory, file="config.json")
            remedy = "" if is_here else f"; hf download {path} --include '*.json' '*.jinja'"
            yield f"no time that is not measured: the sizes of {path} are not known here{remedy}"


def window_problem(longest: int, window: int) -> tuple[str, Severity] | None:
    """Return what is wrong with a window that a prompt nearly fills, and how badly.

    A small window is a small model's: there a quarter of it is asked for, and less is a warning.
    """
    left = window - longest
    needed = _needed(window)
    if left >= needed:
        return None
    message = (
        f"rollout.max_context_window is {window} tokens, and the longest prompt takes {longest} "
        f"with its tools; that leaves {max(left, 0)} for the student, who needs {needed}"
    )
    return message, "error" if window >= SMALL_WINDOW or left <= 0 else "warning"


def _needed(window: int) -> int:
    return MIN_TOKENS_LEFT if window >= SMALL_WINDOW else window // 4


def _shared_vocabulary(loaded: LoadedConfig, student: Path, directory: Path) -> Vocabulary | None:
    """Return what both models know; None where it is not known, or is a problem told elsewhere."""
    path = None if loaded.config.teacher is None else loaded.config.teacher.path
    teacher = None if path is None else find_tokenizer(path, project=directory)
    with suppress(ModelError):
        return read_vocabulary(student, teacher)
    return None


@memory_held()
def _check_chat(
    loaded: LoadedConfig,
    directory: Path,
    folder: Path,
    *,
    schemas: Sequence[ToolSchema],
    files: Mapping[str, Sequence[Prompt]],
    vocabulary: Vocabulary | None,
) -> list[Point]:
    try:
        chat = load_chat(loaded.config, directory, student=folder)
        limits = loaded.config.rollout
        prompts = [*chain.from_iterable(files.values())]
        notices = check_template(chat, prompts[0].messages, schemas, limits=limits)
        if vocabulary is not None:
            check_words(chat, schemas, vocabulary=vocabulary)
        for file, own in files.items():
            check_prompts(chat, own, schemas, vocabulary=vocabulary, file=Path(file).name)
        longest = _longest_prompt(chat, schemas, prompts, window=limits.max_context_window)
    except (ModelError, TemplateError) as error:
        problem = loaded.problem("model.path", str(error))
        return [
            point("template", "", [problem]),
            not_checked("window", "the template has problems"),
        ]
    warnings = [loaded.problem("model.path", text, "warning") for text in notices]
    end = chat.decode([chat.end_of_turn_id])
    appends = bool(schemas) and limits.max_turns > 1
    can = "tool results can be appended token by token" if appends else f"a turn ends with {end}"
    template = point("template", can, warnings)
    window = loaded.config.rollout.max_context_window
    wrong = window_problem(longest, window)
    if wrong is not None:
        problem = loaded.problem("rollout.max_context_window", *wrong)
        return [template, point("window", f"{window - longest} tokens left", [problem])]
    message = f"the longest prompt takes {longest} of {window} tokens, tools included"
    return [template, point("window", message)]


def _longest_prompt(
    chat: ChatTemplate, schemas: Sequence[ToolSchema], prompts: Sequence[Prompt], *, window: int
) -> int:
    """Return the tokens of the longest prompt.

    Those of most bytes are counted, and each one that could fill the window: no token has less than
    a byte.
    """
    by_size = sorted(prompts, key=_num_bytes, reverse=True)
    first = chat.render(by_size[0].messages, tools=schemas)
    around = len(first.encode(errors="replace")) - _num_bytes(by_size[0])
    room = window - _needed(window) - around
    counted = [
        prompt
        for rank, prompt in enumerate(by_size)
        if rank < _NUM_PROMPTS_MEASURED or _num_bytes(prompt) > room
    ]
    return max(
        len(chat.render_prompt(prompt.messages, allowed_schemas(schemas, prompt.tools)))
        for prompt in counted
    )


def _num_bytes(prompt: Prompt) -> int:
    return len(str([m["content"] for m in prompt.messages]).encode(errors="replace"))
