"""A folder of results, one JSON object a line, which a later call of the same command goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Folder:
    """JSON lines of several kinds, in files of their own for each process, and plan.json: what all of them share.

    name: of this process, such as "0-of-2". Raises ValueError if the folder belongs to another plan.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], name: str = "0-of-1") -> None:
        self.path, self.name = path, name
        path.mkdir(parents=True, exist_ok=True)
        said = json.dumps(plan, indent=1)
        file = path / "plan.json"
        if file.exists():
            unlike = differences(json.loads(file.read_text("utf-8")), json.loads(said))
            if unlike:
                raise ValueError(f"{path} belongs to another plan ({', '.join(unlike)}); choose another folder.")
        else:
            # Several processes begin at once: none may see half a file.
            draft = path / f"plan-{name}-{os.getpid()}.part"
            draft.write_text(said, encoding="utf-8")
            draft.replace(file)

    def add(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Append one entry to this process's file of that kind; it is in the file when this returns."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with (self.path / f"{kind}-{self.name}.jsonl").open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # what an interruption left of a line must not swallow this one
            file.write(line)


def read_lines(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The entries of a kind that a folder holds, of all processes; a line that was cut off is left out."""
    for file in sorted(path.glob(f"{kind}-*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            try:
                yield json.loads(line)
            except ValueError:
                continue  # empty, or cut off, even in the middle of a character: that piece of work is done again


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """In which values two plans differ, each in a few words."""
    found = []
    for key in dict.fromkeys([*there, *here]):
        one, two = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{prefix}{key}.")
        elif one != two:
            found.append(f"{prefix}{key} is {json.dumps(one)} there, {json.dumps(two)} here")
    return found
