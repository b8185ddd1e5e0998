"""What results depend on besides the settings of a run: weights, numbers, device, versions."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import sparsed
from sparsed.machine import dtype_name

if TYPE_CHECKING:
    import torch

    from sparsed.models.model import Model


def versions(quantize: str | None = None) -> dict[str, str | None]:
    """Of what computes: this package, torch and transformers, and torchao where it quantises, as major.minor.patch;
    None for one that is not there.
    """
    packages = ["torch", "transformers", *([] if quantize is None else ["torchao"])]
    return {"sparsed": _plain(sparsed.__version__), **{name: _installed(name) for name in packages}}


def device_name(device: torch.device) -> str:
    """The kind of a device, and of a CUDA device which GPU it is: "cpu", "cuda (NVIDIA H200)"."""
    if device.type != "cuda":
        return device.type
    import torch  # as in `sparsed.machine`: versions are told without it

    return f"cuda ({torch.cuda.get_device_name(device)})"


def origin_of(model: Model) -> dict[str, Any]:
    """What every result of a loaded model depends on, as plain values for JSON."""
    return {
        "weights": model.fingerprint(),
        "dtype": dtype_name(model.dtype),
        "device": device_name(model.device),
        "processes of one model": model.processes,
        "versions": versions(model.quantize),
        **changes(model.rope_factor, model.quantize),
    }


def changes(rope_factor: float | None, quantize: str | None) -> dict[str, Any]:
    """What changes a model as it is loaded, as a part of such a key: nothing for none of it, so that results of before
    it was there still count.
    """
    stretched = {} if rope_factor in (None, 1) else {"rope_factor": float(rope_factor)}
    return {**stretched, **({} if quantize is None else {"quantize": quantize})}


def _installed(package: str) -> str | None:
    try:
        return _plain(version(package))
    except PackageNotFoundError:
        return None


def _plain(said: str) -> str:
    """Without what a build adds: 2.13.0 for 2.13.0+cpu."""
    found = re.match(r"\d+(\.\d+)*", said)
    return found[0] if found else said
