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

_KEY = "trainer.keep_last"
_SURE_SHARE = 2 / 3  # checkpoints' share of them and weights, which may be published in two bytes


def check_disk(loaded: LoadedConfig, directory: Path, costs: Costs) -> Point | None:
    """Refuse a disk without room for checkpoints, warn where weights and journals have none
    besides; None where all has room.

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
    is_sure = weights * _SURE_SHARE > free
    what = "its weights and checkpoints" if is_sure else "all that it writes"
    needed = ceil((weights if is_sure else everything) / 1e5) / 10
    problem = loaded.problem(
        _KEY,
        f"a run needs up to {needed} MB for {what}, and the disk of {disk} has room for "
        f"{floor(free / 1e5) / 10} MB; free some space, lower trainer.keep_last or "
        "trainer.keep_trajectories_gb, or make runs/ a link to a larger disk",
        "error" if is_sure else "warning",
    )
    return point("disk", "room for checkpoints", [problem])
