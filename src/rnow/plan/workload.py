"""What a device plan is made from: `Workload`, and how it comes from a project.

Nothing is decided here. All sizes are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rnow.config.settings import Config, TeacherSettings
from rnow.engines.vllm.command import TEACHER_TOKENS_A_STEP
from rnow.errors import ModelError
from rnow.plan.figures import ModelFigures, load_figures
from rnow.plan.memory import GIB, ServerLoad, TrainerLoad
from rnow.plan.model_files import ModelFiles, fetch_model
from rnow.plan.pace import PROMPT_TOKENS, StepTokens, assumed_tokens
from rnow.plan.records import EngineKind, Role

_DTYPE_BYTES = {"auto": 2, "bfloat16": 2, "float32": 4}  # auto: bfloat16 on a GPU
_MAX_SEQS = 256  # vLLM's own limit on most GPUs; what comes beyond it waits
_BATCHED_TOKENS, _SMALL_BATCHED_TOKENS = 8192, 2048  # the student's: vLLM's own defaults
_BIG_GPU = 70 * GIB  # from here on the larger of them


def num_ranks(config: Config) -> int:
    """Return how many processes make an update together."""
    return config.trainer.num_ranks or _given_gpus(config, "trainer") or 1


def gives_gpus(config: Config) -> bool:
    """Return whether the settings say how many GPUs the roles have: one, of a role not named."""
    roles: tuple[Role, ...] = ("student", "teacher", "trainer")
    return any(_given_gpus(config, role) is not None for role in roles)


def _given_gpus(config: Config, role: Role) -> int | None:
    resources = config.resources
    if resources is None:
        return None
    of_role = {
        "student": resources.student,
        "teacher": resources.teacher,
        "trainer": resources.trainer,
    }[role]
    return None if of_role is None else of_role.gpus


def weights_are_cut(config: Config) -> bool:
    """Return whether each of several ranks holds a part of the student, not all of it."""
    wanted = config.trainer.shard_weights
    return config.model.tuning == "full" if wanted == "auto" else wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Everything that memory depends on: two models, what runs them, and the settings.

    What runs the roles was settled before (placing.py).
    """

    config: Config
    student: ModelFigures | None  # None: nothing is known of its memory, or it runs elsewhere
    teacher: ModelFigures | None
    student_engine: EngineKind = "vllm"
    teacher_engine: EngineKind = "vllm"
    alone: Literal["student", "teacher"] | None = None  # only this one runs, and it samples
    max_ranks: int = 1  # that spare GPUs may make of the trainer's; more are for what-if plans

    def with_settings(self, settings: Mapping[str, Any]) -> "Workload":
        """Return the same with other settings, by their keys: {"model.tuning": "lora"}."""
        sections = self.config.model_dump()
        for key, value in settings.items():
            section, _, name = key.partition(".")
            sections[section][name] = value
        return replace(self, config=Config.model_validate(sections))

    def sampling(self, role: Literal["student", "teacher"], *, lora_rank: int | None) -> "Workload":
        """Return what it takes to sample in the place of `role`, and do nothing else.

        `lora_rank`: of the adapter that is sampled from; None: the model as it is.
        """
        settings: dict[str, Any] = {"model.tuning": "full"}
        if lora_rank is not None:
            settings = {"model.tuning": "lora", "model.qlora_rank": lora_rank}
        return replace(self.with_settings(settings), alone=role)

    @property
    def teacher_settings(self) -> TeacherSettings:
        # Without a teacher only the student is planned, alone: nobody reads this one's settings.
        return self.config.teacher or TeacherSettings(path=self.config.model.path)

    @property
    def max_context_window(self) -> int:
        return self.config.rollout.max_context_window

    @property
    def num_rollouts(self) -> int:
        """How many run at the same time: in a step; alone, as many as may."""
        data, concurrency = self.config.data, self.config.rollout.concurrency
        in_step = data.batch_size * data.group_size
        return min(in_step, concurrency) if self.alone is None else concurrency

    def num_gpus(self, role: Role) -> int | None:
        """Return how many GPUs the settings give `role`; None: planned."""
        if not gives_gpus(self.config):
            return None
        return self.num_ranks if role == "trainer" else _given_gpus(self.config, role) or 1

    @property
    def num_ranks(self) -> int:
        """Return how many processes train together, each on a GPU of its own."""
        return num_ranks(self.config)

    def known_figures(self, role: Role) -> ModelFigures | None:
        return self.teacher if role == "teacher" else self.student

    def figures(self, role: Role) -> ModelFigures:
        found = self.known_figures(role)
        assert found is not None, "of a role without figures nothing is counted"
        return found

    @property
    def unknown(self) -> tuple[Role, ...]:
        """The roles that run here, of whose memory nothing is known."""
        roles: tuple[Role, ...] = ("student", "teacher")
        return tuple(
            role
            for role in roles
            if self.known_figures(role) is None and self.engine(role) != "url"
        )

    def path(self, role: Role) -> str:
        """Return what config.yml calls the model of `role`."""
        found = self.known_figures(role)
        if found is not None:
            return found.path
        return self.teacher_settings.path if role == "teacher" else self.config.model.path

    def engine(self, role: Role) -> EngineKind:
        """Return what runs `role`; the trainer is no server, as local engines are none."""
        if self.alone not in (None, role):
            return "url"  # takes nothing here
        if role == "trainer":
            return "local"
        return self.teacher_engine if role == "teacher" else self.student_engine

    def replicas(self, role: Role) -> int | None:
        """Return how many servers `role` is to have; None: not said, or no servers."""
        if self.engine(role) != "vllm":
            return None
        is_teacher = role == "teacher"
        return self.teacher_settings.replicas if is_teacher else self.config.engine.replicas

    @property
    def step_tokens(self) -> StepTokens:
        """What one step asks for, by what is assumed of a rollout."""
        data, rollout = self.config.data, self.config.rollout
        sampled, results = assumed_tokens(
            max_turns=rollout.max_turns,
            max_tokens=rollout.max_tokens or self.max_context_window,
            max_result_tokens=rollout.max_tool_response,
            room=self.max_context_window - PROMPT_TOKENS,
        )
        in_step = data.batch_size * data.group_size
        return StepTokens(
            rollouts=in_step if self.alone is None else rollout.concurrency,
            concurrency=rollout.concurrency,
            sampled=sampled,
            read=results + PROMPT_TOKENS,
        )

    @property
    def trainer_load(self) -> TrainerLoad:
        model, trainer = self.config.model, self.config.trainer
        return TrainerLoad(
            tuning=model.tuning,
            lora_rank=model.qlora_rank,
            dtype_bytes=_DTYPE_BYTES[model.dtype],
            # A trajectory that is longer than a micro-batch goes through the network alone.
            max_tokens=max(trainer.max_tokens_per_micro_batch, self.max_context_window),
            checkpointing=trainer.activation_checkpointing is not False,
            num_parts=self.num_ranks if weights_are_cut(self.config) else 1,
        )

    def server_load(self, role: Role, gpu_bytes: int) -> ServerLoad:
        """Return what a server of `role` is asked to do on GPUs of this size."""
        model, teacher = self.config.model, self.teacher_settings
        is_teacher = role == "teacher"
        scores = is_teacher and self.alone is None
        sampled_a_step = _BATCHED_TOKENS if gpu_bytes >= _BIG_GPU else _SMALL_BATCHED_TOKENS
        concurrency = teacher.concurrency if scores else self.config.rollout.concurrency
        return ServerLoad(
            dtype_bytes=_DTYPE_BYTES[teacher.dtype if is_teacher else self.config.engine.dtype],
            quantization=teacher.quantization if is_teacher else None,
            # Whoever asks for scores is given a token beside them; it needs its place.
            max_model_len=self.max_context_window + (1 if scores else 0),
            max_num_batched_tokens=TEACHER_TOKENS_A_STEP if scores else sampled_a_step,
            max_num_seqs=min(concurrency, _MAX_SEQS),
            lora_rank=None if scores or model.tuning == "full" else model.qlora_rank,
            scores=scores,
        )


def load_workload(
    config: Config,
    *,
    models: Mapping[Literal["student", "teacher"], ModelFiles],
    engines: Mapping[Literal["student", "teacher"], EngineKind],
) -> Workload:
    """Read the figures of `models`, but of a teacher that runs elsewhere.

    Raises ModelError where they are missing and a server is to be started without a word of the
    GPUs, and the share of their memory, that it is to have.
    """
    figures: dict[str, ModelFigures] = {}
    for role, model in models.items():
        if role == "teacher" and engines[role] == "url":
            continue
        folder = fetch_model(model, weights=False)
        try:
            figures[role] = load_figures(model.path, folder)
        except ModelError as error:
            said = config.resources, config.engine.gpu_memory_utilization
            if "vllm" in engines.values() and None in said:
                raise ModelError(
                    f"how much memory {model.path} takes is not known ({error}); set resources "
                    "and engine.gpu_memory_utilization, which are then taken as they are"
                ) from error
    return Workload(
        config=config,
        student=figures.get("student"),
        teacher=figures.get("teacher"),
        student_engine=engines.get("student", "url"),
        teacher_engine=engines.get("teacher", "url"),
    )
