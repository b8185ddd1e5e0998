"""Networks as the processes of a team make them: each its share, read from a folder or drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsed.attention import register
from sparsed.models.families import read_config, recognise
from sparsed.models.fuse import fuse
from sparsed.models.network import load_network, prepare
from sparsed.models.quantise import is_quantised, quantise
from sparsed.parallel.share import Share, cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_share(
    folder: Path,
    dtype: torch.dtype,
    fusing: bool,
    share: Share,
    on_weight: Callable[[str], None],
    rope_factor: float = 1.0,
) -> tuple[PreTrainedModel, str | None]:
    """One process's share of the network in a folder, and why what surrounds attention is not fused, if it should be.
    All processes call this at the same time.
    """
    checkpoint = recognise(read_config(folder), "config.json", rope_factor)
    network = load_network(
        folder, checkpoint, device=share.device, dtype=dtype, device_map=None, on_weight=on_weight, share=share
    )
    return network, fuse(network) if fusing else None


def random_network(
    raw: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    fusing: bool,
    share: Share | None = None,
    quantize: str | None = None,
) -> tuple[PreTrainedModel, str | None]:
    """`load_share` with random weights, the same on every machine of one kind, for the shape that the parsed
    config.json `raw` describes; without a share the whole network. They are drawn layer by layer, and those that
    `quantize` asks for quantised at once: the same weights, in fewer bits.
    """
    import transformers

    checkpoint = recognise(dict(raw), "this shape")
    register.register()
    torch.manual_seed(0)
    with torch.device("meta"):
        network = getattr(transformers, checkpoint.network)._from_config(
            checkpoint.config, dtype=dtype, attn_implementation=register.NAME
        )
    with torch.no_grad():
        # By name: a list of the modules would keep those that quantised ones take the place of.
        for place in [name for name, _ in network.named_modules()]:
            module = network.get_submodule(place)
            module.to_empty(device=device, recurse=False)
            network._init_weights(module)
            if quantize is not None and is_quantised(name := f"{place}.weight"):
                quantise(network, name, quantize)
    network.tie_weights()
    if share is not None:
        cut(network, share)
    prepare(network, float32_rotation=checkpoint.float32_rotation, share=share)
    return network, fuse(network) if fusing else None
