"""One forward of a network, and waiting for the device to have done it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsed.attention.state import AttentionState
from sparsed.models.layer import hidden_rows

if TYPE_CHECKING:
    from sparsed.models.model import Model

@torch.inference_mode()
def look(model: Model, ids: Tensor, state: AttentionState) -> None:
    """A forward over ids [batch, length] for what the attention does alone: no position's logits are wanted."""
    nothing = torch.empty(0, dtype=torch.int64, device=ids.device)
    if model.team is None:
        hidden_rows(model.network, ids, state, nothing)
    else:
        model.team.logits(model.network, ids, state, nothing)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all its work, so that the clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
