"""Work that is kept as it gets done: a folder of JSON lines for one plan, and the processes that share the work.

`python -m sparsed eval` keeps answers in such a folder, `python -m sparsed bench --out` measurements. What is there is
not done again, whoever did it and however it ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sparsed.launch import Launch

T = TypeVar("T")


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


def deal(costs: Sequence[int], hands: int) -> list[list[int]]:
    """Pieces of work shared among so many: the costliest first, each to whoever has least so far. Their indices, in
    order. The same costs are always dealt alike.
    """
    shares: list[list[int]] = [[] for _ in range(hands)]
    loads = [0] * hands
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        hand = loads.index(min(loads))
        shares[hand].append(piece)
        loads[hand] += costs[piece]
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class Crew:
    """The processes that share a pile of work: those of `accelerate launch`, each with a whole model, or one alone.

    rank: 0 … size − 1; rank 0 speaks for all. size: processes. local_rank, local_size: on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    @contextmanager
    def here(cls) -> Iterator[Crew]:
        """This process's crew, joined as long as the context lasts."""
        launch = Launch.here()
        if launch.kind != "data":
            # Processes that hold one model together do all of the work, together.
            yield cls()
            return
        import torch.distributed

        # Only lists go from one to another, and a process that waits must leave its GPU and cores in peace: gloo, not
        # NCCL. The shares never take equally long, and whoever is done first waits: no time limit of minutes.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        try:
            yield cls(launch.rank, launch.size, launch.local_rank, launch.local_size)
        finally:
            torch.distributed.destroy_process_group()

    @property
    def name(self) -> str:
        return f"{self.rank}-of-{self.size}"

    def agree(self, value: T) -> T:
        """Rank 0's value, for everyone (it is pickled). All of the crew must come here."""
        if self.size == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Until all of the crew are here."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def share(self, costs: Sequence[int]) -> list[int]:
        """Indices of the pieces of work that are this process's."""
        return deal(costs, self.size)[self.rank]

    def device(self, asked: str | None) -> str | None:
        """The device asked for; where that leaves a choice among several GPUs, this process's own."""
        if self.size == 1 or asked not in (None, "cuda"):
            return asked
        import torch

        if not torch.cuda.is_available():
            return asked
        own = self.local_rank % torch.cuda.device_count()
        torch.cuda.set_device(own)  # what a kernel is launched on, and whose name `machine` tells
        return f"cuda:{own}"


ALONE = Crew()
