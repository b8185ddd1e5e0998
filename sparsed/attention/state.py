"""The one function that layers call for attention, and the state of a run that reaches it.

The state travels through the keyword arguments of the model's forward: modules hold nothing, so any number of
runs can share one set of weights and interleave.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sparsed.attention.backends.dense import SDPA, DenseAttention
from sparsed.attention.backends.registry import SparseAttention
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.attention.selection.baselines import random_blocks, shared_by_heads, sliding_window, streaming_llm
from sparsed.attention.selection.importance import block_importance, fused_importance
from sparsed.attention.selection.isolated import select_blocks
from sparsed.attention.selection.public_code import reference_blocks
from sparsed.config import ResolvedAttention

if TYPE_CHECKING:
    from sparsed.parallel.share import Share

Phase = Literal["dense", "select", "sparse"]
_KEYS = itertools.count()


@dataclass
class AttentionState:
    """What one run's attention knows and remembers.

    phase: what the next forward does: "dense", "select" (dense, and every layer's pattern is made) or
    "sparse". config: with layout and backend it is None for a run that stays dense. layers: layer
    index → the layer's pattern. importance: layer index → float16 [batch, query_heads, n, n], if kept.
    dense: what runs in the other phases. fused: a kernel makes the importances from the dense attention's log-sum-exp.
    scaled_by_heads: selection "reference" divides scores by √query_heads (the
    public LLaDA code). seed: what the baseline "random" draws from.

    backend_name: what `load_backend` made `backend` of. share: of a model that several processes hold; then q, k, v
    and layers are those of this process's heads. key: tells this state from every other one of the process, copies
    included.
    """

    phase: Phase = "dense"
    config: ResolvedAttention | None = None
    layout: BlockLayout | None = None
    backend: SparseAttention | None = None
    layers: dict[int, LayerPattern] = field(default_factory=dict)
    importance: dict[int, Tensor] = field(default_factory=dict)
    scaled_by_heads: bool = False
    dense: DenseAttention = SDPA
    fused: bool = False
    seed: int = 0
    backend_name: str | None = None
    share: Share | None = None
    key: int = field(default_factory=_KEYS.__next__, init=False)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one layer in the current phase, [batch, query_heads, length, head_dim]."""
        if self.phase == "sparse":
            assert self.backend is not None and self.layout is not None, "a sparse phase needs a backend and a layout"
            if self.config is not None and not self.config.reuse:
                # A kernel makes the importances from the rows' log-sum-exp, which only a dense pass knows.
                lse = self._dense_with_lse(q, k, v, scale)[1] if self.fused else None
                self.layers[layer] = self._select(layer, q, k, scale, lse)
            return self.backend(q, k, v, self.layers[layer].lists(None, self.layout), scale)
        if self.phase == "dense":
            return self.dense.attend(q, k, v, scale)
        out, lse = self._dense_with_lse(q, k, v, scale)
        self.layers[layer] = self._select(layer, q, k, scale, lse)
        return out

    def _dense_with_lse(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
        """Dense attention and, where a kernel can make use of it, the rows' log-sum-exp."""
        if self.dense.with_lse is None or not self.fused:
            return self.dense.attend(q, k, v, scale), None
        return self.dense.with_lse(q, k, v, scale)

    def _select(self, layer: int, q: Tensor, k: Tensor, scale: float, lse: Tensor | None) -> LayerPattern:
        config, layout = self.config, self.layout
        assert config is not None and layout is not None
        batch, heads = q.shape[:2]
        every = heads if self.share is None else heads * self.share.size
        if config.method == "sliding_window":
            return sliding_window(layout, config.select, batch, heads, q.device)
        if config.method == "streaming_llm":
            return streaming_llm(layout, config.select, batch, heads, q.device)
        if config.method == "random":
            seed = (1000 * self.seed + layer) % 2**63
            drawn = random_blocks(layout, config.select, batch, every, seed, q.device)
            return drawn if self.share is None else drawn.of_heads(self.share.heads(every))
        if config.selection == "reference":
            if self.scaled_by_heads:
                scale = every**-0.5
            importance, chosen = reference_blocks(q, k, scale, layout, config.select)
        else:
            if lse is None:
                importance = block_importance(q, k, scale, layout.block_size)
            else:
                importance = fused_importance(q, k, lse, scale, layout.block_size)
            if config.method == "shared":
                mean = importance.mean(1, keepdim=True)
                if self.share is not None:
                    mean = self.share.mean(mean)
                chosen = shared_by_heads(mean, layout, config.select, heads)
            else:
                chosen = select_blocks(importance, layout, config.select, config.isolated)
        if config.keep_importance:
            # Moved to the CPU in `pattern`, once for all layers and outside the step's clock.
            self.importance[layer] = importance.to(torch.float16)
        return chosen

    def pattern(self) -> Pattern:
        """The pattern of all layers, after a "select" forward. On the CPU: it outlives the run."""
        assert self.config is not None and self.layout is not None
        kept = tuple(self.importance[layer].cpu() for layer in sorted(self.importance)) or None
        self.importance.clear()
        layers = tuple(self.layers[layer].to("cpu") for layer in sorted(self.layers))
        return Pattern(layout=self.layout, layers=layers, select=self.config.select, importance=kept)
