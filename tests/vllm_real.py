"""What tests of the real vLLM share: its interpreter, the clinic's models, process groups.

vLLM has an environment of its own, which scripts/setup_vllm.sh makes as .venv-vllm;
RNOW_VLLM_PYTHON names another one's interpreter.
"""

import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from rnow.engines.vllm.command import VllmServerSettings

_DEFAULT = Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"


def vllm_python() -> str:
    python = os.environ.get("RNOW_VLLM_PYTHON", str(_DEFAULT))
    if not Path(python).exists():
        pytest.fail(f"{python} does not exist; run scripts/setup_vllm.sh or set RNOW_VLLM_PYTHON")
    return python


def copy_model(role: str, folder: Path) -> Path:
    """Copy the clinic's student or teacher."""
    source = resources.files("rnow") / "templates" / "clinic" / "models" / role
    with resources.as_file(source) as model:
        return Path(shutil.copytree(model, folder / role))


def server_settings(model: Path, log_file: Path, **fields: Any) -> VllmServerSettings:
    chosen: dict[str, Any] = {
        "role": "student",
        "model": model,
        "log_file": log_file,
        "max_model_len": 512,
        "python": vllm_python(),
        "dtype": "float32",
        "deterministic": False,
        "start_timeout_s": 900.0,
        **fields,
    }
    return VllmServerSettings(**chosen)


def alive_in_group(group: int) -> list[str]:
    """Return the processes of a group, without those that have ended and wait to be reaped."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pgid=,pid=,stat=,command="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
    return [" ".join(row[1:]) for row in rows if int(row[0]) == group and row[2][0] != "Z"]
