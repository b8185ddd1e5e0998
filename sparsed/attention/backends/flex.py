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

from sparsed.attention.pattern import BlockLists

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
def flex_attention(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float) -> Tensor:
    """A sparse backend (see `registry.SparseAttention`).

    On a GPU the kernel is compiled on its first use for a shape. On a CPU nothing is compiled and every score is
    computed: right, but of use for checking only.

    Raises ValueError for a block size that does not divide 128.
    """
    if TILE % lists.tile:
        raise ValueError(f"The flex backend needs a block_size that divides {TILE}, not {lists.tile}.")
    q = lists.into_tiles(q)
    if "flex" not in lists.plans:
        lists.plans["flex"] = _block_mask(lists, q.shape[2])
    shape = (q.device, q.dtype, *q.shape, *k.shape[1:3], lists.tile, lists.indices.shape[-1])
    attend = _compiled(shape) if q.is_cuda else _attend
    return lists.out_of_tiles(attend(q, k, v, lists.plans["flex"], scale))


def executed_density(lists: BlockLists) -> float:
    """The share of tiles that Flex visits, of all tiles of dense attention, 0 … 1.

    At block size 128 it is the requested density.
    """
    visited, _ = _tiles(lists)
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


def _tiles(lists: BlockLists) -> tuple[Tensor, Tensor]:
    """Flex's tiles with any block kept, and those kept in full; bool [batch, query_heads, query tiles, key tiles]."""
    kept, ratio = lists.mask(), TILE // lists.tile
    rows, columns = kept.shape[-2:]
    parts = pad(kept, (0, -columns % ratio, 0, -rows % ratio)).unflatten(-1, (-1, ratio)).unflatten(-3, (-1, ratio))
    full = parts.all(-1).all(-2)
    if lists.key_length % TILE:
        full[..., -1] = False
    return parts.any(-1).any(-2), full


def _block_mask(lists: BlockLists, rows: int) -> torch_flex.BlockMask:
    """The lists as Flex's BlockMask for so many query rows, those of padded tiles included.

    Tiles that lie wholly inside the pattern and the sequence are full; for the others Flex asks the mask
    function about every score.
    """
    table, block_size, length = lists.mask(), lists.tile, lists.key_length

    def keeps(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return table[b, h, row // block_size, column // block_size]

    if block_size == TILE:
        # The lists as they are. They ascend, so a partly filled last block, the only one that is not full,
        # stands at their end and is cut off by its count.
        last = lists.key_blocks - 1
        counts = table[..., last].int() if length % TILE else torch.zeros_like(lists.counts)
        full_counts, full_lists = lists.counts - counts, lists.indices
        partial_lists = torch.full_like(full_lists, last)  # torch 2.11 reads both lists by the strides of one
    else:
        visited, full = _tiles(lists)
        counts, partial_lists = _listed(visited & ~full)
        full_counts, full_lists = _listed(full)
    return torch_flex.BlockMask.from_kv_blocks(
        counts,
        partial_lists,
        full_counts,
        full_lists,
        BLOCK_SIZE=TILE,
        mask_mod=keeps,
        seq_lengths=(rows, length),
        compute_q_blocks=False,  # for the backward pass only
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """A bool matrix as (entries that are True in each row, their columns first in ascending order), both int32."""
    return tiles.sum(-1, dtype=torch.int32), tiles.int().argsort(dim=-1, descending=True, stable=True).int()
