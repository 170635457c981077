"""The model that a run leaves behind: weights, tokenizer, template, model card; loads as is."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rnow.config.settings import Config
from rnow.errors import CheckpointError
from rnow.learner.checkpoint import load_checkpoint
from rnow.learner.policy import Policy
from rnow.learner.weights import export_merged
from rnow.runs.folder import RunDirectory
from rnow.runtime.atomic_files import folder_bytes, replace_folder
from rnow.runtime.kill_points import point

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION_CONFIG,
)


def write_model_folder(
    folder: Path,
    *,
    save: Callable[[Path], None],
    base: str,
    tokenizer: Path,
    ends: Sequence[int],
    run: RunDirectory,
) -> None:
    """Write adapter or model with all that transformers, peft and vLLM look for beside it.

    `save` writes what was trained. `base` is what an adapter says it belongs to: a hub id, or a
    folder that is found from anywhere.
    `ends` are the ids that ended its texts in training, the end of turn first.
    """

    def write(temporary: Path) -> None:
        save(temporary)
        point("model/weights")
        _name_base(temporary / "adapter_config.json", base)
        copy_tokenizer(tokenizer, temporary)
        _name_ends(temporary / GENERATION_CONFIG, ends)
        (temporary / "README.md").write_text(_model_card(run), encoding="utf-8")

    replace_folder(folder, write)


def export_model(source: Path, output: Path, *, base: str | None) -> None:
    """Copy a run's model folder to `output`; with `base`, merge the adapter into that model."""

    def write(temporary: Path) -> None:
        if base is None:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            return
        export_merged(base, adapter_dir=source, output_dir=temporary)
        copy_tokenizer(source, temporary)
        for name in ("README.md", GENERATION_CONFIG):
            # Its ends are the student's in training, not those of the model that was merged into.
            if (source / name).exists():
                shutil.copyfile(source / name, temporary / name)

    replace_folder(output, write, needs_bytes=folder_bytes(source))


def write_checkpoint_model(
    folder: Path, *, checkpoint: Path, run: RunDirectory, student: Path
) -> None:
    """Write `checkpoint` to `folder`, with the tokenizer of `student`, on which it was trained.

    It holds what training changes, under the names of the network in training: that is built once
    more, from the student and the run's own settings, and saves itself. Raises CheckpointError
    where the checkpoint is not whole, or of another student.
    """
    config = Config.model_validate(run.read_config())
    policy = Policy.load(
        student,
        config.model,
        seed=config.seed,
        activation_checkpointing=False,
        device="cpu",
        window=config.rollout.max_context_window,
    )
    policy.load_trainable_state(load_checkpoint(checkpoint).weights)
    folder.mkdir(parents=True, exist_ok=True)
    policy.save(folder)
    copy_tokenizer(student, folder)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what makes text of ids; raise CheckpointError where it was taken away meanwhile."""
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{source} has no tokenizer.json any more, without which the trained model cannot be "
            "used, so it is not written. Nothing is lost: put the folder back and give the same "
            "command again"
        )
    for name in TOKENIZER_FILES:
        # A full model brings its own generation_config.json.
        if (source / name).exists() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def _name_base(file: Path, base: str) -> None:
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _name_ends(file: Path, ends: Sequence[int]) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    config["eos_token_id"] = list(ends) if len(ends) > 1 else ends[0]
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _model_card(run: RunDirectory) -> str:
    config = run.read_config()
    gaps = [line["reverse_kl"] for line in run.read_metrics() if "reverse_kl" in line]
    lines = [
        "---",
        f"base_model: {config['model']['path']}",
        "tags: [on-policy-distillation, rnow]",
        "---",
        "",
        f"# {run.path.name}",
        "",
        f"Student `{config['model']['path']}`, taught by `{config['teacher']['path']}` by "
        f"on-policy distillation with rnow: {len(gaps)} steps of "
        f"{config['data']['batch_size']} prompts x {config['data']['group_size']} rollouts, "
        f"{config['model']['tuning']} tuning, "
        f"learning rate {config['trainer']['learning_rate']:g}, "
        f"kl_penalty_coef {config['algorithm']['kl_penalty_coef']:g}.",
    ]
    if gaps:
        text = f"Reverse KL to the teacher: {gaps[0]:.4f} -> {gaps[-1]:.4f} nats a token."
        lines += ["", text]
    return "\n".join(lines) + "\n"
