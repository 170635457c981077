"""Every setting of config.yml: its section, type, default, and under it what it does, in one line.

This module is the only place where defaults live; docs/configuration.md is made from it. It knows
nothing of files and lines: load.py reads them and turns what pydantic finds into messages. Coercion
is pydantic's lax one, since YAML 1.1 reads `5e-5` as text.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from rnow.config.mcp_servers import McpServers
from rnow.config.types import (
    DEFAULT_ROLLOUT_TIMEOUT_S,
    DatasetType,
    Dtype,
    EngineKind,
    EnvironmentNames,
    Hosts,
    ReasoningMode,
    RolloutTimeout,
    SaveStep,
    Section,
    Sites,
    TrackerName,
    Urls,
    fill_learning_rate,
)


class DataSettings(Section):
    """The prompts."""

    train_file: str = Field(default="train.jsonl", min_length=1)
    """Prompts to train on."""
    val_file: str = Field(default="val.jsonl", min_length=1)
    """Held-out prompts for evaluation; used when present."""
    grader: str = Field(default="same_text", min_length=1)
    """What grades answers: a @grader of rewards.py; same_text: case, spaces apart."""
    batch_size: int = Field(ge=1)
    """Prompts in one optimizer step."""
    group_size: int = Field(default=4, ge=1)
    """Rollouts of each prompt in a step."""
    grade_rollouts: bool = True
    """Grade rollouts of training too where eval_step grades held-out ones; to be seen alone."""
    drop_last_answer: bool = False
    """Leave out what the assistant says at the end of an entry; else an error."""


class ModelSettings(Section):
    """The student."""

    path: str = Field(min_length=1)
    """Student: a Hugging Face model id or a folder."""
    tuning: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter or all weights."""
    qlora_rank: int = Field(default=32, ge=1)
    """Rank of the LoRA adapter."""
    qlora_alpha: int | None = Field(default=None, ge=1)
    """Scale of the LoRA adapter; null: 2 x qlora_rank."""
    dtype: Dtype = "auto"
    """Number format of the student; auto: bfloat16 on a GPU, else float32."""


class TeacherSettings(Section):
    """The model that the student learns from."""

    path: str = Field(min_length=1)
    """Teacher: a Hugging Face model id or a folder; same tokenizer."""
    engine: EngineKind | None = None
    """What runs the teacher; null: the same as engine.kind."""
    url: Urls | None = None
    """vLLM servers of your own for the teacher; null: rnow starts one."""
    replicas: int | None = Field(default=None, ge=1)
    """vLLM servers for the teacher; null: planned."""
    args: dict[str, Any] = Field(default={})
    """Further flags of the teacher's vLLM server; these win."""
    dtype: Dtype = "auto"
    """Number format of the teacher; auto: bfloat16 on a GPU, else float32."""
    quantization: Literal["fp8"] | None = None
    """Narrower weights in the teacher's vLLM server; null: none."""
    concurrency: int = Field(default=16, ge=1)
    """Trajectories that the teacher scores at the same time."""
    num_favourites: int = Field(default=3, ge=0, le=20)
    """Its own likeliest tokens, kept of 4 rollouts a step for rnow report; 0: none."""


class AlgorithmSettings(Section):
    """The loss."""

    loss_fn: Literal["ppo", "importance_sampling"] = "ppo"
    """ppo clips the ratio to the sampler; importance_sampling does not."""
    kl_penalty_coef: float = Field(default=1.0, ge=0)
    """Weight of the reverse KL, the only signal in distillation."""
    kl_clip: float = Field(default=10.0, gt=0)
    """Cap on the reverse KL of one token, either sign (nats)."""
    kl_discount: float = Field(default=0.0, ge=0, le=1)
    """Discount a token of later gaps; 0: each token pays its own."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """PPO clips the ratio below 1 - clip_low."""
    clip_high: float = Field(default=0.2, ge=0)
    """PPO clips the ratio above 1 + clip_high."""
    ratio_max: float = Field(default=10.0, ge=1)
    """Cap on the ratio of trainer to sampler probability."""
    adv_estimator: Literal["grpo", "gae", "reinforce"] = "grpo"
    """Advantage from rewards; distillation has none, so no effect there."""


class RolloutSettings(Section):
    """How the student works on a prompt."""

    max_turns: int = Field(default=1, ge=1)
    """Generations in one rollout; more than 1 needs tools."""
    mcp_url: McpServers = Field(default=[])
    """MCP servers whose tools join those of tools.py; see docs/mcp.md."""
    mcp_session: Literal["rollout", "run"] = "rollout"
    """What a server keeps is one rollout's own, or shared by those of a worker."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Cap of one generation (tokens); null: what the window leaves."""
    max_context_window: int = Field(default=32768, ge=1)
    """Prompt, turns and tool results together (tokens)."""
    termination_policy: Literal["last_tool", "max_turns"] = "last_tool"
    """End at a turn without a tool call, or only at max_turns."""
    tool_timeout: float = Field(default=60.0, gt=0)
    """Deadline of one tool call (seconds); @tool(timeout=) wins."""
    max_tool_response: int | None = Field(default=None, ge=1)
    """Cap of one tool result (tokens); null: none but 1 MB."""
    max_tool_response_chars: int | None = Field(default=None, ge=1)
    """Old cap of one tool result (characters); null: none."""
    rollout_timeout: RolloutTimeout = Field(default=DEFAULT_ROLLOUT_TIMEOUT_S, gt=0)
    """Deadline of one rollout (seconds); null: the default."""
    reward_timeout: float = Field(default=60.0, gt=0)
    """Deadline of one reward, one grading (seconds); @reward(timeout=) wins."""
    include_thinking: bool = False
    """Leave the thinking in what rnow test gives to rewards."""
    concurrency: int = Field(default=256, ge=1)
    """Rollouts that run at the same time."""
    reasoning_mode: ReasoningMode | None = None
    """Thinking of models that can do both: disabled, none: off; others, null: on."""


class TrainerSettings(Section):
    """The optimizer, its length and its checkpoints."""

    num_epochs: int = Field(ge=1)
    """Passes over the prompts."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimizer steps; null: after num_epochs."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW; where nothing is said and model.tuning is full, 1e-5."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: flat, or falling to 0 at the end."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_tokens_per_micro_batch: int = Field(default=16384, ge=1)
    """Tokens in one forward pass; does not change the gradient."""
    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations to save memory; auto: on a GPU or for a large model."""
    num_ranks: int | None = Field(default=None, ge=1)
    """Processes that make an update together, one a GPU; null: resources.trainer.gpus, or 1."""
    shard_weights: Literal["auto"] | bool = "auto"
    """Cut the student over the ranks; auto: where all its weights are trained."""
    rank_timeout_s: float = Field(default=1800.0, gt=0)
    """How long ranks may go on without a sign of progress (seconds)."""
    save_step: SaveStep = Field(default=-1, ge=-1)
    """Keep a checkpoint every so many steps; -1: only the end."""
    keep_last: int = Field(default=3, ge=1)
    """Kept checkpoints; older ones are deleted."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """How often full tuning saves what a resumed run goes on from (minutes); LoRA: every step."""
    keep_trajectories_gb: float = Field(default=20.0, gt=0)
    """Room for trajectories of old steps, compressed; beyond it the oldest go (GB)."""
    eval_step: int = Field(default=0, ge=0)
    """Evaluate on data.val_file every so many steps; 0: never."""
    max_policy_lag: int = Field(default=0, ge=0, le=1)
    """1: a step's rollouts go on while the step before it is learned from; LoRA alone."""
    max_dropped: float = Field(default=0.2, ge=0, le=1)
    """Share of a step's rollouts that may fail before a stop."""
    report_to: list[TrackerName] = Field(default=[])
    """Programs that are told of steps and evaluations too; see docs/trackers.md."""
    max_time_s: float | None = Field(default=None, gt=0)
    """End the run, saved, after so long (seconds); null: no limit."""


class EngineSettings(Section):
    """What samples from the student."""

    kind: EngineKind = "auto"
    """vllm: a server; local: this process; auto: vllm where it and a GPU are found."""
    python: str | None = Field(default=None, min_length=1)
    """Interpreter of the environment that has vLLM; null: the one of rnow."""
    url: Urls | None = None
    """vLLM servers of your own for the student; null: rnow starts one."""
    replicas: int | None = Field(default=None, ge=1)
    """vLLM servers for the student; null: planned."""
    args: dict[str, Any] = Field(default={})
    """Further flags of the student's vLLM server; these win."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, lt=1)
    """Share of a GPU that each vLLM server takes; null: planned."""
    dtype: Dtype = "auto"
    """Number format while sampling; auto: bfloat16 on a GPU, else float32."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Deadline of a vLLM server's start (seconds)."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline of one request (seconds); a generation is cut there and kept."""
    deterministic: bool = False
    """vLLM samples the same whatever runs beside it, also after a kill; a third slower."""
    probe_tolerance: float | None = Field(default=None, gt=0)
    """Allowed mean gap, engine to trainer (nats); null: 0.001, in bfloat16 0.1."""


class ToolsSettings(Section):
    """The processes that run tools.py."""

    workers: int = Field(default=1, ge=1)
    """Processes that run tools."""
    concurrency: int = Field(default=32, ge=1)
    """Tool calls that run at the same time."""
    env: EnvironmentNames = Field(default=[])
    """Shell variables that tools may see, besides all of .env."""


class BrowserSection(Section):
    """What rnow.browser may fetch."""

    allow_hosts: Hosts = Field(default=[])
    """Hosts that may be fetched; ["*"]: any public one."""
    contact: str | None = Field(default=None, min_length=1)
    """Your mail or web address, told to the sites that you read."""
    local_sites: Sites = Field(default={})
    """Host to folder: pages that rnow serves itself during the run."""
    render_hosts: Hosts = Field(default=[])
    """Hosts whose pages need their scripts: Chromium reads them, not plain HTTP."""
    executable: str | None = Field(default=None, min_length=1)
    """Program of a Chromium; null: playwright's own, else the system's."""
    store: str = Field(default="pages", min_length=1)
    """Folder of the page store, made with the first page; relative to the project."""
    store_mode: Literal["live", "record", "replay", "replay_then_live"] = "live"
    """record keeps every page; replay reads kept ones only; see docs/browsing.md."""
    ttl_days: float = Field(default=7.0, ge=0)
    """How long live serves a page from the store (days)."""


class EngineResources(Section):
    """The devices of the vLLM servers of one role."""

    gpus: int = Field(default=1, ge=1)
    """GPUs of this role, its replicas together."""


class TrainerResources(Section):
    """The devices of the trainer."""

    gpus: int = Field(default=1, ge=1)
    """GPUs of the trainer, each with a process of its own: trainer.num_ranks."""


class ResourcesSettings(Section):
    """Which devices each role gets."""

    cluster: str | None = Field(default=None, min_length=1)
    """Ray cluster whose machines have the servers: auto, or HOST:PORT; null: this machine."""
    student: EngineResources | None = None
    teacher: EngineResources | None = None
    trainer: TrainerResources | None = None


class Config(Section):
    """config.yml with every default written out."""

    seed: int = Field(default=0, ge=0)
    """All random draws of a run come from it."""
    dataset_type: DatasetType = "distill"
    """What is trained; this version trains distill only."""
    data: DataSettings
    model: ModelSettings
    teacher: TeacherSettings | None = None
    algorithm: AlgorithmSettings = AlgorithmSettings()
    rollout: RolloutSettings = RolloutSettings()
    trainer: TrainerSettings
    engine: EngineSettings = EngineSettings()
    tools: ToolsSettings = ToolsSettings()
    browser: BrowserSection = BrowserSection()
    resources: ResourcesSettings | None = None
    """Absent, or without GPUs for a role: planned from the machine."""

    _fill_learning_rate = model_validator(mode="before")(fill_learning_rate)
