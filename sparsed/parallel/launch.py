"""How this process was started: alone, as one of several that hold a model together, or that share a pile of work.

`torchrun` starts processes that hold one model together (tensor parallelism, see `sparsed.parallel.team`); `accelerate
launch` starts processes that each hold a whole model and take a share of the questions or measurements. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


class TeamError(RuntimeError):
    """A process failed at an order; the message says which, and why. The next order finds all of them ready."""


class TeamLost(RuntimeError):
    """A process of the team is gone; no order can be carried out any more. The message is a sentence that says so."""


@dataclass(frozen=True)
class Launch:
    """kind: "alone", "tensor" (one model over all processes) or "data" (a model each, the work shared). rank: 0 … size
    − 1. size: processes. local_rank: this machine's rank, and so the index of its GPU. local_size: processes on this
    machine.
    """

    kind: Literal["alone", "tensor", "data"] = "alone"
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Launch:
        """From the environment that torchrun and accelerate launch set. Raises ValueError for one that is not whole."""
        values = os.environ if environment is None else environment
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if values.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            rank, size, local_rank, local_size = (int(values[name]) for name in names)
        except (KeyError, ValueError):
            raise ValueError(
                f"WORLD_SIZE is {values['WORLD_SIZE']!r}, but {', '.join(names)} are not all whole numbers: start "
                f"several processes with torchrun or accelerate launch."
            ) from None
        shared = any(name.startswith("ACCELERATE_") for name in values)
        return cls("data" if shared else "tensor", rank, size, local_rank, local_size)
