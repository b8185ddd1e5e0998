"""Where a model's files are: bundled, in a local folder, or on the Hugging Face Hub, from where they are fetched."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsed.models import LoadError
from sparsed.models.catalogue import ModelSpec, find, names
from sparsed.models.files import CONFIG, GENERATION, TOKENIZER
from sparsed.paths import data_dir

# Never code, never pickles.
_PATTERNS = (CONFIG, GENERATION, *TOKENIZER, "*.safetensors", "*.safetensors.index.json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GB = 10**9


@dataclass(frozen=True)
class LoadProgress:
    """How far loading is. stage: "download" or "weights" (read into memory). bytes, files: done so far."""

    stage: str
    bytes: int
    total_bytes: int
    files: int
    total_files: int

    def __str__(self) -> str:
        doing = "downloading" if self.stage == "download" else "reading weights"
        unit, name = (GB, "GB") if self.total_bytes >= GB // 10 else (10**6, "MB")
        return (
            f"{doing}: {self.bytes / unit:.1f} of {self.total_bytes / unit:.1f} {name}, "
            f"file {min(self.files + 1, self.total_files)} of {self.total_files}"
        )


Listener = Callable[[LoadProgress], None]


def locate(
    name: str | Path,
    revision: str | None = None,
    progress: Listener | None = None,
    before_download: Callable[[ModelSpec], None] = lambda _: None,
) -> tuple[ModelSpec | None, Path, str]:
    """The catalogue's row (None if there is none), the local folder, and what to call the model.

    before_download: called with the row of a model that is not bundled; may raise. Raises LoadError.
    """
    given = str(name)
    spec = find(given)
    if spec is not None and spec.bundled:
        return spec, data_dir("assets") / spec.source, spec.name
    if spec is not None:
        before_download(spec)
        return spec, fetch(spec.source, revision, progress), spec.name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return None, folder.resolve(), folder.resolve().name
    if _HUB_ID.fullmatch(given):
        return None, fetch(given, revision, progress), given
    listed = ", ".join(repr(known) for known in names())
    raise LoadError(
        f"There is no model {given!r}. Known names: {listed}; or give a Hub id (owner/name), or the path of a "
        f"local folder."
    )


def fetch(hub_id: str, revision: str | None = None, progress: Listener | None = None) -> Path:
    """The folder of a Hub repository's config, tokenizer and safetensors in the local cache, downloaded where needed.

    Raises LoadError: no such repository, no access to it, no network, no safetensors in it, no room on the disk.
    """
    from huggingface_hub import errors, hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    what: dict[str, Any] = {"repo_id": hub_id, "revision": revision, "allow_patterns": list(_PATTERNS)}
    try:
        listed: Any = snapshot_download(**what, dry_run=True, tqdm_class=_silent(None))
        # The patterns also match in subfolders, where other things lie.
        listed = [info for info in listed if "/" not in info.filename]
        if not any(info.filename.endswith(".safetensors") for info in listed):
            raise LoadError(f"{hub_id} holds no safetensors; weights in other formats can run code and are not loaded.")
        wanted = [info for info in listed if info.will_download]
        missing = sum(info.file_size or 0 for info in wanted)
        room = shutil.disk_usage(_existing(Path(HF_HUB_CACHE))).free
        if missing > room:
            raise LoadError(
                f"{hub_id} has {missing / GB:.1f} GB to download; the disk of the Hub cache has {room / GB:.1f} GB "
                f"free."
            )
        count = _Count(missing, len(wanted), progress)
        for info in wanted:
            hf_hub_download(hub_id, info.filename, revision=info.commit_hash, tqdm_class=_silent(count.add))
            count.finish_file(info.file_size or 0)
        return Path(snapshot_download(**what, local_files_only=True))
    except errors.GatedRepoError as error:
        raise LoadError(
            f"{hub_id} asks its visitors to accept its terms: accept them at https://huggingface.co/{hub_id}, log in "
            f"with `hf auth login`, and load it again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LoadError(f"The Hub has no repository {hub_id!r}, or it is private and you are not logged in.") from error
    except errors.RevisionNotFoundError as error:
        raise LoadError(f"{hub_id} has no revision {revision!r}.") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LoadError(f"The disk of the Hub cache is full: {hub_id} could not be downloaded.") from error
        return _cached(what, error)
    except (errors.LocalEntryNotFoundError, _http_error()) as error:
        return _cached(what, error)


def _http_error() -> type[Exception]:
    """What the Hub client's own HTTP library raises; which library that is differs from version to version."""
    from huggingface_hub.errors import HfHubHTTPError

    found: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return found


def _cached(what: dict[str, Any], error: Exception) -> Path:
    """Without a network: what an earlier download left, if it is complete."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(**what, local_files_only=True))
    except (errors.LocalEntryNotFoundError, OSError, ValueError):
        folder = None
    if folder is None or not (folder / "config.json").is_file():
        raise LoadError(
            f"{what['repo_id']} is not in the local cache and could not be downloaded: there is no connection to the "
            f"Hub ({type(error).__name__})."
        ) from error
    return folder


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


class _Count:
    """Adds up what arrives and tells the listener."""

    def __init__(self, total_bytes: int, total_files: int, progress: Listener | None) -> None:
        self._total_bytes, self._total_files, self._progress = total_bytes, total_files, progress
        self._done_bytes = self._files = self._within = 0
        self._tell()

    def add(self, arrived: float) -> None:
        self._within += int(arrived)
        self._tell()

    def finish_file(self, size: int) -> None:
        self._done_bytes, self._within, self._files = self._done_bytes + size, 0, self._files + 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None and self._total_files:
            done = min(self._done_bytes + self._within, self._total_bytes)
            self._progress(LoadProgress("download", done, self._total_bytes, self._files, self._total_files))


def _silent(heard: Callable[[float], None] | None) -> type:
    """A tqdm that draws nothing and tells `heard` of every update."""
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if heard is not None and n:
                heard(n)
            return super().update(n)

    return Silent
