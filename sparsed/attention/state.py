"""A run's attention: what it does now, and the patterns it has made so far."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsed.attention.kernels import Kernels
from sparsed.attention.pattern import LayerPattern, Pattern
from sparsed.attention.policy import AttentionPolicy, Selecting
from sparsed.cache.rows import Rows
from sparsed.config import Phase

if TYPE_CHECKING:
    from sparsed.parallel.share import Share

_KEYS = itertools.count()


@dataclass(eq=False)
class RunAttention:
    """One run's attention. Modules hold nothing, so any number of runs can share one set of weights and interleave."""

    policy: AttentionPolicy
    kernels: Kernels = Kernels()
    share: Share | None = None  # of a model that several processes hold; q, k, v are those of this process's heads
    phase: Phase = "dense"  # of the next forward
    layers: dict[int, LayerPattern] = field(default_factory=dict)  # by layer, once selected
    importance: dict[int, Tensor] = field(default_factory=dict)  # float16 [batch, query_heads, n, n], if kept
    key: int = field(default_factory=_KEYS.__next__, init=False)  # no other one of this process has it
    # Wall time of `attend` since it was last set to 0, selections included. It tells what attention takes where a call
    # returns when its work is done: on a CPU.
    spent: float = field(default=0.0, init=False)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Rows) -> Tensor:
        """Attention of one layer in the current phase: [batch, query_heads, n, head_dim] for queries of n rows.

        q: [batch, query_heads, n, head_dim]; k, v: [batch, key_heads, length, head_dim], of all positions.
        """
        start = perf_counter()
        out = self._attend(layer, q, k, v, scale, rows)
        self.spent += perf_counter() - start
        return out

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Rows) -> Tensor:
        if self.phase == "dense":
            kernel = self.kernels.dense if rows.positions is None else self.kernels.few
            return kernel.attend(q, k, v, scale)
        if self.phase == "select":
            out, lse = self.kernels.dense_with_lse(q, k, v, scale)
            self._select(layer, q, k, lse, scale, rows)
            return out
        if self.policy.selects(self.phase):
            # A kernel makes the importances from the rows' log-sum-exp, which only a dense pass knows.
            lse = self.kernels.dense_with_lse(q, k, v, scale)[1] if self.kernels.fused else None
            self._select(layer, q, k, lse, scale, rows)
        assert self.kernels.sparse is not None, "a run that selects has a sparse backend"
        lists = self.layers[layer].lists(rows.on(q.device), self.policy.layout)
        if lists.full is None:
            return self.kernels.sparse.attend(q, k, v, lists, scale)
        start, those = lists.full
        full = self.kernels.few.attend(q[:, :, start:], k, v, scale)
        if start == 0 and those is None:
            return full
        out = self.kernels.sparse.attend(q, k, v, lists, scale)
        part = out[:, :, start:]
        part.copy_(full if those is None else torch.where(those, full, part))
        return out

    def _select(self, layer: int, q: Tensor, k: Tensor, lse: Tensor | None, scale: float, rows: Rows) -> None:
        """Makes a layer's pattern."""
        assert rows.positions is None, "a select step computes every row"
        importance = partial(self.kernels.importance, q, k, lse, scale, self.policy.layout.block_size)
        given = Selecting(layer, q, k, scale, importance, self.share)
        self.layers[layer], ranked = self.policy.choose(given)
        if ranked is not None and self.policy.config.keep_importance:
            # Moved to the CPU in `pattern`, once for all layers and outside the step's clock.
            self.importance[layer] = ranked.to(torch.float16)

    @property
    def summed_pairs(self) -> int:
        """Block pairs of a sequence whose mean importance the processes sum in every layer of the next forward."""
        return self.policy.summed_pairs if self.policy.selects(self.phase) else 0

    def pattern(self) -> Pattern:
        """The pattern of all layers, after a "select" forward. On the CPU: it outlives the run."""
        kept = tuple(self.importance[layer].cpu() for layer in sorted(self.importance)) or None
        self.importance.clear()
        layers = tuple(self.layers[layer].to("cpu") for layer in sorted(self.layers))
        return Pattern(layout=self.policy.layout, layers=layers, select=self.policy.config.select, importance=kept)
