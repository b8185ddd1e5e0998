"""Which dtype is faster on this CPU? Some have bfloat16 units, others emulate it slowly."""

from __future__ import annotations

from time import perf_counter

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

# Roughly one layer of a small model at a thousand tokens.
_TOKENS, _WIDTH, _HIDDEN, _HEADS, _HEAD_DIM = 1024, 256, 512, 4, 64
_REPEATS = 3


def fastest_cpu_dtype() -> torch.dtype:
    """torch.float32, or torch.bfloat16 where a small matmul and attention are faster in it. About 0.1 s."""
    wide, narrow = _seconds(torch.float32), _seconds(torch.bfloat16)
    return torch.bfloat16 if narrow < wide else torch.float32


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """The best time of a few repeats, after one that does not count."""
    x = torch.ones(_TOKENS, _WIDTH, dtype=dtype)
    weight = torch.ones(_HIDDEN, _WIDTH, dtype=dtype)
    heads = torch.ones(1, _HEADS, _TOKENS, _HEAD_DIM, dtype=dtype)
    times = []
    for _ in range(1 + _REPEATS):
        start = perf_counter()
        linear(x, weight)
        scaled_dot_product_attention(heads, heads, heads)
        times.append(perf_counter() - start)
    return min(times[1:])
