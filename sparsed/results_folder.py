"""A folder of results, one JSON object a line, which a later call of the same command goes on with.

Its file plan.json holds the *key*: all values that results depend on and that are the same for all of the folder.
Every line names the key that it was made with, so that lines of another one, copied there, are told.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsed.parallel.crew import Crew

_KEY = "key"


class Folder:
    """JSON lines of several kinds, in files of their own for each process, and plan.json: the key that all share.

    key: plain values. name: of this process, such as "0-of-2". about: told in plan.json, and no part of the key.
    Raises ValueError, with both values of whatever is unlike, if the folder has another key, or none.
    """

    def __init__(
        self, path: Path, key: Mapping[str, Any], name: str = "0-of-1", about: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.name = path, name
        check(path, key)
        path.mkdir(parents=True, exist_ok=True)
        file = path / "plan.json"
        if not file.exists():
            # Several processes begin at once: none may see half a file, and the first one's stands.
            draft = path / f"plan-{name}-{os.getpid()}.part"
            try:
                draft.write_text(json.dumps({**(about or {}), _KEY: key}, indent=1), encoding="utf-8")
                try:
                    os.link(draft, file)
                except FileExistsError:
                    pass
                except OSError:  # a file system without links
                    draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
        check(path, key, whole=True)
        # Equal values may be written in two ways (0 and 0.0): what stands there counts.
        self.digest = digest_of(key_there(path) or key)

    def add(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Append one entry to this process's file of that kind; it is in the file when this returns."""
        line = json.dumps({_KEY: self.digest, **entry}, ensure_ascii=False).encode() + b"\n"
        place = self.path / f"{kind}-{self.name}.jsonl"
        try:
            with place.open("a+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = b"\n" + line  # what an interruption left of a line must not swallow this one
                file.write(line)
        except OSError as error:
            error.filename = str(place)  # a full disk does not say where
            raise


def check(path: Path, key: Mapping[str, Any], whole: bool = False) -> None:
    """Raises ValueError if the folder there, if any, has another key. Not `whole`: as far as its values are known yet,
    before a model is loaded.
    """
    try:
        there = json.loads((path / "plan.json").read_text("utf-8"))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ValueError(f"{path} is a file; results need a folder.") from None
    except ValueError as error:
        raise ValueError(f"{path / 'plan.json'} is damaged ({error}); choose another folder.") from None
    if not isinstance(there, dict) or not isinstance(there.get(_KEY), dict):
        raise ValueError(
            f"{path} is of an earlier version and does not say what its results depend on ({', '.join(key)}): choose "
            f"another folder."
        )
    unlike = differences(there[_KEY], json.loads(json.dumps(key)), whole=whole)
    if unlike:
        raise ValueError(f"{path} belongs to another plan ({', '.join(unlike)}); choose another folder.")


def check_alike(crew: Crew, key: Mapping[str, Any]) -> None:
    """Raises ValueError where a process that shares the work has another key than process 0."""
    unlike = differences(crew.agree(key), key)
    if unlike:
        raise ValueError(f"Process 0 is not like process {crew.rank} ({', '.join(unlike)}): these are two tables.")


def digest_of(key: Mapping[str, Any]) -> str:
    """A key in a few letters, the same for equal values."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=6).hexdigest()


def key_there(path: Path) -> dict[str, Any] | None:
    """The key of a folder; None where there is none, or where plan.json is of an earlier version."""
    key = _plan(path).get(_KEY)
    return key if isinstance(key, dict) else None


def about_there(path: Path) -> dict[str, Any]:
    """What plan.json says beside the key; nothing where there is none."""
    return {name: value for name, value in _plan(path).items() if name != _KEY}


def _plan(path: Path) -> dict[str, Any]:
    """plan.json; empty where it is missing or damaged."""
    try:
        there = json.loads((path / "plan.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return there if isinstance(there, dict) else {}


def read_lines(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The entries of a kind that a folder holds, of all processes; a line that was cut off is left out, and so is one
    that was made with another key (`strangers`).
    """
    for _, entry, own in _entries(path, kind):
        if own:
            yield entry


def strangers(path: Path, kind: str) -> dict[str, int]:
    """Files with entries of another key than the folder's, and how many each has."""
    return dict(Counter(name for name, _, own in _entries(path, kind) if not own))


def _entries(path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(file, entry, whether it was made with the folder's key). Without a key there, lines without one are its own."""
    key = key_there(path)
    own = None if key is None else digest_of(key)
    for file in sorted(path.glob(f"{kind}-*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                made_with = entry.pop(_KEY, None)
            except (ValueError, AttributeError):
                continue  # empty, or cut off, even in the middle of a character: that piece of work is done again
            yield file.name, entry, made_with == own


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "", whole: bool = True
) -> list[str]:
    """In which values two keys differ, each in a few words. Not `whole`: only those that are told here."""
    found = []
    for name in dict.fromkeys([*there, *here] if whole else here):
        one, two = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{prefix}{name}.", whole)
        elif one != two:
            found.append(f"{prefix}{name} is {json.dumps(one)} there, {json.dumps(two)} here")
    return found
