"""Files that are written whole or not at all: beside their place first, and renamed when every byte is on the disk."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


def write(path: str | Path, content: bytes | str) -> None:
    """Makes `content` (text as UTF-8) what the file holds; see `draft`."""
    with draft(path) as place:
        place.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def draft(path: str | Path) -> Iterator[Path]:
    """A path with the same suffix for the block to write to; afterwards it is the file at `path`.

    Until then, and if the block fails, `path` is what it was, and the draft is removed. It lies in the same folder. A
    link is followed, and what it points to replaced; permissions of a file that is there are kept. What is no plain
    file (a pipe, a device), or is what a standard stream writes to, gets the draft's bytes at its end.

    Raises OSError with a sentence that names the file where it cannot be written; what else the block raises.
    """
    path = Path(path)
    target: Path | None = None
    place = path
    try:
        old = _there(path)
        with ExitStack() as after:
            if old is None or _replaceable(old):
                target = Path(os.path.realpath(path))
                place = _begin(target, old)
                after.callback(place.unlink, missing_ok=True)
            else:
                target, place = None, Path(after.enter_context(TemporaryDirectory())) / f"draft{path.suffix}"
            yield place
            with place.open("rb") as written:
                if target is None:
                    with path.open("ab") as end:
                        shutil.copyfileobj(written, end)
                else:
                    os.fsync(written.fileno())
            if target is not None:
                os.replace(place, target)
    except OSError as error:
        if error.filename not in (None, str(path), str(place)):
            raise  # of another file, which the block read
        raise _named(error, path) from error


def check(path: str | Path, option: str) -> None:
    """Raises ValueError, in a sentence that begins with `option`, where `write` would fail: for a folder, for a place
    in no folder, where writing is not allowed. A file that is there stays as it is.
    """
    path = Path(path)
    try:
        old = _there(path)
        if old is None or _replaceable(old):
            _begin(Path(os.path.realpath(path)), old).unlink()
    except OSError as error:
        raise ValueError(f"{option} {_named(error, path)}") from None


def _there(path: Path) -> os.stat_result | None:
    """What stands at the end of all links; None where there is nothing. Raises OSError for a folder, and for a file
    that may not be written.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise NotADirectoryError("there is no such folder") from None
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("this is a folder")
    if not os.access(path, os.W_OK):
        raise PermissionError("the file is read-only for this user")
    return found


def _replaceable(found: os.stat_result) -> bool:
    if not stat.S_ISREG(found.st_mode):
        return False
    streams = []
    for number in (1, 2):
        with suppress(OSError):
            streams.append(os.fstat(number))
    return not any(os.path.samestat(found, stream) for stream in streams)


def _begin(target: Path, old: os.stat_result | None) -> Path:
    """An empty draft beside `target`, with the permissions that it is to have."""
    place = target.with_name(f".draft-{secrets.token_hex(4)}{target.suffix}")
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    if old is not None:
        place.chmod(stat.S_IMODE(old.st_mode))
        with suppress(OSError, AttributeError):  # another owner's file stays theirs, where that is allowed
            os.chown(place, old.st_uid, old.st_gid)
    return place


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the file's name, as a sentence."""
    why = error.strerror or str(error) or type(error).__name__
    told = type(error)(f"{path} cannot be written: {why[0].lower()}{why[1:]}.")
    told.errno = error.errno
    return told
