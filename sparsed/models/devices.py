"""Which device a model runs on, and in which numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from sparsed.machine import device_memory, dtype_name
from sparsed.models import LoadError
from sparsed.models.hub import GB
from sparsed.models.numbers import QUANTISED, numbers, weight_bytes
from sparsed.models.probe import fastest_cpu_dtype

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# How accelerate spreads a model by itself.
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA, else MPS, else the CPU. Raises ValueError for one that is not there."""
    if device is not None:
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:1' or 'mps', not {device!r}.") from error
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (place.index or 0) >= there.get(place.type, 1):
            raise ValueError(f"There is no device {str(place)!r} on this machine.")
        if place.type == "cuda" and place.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return place
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_device_map(device_map: str | Mapping[str, Any] | None) -> None:
    """Raises ValueError for a device map that is neither a strategy of accelerate's nor made of devices that are
    there ("disk" among them).
    """
    parts = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    for part in parts:
        if part is None or part == "disk" or (isinstance(device_map, str) and device_map in _STRATEGIES):
            continue
        try:
            pick_device(f"cuda:{part}" if isinstance(part, int) else part)
        except ValueError as error:
            if not isinstance(device_map, str) or str(error).startswith("There is no device"):
                raise
            raise ValueError(
                f"device_map must be one of {', '.join(_STRATEGIES)} or a device such as 'cpu' and 'cuda:1', not "
                f"{device_map!r}."
            ) from error


def can_fuse(device: torch.device) -> bool:
    """Is torch.compile worth trying: on CUDA, and not on a ZeroGPU Space, whose GPU comes and goes."""
    return device.type == "cuda" and not os.environ.get("SPACES_ZERO_GPU")


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of that name, None for None. Raises ValueError for another than DTYPES."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and chosen not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return chosen


def pick_dtype(
    dtype: torch.dtype | None,
    device: torch.device,
    parameters: int,
    label: str,
    quantize: str | None = None,
    kept: int = 0,
) -> torch.dtype:
    """The dtype asked for, else the device's best, for so many parameters, of which so many are kept in it where the
    others are quantised (0: none can be). Raises LoadError if they do not fit.
    """
    free = device_memory(device.type, device.index)
    if dtype is None:
        if device.type == "cuda" and quantize == "fp8":
            dtype = torch.bfloat16  # what it computes beside
        elif device.type == "cuda":
            dtype = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        elif device.type == "cpu":
            roomy = free is None or weight_bytes(parameters, kept, 4, quantize) <= free
            dtype = fastest_cpu_dtype() if roomy else torch.bfloat16
        else:
            dtype = torch.float32
    needed = weight_bytes(parameters, kept, dtype.itemsize, quantize)
    if free is not None and needed > free:
        place = "this machine" if device.type == "cpu" else "the GPU"
        raise LoadError(
            f"{label} needs {needed / GB:.1f} GB of memory for its weights in "
            f"{numbers(dtype_name(dtype), quantize)}; "
            f"{place} has {free / GB:.1f} GB free. {_advice(parameters, free, quantize, kept)}"
        )
    return dtype


def _advice(parameters: int, free: int, quantize: str | None, kept: int) -> str:
    """What to do where weights do not fit; as in `pick_dtype`."""
    if quantize is not None:
        return "Choose a smaller model."
    if 2 * parameters <= free:
        return f"In bfloat16 (dtype='bfloat16', --dtype bfloat16) they need {2 * parameters / GB:.1f} GB, which fit."
    sizes = {kind: weight_bytes(parameters, kept, 2, kind) for kind in QUANTISED if kept}
    for kind, size in sizes.items():
        if size <= free:
            return f"In {kind} (quantize={kind!r}, --quantize {kind}) they need {size / GB:.1f} GB, which fit."
    return "Choose a smaller model, or spread it with device_map='auto'."
