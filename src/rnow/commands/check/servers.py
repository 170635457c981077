"""The point of `rnow check` on servers of the user's own: do they answer, and with which model."""

from rnow.commands.check.point import Point, not_checked, point
from rnow.config.load import LoadedConfig
from rnow.engines.vllm.asking import DEADLINE_S, Need, ask_server
from rnow.engines.vllm.replicas import ServedModel
from rnow.errors import EngineError, Problem
from rnow.plan.placing import EngineRole, engine_urls
from rnow.runtime.main_task import run_main
from rnow.runtime.side_by_side import side_by_side

_KEYS: dict[EngineRole, tuple[str, str]] = {
    "student": ("engine.url", "model.path"),
    "teacher": ("teacher.url", "teacher.path"),
}


def check_servers(
    loaded: LoadedConfig, *, is_offline: bool, deadline_s: float = DEADLINE_S
) -> Point | None:
    """Ask the servers of engine.url and teacher.url; None where there are none."""
    name = "servers"
    roles: list[EngineRole] = ["student", "teacher"]
    asked = [(role, url) for role in roles for url in engine_urls(loaded.config, role)]
    if not asked:
        return None
    if is_offline:
        return not_checked(name, f"not asked: {', '.join(url for _, url in asked)}")

    async def ask_all() -> list[tuple[str, list[Problem]]]:
        return await side_by_side(
            *(_ask(loaded, role, url, deadline_s=deadline_s) for role, url in asked)
        )

    answers = run_main(ask_all())
    problems = [problem for _, found in answers for problem in found]
    return point(name, "\n".join(line for line, _ in answers), problems)


async def _ask(
    loaded: LoadedConfig, role: EngineRole, url: str, *, deadline_s: float
) -> tuple[str, list[Problem]]:
    config, (key, path_key) = loaded.config, _KEYS[role]
    window = config.rollout.max_context_window
    need = (
        # To score a text takes a token of room behind it.
        Need(max_model_len=window + 1, takes=None)
        if role == "teacher"
        else Need(
            max_model_len=window, takes="adapters" if config.model.tuning == "lora" else "models"
        )
    )
    try:
        served = await ask_server(url, need, deadline_s=deadline_s)
    except EngineError as error:
        remedy = f"Start the server, correct {key}, or take it out with {key}=null"
        return "", [loaded.problem(key, f"a run could not use {url}: {error}. {remedy}")]
    line = f"{role}: {url} serves {served.name}, {served.max_model_len} tokens a request"
    path = loaded.config.model.path if role == "student" else (_teacher_path(loaded) or "")
    if _is_named(path, served):
        return line, []
    text = f"{url} serves {served.name}; that it is the model of {path_key}, {path}, nothing shows"
    return line, [loaded.problem(key, text, "warning")]


def _teacher_path(loaded: LoadedConfig) -> str | None:
    return None if loaded.config.teacher is None else loaded.config.teacher.path


def _is_named(path: str, served: ServedModel) -> bool:
    """Whether the server's name for its model, or its folder's, ends as `path` does."""
    last = _last(path)
    return last in (_last(served.name), _last(served.root))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].lower()
