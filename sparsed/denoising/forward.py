"""One forward of a network: what it is to do, and who does it, this process or a team."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sparsed.attention.pattern import Pattern
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import Rows
from sparsed.cache.store import RowStore
from sparsed.denoising.graphs import StepGraphs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsed.models.model import Model
    from sparsed.parallel.share import Share


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward over a whole sequence does. It travels through the network's keyword arguments."""

    rows: Rows  # computed; the others' keys and values come from the store
    wanted: Tensor  # int64 [m] into batch · length: whose results are asked for
    attention: RunAttention
    store: RowStore | None = None  # None: every forward of the run computes all rows
    graphs: StepGraphs | None = None  # of the run, where there are CUDA graphs

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one layer: [batch, query_heads, n, head_dim] from what it computed for n rows, q and k, v of as
        many heads each.
        """
        if self.store is not None:
            k, v = self.store.put(layer, k, v, self.rows)
        return self.attention.attend(layer, q, k, v, scale, self.rows)


class Forward(Protocol):
    """The network, wherever it is. ids: int64 [batch, length], all positions, whichever the pass computes."""

    share: Share | None

    def logits(self, ids: Tensor, pass_: Pass) -> Tensor:
        """Logits [m, vocabulary] of the wanted positions; the last layer's MLP and the head run on no other one."""

    def hidden(self, ids: Tensor, pass_: Pass) -> None:
        """A forward for what the attention does alone."""

    def pattern(self, attention: RunAttention) -> Pattern:
        """What a "select" forward chose for all heads; see `RunAttention.pattern`."""


class LocalForward:
    """A network that this process holds alone."""

    share: Share | None = None

    def __init__(self, network: PreTrainedModel) -> None:
        self._network: Any = network

    def logits(self, ids: Tensor, pass_: Pass) -> Tensor:
        logits: Tensor = self._network.lm_head(hidden_rows(self._network, ids, pass_))
        return logits.to(ids.device)

    def hidden(self, ids: Tensor, pass_: Pass) -> None:
        hidden_rows(self._network, ids, pass_)

    def pattern(self, attention: RunAttention) -> Pattern:
        return attention.pattern()


def forward_of(model: Model) -> Forward:
    """The forward of a model: its own, or that of the team that holds it."""
    return LocalForward(model.network) if model.team is None else model.team.forward(model.network)


def hidden_rows(network: Any, ids: Tensor, pass_: Pass) -> Tensor:
    """The last hidden states [m, width] of the wanted positions."""
    rows, graphs = pass_.rows, pass_.graphs
    # Inside the network a row is one that is computed.
    places = rows.places(pass_.wanted, *ids.shape)
    # Captured work is kept by the graphs, and must not keep them.
    alone = replace(pass_, graphs=None)

    def forward(few: Tensor, computed: Rows, wanted: Tensor) -> Tensor:
        inside = replace(alone, rows=computed, wanted=wanted)
        hidden: Tensor = network.model(
            input_ids=few, position_ids=computed.positions, use_cache=False, pass_=inside
        ).last_hidden_state
        return hidden

    # Block lists differ from step to step; all keys do not.
    if graphs is None or rows.positions is None or alone.attention.phase != "dense":
        return forward(rows.of(ids), rows, places)
    every = torch.arange(len(ids) * rows.positions.shape[1], device=ids.device)
    return graphs.hidden(
        lambda few, positions: forward(few, Rows(positions), every), rows.of(ids), rows.positions
    )[places]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all its work, so that the clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
