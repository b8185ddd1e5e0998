"""Block-sparse attention by torch's FlexAttention, the paper's choice; here for comparison.

Flex visits or skips tiles of 128 × 128 scores. Smaller attention blocks are therefore laid over its tiles: a
tile is visited if any of its blocks is kept, and what nobody asked for is computed and masked. At block size 32
nearly every tile is visited, so that little is skipped; `executed_density` says how little.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.functional import pad

from sparsed.attention.pattern import BlockLayout, LayerPattern

TILE = 128


def unavailable(device: torch.device | str) -> str | None:
    """None if FlexAttention can be compiled for this device, else one sentence why not."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return "The flex backend needs a CUDA or ROCm GPU."
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"FlexAttention needs Triton, which cannot be imported: {error}."
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "FlexAttention needs a GPU of compute capability 8.0 or higher."
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "FlexAttention needs a C compiler (cc, gcc or clang) to build Triton's launchers."
    return None


@torch.no_grad()
def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: LayerPattern, scale: float, *, block_size: int
) -> Tensor:
    """Attention in which each query block sees only the key blocks that `pattern` keeps for it.

    q: [batch, query_heads, length, head_dim]; k, v: [batch, key_heads, length, head_dim], query_heads a
    multiple of key_heads. Returns [batch, query_heads, length, head_dim] in v's dtype; a query block that keeps
    nothing gives zeros. On a GPU the kernel is compiled on its first use for a shape. On a CPU nothing is
    compiled and every score is computed: right, but of use for checking only. For inference: no gradient flows.

    Raises ValueError for a block size that does not divide 128.
    """
    if TILE % block_size:
        raise ValueError(f"The flex backend needs a block_size that divides {TILE}, not {block_size}.")
    name = ("flex", q.shape[2], block_size)
    if name not in pattern.plans:
        pattern.plans[name] = _block_mask(pattern, q.shape[2], block_size)
    mask, shape = pattern.plans[name], (q.device, q.dtype, *q.shape, k.shape[1], block_size, pattern.kept)
    attend = _compiled(shape) if q.is_cuda else _attend
    return attend(q, k, v, mask, scale)


def executed_density(pattern: LayerPattern, layout: BlockLayout) -> float:
    """The share of tiles that Flex visits, of all tiles of dense attention, 0 … 1.

    At block size 128 it is the requested density.
    """
    visited, _ = _tiles(pattern, layout.length, layout.block_size)
    return float(visited.float().mean())


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: torch_flex.BlockMask, scale: float) -> Tensor:
    grouped = k.shape[1] != q.shape[1]
    return torch_flex.flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)


@lru_cache(maxsize=64)
def _compiled(shape: tuple[Any, ...]) -> Callable[..., Tensor]:
    """`_attend` compiled for one shape.

    torch counts recompilations by code object and stops compiling after eight: each shape has its own.
    """
    own = FunctionType(_attend.__code__.replace(), globals(), "_attend")
    return torch.compile(own, fullgraph=True, dynamic=False)


def _tiles(pattern: LayerPattern, length: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Tiles with any block kept, and tiles kept in full; bool [batch, query_heads, tiles, tiles]."""
    kept, ratio = pattern.mask(), TILE // block_size
    missing = -kept.shape[-1] % ratio
    parts = pad(kept, (0, missing, 0, missing)).unflatten(-1, (-1, ratio)).unflatten(-3, (-1, ratio))
    full = parts.all(-1).all(-2)
    if length % TILE:
        full[..., -1] = False
    return parts.any(-1).any(-2), full


def _block_mask(pattern: LayerPattern, length: int, block_size: int) -> torch_flex.BlockMask:
    """The pattern as Flex's BlockMask.

    Tiles that lie wholly inside the pattern and the sequence are full; for the others Flex asks the mask
    function about every score.
    """
    table = pattern.mask()

    def keeps(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return table[b, h, row // block_size, column // block_size]

    if block_size == TILE:
        # The pattern's own lists. They ascend, so a partly filled last block, the only one that is not full,
        # stands at their end and is cut off by its count.
        last = pattern.counts.shape[-1] - 1
        counts = table[..., last].int() if length % TILE else torch.zeros_like(pattern.counts)
        full_counts, full_lists = pattern.counts - counts, pattern.indices.contiguous()
        lists = torch.full_like(full_lists, last)  # torch 2.11 reads both lists by the strides of one
    else:
        visited, full = _tiles(pattern, length, block_size)
        counts, lists = _listed(visited & ~full)
        full_counts, full_lists = _listed(full)
    return torch_flex.BlockMask.from_kv_blocks(
        counts,
        lists,
        full_counts,
        full_lists,
        BLOCK_SIZE=TILE,
        mask_mod=keeps,
        seq_lengths=(length, length),
        compute_q_blocks=False,  # for the backward pass only
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """A bool matrix as (entries that are True in each row, their columns first in ascending order), both int32."""
    return tiles.sum(-1, dtype=torch.int32), tiles.int().argsort(dim=-1, descending=True, stable=True).int()
