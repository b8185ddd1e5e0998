"""torch.compile for the parts of a layer that are not attention."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsed.models import reason
from sparsed.models.network import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fuse(network: PreTrainedModel) -> str | None:
    """Lets torch.compile fuse what surrounds attention: norms, rotation, the MLP's products. None, or why it cannot.

    Compiled once for all layers and all lengths, on a short trial. Intermediate results are rounded where the unfused
    network rounds them; sums may be added in another order, so bfloat16 logits can differ in the last place.
    """
    layers: Any = network.model.layers
    fused: Any = tuple(map(compiled, layers[0]._parts))
    for layer in layers:
        layer.fused = fused
    try:
        with torch.inference_mode():
            for length in (96, 160):
                ids = torch.zeros(1, length, dtype=torch.int64, device=input_device(network))
                if layers[0].share is None:
                    network.model(input_ids=ids, use_cache=False)
                else:
                    _try_share(network, ids, *fused)
    except Exception as error:  # compilers fail in many ways; the network works without them
        for layer in layers:
            layer.fused = None
        return f"torch.compile is not usable here ({reason(error)})."
    return None


def _try_share(network: PreTrainedModel, ids: Tensor, project: Callable[..., Any], finish: Callable[..., Any]) -> None:
    """One layer's parts on some rows, without the sums: they may fail here and not on the other processes."""
    model: Any = network.model
    layer = model.layers[0]
    hidden = torch.ones(*ids.shape, network.config.hidden_size, dtype=model.norm.weight.dtype, device=ids.device)
    rotation = model.rotary_emb(hidden, position_ids=torch.arange(ids.shape[1], device=ids.device)[None])
    for tensor in (hidden, *rotation):
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
    project(layer, hidden, *rotation)
    rows = hidden.flatten(0, 1)
    for tensor in (rows, other := rows.clone()):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    finish(layer, rows, other)


def compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `sparsed.models.layer`, to be compiled when it is first called, as `fuse` does."""
    assert isinstance(part, FunctionType)
    # torch counts compilations by code object, and gives up after eight: every network gets its own.
    own = FunctionType(part.__code__.replace(), part.__globals__, part.__name__)
    return torch.compile(own, options={"emulate_precision_casts": True})
