"""What the processes of a team send each other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import load_backend
from sparsed.attention.layout import BlockLayout
from sparsed.attention.state import AttentionState, Phase
from sparsed.config import ResolvedAttention
from sparsed.parallel.share import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Sums wait this long for a process that compiles or reads weights. One that is gone is noticed at once.
PATIENCE = timedelta(hours=2)
# A network, and why what surrounds attention is not fused, if it should be.
MadeNetwork = tuple["PreTrainedModel", "str | None"]


@dataclass(frozen=True)
class AttentionMessage:
    """What a follower must know of an `AttentionState` to do as the driver's does."""

    key: int
    phase: Phase
    config: ResolvedAttention | None
    layout: BlockLayout | None
    backend: str | None
    dense: str
    fused: bool
    scaled_by_heads: bool
    seed: int

    @classmethod
    def of(cls, state: AttentionState) -> AttentionMessage:
        return cls(
            state.key, state.phase, state.config, state.layout, state.backend_name, state.dense.name, state.fused,
            state.scaled_by_heads, state.seed,
        )  # fmt: skip

    def state(self, share: Share) -> AttentionState:
        """A new state that does the same."""
        backend = None if self.backend is None else load_backend(self.backend)
        return AttentionState(
            self.phase, self.config, self.layout, backend, scaled_by_heads=self.scaled_by_heads,
            dense=dense.named(self.dense, share.device), fused=self.fused, seed=self.seed, share=share,
            backend_name=self.backend,
        )  # fmt: skip


def sentence_of(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."
