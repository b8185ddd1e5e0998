"""Which positions of a sequence one forward computes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """The positions whose queries, keys, values and hidden states a forward computes.

    Positions must not change afterwards: a layer's block lists are made once for each set of rows.
    """

    positions: Tensor | None = None  # int64 [1 or batch, n], ascending without repetition; None: all of the sequence
    _elsewhere: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> Tensor | None:
        """The positions on a device: weights may be spread over several. The same tensor each time."""
        if self.positions is None or self.positions.device == device:
            return self.positions
        if device not in self._elsewhere:
            self._elsewhere[device] = self.positions.to(device)
        return self._elsewhere[device]

    def count(self, length: int) -> int:
        """How many rows of a sequence of `length` positions are computed."""
        return length if self.positions is None else self.positions.shape[1]

    def of(self, ids: Tensor) -> Tensor:
        """The rows' entries of ids [batch, length]: [batch, n]."""
        return ids if self.positions is None else ids.gather(1, self.positions.expand(len(ids), -1))

    def places(self, wanted: Tensor, batch: int, length: int) -> Tensor:
        """Where wanted positions, int64 [m] into batch · length, are among the computed rows: int64 [m] into batch · n.

        Raises ValueError for a position that is not computed.
        """
        if self.positions is None:
            return wanted
        starts = torch.arange(batch, device=self.positions.device)[:, None] * length
        computed = (starts + self.positions).flatten()
        places = torch.searchsorted(computed, wanted.contiguous()).clamp(max=len(computed) - 1)
        if not bool((computed[places] == wanted).all()):
            raise ValueError("A wanted position is not among the rows that are computed.")
        return places


ALL = Rows()
