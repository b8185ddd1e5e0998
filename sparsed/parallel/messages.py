"""What the processes of a team send each other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from sparsed.attention.kernels import KernelNames, Kernels
from sparsed.attention.policy import AttentionPolicy
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows
from sparsed.cache.store import RowStore
from sparsed.config import Phase
from sparsed.denoising.forward import Pass
from sparsed.parallel.share import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Sums wait this long for a process that compiles or reads weights. One that is gone is noticed at once.
PATIENCE = timedelta(hours=2)
# A network, and why what surrounds attention is not fused, if it should be.
MadeNetwork = tuple["PreTrainedModel", "str | None"]


@dataclass(frozen=True)
class PassMessage:
    """A `Pass` as it travels. Tensors go as numpy arrays; patterns and stores do not: each process has its own."""

    run: int  # the key of the run's attention
    phase: Phase
    policy: AttentionPolicy
    kernels: KernelNames
    positions: Any  # of the rows, or None
    wanted: Any
    stored: bool

    @classmethod
    def of(cls, pass_: Pass) -> PassMessage:
        attention, positions = pass_.attention, pass_.rows.positions
        return cls(
            attention.key, attention.phase, attention.policy, attention.kernels.names,
            None if positions is None else positions.cpu().numpy(), pass_.wanted.cpu().numpy(), pass_.store is not None,
        )  # fmt: skip

    def attention(self, share: Share) -> RunAttention:
        """A new run's attention that does as the driver's."""
        return RunAttention(self.policy, Kernels.named(self.kernels, share.device), share)

    def open(self, attention: RunAttention, store: RowStore, device: torch.device) -> Pass:
        """The same pass with this process's attention and store."""
        attention.phase = self.phase
        rows = ALL if self.positions is None else Rows(torch.from_numpy(self.positions).to(device))
        return Pass(rows, torch.from_numpy(self.wanted).to(device), attention, store if self.stored else None)


def sentence_of(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."
