"""Block importance: the mean attention weight of every (query block, key block) pair (SparseD, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsed.attention.backends.registry import Problem

# Bytes of float32 scores at a time (at least one query block's rows). On a CPU they should stay in the
# cache from the product to the last sum; elsewhere they only have to be enough to fill the device.
_CPU_BYTES = 8 << 20
_DEVICE_BYTES = 512 << 20


@torch.no_grad()
def block_importance(q: Tensor, k: Tensor, scale: float, block_size: int) -> Tensor:
    """softmax(scale · q kᵀ) over all keys, averaged over the rows and columns of every block pair that exist.

    q: [batch, query_heads, length, head_dim]; k: [batch, key_heads, keys, head_dim], query_heads a
    multiple of key_heads (grouped-query attention); keys is mostly the length. Returns float32 [batch,
    query_heads, ceil(length / block_size), ceil(keys / block_size)]; scores, weights and means are float32
    whatever the dtype of q and k. The partly filled last block is averaged over the rows and columns it
    has. Memory: the result plus the scores of a few query blocks. A row of the result, each entry times the
    columns of its block, sums to 1.
    """
    batch, heads, length, _ = q.shape
    group = heads // k.shape[1]
    keys_length = k.shape[2]
    blocks, key_blocks = -(-length // block_size), -(-keys_length // block_size)
    padded = key_blocks * block_size
    budget = _CPU_BYTES if q.device.type == "cpu" else _DEVICE_BYTES
    at_once = min(blocks, max(1, budget // (4 * block_size * padded)))

    out = torch.empty(batch, heads, blocks, key_blocks, dtype=torch.float32, device=q.device)
    buffer = torch.empty(at_once * block_size, padded, dtype=torch.float32, device=q.device)
    for b in range(batch):
        for h in range(heads):
            if h % group == 0:
                keys = k[b, h // group].float().t().contiguous()
            for first in range(0, blocks, at_once):
                end = min(first + at_once, blocks)
                # exp2 is several times faster than exp on a CPU; its base goes into the scale.
                rows = q[b, h, first * block_size : end * block_size].float() * (scale * math.log2(math.e))
                weights = buffer[: len(rows)]
                torch.mm(rows, keys, out=weights[:, :keys_length])
                weights[:, keys_length:] = -torch.inf
                weights.sub_(weights.amax(-1, keepdim=True)).exp2_()
                sums = weights.view(-1, key_blocks, block_size).sum(-1)
                sums /= sums.sum(-1, keepdim=True)
                whole = len(rows) // block_size
                torch.mean(
                    sums[: whole * block_size].view(whole, block_size, key_blocks),
                    1,
                    out=out[b, h, first : first + whole],
                )
                if whole < end - first:
                    out[b, h, end - 1] = sums[whole * block_size :].mean(0)

    out[..., :-1] /= block_size
    out[..., -1] /= keys_length - (key_blocks - 1) * block_size
    return out


def fusible(problem: Problem, block_size: int) -> bool:
    """Can `fused_importance` run for such queries? Its kernels are compiled and its tiles chosen on the way."""
    if problem.device.type != "cuda" or problem.dtype not in (torch.bfloat16, torch.float16):
        return False
    # Of use on a GPU alone.
    from sparsed.attention.backends import triton

    if triton.unavailable(problem.device) is not None or problem.head_dim not in triton.HEAD_DIMS:
        return False
    try:
        triton.prepare_importance(problem, block_size)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a compiler can fail in any way it likes; `block_importance` needs none
        return False
    return True


def fused_importance(q: Tensor, k: Tensor, lse: Tensor, scale: float, block_size: int) -> Tensor:
    """`block_importance` in one pass on a GPU, given the rows' log-sum-exp; see `backends.triton.triton_importance`."""
    # Of use on a GPU alone.
    from sparsed.attention.backends.triton import triton_importance

    return triton_importance(q, k, lse, scale, block_size)
