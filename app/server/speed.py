"""How fast this machine is, and where lanes run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Places:
    """Where the lanes of a race run. copies: of the model, one for each device that they have (`sparsed.turns.seat`).
    why: the lanes take turns although there are other devices, in a sentence; empty else.
    """

    copies: tuple[Any, ...]
    why: str = ""
