"""A model of a project on its held-out prompts: load it, roll out greedily, show the figures."""

import asyncio
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rnow.config import LoadedConfig
from rnow.engines.local import LocalEngine
from rnow.environment import Environment, open_environment
from rnow.evaluate import Evaluation, evaluate
from rnow.records import Prompt, RolloutId, Trajectory

__all__ = ["evaluate_in", "evaluate_model", "show_evaluation"]

BASE_VERSION = 0
ADAPTER_VERSION = 1


async def evaluate_model(
    loaded: LoadedConfig,
    project: Path,
    *,
    base: Path,
    adapter: Path | None,
    max_samples: int | None = None,
) -> Evaluation:
    """Evaluate the model in `base`, with the weights in `adapter` (adapter or model) over it."""
    with tempfile.TemporaryDirectory() as logs:
        async with open_environment(
            loaded, project, student=base, log_file=Path(logs) / "tools.log"
        ) as environment:
            prompts = environment.read_prompts(loaded.config.data.val_file).prompts
            return await evaluate_in(environment, prompts[:max_samples], base=base, adapter=adapter)


async def evaluate_in(
    environment: Environment, prompts: tuple[Prompt, ...], *, base: Path, adapter: Path | None
) -> Evaluation:
    """Evaluate in an environment that is open already."""
    config = environment.config
    engine = await asyncio.to_thread(
        LocalEngine.load,
        base,
        dtype=config.engine.dtype,
        request_timeout_s=config.engine.request_timeout_s,
    )
    try:
        version = BASE_VERSION
        if adapter is not None:
            version = ADAPTER_VERSION
            await engine.load_policy(adapter, version)
        roll = environment.roll(engine, seed=config.seed, temperature=0.0)

        async def one(prompt: Prompt, id: RolloutId) -> Trajectory:
            return await roll(prompt, id, version)

        return await evaluate(
            prompts, one, chat=environment.chat, concurrency=config.rollout.concurrency
        )
    finally:
        await engine.aclose()


def show_evaluation(evaluation: Evaluation, *, title: str, console: Console) -> None:
    """Print accuracy by task and overall, with the 95 % interval of the whole."""
    figures = evaluation.as_json()
    table = Table(title=f"{title} on {figures['n']} held-out prompts", title_justify="left")
    table.add_column("task")
    table.add_column("accuracy", justify="right")
    for task, accuracy in evaluation.by_task.items():
        table.add_row(task or "(no task_name)", f"{100 * accuracy:.1f} %")
    low, high = figures["interval"]
    table.add_section()
    table.add_row("all", f"{100 * evaluation.accuracy:.1f} %")
    console.print(table)
    console.print(
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
        f"{100 * evaluation.format_ok:.1f} % in the asked form; {figures['failed']} failed",
        highlight=False,
    )
