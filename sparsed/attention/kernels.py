"""What computes a run's attention on this machine: dense, sparse, of few rows, and the importances of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsed.attention.backends import dense, few_rows
from sparsed.attention.backends.dense import SDPA, DenseAttention
from sparsed.attention.backends.registry import Problem, SparseBackend, choose_backend, load_backend
from sparsed.attention.policy import AttentionPolicy
from sparsed.attention.selection.importance import block_importance, fused_importance, fusible

# The names of dense and sparse attention, `Kernels.fused`, and the name of what attends for few rows.
KernelNames = tuple[str, "str | None", bool, str]


@dataclass(frozen=True)
class Kernels:
    """The functions that a run's layers call."""

    dense: DenseAttention = SDPA
    sparse: SparseBackend | None = None  # None for a run that stays dense
    fused: bool = False  # a kernel makes the importances from the dense attention's log-sum-exp
    few: DenseAttention = few_rows.SDPA  # of few rows to all keys

    @property
    def name(self) -> str:
        """What runs the sparse phase; of a dense run, every phase."""
        return self.dense.name if self.sparse is None else self.sparse.name

    def dense_with_lse(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
        """Dense attention and, where a kernel makes the importances from it, the rows' log-sum-exp."""
        if self.dense.with_lse is None or not self.fused:
            return self.dense.attend(q, k, v, scale), None
        return self.dense.with_lse(q, k, v, scale)

    def importance(self, q: Tensor, k: Tensor, lse: Tensor | None, scale: float, block_size: int) -> Tensor:
        """`block_importance`, with the log-sum-exp that `dense_with_lse` gave."""
        if lse is None:
            return block_importance(q, k, scale, block_size)
        return fused_importance(q, k, lse, scale, block_size)

    @classmethod
    def choose(
        cls,
        problem: Problem,
        policy: AttentionPolicy,
        backend: str = "auto",
        dense_backend: str = "auto",
        cached_rows: int = 0,
    ) -> tuple[Kernels, list[str]]:
        """Those asked for, or the fastest for the problem; and sentences about backends that had to be left out.

        cached_rows: the rows of forwards that compute some; 0: there are none.
        """
        full, rows = dense.pick(dense_backend, problem), cached_rows
        if policy.config.generation_rows == "full":
            rows = policy.layout.length - policy.layout.start_of_last(policy.layout.generation_query_blocks)
        few = few_rows.pick(dense_backend, problem, rows) if rows else few_rows.SDPA
        if policy.config.dense:
            return cls(full, few=few), []
        size, notes = policy.layout.block_size, []
        if backend == "auto":
            choice = choose_backend(problem, size, policy.kept)
            backend = choice.name
            notes = [f"The backend {name!r} was left out: {why}" for name, why in choice.left_out]
        return cls(full, load_backend(backend), full.with_lse is not None and fusible(problem, size), few), notes

    @property
    def names(self) -> KernelNames:
        """What another process of the same machine finds the same kernels by."""
        return self.dense.name, None if self.sparse is None else self.sparse.name, self.fused, self.few.name

    @classmethod
    def named(cls, names: KernelNames, device: torch.device) -> Kernels:
        """The kernels of those `names`."""
        full, sparse, fused, few = names
        backend = None if sparse is None else load_backend(sparse)
        return cls(dense.named(full, device), backend, fused, few_rows.named(few, device))
