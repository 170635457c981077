"""The model that a run leaves behind: weights, tokenizer, template, model card; loads as is."""

import shutil
from pathlib import Path

from rnow.files import replace_folder
from rnow.policy import Policy, export_merged
from rnow.rundir import RunDirectory

__all__ = ["export_model", "write_model_folder"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def write_model_folder(folder: Path, *, policy: Policy, tokenizer: Path, run: RunDirectory) -> None:
    """Write adapter or model with all that transformers, peft and vLLM look for beside it."""

    def write(temporary: Path) -> None:
        policy.save(temporary)
        copy_tokenizer(tokenizer, temporary)
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
        shutil.copyfile(source / "README.md", temporary / "README.md")

    replace_folder(output, write)


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        # A full model brings its own generation_config.json.
        if (source / name).exists() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def _model_card(run: RunDirectory) -> str:
    config = run.read_config()
    metrics = run.read_metrics()
    lines = [
        "---",
        f"base_model: {config['model']['path']}",
        "tags: [on-policy-distillation, rnow]",
        "---",
        "",
        f"# {run.path.name}",
        "",
        f"Student `{config['model']['path']}`, taught by `{config['teacher']['path']}` by "
        f"on-policy distillation with rnow: {len(metrics)} steps of "
        f"{config['data']['batch_size']} prompts x {config['data']['group_size']} rollouts, {config['model']['tuning']} tuning, "
        f"learning rate {config['trainer']['learning_rate']:g}, "
        f"kl_penalty_coef {config['algorithm']['kl_penalty_coef']:g}.",
    ]
    if metrics:
        first, last = metrics[0]["reverse_kl"], metrics[-1]["reverse_kl"]
        lines += ["", f"Reverse KL to the teacher: {first:.4f} -> {last:.4f} nats a token."]
    return "\n".join(lines) + "\n"
