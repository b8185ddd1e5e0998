"""Block-sparse and dense attention by flash-attn-4 (CuTe kernels), where that package is installed.

flash-attn-4 walks a list of key blocks for each tile of query rows from its end to its start and masks absent keys
in the first one it meets only. So it takes our ascending lists as they are: the partly filled last
block, if kept, comes first. On Hopper its tiles are 128 × 128; on data centre Blackwell a sparse query block
covers two tiles, 256 rows, so that there only the dense forward serves us.

A kernel is compiled on its first use for a dtype, head_dim and group size, not again for another length or
pattern. FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 in the environment keeps compiled kernels on disk.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from sparsed.attention.pattern import BlockLists

BLOCK_SIZE = 128
_DTYPES = (torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 128  # beyond it the key tiles on Hopper are narrower than 128
_HOPPER, _BLACKWELL = (9,), (10, 11)


@cache
def _import_error() -> str | None:
    try:
        import_module("flash_attn.cute.interface")
        import_module("flash_attn.cute.block_sparsity")
    except ModuleNotFoundError as error:
        if error.name in ("flash_attn", "flash_attn.cute"):
            return "flash-attn-4 is not installed (pip install flash-attn-4)."
        return f"flash-attn-4 cannot be imported: {error}."
    except Exception as error:  # compiler libraries of another CUDA version fail in ways of their own
        return f"flash-attn-4 cannot be imported: {type(error).__name__}: {error}."
    return None


def unavailable(device: torch.device | str, *, sparse: bool = True) -> str | None:
    """None if this device can run `flash4_attention` (sparse=False: `dense`), else one sentence why not.

    Imports flash-attn-4 (some seconds, once) if the GPU is of a fitting generation.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip:
        return "flash-attn-4 needs an NVIDIA GPU."
    major, minor = torch.cuda.get_device_capability(device)
    if sparse and major in _BLACKWELL:
        return "flash-attn-4's sparse query blocks are 256 rows on Blackwell, not 128."
    if major not in _HOPPER + _BLACKWELL:
        return f"flash-attn-4 is for Hopper and data centre Blackwell, not for compute capability {major}.{minor}."
    return _import_error()


@torch.no_grad()
def flash4_attention(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float) -> Tensor:
    """A sparse backend (see `registry.SparseAttention`) for float16 or bfloat16 and a head_dim that is a multiple of 8
    up to 128, the last dimension contiguous. The result is a view of [batch, n, query_heads, head_dim].

    Raises ValueError for another block size than 128, another dtype or head_dim.
    """
    if lists.tile != BLOCK_SIZE:
        raise ValueError(f"The flash4 backend needs block_size {BLOCK_SIZE}, not {lists.tile}.")
    _check(q)
    out, _ = _forward(lists.into_tiles(q), k, v, scale, block_sparse_tensors=_tensors(lists), pack_gqa=False)
    return lists.out_of_tiles(out.transpose(1, 2))


@torch.no_grad()
def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Bidirectional attention over all keys; shapes, dtypes and errors as in `flash4_attention`."""
    _check(q)
    out, _ = _forward(q, k, v, scale)
    return out.transpose(1, 2)


@torch.no_grad()
def dense_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(`dense`, the natural logarithm of each row's sum of exp(scale · q·k): float32 [batch, query_heads, length])."""
    _check(q)
    out, lse = _forward(q, k, v, scale, return_lse=True)
    return out.transpose(1, 2), lse


def _check(q: Tensor) -> None:
    if q.dtype not in _DTYPES:
        raise ValueError(f"flash-attn-4 needs float16 or bfloat16, not {str(q.dtype).removeprefix('torch.')}.")
    dim = q.shape[-1]
    if dim > _MAX_HEAD_DIM or dim % 8:
        raise ValueError(f"flash-attn-4 needs a head_dim that is a multiple of 8 up to {_MAX_HEAD_DIM}, not {dim}.")


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, **options: Any) -> tuple[Tensor, Tensor]:
    """flash-attn-4 on [batch, length, heads, head_dim], which is how the model's projections lay it out."""
    function = import_module("flash_attn.cute.interface").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # It compiles for, and launches on, the current device.
    with torch.cuda.device(q.device):
        return function(q, k, v, softmax_scale=scale, **options)


def _tensors(lists: BlockLists) -> Any:
    """The lists as flash-attn-4 takes them; made on first use and kept with them."""
    if "flash4" not in lists.plans:
        tensors = import_module("flash_attn.cute.block_sparsity").BlockSparseTensorsTorch
        empty = lists.counts.new_zeros(1, 1, lists.counts.shape[-1])
        # The list of blocks with a mask function may not be absent, so it is empty.
        lists.plans["flash4"] = tensors(
            mask_block_cnt=empty,
            mask_block_idx=empty.unsqueeze(-1),
            full_block_cnt=lists.counts,
            full_block_idx=lists.indices,
            block_size=(BLOCK_SIZE, BLOCK_SIZE),
        )
    return lists.plans["flash4"]
