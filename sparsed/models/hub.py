"""Where a model's files are: bundled, in a local folder, or on the Hugging Face Hub, from where they are fetched."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsed.models import LoadError, reason
from sparsed.models.catalogue import ModelSpec, find, names
from sparsed.models.files import CONFIG, GENERATION, GGUF, OTHERS, TOKENIZER
from sparsed.paths import data_dir

# Never code, never pickles.
_PATTERNS = (CONFIG, GENERATION, *TOKENIZER, *OTHERS, "*.safetensors", "*.safetensors.index.json")
# What may be a repository on the Hub. A folder is anything else that is there.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
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
    given, folder = str(name), Path(name).expanduser()
    spec = find(given)
    if spec is not None and given != spec.name and folder.is_dir():
        spec = None  # the path of a clone may read as its Hub id
    if revision is not None and (folder.is_dir() if spec is None else spec.bundled):
        raise LoadError(f"{given} is a folder of this machine, which has no revision {revision!r}: leave it out.")
    if spec is not None and spec.bundled:
        return spec, data_dir("assets") / spec.source, spec.name
    if spec is not None:
        before_download(spec)
        return spec, fetch(spec.source, revision, progress), spec.name
    if folder.is_dir():
        return None, folder.resolve(), folder.resolve().name
    if folder.suffix == ".gguf":
        raise LoadError(GGUF.format(given))
    if HUB_ID.fullmatch(given):
        return None, fetch(given, revision, progress), given
    if "/" in given or "\\" in given:
        raise LoadError(f"There is no folder {given!r}{' (that is a file)' if folder.is_file() else ''}.")
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
        for info in listed:
            if info.filename in OTHERS:
                raise LoadError(f"{hub_id} holds {info.filename}, which stands for {OTHERS[info.filename]}.")
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
    except errors.HFValidationError as error:
        raise LoadError(f"There is no folder {hub_id!r}, and it can be no Hub id either.") from error
    except (OSError, errors.LocalEntryNotFoundError, _http_error()) as error:
        # Of what happened in a dry run the client tells by the cause alone.
        cause = error.__cause__ if isinstance(error, errors.DryRunError) and error.__cause__ is not None else error
        if getattr(cause, "errno", None) == errno.ENOSPC:
            raise LoadError(f"The disk of the Hub cache is full: {hub_id} could not be downloaded.") from error
        folder = _cached(what)
        if folder is None:
            raise LoadError(_refusal(hub_id, revision, cause)) from error
        return folder


def _http_error() -> type[Exception]:
    """What the Hub client's own HTTP library raises; which library that is differs from version to version."""
    from huggingface_hub.errors import HfHubHTTPError

    found: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return found


def _cached(what: dict[str, Any]) -> Path | None:
    """What an earlier download left, if it is complete. (It may have been made before GENERATION was fetched.)"""
    from huggingface_hub import errors, snapshot_download

    for left_out in ((), (GENERATION,)):
        patterns = [pattern for pattern in what["allow_patterns"] if pattern not in left_out]
        try:
            folder = Path(snapshot_download(**{**what, "allow_patterns": patterns}, local_files_only=True))
        except (errors.LocalEntryNotFoundError, OSError, ValueError):
            continue
        if (folder / CONFIG).is_file():
            return folder
    return None


def _refusal(hub_id: str, revision: str | None, cause: BaseException) -> str:
    """Why what is neither in the cache nor a folder could not be downloaded, as one sentence."""
    from huggingface_hub import errors, is_offline_mode

    if isinstance(cause, errors.GatedRepoError):
        return (
            f"{hub_id} asks its visitors to accept its terms: accept them at https://huggingface.co/{hub_id}, log in "
            f"with `hf auth login`, and load it again."
        )
    # What is in no catalogue may have been meant as a path.
    it = hub_id if find(hub_id) is not None else f"There is no folder {hub_id!r}, and as a Hub id it"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return f"{it} is no repository of the Hub, or it is private and you are not logged in."
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r}."
    if is_offline_mode():
        return f"{it} is not in the local cache; HF_HUB_OFFLINE is set, so that nothing is downloaded."
    return f"{it} is not in the local cache and could not be downloaded: {_why(cause)}."


def _why(error: BaseException) -> str:
    """What kept from the Hub: its own answer where there was one, else that it could not be reached."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the Hub answered with status {status}"
    # The client wraps what happened in errors of its own.
    seen, first = {id(error)}, error
    while (before := first.__cause__ or first.__context__) is not None and id(before) not in seen:
        seen.add(id(before))
        first = before
    return f"there is no connection to the Hub ({reason(first)})"


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
