"""Block-sparse attention in plain torch: gather the kept key and value blocks, dense attention over them.

Runs wherever torch runs. Query blocks that keep equally many keys form a rectangle [query blocks, keys],
so the fused dense attention of the device does the work, without a mask and without a score that nobody
asked for. The rectangle is worked off a few query blocks at a time: gathering everything at once costs
more in memory traffic than it saves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sparsed.attention.pattern import LayerPattern

# Bytes of gathered keys and values at a time. On a CPU each thread should find its share in the cache
# when it comes to read it; elsewhere a chunk only has to be large enough to fill the device and small
# enough to be no matter for memory.
_CPU_BYTES_PER_THREAD = 2 << 20
_DEVICE_BYTES = 256 << 20


class _Rectangle(NamedTuple):
    """Query blocks with equally many rows, kept blocks and keys; numbers run over batch, head and block."""

    queries: Tensor  # int64 [m]: query blocks, batch · query_heads · n of them
    numbers: list[int]  # the same, readable without asking the device
    blocks: Tensor  # int32 [m, count]: the key blocks of each, batch · key_heads · n of them
    rows: int
    keys: int


@torch.no_grad()
def gather_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: LayerPattern, scale: float, *, block_size: int
) -> Tensor:
    """Attention in which each query block sees only the key blocks that `pattern` keeps for it.

    q: [batch, query_heads, length, head_dim]; k, v: [batch, key_heads, length, head_dim], query_heads a
    multiple of key_heads; any strides. Returns [batch, query_heads, length, head_dim] in v's dtype; a query
    block that keeps nothing gives zeros. For inference: no gradient flows.
    """
    batch, heads, length, dim = q.shape
    blocks = -(-length // block_size)
    missing = blocks * block_size - length
    queries, keys, values = (
        pad(x, (0, 0, 0, missing)).view(-1, block_size, dim) if missing else x.reshape(-1, block_size, dim)
        for x in (q, k, v)
    )
    out = torch.zeros(batch * heads * blocks, block_size, dim, dtype=v.dtype, device=v.device)

    rectangles = _rectangles(pattern, k.shape[1], length, block_size)
    sizes = [_chunk_size(r, dim, k) for r in rectangles]
    # Buffers are reused from chunk to chunk: fresh memory has to be mapped page by page, which costs more
    # than the copy.
    slots = max((size * r.blocks.shape[1] for size, r in zip(sizes, rectangles)), default=0)
    key_buffer, value_buffer = (x.new_empty(slots, block_size, dim) for x in (k, v))
    for size, rectangle in zip(sizes, rectangles):
        rows, end = rectangle.rows, rectangle.keys
        target = out[:, :rows]
        first = 0
        for chosen, kept in zip(rectangle.queries.split(size), rectangle.blocks.split(size)):
            count, kept = len(chosen), kept.reshape(-1)
            key = torch.index_select(keys, 0, kept, out=key_buffer[: len(kept)]).view(count, 1, -1, dim)
            value = torch.index_select(values, 0, kept, out=value_buffer[: len(kept)]).view(count, 1, -1, dim)
            # Mostly the query blocks are neighbours, and need not be gathered.
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
    return out.view(batch, heads, blocks * block_size, dim)[:, :, :length]


def _chunk_size(rectangle: _Rectangle, dim: int, like: Tensor) -> int:
    """Query blocks to work on at a time."""
    cpu = like.device.type == "cpu"
    budget = _CPU_BYTES_PER_THREAD * torch.get_num_threads() if cpu else _DEVICE_BYTES
    most = budget // (2 * rectangle.keys * dim * like.element_size())
    return min(max(1, most), len(rectangle.numbers))


def _rectangles(pattern: LayerPattern, key_heads: int, length: int, block_size: int) -> list[_Rectangle]:
    """The pattern as rectangles; made on first use and kept with it: every later step needs the same."""
    name = ("gather", key_heads, length, block_size)
    if name not in pattern.plans:
        pattern.plans[name] = _make_rectangles(pattern, key_heads, length, block_size)
    return pattern.plans[name]


def _make_rectangles(pattern: LayerPattern, key_heads: int, length: int, block_size: int) -> list[_Rectangle]:
    batch, heads, blocks, _ = pattern.indices.shape
    missing = blocks * block_size - length
    indices, counts = pattern.indices.long(), pattern.counts.long()
    device = indices.device

    key_head = torch.arange(heads, device=device) // (heads // key_heads)
    first = (torch.arange(batch, device=device)[:, None] * key_heads + key_head) * blocks
    flat = (indices + first[:, :, None, None]).flatten(0, 2)
    if missing:
        short_keys = (indices == blocks - 1).any(-1)
        short_rows = torch.arange(blocks, device=device) == blocks - 1
        kind = counts * 4 + short_keys * 2 + short_rows
    else:
        kind = counts * 4
    kind = kind.flatten()

    rectangles = []
    for value in kind.unique().tolist():
        count, short_key, short_row = value // 4, value // 2 % 2, value % 2
        if count == 0:
            continue
        queries = (kind == value).nonzero()[:, 0]
        rectangles.append(
            _Rectangle(
                queries=queries,
                numbers=queries.tolist(),
                blocks=flat[queries, :count].to(torch.int32),
                rows=block_size - missing * short_row,
                keys=count * block_size - missing * short_key,
            )
        )
    return rectangles
