"""Attention of few query rows, as a generation's, to all keys: the fastest that this machine has.

Each implementation is given the query heads of a key head as further rows of it, [batch, key_heads, group · n,
head_dim], so that no key is repeated. "split" is our own kernel (`few_rows_kernels`), which splits the keys; the others
are those of `dense`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from sparsed.attention.backends import dense
from sparsed.attention.backends.dense import Attend, DenseAttention
from sparsed.attention.backends.registry import Problem
from sparsed.attention.backends.triton import (
    DTYPES,
    HEAD_DIMS,
    LOG2_E,
    MERGED,
    Tiles,
    contiguous_heads,
    fastest_tiles,
    has_tma,
    on_device,
    slots,
    splits,
    tile_descriptor,
    unavailable,
)


def folded(attend: Attend, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`attend`, the query heads of a key head being rows of one head. Shapes as in `DenseAttention`."""
    batch, heads, n, dim = q.shape
    rows = q.reshape(batch, k.shape[1], heads // k.shape[1] * n, dim)
    return attend(rows, k, v, scale).reshape(q.shape)


def _folding(one: DenseAttention) -> DenseAttention:
    return DenseAttention(one.name, partial(folded, one.attend))


SDPA = _folding(dense.SDPA)


def choices(device: torch.device, dtype: torch.dtype) -> tuple[DenseAttention, ...]:
    """What there is for a device and a dtype; some of it may fail on a shape."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return (SDPA,)
    split = () if unavailable(device) else (SPLIT,)
    return (*map(_folding, dense.choices(device)), *split)


def pick(name: str, problem: Problem, rows: int) -> DenseAttention:
    """For "auto" the fastest for so many rows of each query head, tried out once; else the dense implementation of that
    name.
    """
    return fastest(*kind_of(problem, rows)) if name == "auto" else named(name, problem.device)


def named(name: str, device: torch.device) -> DenseAttention:
    """The implementation of a name that `pick` gave."""
    return SPLIT if name == "split" else _folding(dense.named(name, device))


def kind_of(problem: Problem, rows: int) -> tuple[Problem, int]:
    """A problem that stands for all those which have the same implementation fastest: keys a power of two, rows as
    `rows_kind` says.
    """
    return replace(problem, length=2 ** round(math.log2(problem.length))), rows_kind(rows)


def rows_kind(rows: int) -> int:
    """A number of rows that stands for those like it: 16 or a multiple of 32, up to 1024."""
    return 16 if rows <= 16 else min(-(-rows // 32) * 32, 1024)


@lru_cache(maxsize=64)
def fastest(problem: Problem, rows: int) -> DenseAttention:
    """The fastest implementation for a `kind_of` problem; where there is a choice, tried out once."""
    given = choices(problem.device, problem.dtype)
    if len(given) == 1:
        return given[0]
    q, k, v = _trial(problem, rows)
    return dense.quickest(given, q, k, v, cold=True) or SDPA


def _trial(problem: Problem, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values as a model lays them out, each in memory of its own: reading it is the work."""
    generator = torch.Generator(problem.device).manual_seed(0)

    def normal(n: int, heads: int) -> Tensor:
        shape = (problem.batch, n, heads, problem.head_dim)
        return torch.randn(
            shape, dtype=problem.dtype, device=problem.device, generator=generator
        ).transpose(1, 2)

    keys = (problem.length, problem.key_heads)
    return normal(rows, problem.heads), normal(*keys), normal(*keys)


# By rows of a tile: the first fits on every GPU from Ampere on.
_TILES = {
    16: (Tiles(16, 64, 4, 2), Tiles(16, 64, 4, 3), Tiles(16, 128, 4, 2)),
    32: (Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 3)),
    64: (Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 128, 4, 2)),
    128: (Tiles(128, 64, 4, 2), Tiles(128, 64, 4, 3), Tiles(128, 128, 8, 2), Tiles(64, 64, 4, 3)),
}
_FLOAT32 = {16: Tiles(16, 32, 4, 2), 32: Tiles(32, 32, 4, 2)}


def split_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """[batch, query_heads, n, head_dim], laid out as [batch, n, query_heads, head_dim]; shapes as in `DenseAttention`,
    any strides. For inference: no gradient flows.

    Raises ValueError for another dtype than bfloat16, float16, float32 or head_dim than 32, 64, 128.
    """
    batch, heads, n, dim = q.shape
    if dim not in HEAD_DIMS or q.dtype not in DTYPES:
        raise ValueError(f"The split over keys takes head_dim 32, 64 or 128, not {dim} in {q.dtype}.")
    q, k, v = (contiguous_heads(x) for x in (q, k, v))
    problem = Problem(q.device, q.dtype, batch, heads, k.shape[1], k.shape[2], dim)
    tiles = _tiles(*kind_of(problem, n))
    return _attend(q, k, v, scale, tiles, _splits_here(q, k, tiles))


SPLIT = DenseAttention("split", split_attention)


def _splits_here(q: Tensor, k: Tensor, tiles: Tiles) -> int:
    folded_rows = q.shape[1] // k.shape[1] * q.shape[2]
    work = -(-folded_rows // tiles.m) * len(k) * k.shape[1]
    return splits(work, -(-k.shape[2] // tiles.n), slots(q.device))


@lru_cache(maxsize=256)
def _tiles(problem: Problem, rows: int) -> Tiles:
    """The tiles for a `kind_of` problem; on a GPU tried out once."""
    folded_rows = problem.heads // problem.key_heads * rows
    if problem.dtype == torch.float32:
        return _FLOAT32[16 if folded_rows <= 16 else 32]
    fitting = next((rows for rows in _TILES if folded_rows <= rows), max(_TILES))
    if problem.device.type != "cuda":
        return _TILES[fitting][0]
    q, k, v = _trial(problem, rows)
    scale = problem.head_dim**-0.5
    return fastest_tiles(
        problem.device,
        _TILES[fitting],
        lambda tiles: _attend(q, k, v, scale, tiles, _splits_here(q, k, tiles)),
        cold=True,
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, tiles: Tiles, count: int) -> Tensor:
    """Both kernels, with at most `count` stretches."""
    # It brings Triton.
    from sparsed.attention.backends.few_rows_kernels import attend_stretch, merge_stretches

    batch, heads, n, dim = q.shape
    key_heads, length = k.shape[1:3]
    group, rows = heads // key_heads, batch * heads * n
    stretch = -(-length // (tiles.n * count)) * tiles.n
    count = -(-length // stretch)
    mixed = torch.empty(count, rows, dim, dtype=torch.float32, device=q.device)
    top, total = torch.empty(2, count, rows, dtype=torch.float32, device=q.device)
    out = torch.empty(batch, n, heads, dim, dtype=v.dtype, device=q.device)
    tma = has_tma(k, v)
    given = (tile_descriptor(k, tiles.n), tile_descriptor(v, tiles.n)) if tma else (k, v)
    with on_device(q.device):
        attend_stretch[(-(-group * n // tiles.m), count, batch * key_heads)](
            q, *given, mixed, top, total, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            key_heads, group, n, length, stretch, scale * LOG2_E,
            M=tiles.m, N=tiles.n, D=dim, TMA=tma, STAGES=tiles.stages, num_warps=tiles.warps,
        )  # fmt: skip
        merge_stretches[(rows,)](mixed, top, total, out, rows, heads, n, count, S=MERGED, D=dim)
    return out.transpose(1, 2)
