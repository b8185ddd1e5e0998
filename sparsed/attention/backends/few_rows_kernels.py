# mypy: ignore-errors
"""Triton kernels: attention of few query rows to all keys or to listed key blocks, split over stretches of them.

A tile of rows and a stretch of keys are one program's work, so that few rows fill a GPU too. Each gives the sums of an
online softmax over its stretch; a second kernel merges those of a row's stretches. The query heads of a key head are
folded into rows, so that its keys are read once for a tile of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsed.attention.backends.triton_kernels import listed_tile, take_in, take_in_part


# What varies from step to step is not specialised for: a run never waits for a compiler in between.
@triton.jit(do_not_specialize=["key_heads", "group", "n", "length", "stretch"])
def attend_stretch(
    Q, K, V, Mixed, Top, Total,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    key_heads, group, n, length, stretch, scale,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of each row over one stretch of the keys, s = scale · Q Kᵀ: Top = max s, Total = Σ 2^(s − Top), and
    Mixed = Σ 2^(s − Top) V.

    Grid: (tiles of M of the group · n folded rows, stretches, batch · key_heads). Mixed: float32 [stretches, batch ·
    query_heads · n, D]; Top, Total: float32 [stretches, batch · query_heads · n]; apart, because their logarithm's sum
    would round where scores are large. stretch: keys of each but the last, which has at least one; a multiple of N.
    scale: times log2(e), above 0.
    """
    split, which = tl.program_id(1), tl.program_id(2)
    batch, key_head = which // key_heads, which % key_heads
    folded = tl.program_id(0) * M + tl.arange(0, M)
    there = folded < group * n
    column = tl.arange(0, D)
    row = (key_head * group + folded // n).to(tl.int64) * q_head + (folded % n).to(tl.int64) * q_row
    q = tl.load(Q + batch.to(tl.int64) * q_batch + row[:, None] + column[None, :], mask=there[:, None], other=0.0)
    if not TMA:
        K += batch.to(tl.int64) * k_batch + key_head.to(tl.int64) * k_head
        V += batch.to(tl.int64) * v_batch + key_head.to(tl.int64) * v_head

    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, D], tl.float32)
    first = split * stretch
    end = tl.minimum(first + stretch, length)
    whole = (end - first) // N
    for t in tl.range(0, whole, num_stages=STAGES):
        start = first + t * N
        if TMA:
            k = K.load([batch, key_head, start, 0]).reshape(N, D)
            v = V.load([batch, key_head, start, 0]).reshape(N, D)
        else:
            key = (start + tl.arange(0, N)).to(tl.int64)
            k = tl.load(K + key[:, None] * k_row + column[None, :])
            v = tl.load(V + key[:, None] * v_row + column[None, :])
        top, total, mixed = take_in(tl.dot(q, k.T, input_precision="ieee"), v, top, total, mixed, scale)
    start = first + whole * N
    if start < end:
        # The last keys of the last stretch.
        key = start + tl.arange(0, N)
        seen = key < end
        if TMA:
            k = K.load([batch, key_head, start, 0]).reshape(N, D)
            v = V.load([batch, key_head, start, 0]).reshape(N, D)
        else:
            k = tl.load(K + key[:, None].to(tl.int64) * k_row + column[None, :], mask=seen[:, None], other=0.0)
            v = tl.load(V + key[:, None].to(tl.int64) * v_row + column[None, :], mask=seen[:, None], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, k.T, input_precision="ieee"), -float("inf"))
        top, total, mixed = take_in(scores, v, top, total, mixed, scale)

    place = (split * tl.num_programs(2) + which).to(tl.int64) * group * n + folded
    tl.store(Mixed + place[:, None] * D + column[None, :], mixed, mask=there[:, None])
    tl.store(Top + place, top, mask=there)
    tl.store(Total + place, total, mask=there)


@triton.jit(do_not_specialize=["heads", "group", "tiles", "length", "slots", "stretch", "rows_batch"])
def attend_listed_stretch(
    Q, K, V, Mixed, Top, Total, Index, Count, Rows,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, group, tiles, length, slots, stretch, rows_batch, scale,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As `attend_stretch`, over a stretch of the key blocks listed for each tile of BLOCK query rows.

    Grid: (M rows at a time of all tiles · BLOCK places, stretches, batch · heads). Index: int32 [batch · heads, tiles,
    slots], ascending; Count: int32 [batch · heads, tiles]; Rows: int64 [1 or batch, tiles], how many places of a tile,
    at its start, hold a row; of M places without any, nothing is written. stretch: slots of each. N divides BLOCK.
    """
    split, which = tl.program_id(1), tl.program_id(2)
    batch, head = which // heads, which % heads
    key_head = head // group
    first_row = tl.program_id(0) * M
    tile = first_row // BLOCK
    if first_row % BLOCK < tl.load(Rows + batch * rows_batch + tile):
        row = first_row + tl.arange(0, M)
        column = tl.arange(0, D)
        Q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
        q = tl.load(Q + row[:, None].to(tl.int64) * q_row + column[None, :])
        if not TMA:
            K += batch.to(tl.int64) * k_batch + key_head.to(tl.int64) * k_head
            V += batch.to(tl.int64) * v_batch + key_head.to(tl.int64) * v_head
        count = tl.load(Count + which * tiles + tile)
        index = Index + (which * tiles + tile).to(tl.int64) * slots
        first = tl.minimum(split * stretch, count)
        end = tl.minimum(first + stretch, count)

        # Below every score: what a stretch without a key gives counts nothing.
        top = tl.full([M], -1e30, tl.float32)
        total = tl.zeros([M], tl.float32)
        mixed = tl.zeros([M, D], tl.float32)
        # Lists ascend: the partly filled last block, if it is listed, comes last.
        last = tl.load(index + end - 1, mask=end > first, other=0)
        whole = tl.where((end > first) & ((last + 1) * BLOCK > length), end - 1, end)
        for t in tl.range(first * (BLOCK // N), whole * (BLOCK // N), num_stages=STAGES):
            k = listed_tile(K, index, count, t, k_row, batch, key_head, BLOCK, N, D, TMA)
            v = listed_tile(V, index, count, t, v_row, batch, key_head, BLOCK, N, D, TMA)
            top, total, mixed = take_in(tl.dot(q, k.T, input_precision="ieee"), v, top, total, mixed, scale)
        for t in tl.range(whole * (BLOCK // N), end * (BLOCK // N), num_stages=1):
            top, total, mixed = take_in_part(
                q, K, V, index, count, t, k_row, v_row, batch, key_head, length, top, total, mixed, scale,
                BLOCK, N, D, TMA,
            )

        place = (split * tl.num_programs(2) + which).to(tl.int64) * tiles * BLOCK + row
        tl.store(Mixed + place[:, None] * D + column[None, :], mixed)
        tl.store(Top + place, top)
        tl.store(Total + place, total)


@triton.jit(do_not_specialize=["rows", "heads", "n", "splits"])
def merge_stretches(Mixed, Top, Total, Out, rows, heads, n, splits, S: tl.constexpr, D: tl.constexpr):
    """Out = Σ 2^Top · Mixed / Σ 2^Top · Total over the stretches; 0 where there was no key.

    One program computes one of `rows` = batch · heads · n rows, S stretches at a time. Out: [batch, n, heads, D],
    contiguous.
    """
    row = tl.program_id(0)
    column = tl.arange(0, D)
    top = tl.full([1], -float("inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    mixed = tl.zeros([D], tl.float32)
    for first in range(0, splits, S):
        split = first + tl.arange(0, S)
        there = split < splits
        place = split.to(tl.int64) * rows + row
        tops = tl.load(Top + place, mask=there, other=-float("inf"))
        totals = tl.load(Total + place, mask=there, other=0.0)
        parts = tl.load(Mixed + place[:, None] * D + column[None, :], mask=there[:, None], other=0.0)
        higher = tl.maximum(top, tl.max(tops, 0))
        shrink, weights = tl.math.exp2(top - higher), tl.math.exp2(tops - higher)
        total = total * shrink + tl.sum(totals * weights, 0)
        mixed = mixed * shrink + tl.sum(parts * weights[:, None], 0)
        top = higher
    batch, head = row // (heads * n), row // n % heads
    place = (batch.to(tl.int64) * n + row % n) * heads + head
    tl.store(Out + place * D + column, (mixed / tl.where(total > 0, total, 1.0)).to(Out.dtype.element_ty))
