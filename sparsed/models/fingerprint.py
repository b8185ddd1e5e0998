"""What a checkpoint is, as one short string: two folders with the same one load as the same model."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from sparsed.models.files import files_read

# Of each file its name, size in bytes, and time of its last change in nanoseconds.
Stamp = tuple[tuple[str, int, int], ...]
_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(folder: Path) -> str:
    """SHA-256, as 64 hexadecimal digits, over the names and contents of all files that loading a folder reads.

    Other files do not count (a README, code), nor does the folder's own name. Takes about a second for every GB that
    is read; of files in the Hub's cache whose name there is their SHA-256, that name is taken and nothing is read.
    Raises LoadError for an index of weights that is none, OSError for a file that cannot be read.
    """
    whole = hashlib.sha256()
    for name in files_read(folder):
        whole.update(f"{name}\0{_sha256(folder / name)}\n".encode())
    return whole.hexdigest()


def stamp(folder: Path) -> Stamp:
    """What tells, without reading them, whether files that loading a folder reads were written since: of each that is
    there its name, size and time. Raises as `fingerprint` does.
    """
    found = ((name, (folder / name).stat()) for name in files_read(folder))
    return tuple((name, about.st_size, about.st_mtime_ns) for name, about in found)


def of_random_weights(shape: str) -> str:
    """What stands for the fingerprint of random weights, which are drawn with seed 0
    (`sparsed.models.shares.random_network`).
    """
    return f"random weights of {shape}, drawn layer by layer, seed 0"


def _sha256(file: Path) -> str:
    known = _hub_sha256(file)
    if known is not None:
        return known
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _hub_sha256(file: Path) -> str | None:
    """The SHA-256 that the Hub gave with a large file; None for a small one, and for a file from elsewhere.

    A snapshot's file is a link to models--owner--name/blobs/SHA-256. (That may be a link as well, to a name that is
    another kind of hash, so links are followed once.)
    """
    if not file.is_symlink():
        return None
    blob = Path(os.path.normpath(file.parent / os.readlink(file)))
    if blob.parent.name != "blobs" or not blob.parent.parent.name.startswith("models--"):
        return None
    return blob.name if _SHA256.fullmatch(blob.name) else None
