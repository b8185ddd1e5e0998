"""Quantised weights: which layers, by what, and where that runs.

The linear layers of the decoder layers are quantised, by torchao: nearly all weights of a large model. Embeddings,
norms and the head stay as they are: the first and the last layer are where a lost bit shows most, and the first is read
by rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsed.machine import dtype_name
from sparsed.models import LoadError
from sparsed.models.packed import SMALLEST_GROUP, Int4Linear, Int8Linear, Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# torch.compile keeps no results of torchao's tensors for later processes, and says so.
warnings.filterwarnings("ignore", message=r"\w+ does not implement _stable_hash_for_caching")
PACKED: dict[str, type[Packed]] = {"int8": Int8Linear, "int4": Int4Linear}
# fp8 products need Ada or Hopper.
_FP8_CAPABILITY = (8, 9)
# What the sizes of layers must be multiples of.
_MULTIPLES = {"int8": 1, "int4": SMALLEST_GROUP, "fp8": 16}


def check_one_device(quantize: str | None, team: bool, spread: bool) -> None:
    """Raises ValueError where several processes are to share quantised weights, or device_map to spread them."""
    if quantize is not None and (team or spread):
        shared = "several processes cannot share them" if team else "device_map cannot spread them"
        raise ValueError(f"Quantised weights stay on one device: {shared}, leave quantize={quantize!r} out.")


def check_place(quantize: str | None, device: torch.device, dtype: torch.dtype | None, label: str) -> None:
    """Raises LoadError where weights in these numbers do not run on this device, or with this dtype."""
    if quantize is None:
        return
    if device.type not in ("cpu", "cuda"):
        raise LoadError(f"Quantised weights run on CUDA and on a CPU: load {label} without quantize on {device.type}.")
    if quantize != "fp8":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        raise LoadError(
            f"fp8 needs a GPU that computes in it (Ada, Hopper or later): load {label} in int8 or int4, or without "
            f"quantize."
        )
    if dtype not in (None, torch.bfloat16):
        raise LoadError(f"fp8 computes beside bfloat16 alone, not {dtype_name(dtype)}: leave the dtype out.")


def check_shape(quantize: str | None, config: Any, label: str) -> None:
    """Raises LoadError for a network most of whose weights are in no linear layer, or in some of other sizes than the
    products take.
    """
    if quantize is None:
        return
    if getattr(config, "num_experts", None):
        raise LoadError(
            f"{label} has experts, whose stacked weights cannot be quantised here: load it without quantize."
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    columns = {config.hidden_size, config.num_attention_heads * head_dim, config.intermediate_size}
    sizes = columns if quantize == "int4" else columns | {config.num_key_value_heads * head_dim}
    wrong = sorted(size for size in sizes if size % _MULTIPLES[quantize])
    if wrong:
        raise LoadError(
            f"{label} has layers of size {wrong[0]}, and {quantize} takes multiples of {_MULTIPLES[quantize]}: load it "
            f"in int8, or without quantize."
        )


def is_quantised(name: str) -> bool:
    """Is the weight of this name in the network that of a linear layer in a decoder layer?"""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def quantise(network: nn.Module, name: str, quantize: str) -> None:
    """Quantises the linear layer whose weight has this name in the network, in place; its numbers are there already."""
    place = name.removesuffix(".weight")
    layer: Any = network.get_submodule(place)
    if quantize in PACKED:
        network.set_submodule(place, PACKED[quantize](layer.weight.detach(), layer.bias))
        return
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    from torchao.quantization.quantize_.common import KernelPreference

    # torch's own product, not that of a package that may be there; and torch.compile's settings, which belong to the
    # whole process, stay as they are.
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), kernel_preference=KernelPreference.TORCH, set_inductor_config=False
    )
    quantize_(layer, config)
    assert next(stored(layer.weight)) is not layer.weight, "torchao leaves what does not fit as it is"


def stored(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that hold a weight: of a quantised one its numbers and its scales."""
    parts = getattr(tensor, "__tensor_flatten__", None)
    if parts is None:
        yield tensor
        return
    for name in parts()[0]:
        yield from stored(getattr(tensor, name))


def stored_bytes(*weights: Tensor) -> int:
    """Bytes that weights take in memory."""
    return sum(part.numel() * part.element_size() for weight in weights for part in stored(weight))


def parameters(network: nn.Module) -> int:
    """How many weights a network has, however they are kept; tied ones count once."""
    packed = [module for module in network.modules() if isinstance(module, Packed)]
    whole = sum(layer.out_features * layer.in_features for layer in packed)
    held = {id(weight) for layer in packed for name, weight in layer.named_parameters() if name != "bias"}
    return whole + sum(weight.numel() for weight in network.parameters() if id(weight) not in held)


def network_bytes(network: PreTrainedModel) -> int:
    """Bytes that all weights of a network take in memory; tied ones count once."""
    return stored_bytes(*network.parameters())
