"""What of a model is on this machine: its folder and the size of its weights; and fetching it.

To find a model nothing is opened but small JSON files and nothing is downloaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rnow.errors import ModelError
from rnow.plan.weight_files import count_weight_bytes

# What reading and writing a model's ids takes, and its size: everything but weights.
_SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
_MAX_NAMED = 5  # folders, in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model as config.yml names it, and what of it is on this machine.

    ModelFiles(key="model.path", path="models/student", folder=Path("…"), weight_bytes=870400)
    """

    key: str  # model.path | teacher.path
    path: str  # as written
    folder: Path | None  # where its files are; None: not on this machine, or not all of it
    weight_bytes: int | None  # None: no weights, or not all of their parts
    beside: tuple[str, ...] | None = None  # folders of `models/`, where `models/x` is not there

    @property
    def why_not_downloaded(self) -> str | None:
        """Why `path` is a folder's and no Hugging Face id, `name` or `owner/name`; None: it is."""
        without = f"there is no folder {self.path}"
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path) is None:
            return without
        if self.beside is None:
            return None
        return (
            f"{without}, and {self.path.partition('/')[0]}/ has {', '.join(self.beside) or 'none'};"
            f" correct {self.key}, or, if Hugging Face's is meant: hf download {self.path}"
        )


def find_model(key: str, path: str, *, project: Path, cache: Path | None = None) -> ModelFiles:
    """Look for `path`: a folder, relative to the project, else a Hugging Face id in its `cache`."""
    folder = project / Path(path).expanduser()
    if folder.is_dir():
        return ModelFiles(
            key=key, path=path, folder=folder, weight_bytes=count_weight_bytes(folder)
        )
    snapshot = _cached_folder(path, "config.json", cache)
    weight_bytes = None if snapshot is None else count_weight_bytes(snapshot)
    # A download that was broken off is as good as none.
    found = snapshot if weight_bytes else None
    beside = _folders_in(folder.parent) if found is None and "/" in path else None
    return ModelFiles(key=key, path=path, folder=found, weight_bytes=weight_bytes, beside=beside)


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
    path: str, *, project: Path, cache: Path | None = None, file: str = "tokenizer.json"
) -> Path | None:
    """Return the folder with the tokenizer of `path`, None if it is not on this machine.

    A tokenizer is there more often than the weights: `hf download ID tokenizer.json` is enough. So
    is another small `file`.
    """
    folder = project / Path(path).expanduser()
    if folder.is_dir():
        return folder
    return _cached_folder(path, file, cache)


def _folders_in(folder: Path) -> tuple[str, ...] | None:
    if not folder.is_dir():
        return None
    names = sorted(one.name for one in folder.iterdir() if one.is_dir())
    return (*names[:_MAX_NAMED], *(["…"] if len(names) > _MAX_NAMED else []))


def _cached_folder(model_id: str, file: str, cache: Path | None) -> Path | None:
    """Return the folder in Hugging Face's cache that has `file` of the model; None: none has."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_id, file, cache_dir=cache)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
