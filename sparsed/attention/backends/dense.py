"""Dense attention: the fastest that this machine has, for the dense steps of every lane."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsed.attention.backends.registry import Problem
from sparsed.attention.backends.timing import device_milliseconds

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
AttendWithLse = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DenseAttention:
    """One implementation of bidirectional attention over all keys.

    attend: (q, k, v, scale) → [batch, query_heads, n, head_dim]. with_lse: the same and each row's log-sum-exp of
    scale · q kᵀ, float32 [batch, query_heads, n]; None where the implementation does not give it. q: [batch,
    query_heads, n, head_dim]; k, v: [batch, key_heads, length, head_dim], query_heads a multiple of key_heads.
    """

    name: str
    attend: Attend
    with_lse: AttendWithLse | None = None


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's scaled_dot_product_attention, whichever kernel it picks."""
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=k.shape[1] != q.shape[1])


SDPA = DenseAttention("sdpa", dense_attention)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float, lse: bool) -> tuple[Tensor, Tensor]:
    k, v = _repeated(k, q), _repeated(v, q)
    result: Any = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, lse, 0.0, False, False, scale=scale
    )
    return result[0], result[1]


def _cudnn_attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return _cudnn(q, k, v, scale, False)[0]


def _cudnn_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _cudnn(q, k, v, scale, True)
    return out, lse.reshape(q.shape[:-1])


def _flash_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    result: Any = torch.ops.aten._scaled_dot_product_flash_attention(
        q, _repeated(k, q), _repeated(v, q), 0.0, False, False, scale=scale
    )
    return result[0], result[1].reshape(q.shape[:-1])


def _flash_attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return _flash_with_lse(q, k, v, scale)[0]


CUDNN = DenseAttention("cudnn", _cudnn_attend, _cudnn_with_lse)
FLASH = DenseAttention("flash", _flash_attend, _flash_with_lse)


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    """One key head for each query head; no copy where there is one already."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


NAMES = ("sdpa", "cudnn", "flash", "flash4")


def check(name: str, device: torch.device) -> None:
    """Raises ValueError for a name that is none of "auto" and NAMES, or cannot run on the device."""
    if name not in ("auto", *NAMES):
        raise ValueError(f"dense_backend must be 'auto' or one of {', '.join(map(repr, NAMES))}, not {name!r}.")
    if name in ("auto", "sdpa"):
        return
    if device.type != "cuda":
        raise ValueError(f"The dense backend {name!r} needs a CUDA GPU, not {device.type}.")
    if name == "flash4" and not _flash4(device):
        # Of use on some GPUs alone.
        from sparsed.attention.backends import flash4

        raise ValueError(f"The dense backend 'flash4' cannot run here: {flash4.unavailable(device, sparse=False)}")


def pick(name: str, problem: Problem) -> DenseAttention:
    """The implementation of that name; for "auto" the fastest."""
    return fastest(problem) if name == "auto" else named(name, problem.device)


def named(name: str, device: torch.device) -> DenseAttention:
    """The implementation of that name, which is one of NAMES and can run on the device."""
    return next(one for one in (SDPA, *choices(device)) if one.name == name)


def choices(device: torch.device) -> tuple[DenseAttention, ...]:
    """What may run on a CUDA device in 16 bits; some of it may fail there."""
    return CUDNN, FLASH, *_flash4(device)


@lru_cache(maxsize=64)
def fastest(problem: Problem) -> DenseAttention:
    """The fastest implementation for this shape on this device, tried out once; on a CPU what torch picks."""
    device, dtype, head_dim = problem.device, problem.dtype, problem.head_dim
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return SDPA
    rows = (problem.batch, problem.length)
    q = torch.randn(*rows, problem.heads, head_dim, dtype=dtype, device=device).transpose(1, 2)
    k = torch.randn(*rows, problem.key_heads, head_dim, dtype=dtype, device=device).transpose(1, 2)
    return quickest(choices(device), q, k, k) or SDPA


def quickest(
    given: Iterable[DenseAttention], q: Tensor, k: Tensor, v: Tensor, *, cold: bool = False
) -> DenseAttention | None:
    """The one that attends fastest, those that fail left out; None if all do. cold: as in `device_milliseconds`."""
    times: dict[DenseAttention, float] = {}
    for choice in given:
        try:
            work = partial(choice.attend, q, k, v, q.shape[-1] ** -0.5)
            times[choice] = device_milliseconds(q.device, work, cold=cold)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # not built into this torch, not for this GPU or shape, or a compiler fails
            continue
    return min(times, key=lambda choice: times[choice]) if times else None


def _flash4(device: torch.device) -> tuple[DenseAttention, ...]:
    """flash-attn-4's dense forward, where it is installed."""
    # Of use on some GPUs alone.
    from sparsed.attention.backends import flash4

    if flash4.unavailable(device, sparse=False) is not None:
        return ()
    return (DenseAttention("flash4", flash4.dense, flash4.dense_with_lse),)
