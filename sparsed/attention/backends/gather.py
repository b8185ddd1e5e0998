"""Block-sparse attention in plain torch: gather the kept key and value blocks, dense attention over them.

Runs wherever torch runs. Query tiles with equally many rows that keep equally many keys form a rectangle [tiles,
keys], so the fused dense attention of the device does the work, without a mask and without a score that nobody
asked for. The rectangle is worked off a few tiles at a time: gathering everything at once costs more in memory
traffic than it saves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sparsed.attention.pattern import BlockLists

# Bytes of gathered keys and values at a time. On a CPU each thread should find its share in the cache
# when it comes to read it; elsewhere a chunk only has to be large enough to fill the device and small
# enough to be no matter for memory.
_CPU_BYTES_PER_THREAD = 2 << 20
_DEVICE_BYTES = 256 << 20


class _Rectangle(NamedTuple):
    """Query tiles with equally many rows, kept blocks and keys; numbers run over batch, head and tile or block."""

    queries: Tensor  # int64 [m]: query tiles, of batch · query_heads · tiles
    numbers: list[int]  # the same, readable without asking the device
    blocks: Tensor  # int32 [m, count]: the key blocks of each, of batch · key_heads · key_blocks
    rows: int
    keys: int


@torch.no_grad()
def gather_attention(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float) -> Tensor:
    """A sparse backend (see `registry.SparseAttention`) for any block size and strides."""
    q = lists.into_tiles(q)
    batch, heads, length, dim = q.shape
    queries, keys, values = (_tiled(x, lists.tile) for x in (q, k, v))
    out = torch.zeros(queries.shape, dtype=v.dtype, device=v.device)

    rectangles = _rectangles(lists, k.shape[1])
    sizes = [_chunk_size(r, dim, k) for r in rectangles]
    # Buffers are reused from chunk to chunk: fresh memory has to be mapped page by page, which costs more
    # than the copy.
    slots = max((size * r.blocks.shape[1] for size, r in zip(sizes, rectangles)), default=0)
    key_buffer, value_buffer = (x.new_empty(slots, lists.tile, dim) for x in (k, v))
    for size, rectangle in zip(sizes, rectangles):
        rows, end = rectangle.rows, rectangle.keys
        target = out[:, :rows]
        first = 0
        for chosen, kept in zip(rectangle.queries.split(size), rectangle.blocks.split(size)):
            count, kept = len(chosen), kept.reshape(-1)
            key = torch.index_select(keys, 0, kept, out=key_buffer[: len(kept)]).view(count, 1, -1, dim)
            value = torch.index_select(values, 0, kept, out=value_buffer[: len(kept)]).view(count, 1, -1, dim)
            # Mostly the tiles are neighbours, and need not be gathered.
            low, high = rectangle.numbers[first], rectangle.numbers[first + count - 1] + 1
            together = high - low == count
            query = queries[low:high] if together else queries.index_select(0, chosen)
            # The partly filled last block sorts last, so its absent keys are a tail to cut off.
            seen = scaled_dot_product_attention(
                query[:, None, :rows], key[:, :, :end], value[:, :, :end], scale=scale
            )[:, 0]
            if together:
                target[low:high] = seen
            else:
                target.index_copy_(0, chosen, seen)
            first += count
    return lists.out_of_tiles(out.view(batch, heads, -1, dim)[:, :, :length])


def _tiled(x: Tensor, tile: int) -> Tensor:
    """[batch, heads, length, head_dim] as [batch · heads · tiles, tile, head_dim], the last tile filled with zeros."""
    missing = -x.shape[2] % tile
    return (pad(x, (0, 0, 0, missing)) if missing else x).reshape(-1, tile, x.shape[-1])


def _chunk_size(rectangle: _Rectangle, dim: int, like: Tensor) -> int:
    """Query tiles to work on at a time."""
    cpu = like.device.type == "cpu"
    budget = _CPU_BYTES_PER_THREAD * torch.get_num_threads() if cpu else _DEVICE_BYTES
    most = budget // (2 * rectangle.keys * dim * like.element_size())
    return min(max(1, most), len(rectangle.numbers))


def _rectangles(lists: BlockLists, key_heads: int) -> list[_Rectangle]:
    """The lists as rectangles; made on first use and kept with them: every later step needs the same."""
    name = ("gather", key_heads)
    if name not in lists.plans:
        lists.plans[name] = _make_rectangles(lists, key_heads)
    return lists.plans[name]


def _make_rectangles(lists: BlockLists, key_heads: int) -> list[_Rectangle]:
    batch, heads, _, _ = lists.indices.shape
    indices, device, tile = lists.indices.long(), lists.indices.device, lists.tile
    key_head = torch.arange(heads, device=device) // (heads // key_heads)
    first = (torch.arange(batch, device=device)[:, None] * key_heads + key_head) * lists.key_blocks
    flat = (indices + first[:, :, None, None]).flatten(0, 2)

    keys = lists.counts.long() * tile
    keys -= (indices == lists.key_blocks - 1).any(-1) * lists.missing_keys
    kind = (keys * (tile + 1) + lists.tile_rows[:, None]).flatten()
    rectangles = []
    for value in kind.unique().tolist():
        seen, rows = divmod(value, tile + 1)
        if seen == 0:
            continue
        queries = (kind == value).nonzero()[:, 0]
        chosen = flat[queries, : -(-seen // tile)].to(torch.int32)
        rectangles.append(_Rectangle(queries, queries.tolist(), chosen, rows, seen))
    return rectangles
