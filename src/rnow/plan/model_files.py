"""What of a model is on this machine: its folder and the size of its weights; and fetching it.

To find a model nothing is opened but small JSON files and nothing is downloaded: where a Hugging
Face model lies is read off the layout of its cache, since importing huggingface_hub takes longer
than looking.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rnow.errors import ModelError
from rnow.plan.weight_files import count_weight_bytes

# What reading and writing a model's ids takes, and its size: everything but weights.
_SMALL_FILES = ["*.json", "*.jinja", "*.txt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model as config.yml names it, and what of it is on this machine.

    ModelFiles(key="model.path", path="models/student", folder=Path("…"), weight_bytes=870400)
    """

    key: str  # model.path | teacher.path
    path: str  # as written
    folder: Path | None  # where its files are; None: not on this machine, or not all of it
    weight_bytes: int | None  # None: no weights, or not all of their parts

    @property
    def may_be_downloaded(self) -> bool:
        """Whether `path` has the form of a Hugging Face id: `name` or `owner/name`."""
        return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path) is not None


def find_model(
    key: str, path: str, *, project: Path, environ: Mapping[str, str] = os.environ
) -> ModelFiles:
    """Look for `path`: a folder, relative to the project, else a Hugging Face id in the cache."""
    folder = project / Path(path).expanduser()
    if folder.is_dir():
        return ModelFiles(
            key=key, path=path, folder=folder, weight_bytes=count_weight_bytes(folder)
        )
    snapshot = _cached_snapshot(path, hub_cache(environ))
    weight_bytes = None if snapshot is None else count_weight_bytes(snapshot)
    # A download that was broken off is as good as none.
    folder_or_none = snapshot if weight_bytes else None
    return ModelFiles(key=key, path=path, folder=folder_or_none, weight_bytes=weight_bytes)


def fetch_model(files: ModelFiles, *, weights: bool = True) -> Path:
    """Return the model's folder, downloaded where it is not on this machine.

    Without `weights` its configuration, tokenizer and template are enough. Raises ModelError.
    """
    if files.folder is not None:
        return files.folder.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(files.path, allow_patterns=None if weights else _SMALL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{files.key}: {files.path} is not on this machine and could not be downloaded: {error}"
        ) from error


def find_tokenizer(
    path: str, *, project: Path, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Return the folder with the tokenizer of `path`, None if it is not on this machine.

    A tokenizer is there more often than the weights: `hf download ID tokenizer.json` is enough.
    """
    folder = project / Path(path).expanduser()
    if folder.is_dir():
        return folder
    snapshot = _cached_snapshot(path, hub_cache(environ))
    return snapshot if snapshot and (snapshot / "tokenizer.json").is_file() else None


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder where Hugging Face keeps downloaded models."""
    if folder := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home(), ".cache")
    home = environ.get("HF_HOME") or Path(cache, "huggingface")
    return Path(home, "hub").expanduser()


def _cached_snapshot(model_id: str, cache: Path) -> Path | None:
    repository = cache / f"models--{model_id.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None
