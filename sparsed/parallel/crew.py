"""Processes that share work (accelerate launch), each with a whole model: who does which part, and what they agree on.

`python -m sparsed eval` and `python -m sparsed bench` deal their work out so; what is done is kept in a folder
(`sparsed.results_folder`). lm-evaluation-harness deals its questions out by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sparsed.parallel.launch import Launch

T = TypeVar("T")


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

    def gather(self, value: T) -> list[T]:
        """Everyone's values in order of rank, for everyone (they are pickled). All of the crew must come here."""
        if self.size == 1:
            return [value]
        import torch.distributed

        box = [value] * self.size
        torch.distributed.all_gather_object(box, value)
        return box

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
