"""Every setting is read by what acts on it: a key that nothing reads is a promise not kept.

Sections that record who reads them go through the real functions: a run of one step, `rnow test`
with a reward, and the plan and the specs of vLLM servers on GPUs that this machine need not have.
"""

import json
import sys
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rnow.cluster.machines import find_machines
from rnow.commands.init import init_project
from rnow.commands.run import train_project
from rnow.commands.test.trial import Wishes, try_project
from rnow.config.keys import section_keys, settings_by_key
from rnow.config.load import LoadedConfig, load_config
from rnow.config.settings import Config
from rnow.config.types import Section
from rnow.plan.devices import Devices, Gpu
from rnow.plan.engine_specs import Serving, sampling_spec, scoring_spec
from rnow.plan.placing import place_roles

# Who reads but does not act: a plan counts what others will take, a headline is only printed.
ONLOOKERS = {"workload.py", "layout.py", "advice.py", "_headline", "plan_costs"}
# What the plan itself is for; and what has no effect in distillation, which is said there.
ONLOOKERS_OWN = {
    "engine.gpu_memory_utilization",
    "engine.replicas",
    "teacher.replicas",
    "resources.student.gpus",
    "resources.teacher.gpus",
    "resources.trainer.gpus",
    "trainer.num_ranks",
    "trainer.shard_weights",
    "algorithm.adv_estimator",
}
GPUS = Devices(gpus=(Gpu(kind="cuda", name="H100", memory_mib=81559),) * 3, reason="")
SHORT = ("data.batch_size=1", "data.group_size=1", "trainer.save_step=2", "trainer.eval_step=2")

TEACHER = ("require_distill", "teacher_of")  # how what trains asks for its settings
READS: set[tuple[str, str]] = set()  # (key, function that read it; the plan's by their file)


@cache
def recording(section: type[Section], prefix: str) -> type[Section]:
    """Return the section's type, of which each reading of a setting is written down."""

    def read(self: Section, name: str) -> Any:
        if name in section.model_fields:
            code = sys._getframe(1).f_code
            is_loading = "/rnow/config/" in code.co_filename and code.co_name not in TEACHER
            if "/rnow/" in code.co_filename and not is_loading:
                is_plan = "/rnow/plan/" in code.co_filename
                file = code.co_filename.rpartition("/")[2]
                READS.add((prefix + name, file if is_plan and file in ONLOOKERS else code.co_name))
        return section.__getattribute__(self, name)

    return type(section.__name__, (section,), {"__getattribute__": read, "__module__": __name__})


def recorded(loaded: LoadedConfig) -> LoadedConfig:
    """Return the same config, of which every section is one that records."""
    config = loaded.config.model_copy(deep=True)
    for key in ("", *section_keys()):
        section: Any = config
        for name in key.split(".") if key else ():
            section = None if section is None else section.__dict__[name]
        if section is not None:
            kind = section_keys()[key] if key else Config
            object.__setattr__(section, "__class__", recording(kind, f"{key}." if key else ""))
    return replace(loaded, config=config)


def loaded(project: Path, *overrides: str) -> LoadedConfig:
    return recorded(load_config(project, overrides=overrides))


def make_project(folder: Path) -> Path:
    """Make the clinic, with a reward in its first prompt and a program that says it has vLLM."""
    init_project(folder, template="clinic")
    first, *others = (folder / "train.jsonl").read_text().splitlines()
    entry = json.dumps({**json.loads(first), "rewards": ["one"]})
    (folder / "train.jsonl").write_text("\n".join((entry, *others)))
    held_out = (folder / "val.jsonl").read_text().splitlines()
    (folder / "val.jsonl").write_text(held_out[0])
    (folder / "rewards.py").write_text(
        "import rnow.medbrowse\nfrom rnow.core import RewardArgs, reward\n\n\n"
        "@reward\nasync def one(args: RewardArgs, messages: list) -> float:\n    return 1.0\n"
    )
    program = folder / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return folder


def serve(project: Path, *overrides: str) -> None:
    """Plan vLLM servers and write their specs."""
    config = loaded(project, "engine.kind=vllm", "engine.python=python", *overrides)
    placement = place_roles(
        config, project, devices=GPUS, machines=find_machines(config.config, project)
    )
    serving = Serving(
        config=config.config, placement=placement, logs=project / "logs", untied=project / "untied"
    )
    models = project / "models"
    serving = replace(serving, environ={})
    sampling_spec(serving, "student", models / "student", lora_rank=8)
    scoring_spec(serving, models / "teacher")


def use_all(project: Path) -> None:
    console = Console(file=StringIO())
    for tuning, steps, ranks in (("lora", 1, 1), ("full", 2, 2)):
        settings = (f"model.tuning={tuning}", f"trainer.max_steps={steps}")
        train_project(
            loaded(project, *SHORT, *settings, f"trainer.num_ranks={ranks}"),
            project,
            name=tuning,
            fresh=True,
            console=console,
        )
    wishes = Wishes(model="base", entries=("0",))
    tried = try_project(loaded(project), project, wishes=wishes, console=console)
    assert tried["mean_reward"] == 1.0
    serve(project, "resources={student: {gpus: 1}, teacher: {gpus: 1}, trainer: {gpus: 1}}")


@pytest.fixture
def acted_on(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Run everything once; return the settings that something acted on."""
    READS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        use_all(make_project(tmp_path_factory.mktemp("keys") / "clinic"))
    return {key for key, by in READS if by not in ONLOOKERS or key in ONLOOKERS_OWN}


@pytest.mark.slow
def test_every_setting_is_read_somewhere(acted_on: set[str]) -> None:
    assert settings_by_key().keys() - acted_on == set()
