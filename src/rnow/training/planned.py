"""The plan of a run from its project: what is asked of it, and what earlier runs have measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rnow.chat.template import ChatTemplate
from rnow.config.settings import Config
from rnow.errors import ModelError
from rnow.plan.costs import Costs, Work, estimate_costs
from rnow.plan.figures import ModelFigures, load_figures
from rnow.plan.model_files import find_tokenizer
from rnow.plan.placing import Placement
from rnow.records import Prompt
from rnow.runs.measured import measured_steps
from rnow.tools.base import ToolSchema, allowed_schemas

_NUM_PROMPTS_MEASURED = 16
_BYTES_A_TOKEN = 4  # assumed, where no tokenizer is here


def plan_costs(
    config: Config,
    project: Path,
    placement: Placement | None,
    *,
    steps: Sequence[Sequence[Prompt]],
    num_held_out: int,
    chat: ChatTemplate | None,
    schemas: Sequence[ToolSchema],
) -> Costs:
    """Return what the run of these steps will take.

    Without a `placement` there is no time; without a `chat` tokens of prompts are no count.
    """
    rollout, trainer = config.rollout, config.trainer
    num_steps = len(steps)
    is_evaluated = bool(num_held_out and trainer.eval_step)
    num_kept = (
        min(trainer.keep_last, num_steps // trainer.save_step) if trainer.save_step > 0 else 0
    )
    plan = None if placement is None else placement.plan
    teacher = None if plan is None else plan.role("teacher")
    gpus = () if plan is None else plan.gpus
    work = Work(
        num_steps=num_steps,
        num_rollouts=sum(map(len, steps)) * config.data.group_size,
        num_evaluations=-(-num_steps // trainer.eval_step) + 1 if is_evaluated else 0,
        num_held_out=num_held_out,
        concurrency=rollout.concurrency,
        max_turns=rollout.max_turns,
        max_tokens=rollout.max_tokens or rollout.max_context_window,
        max_result_tokens=rollout.max_tool_response,
        max_context_window=rollout.max_context_window,
        prompt_tokens=_prompt_tokens(steps[0] if steps else (), chat, schemas),
        prompt_basis="" if chat else f"{_BYTES_A_TOKEN} bytes a token of prompts",
        tuning=config.model.tuning,
        lora_rank=config.model.qlora_rank,
        num_checkpoints=num_kept + 1,
        keep_trajectories_bytes=trainer.keep_trajectories_gb * 1e9,
        engine="unknown" if placement is None else placement.engines["student"],
        gpu=gpus[0].name if gpus else None,
        num_gpus=0 if plan is None else len({gpu for one in plan.roles for gpu in one.gpus}),
        num_teacher_gpus=0 if teacher is None else len(teacher.gpus),
        student=find_figures(config.model.path, project),
        # Time is made from both models' sizes: of a run without a place there is none.
        teacher=(
            None if placement is None else find_figures(placement.models["teacher"].path, project)
        ),
        gangs={} if plan is None else plan.gangs,
        sharing=frozenset() if plan is None else plan.times.sharing,
    )
    return estimate_costs(work, measured_steps(project, config, place=work.place))


def find_figures(path: str, project: Path) -> ModelFigures | None:
    """Return a model's sizes; None where its config.json is not here, or its kind is not known."""
    folder = find_tokenizer(path, project=project, file="config.json")
    try:
        return None if folder is None else load_figures(path, folder)
    except ModelError:
        return None


def _prompt_tokens(
    prompts: Sequence[Prompt], chat: ChatTemplate | None, schemas: Sequence[ToolSchema]
) -> int:
    counts = [
        _count(prompt, chat, allowed_schemas(schemas, prompt.tools))
        for prompt in prompts[:_NUM_PROMPTS_MEASURED]
    ]
    return round(median(counts)) if counts else 0


def _count(prompt: Prompt, chat: ChatTemplate | None, schemas: Sequence[ToolSchema]) -> int:
    if chat is not None:
        return len(chat.render_prompt(prompt.messages, schemas))
    text = json.dumps([prompt.messages, list(schemas)], ensure_ascii=False, default=str)
    return len(text.encode(errors="replace")) // _BYTES_A_TOKEN
