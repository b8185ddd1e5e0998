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


def versions() -> dict[str, str | None]:
    """Of what computes: this package, torch and transformers, as major.minor.patch; None for one that is not there."""
    return {
        "sparsed": _plain(sparsed.__version__),
        "torch": _installed("torch"),
        "transformers": _installed("transformers"),
    }


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
        "versions": versions(),
        **stretched(model.rope_factor),
    }


def stretched(rope_factor: float | None) -> dict[str, float]:
    """A rope_factor as a part of such a key: nothing for none, so that results of before it was there still count."""
    return {} if rope_factor in (None, 1) else {"rope_factor": float(rope_factor)}


def _installed(package: str) -> str | None:
    try:
        return _plain(version(package))
    except PackageNotFoundError:
        return None


def _plain(said: str) -> str:
    """Without what a build adds: 2.13.0 for 2.13.0+cpu."""
    found = re.match(r"\d+(\.\d+)*", said)
    return found[0] if found else said
