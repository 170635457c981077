"""The point of `rnow check` on the disk of the run's folder: is there room for all of a run?"""

import shutil
from math import ceil, floor
from pathlib import Path

from rnow.commands.arguments import run_name
from rnow.commands.check.point import Point, point
from rnow.config.load import LoadedConfig
from rnow.errors import CheckpointError
from rnow.plan.costs import Costs
from rnow.runs.folder import RunDirectory
from rnow.runtime.atomic_files import folder_bytes


def check_disk(loaded: LoadedConfig, directory: Path, costs: Costs) -> Point | None:
    """Refuse a disk without room for one checkpoint, warn where it has none for all that a run
    may write; None where it has.

    What a run of that name has written is room: it writes no more than what is missing.
    """
    try:
        run = RunDirectory.choose(directory, run_name(loaded, directory), fresh=False).path
    except CheckpointError:
        return None  # the point `config` says so
    disk = next(place for place in (run, run.parent, directory) if place.is_dir())
    free = shutil.disk_usage(disk).free + folder_bytes(run)
    weights = 0.0 if costs.disk_bytes is None else costs.disk_bytes.value
    everything = weights + costs.journal_bytes.value
    if everything <= free:
        return None
    is_sure = costs.least_disk_bytes > free
    what = "the checkpoint that it ends with" if is_sure else "all that it writes"
    needed = ceil((costs.least_disk_bytes if is_sure else everything) / 1e5) / 10
    keys = () if is_sure else ("trainer.keep_trajectories_gb",)
    if loaded.config.trainer.save_step > 0 and not is_sure:
        keys = ("trainer.keep_last", *keys)
    lower = f"lower {' or '.join(keys)}, " if keys else ""
    problem = loaded.problem(
        keys[0] if keys else "trainer",
        f"a run needs {'' if is_sure else 'up to '}{needed} MB for {what}, and the disk of {disk} "
        f"has room for {floor(free / 1e5) / 10} MB; free some space, {lower}or make runs/ a link "
        "to a larger disk",
        "error" if is_sure else "warning",
    )
    return point("disk", "room for checkpoints", [problem])
