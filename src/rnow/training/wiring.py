"""Sections of config.yml -> the narrow records that the parts read, under the same names."""

from pathlib import Path

from rnow.config.settings import Config
from rnow.learner.objective import ObjectiveSettings
from rnow.learner.policy import PolicySettings
from rnow.learner.trainer import TrainerSettings


def policy_settings(config: Config, *, student: Path, device: str) -> PolicySettings:
    return PolicySettings(
        path=str(student),
        tuning=config.model.tuning,
        qlora_rank=config.model.qlora_rank,
        qlora_alpha=config.model.qlora_alpha,
        dtype=config.model.dtype,
        activation_checkpointing=config.trainer.activation_checkpointing,
        seed=config.seed,
        device=device,
    )


def trainer_settings(config: Config, *, total_steps: int) -> TrainerSettings:
    trainer = config.trainer
    return TrainerSettings(
        total_steps=total_steps,
        learning_rate=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
        warmup_steps=trainer.warmup_steps,
        schedule=trainer.schedule,
        max_grad_norm=trainer.max_grad_norm,
        max_tokens_per_micro_batch=trainer.max_tokens_per_micro_batch,
    )


def objective_settings(config: Config) -> ObjectiveSettings:
    algorithm = config.algorithm
    return ObjectiveSettings(
        loss_fn=algorithm.loss_fn,
        kl_penalty_coef=algorithm.kl_penalty_coef,
        kl_clip=algorithm.kl_clip,
        kl_discount=algorithm.kl_discount,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        ratio_max=algorithm.ratio_max,
    )
