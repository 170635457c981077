"""What a run will take, before it is begun: tokens, time, disk, each with its basis. Pure.

    measured steps of this project ─┐
    prompts and settings ───────────┼─▶ estimate_costs ─▶ Costs: lines() for the terminal, as_json()
    sizes of both models, GPUs ─────┘

What was measured wins, scaled by the rollouts of a step (measured.py). Else the time is made from
the models' sizes and a table of devices, and from numbers that are plain assumptions and are called
so. What nothing is known of has no number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, Literal

from rnow.plan.dealing import step_times
from rnow.plan.device_table import device_or_other
from rnow.plan.figures import ModelFigures
from rnow.plan.measured import Bound, Measured
from rnow.plan.pace import Gang, StepTokens, assumed_sizes, assumed_tokens, assumed_turns
from rnow.plan.records import Role
from rnow.runtime.console import duration

USED_SHARE = 0.35  # of a GPU's peak, in training and scoring without a plan
CPU_TFLOPS = 0.05

# Assumptions; a step's own numbers replace them.
TOKENS_PER_S = {"vllm": 60.0, "local": 30.0, "url": 60.0}  # that one rollout samples
SECONDS_A_CALL = 1.0
_JOURNAL_BYTES = (2, 20)  # a token that was read, one that was sampled; compressed
_FLOPS = {"lora": 6, "full": 8}  # a parameter and token: forward twice, and backward


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run is asked to do.

    Work(num_steps=20, num_rollouts=1280, num_evaluations=5, num_held_out=384, …)
    """

    num_steps: int
    num_rollouts: int  # of all steps
    num_evaluations: int
    num_held_out: int  # prompts of one evaluation
    concurrency: int  # rollouts at a time
    max_turns: int
    max_tokens: int  # of one generation
    max_result_tokens: int | None
    max_context_window: int
    prompt_tokens: int  # of the usual prompt, its tools included
    prompt_basis: str = ""  # where these were not counted: what they are from
    tuning: Literal["lora", "full"]
    lora_rank: int
    num_checkpoints: int  # kept at the end, with the one to go on from
    keep_trajectories_bytes: float
    engine: str  # vllm, local, url
    gpu: str | None  # name of the trainer's; None: a CPU
    num_gpus: int
    num_teacher_gpus: int
    student: ModelFigures | None  # None: its sizes are not known
    teacher: ModelFigures | None
    gangs: Mapping[Role, Gang] = field(default_factory=dict)  # of the plan; without one, none
    sharing: frozenset[Role] = frozenset()  # engines that have a GPU in common

    @property
    def rollouts_a_step(self) -> float:
        return self.num_rollouts / max(1, self.num_steps)

    @property
    def calls_a_rollout(self) -> float:
        """One after each turn but the last of those that the window has room for."""
        turns = assumed_turns(
            max_turns=self.max_turns,
            max_tokens=self.max_tokens,
            max_result_tokens=self.max_result_tokens,
            room=self.max_context_window - self.prompt_tokens,
        )
        return max(0.0, turns - 1)

    @property
    def place(self) -> str:
        """What the run's seconds are of: "vllm, 3 x NVIDIA H100 80GB HBM3", "local, cpu"."""
        return f"{self.engine}, {f'{self.num_gpus} x {self.gpu}' if self.gpu else 'cpu'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number, and where it is from. Estimate(value=81920, basis="from 3 measured steps …")"""

    value: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """A whole run. Seconds, tokens and bytes; None: not known."""

    steps: Estimate
    rollouts: Estimate  # those of evaluations beside them in `evaluations`
    evaluations: Estimate
    tokens_out: Estimate  # sampled
    tokens_in: Estimate  # read besides: prompts and results of tools
    disk_bytes: Estimate | None  # checkpoints and published weights
    journal_bytes: Estimate
    step_s: Estimate | None
    total_s: Estimate | None  # without the start of the engines
    gpu_hours: Estimate | None
    bound_by: Bound | None  # what a step waits for most
    place: str  # what its seconds are of
    least_disk_bytes: float = 0.0  # of one checkpoint, without which no run ends

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """Return the plan for the terminal, a line a number."""
        evaluated = f", and {self.evaluations.value:,.0f} in evaluations"
        rows: list[tuple[str, Estimate | None, str]] = [
            ("steps", self.steps, f"{self.steps.value:.0f}"),
            (
                "rollouts",
                self.rollouts,
                f"{self.rollouts.value:,.0f}" + (evaluated if self.evaluations.value else ""),
            ),
            ("tokens sampled", self.tokens_out, _count(self.tokens_out.value)),
            ("tokens read", self.tokens_in, _count(self.tokens_in.value)),
            ("checkpoints", self.disk_bytes, _bytes(self.disk_bytes)),
            ("journal", self.journal_bytes, _bytes(self.journal_bytes)),
            ("time a step", self.step_s, _time(self.step_s) + self._bound()),
            ("time in all", self.total_s, _time(self.total_s)),
            ("GPU hours", self.gpu_hours, f"{self.gpu_hours.value:.1f}" if self.gpu_hours else ""),
        ]
        return tuple(
            f"{name:<15} {text}  ({item.basis})" for name, item, text in rows if item is not None
        )

    def short_lines(self) -> tuple[str, str]:
        """Return the same in two lines."""
        time = f"{_time(self.total_s)} in all" if self.total_s else "time not known"
        hours = f", {self.gpu_hours.value:.1f} GPU hours" if self.gpu_hours else ""
        basis = f" ({self.step_s.basis})" if self.step_s else ""
        a_step = f", {_time(self.step_s)} a step{self._bound()}" if self.step_s else ""
        return (
            f"planned: {self.rollouts.value:,.0f} rollouts, {_count(self.tokens_out.value)} tokens "
            f"sampled and {_count(self.tokens_in.value)} read ({self.tokens_out.basis})",
            f"planned: {time}{hours}{a_step}{basis}",
        )

    def _bound(self) -> str:
        return f", bound by the {self.bound_by}" if self.bound_by else ""


def estimate_costs(work: Work, measured: Measured) -> Costs:
    """Return what `work` will take, by what was measured where there is something."""
    sampled, read, tokens_basis = _tokens(work, measured)
    num_evaluated = work.num_evaluations * work.num_held_out
    num_all = work.num_rollouts + num_evaluated
    parts, time_basis = _parts(work, measured, sampled=sampled, read=read)
    step_s = total_s = None
    if parts is not None:
        timed = measured.step_s(work.rollouts_a_step) if measured.timed else sum(parts.values())
        step_s = Estimate(value=timed, basis=time_basis)
        rolling_s = parts["student"] + parts["tools"]
        eval_s = measured.evaluation_s() or (
            rolling_s * work.num_held_out / max(1.0, work.rollouts_a_step)
        )
        whole = work.num_steps * timed + work.num_evaluations * eval_s
        total_s = Estimate(value=whole, basis=time_basis)
    journal = work.num_rollouts * (_JOURNAL_BYTES[0] * read + _JOURNAL_BYTES[1] * sampled)
    hours = total_s and Estimate(
        value=total_s.value / 3600 * work.num_gpus, basis=f"{work.num_gpus} GPUs for that time"
    )
    return Costs(
        steps=Estimate(value=work.num_steps, basis="from the settings"),
        rollouts=Estimate(value=work.num_rollouts, basis="from the settings"),
        evaluations=Estimate(value=num_evaluated, basis="from the settings"),
        tokens_out=Estimate(value=num_all * sampled, basis=tokens_basis),
        tokens_in=Estimate(value=num_all * read, basis=tokens_basis),
        disk_bytes=_disk(work),
        journal_bytes=Estimate(
            value=min(journal, work.keep_trajectories_bytes),
            basis=f"assumed {_JOURNAL_BYTES[1]} bytes a sampled token and {_JOURNAL_BYTES[0]} a "
            "read one, at most trainer.keep_trajectories_gb",
        ),
        step_s=step_s,
        total_s=total_s,
        gpu_hours=hours if work.num_gpus else None,
        bound_by=None if parts is None else max(parts.items(), key=lambda part: part[1])[0],
        place=work.place,
        least_disk_bytes=3 * _weight_bytes(work),
    )


def _tokens(work: Work, measured: Measured) -> tuple[float, float, str]:
    """Return the tokens of one rollout, sampled and read, and where they are from."""
    if measured.counted:
        return *measured.tokens_a_rollout(), measured.basis(measured.counted)
    sampled, read = assumed_tokens(
        max_turns=work.max_turns,
        max_tokens=work.max_tokens,
        max_result_tokens=work.max_result_tokens,
        room=work.max_context_window - work.prompt_tokens,
    )
    a_turn, a_result = assumed_sizes(work.max_tokens, work.max_result_tokens)
    results = f", {a_result} a tool result" if work.max_turns > 1 else ""
    turns = f"all {work.max_turns} turns of a rollout"
    if (fitting := sampled / a_turn) < work.max_turns:
        turns = f"the {fitting:.1f} of {work.max_turns} turns that its window has room for"
    return (
        sampled,
        work.prompt_tokens + read,
        f"assumed {a_turn} tokens a turn{results} and {turns}"
        f"{work.prompt_basis and f', {work.prompt_basis}'}",
    )


def _parts(
    work: Work, measured: Measured, *, sampled: float, read: float
) -> tuple[dict[Bound, float] | None, str]:
    """Return the seconds of a step by what is waited for; None: the models' sizes are not known."""
    if measured.timed:
        parts = measured.parts(work.rollouts_a_step, concurrency=work.concurrency)
        return parts, measured.basis(measured.timed)
    if {"student", "trainer"} <= set(work.gangs):
        return _planned_parts(work, sampled=sampled, read=read)
    if work.student is None or work.teacher is None:
        return None, ""
    waves = ceil(work.rollouts_a_step / work.concurrency)
    rate = TOKENS_PER_S.get(work.engine, TOKENS_PER_S["vllm"])
    tflops, device = _device(work.gpu)
    flops = tflops * 1e12 * (USED_SHARE if work.gpu else 1.0)
    tokens = work.rollouts_a_step * (sampled + read)
    trained = _FLOPS[work.tuning] * work.student.num_active_parameters * tokens / flops
    scored = (
        2 * work.teacher.num_active_parameters * tokens / (flops * max(1, work.num_teacher_gpus))
    )
    rolled = waves * sampled / rate
    tools = waves * work.calls_a_rollout * SECONDS_A_CALL
    # The teacher scores while others roll: what it takes longer than they do is waited for.
    parts = {
        "student": rolled,
        "tools": tools,
        "teacher": max(0.0, scored - rolled - tools),
        "trainer": trained,
    }
    calls = f", {SECONDS_A_CALL:g} s a tool call" if work.max_turns > 1 else ""
    return parts, f"assumed {rate:g} tokens/s a rollout{calls}; {device}"


def _planned_parts(work: Work, *, sampled: float, read: float) -> tuple[dict[Bound, float], str]:
    """Return the seconds that the plan's GPUs take for this run's rollouts (pace.py)."""
    tokens = StepTokens(
        rollouts=work.rollouts_a_step, concurrency=work.concurrency, sampled=sampled, read=read
    )
    times = step_times(work.gangs, tokens, tuning=work.tuning, sharing=work.sharing)
    rolled = times.seconds["student"]
    tools = ceil(work.rollouts_a_step / work.concurrency) * work.calls_a_rollout * SECONDS_A_CALL
    parts: dict[Bound, float] = {
        "student": rolled,
        "tools": tools,
        "teacher": max(0.0, times.step_s - times.seconds["trainer"] - rolled - tools),
        "trainer": times.seconds["trainer"],
    }
    device = device_or_other(work.gpu or "")[1]
    return parts, f"estimated as in the plan of devices, {SECONDS_A_CALL:g} s a tool call; {device}"


def _disk(work: Work) -> Estimate | None:
    """Return the bytes of checkpoints, one that is being written too, and of published versions."""
    if work.student is None:
        return None
    return Estimate(
        value=_weight_bytes(work) * (3 * (work.num_checkpoints + 1) + 3),
        basis=f"{work.num_checkpoints} with AdamW's moments and room to write another, two "
        "published versions and the model, by the sizes of config.json",
    )


def _weight_bytes(work: Work) -> int:
    """Return the bytes of what is trained, without AdamW's moments, which take twice as many."""
    if work.student is None:
        return 0
    is_full = work.tuning == "full"
    lora = work.student.num_lora_parameters(work.lora_rank)
    return 4 * (work.student.num_parameters if is_full else lora)


def _device(gpu: str | None) -> tuple[float, str]:
    if gpu is None:
        return CPU_TFLOPS, f"assumed {CPU_TFLOPS:g} TFLOP/s of a CPU"
    device, phrase = device_or_other(gpu)
    return device.tflops, f"{USED_SHARE:.0%} of {phrase}"


def _count(value: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _bytes(item: Estimate | None) -> str:
    value = 0.0 if item is None else item.value
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _time(item: Estimate | None) -> str:
    if item is None:
        return ""
    return f"{item.value:.1f} s" if item.value < 60 else duration(item.value)
