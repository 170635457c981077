"""Write the tables of docs/gpu.md from what the device plan says.

python scripts/make_gpu_doc.py            # writes the tables into the page
python scripts/make_gpu_doc.py --check    # exit 1 if one is out of date

A table stands between `<!-- plan NAME -->` and `<!-- end -->`; everything else in the page is
written by hand. Plans are those of the reference project's config.yml with the overrides below, on
the published figures of the models (tests/fixtures/configs).
"""

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rnow.config.load import load_config
from rnow.errors import ConfigError
from rnow.plan.devices import Devices, Gpu
from rnow.plan.figures import ModelFigures, read_figures
from rnow.plan.make import make_plan
from rnow.plan.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gpu.md"
FIGURES = ROOT / "tests" / "fixtures" / "configs"

H100 = Gpu(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_mib=81559)
L4 = Gpu(kind="cuda", name="NVIDIA L4", memory_mib=23034)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One plan of the page."""

    gpus: tuple[Gpu, ...]
    overrides: tuple[str, ...] = ()


def nodes(count: int) -> tuple[Gpu, ...]:
    """Return the GPUs of `count` machines of eight."""
    return tuple(replace(H100, node=index // 8) for index in range(8 * count))


NARROW_8B = ("teacher.path=Qwen/Qwen3-8B", "teacher.quantization=fp8")

EXAMPLES = {
    "8b-32b-on-2x80": Example(gpus=(H100,) * 2),
    "8b-32b-on-8x80": Example(gpus=(H100,) * 8),
    "4b-8b-on-1x80": Example(
        gpus=(H100,),
        overrides=("model.path=Qwen/Qwen3-4B", *NARROW_8B),
    ),
    "1.7b-8b-on-2x24": Example(
        gpus=(L4,) * 2,
        overrides=(
            "model.path=Qwen/Qwen3-1.7B",
            *NARROW_8B,
            "rollout.max_context_window=16384",
        ),
    ),
    "8b-30b-a3b-on-2x80": Example(
        gpus=(H100,) * 2,
        overrides=("teacher.path=Qwen/Qwen3-30B-A3B",),
    ),
    "8b-32b-on-16x80": Example(gpus=nodes(2), overrides=("trainer.num_ranks=8",)),
    "8b-32b-on-64x80": Example(gpus=nodes(8), overrides=("trainer.num_ranks=31",)),
    "32b-235b-on-32x80": Example(
        gpus=nodes(4),
        overrides=(
            "model.path=Qwen/Qwen3-32B",
            "teacher.path=Qwen/Qwen3-235B-A22B",
            "trainer.num_ranks=8",
            "trainer.shard_weights=true",
        ),
    ),
    "full-8b-on-16x80": Example(
        gpus=nodes(2), overrides=("model.tuning=full", "trainer.num_ranks=8")
    ),
    "full-8b-on-8x80": Example(gpus=(H100,) * 8, overrides=("model.tuning=full",)),
    "too-long-on-2x24": Example(
        gpus=(L4,) * 2, overrides=("model.path=Qwen/Qwen3-1.7B", *NARROW_8B)
    ),
}


def with_tables(page: str) -> str:
    """Return `page` with every table made anew."""

    def table(match: re.Match[str]) -> str:
        text = plan_text(EXAMPLES[match[1]])
        return f"<!-- plan {match[1]} -->\n```text\n{text}\n```\n<!-- end -->"

    return re.sub(r"<!-- plan (\S+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def plan_text(example: Example) -> str:
    """Return what the terminal shows for `example`: the plan, or why there is none."""
    devices = Devices(gpus=example.gpus, reason="")
    try:
        return "\n".join(make_plan(workload(example), devices).lines())
    except ConfigError as error:
        return str(error)


def workload(example: Example) -> Workload:
    config = load_config(ROOT, overrides=example.overrides).config
    assert config.teacher is not None, "the reference project distills"
    return Workload(
        config=config,
        student=figures(config.model.path),
        teacher=figures(config.teacher.path),
    )


def figures(path: str) -> ModelFigures:
    file = FIGURES / f"{path.rpartition('/')[2]}.json"
    return read_figures(path, json.loads(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    from generated_page import write_or_check

    sys.exit(
        write_or_check(
            PAGE,
            lambda: with_tables(PAGE.read_text(encoding="utf-8")),
            script=__file__,
            about=__doc__,
        )
    )
