# mypy: ignore-errors
"""Triton kernels: attention over listed key blocks, and block importance in one pass.

Keys and values are read where the model left them, in any layout whose head dimension is contiguous; one key head
serves its whole group of query heads. With TMA (Hopper and later) tiles come through tensor descriptors of shape
[batch, heads, length, head_dim], otherwise through pointers.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def listed_rows(index, count, t, BLOCK: tl.constexpr, N: tl.constexpr):
    """Rows of tile t of a query block's list, and which of them the list really has."""
    column = tl.arange(0, N)
    if N > BLOCK:
        slot = t * (N // BLOCK) + column // BLOCK
        block = tl.load(index + slot, mask=slot < count, other=0)
        return block * BLOCK + column % BLOCK, slot < count
    else:
        block = tl.load(index + t * N // BLOCK)
        return block * BLOCK + (t * N) % BLOCK + column, column < N


@triton.jit
def listed_tile(
    X, index, count, t, x_row, batch, head, BLOCK: tl.constexpr, N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr
):
    """Tile t of the listed rows, [N, D]; all of them exist."""
    if TMA:
        start = tl.load(index + t * N // BLOCK) * BLOCK + (t * N) % BLOCK
        return X.load([batch, head, start, 0]).reshape(N, D)
    else:
        row, _ = listed_rows(index, count, t, BLOCK, N)
        return tl.load(X + row[:, None].to(tl.int64) * x_row + tl.arange(0, D)[None, :])


@triton.jit
def take_in(scores, v, top, total, mixed, scale):
    """One more tile of scores and its values: online softmax in base 2."""
    higher = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.math.exp2(scores * scale - higher[:, None])
    shrink = tl.math.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
    return higher, total, mixed


@triton.jit
def take_in_part(
    q, K, V, index, count, t, k_row, v_row, batch, head, length, top, total, mixed, scale,
    BLOCK: tl.constexpr, N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """`take_in` of tile t of the listed rows, of which some are beyond the list's end or the sequence's."""
    key, there = listed_rows(index, count, t, BLOCK, N)
    there = there & (key < length)
    if TMA:
        k = listed_tile(K, index, count, t, k_row, batch, head, BLOCK, N, D, TMA)
        v = listed_tile(V, index, count, t, v_row, batch, head, BLOCK, N, D, TMA)
    else:
        column = tl.arange(0, D)
        k = tl.load(K + key[:, None].to(tl.int64) * k_row + column[None, :], mask=there[:, None], other=0.0)
        v = tl.load(V + key[:, None].to(tl.int64) * v_row + column[None, :], mask=there[:, None], other=0.0)
    scores = tl.where(there[None, :], tl.dot(q, k.T, input_precision="ieee"), -float("inf"))
    return take_in(scores, v, top, total, mixed, scale)


@triton.jit
def block_sparse_forward(
    Q, K, V, Out, Index, Count,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row,
    heads, group, q_length, k_length, blocks, slots, scale,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Out = softmax(scale · Q Kᵀ) V over the key blocks listed for each block of BLOCK query rows.

    One program computes M rows of one head; M divides BLOCK. Index: int32 [batch · heads, blocks, slots], ascending;
    Count: int32 [batch · heads, blocks]; blocks: of query rows. scale: times log2(e). TMA: N divides BLOCK.
    """
    which = tl.program_id(1)
    batch, head = which // heads, which % heads
    key_head = head // group
    first = tl.program_id(0) * M
    block = first // BLOCK
    count = tl.load(Count + which * blocks + block)
    index = Index + (which * blocks + block).to(tl.int64) * slots

    row = first + tl.arange(0, M)
    column = tl.arange(0, D)
    if TMA:
        q = Q.load([batch, head, first, 0]).reshape(M, D)
    else:
        Q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
        K += batch.to(tl.int64) * k_batch + key_head.to(tl.int64) * k_head
        V += batch.to(tl.int64) * v_batch + key_head.to(tl.int64) * v_head
        q = tl.load(Q + row[:, None].to(tl.int64) * q_row + column[None, :], mask=row[:, None] < q_length, other=0.0)

    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, D], tl.float32)

    # Lists ascend: the partly filled last block, if it is kept, comes last, and every tile before it is whole.
    last = tl.load(index + count - 1, mask=count > 0, other=0)
    partial = (last + 1) * BLOCK > k_length
    if N > BLOCK:
        tiles = (count + N // BLOCK - 1) // (N // BLOCK)
        whole = tl.where(partial | (count % (N // BLOCK) != 0), tl.maximum(tiles - 1, 0), tiles)
    else:
        tiles = count * (BLOCK // N)
        whole = tl.where(partial, tl.maximum(tiles - BLOCK // N, 0), tiles)
    for t in tl.range(0, whole, num_stages=STAGES):
        k = listed_tile(K, index, count, t, k_row, batch, key_head, BLOCK, N, D, TMA)
        v = listed_tile(V, index, count, t, v_row, batch, key_head, BLOCK, N, D, TMA)
        top, total, mixed = take_in(tl.dot(q, k.T, input_precision="ieee"), v, top, total, mixed, scale)
    for t in tl.range(whole, tiles, num_stages=1):
        # A tile without any key follows one of the same block that has some, so `top` is finite by then.
        top, total, mixed = take_in_part(
            q, K, V, index, count, t, k_row, v_row, batch, key_head, k_length, top, total, mixed, scale,
            BLOCK, N, D, TMA,
        )

    # A query block that keeps nothing gives zeros.
    out = mixed / tl.where(total > 0, total, 1.0)[:, None]
    Out += batch.to(tl.int64) * o_batch + head.to(tl.int64) * o_head
    target = Out + row[:, None].to(tl.int64) * o_row + column[None, :]
    tl.store(target, out.to(Out.dtype.element_ty), mask=row[:, None] < q_length)


@triton.jit
def block_means(
    Q, K, Lse, Out,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, group, length, scale,
    BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Out[which, i, j] = mean of exp(scale · q·k − lse) over the rows of query block i and columns of key block j.

    One program computes M rows of one head, M // BLOCK rows of Out, float32 [batch · heads, n, n]. Lse: float32
    [batch · heads, length], natural logarithm. BLOCK divides M and N. scale: times log2(e).
    """
    which = tl.program_id(1)
    batch, head = which // heads, which % heads
    key_head = head // group
    first = tl.program_id(0) * M
    row = first + tl.arange(0, M)
    column = tl.arange(0, D)
    if TMA:
        q = Q.load([batch, head, first, 0]).reshape(M, D)
    else:
        Q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
        K += batch.to(tl.int64) * k_batch + key_head.to(tl.int64) * k_head
        q = tl.load(Q + row[:, None].to(tl.int64) * q_row + column[None, :], mask=row[:, None] < length, other=0.0)
    # A row that does not exist weighs nothing.
    lse = tl.load(Lse + which.to(tl.int64) * length + row, mask=row < length, other=float("inf")) * LOG2_E
    blocks = (length + BLOCK - 1) // BLOCK
    query_block = first // BLOCK + tl.arange(0, M // BLOCK)
    rows = tl.minimum(length - query_block * BLOCK, BLOCK)
    Out += (which.to(tl.int64) * blocks + query_block[:, None]) * blocks
    inside = (query_block < blocks)[:, None]

    whole = length // N
    # With one number a tile, sums over the columns stay apart for GROUP tiles, then cross the warps together.
    apart = tl.zeros([M, GROUP], tl.float32)
    slot = tl.arange(0, GROUP)
    for t in tl.range(0, whole, num_stages=STAGES):
        if TMA:
            k = K.load([batch, key_head, t * N, 0]).reshape(N, D)
        else:
            key = t * N + tl.arange(0, N)
            k = tl.load(K + key[:, None].to(tl.int64) * k_row + column[None, :])
        weights = tl.math.exp2(tl.dot(q, k.T, input_precision="ieee") * scale - lse[:, None])
        if (M == BLOCK) and (N == BLOCK):
            apart = tl.where((slot == t % GROUP)[None, :], tl.sum(weights, 1)[:, None], apart)
            if (t % GROUP == GROUP - 1) | (t == whole - 1):
                j = t // GROUP * GROUP + slot
                means = tl.sum(apart, 0)[None, :] / (rows * BLOCK)[:, None]
                tl.store(Out + j[None, :], means, mask=inside & (j < whole)[None, :])
        else:
            sums = tl.sum(tl.sum(weights.reshape(M // BLOCK, BLOCK, N // BLOCK, BLOCK), 3), 1)
            j = t * (N // BLOCK) + tl.arange(0, N // BLOCK)
            tl.store(Out + j[None, :], sums / (rows * BLOCK)[:, None], mask=inside)
    if whole * N < length:
        key = whole * N + tl.arange(0, N)
        if TMA:
            k = K.load([batch, key_head, whole * N, 0]).reshape(N, D)
        else:
            there = key < length
            k = tl.load(K + key[:, None].to(tl.int64) * k_row + column[None, :], mask=there[:, None], other=0.0)
        weights = tl.math.exp2(tl.dot(q, k.T, input_precision="ieee") * scale - lse[:, None])
        weights = tl.where((key < length)[None, :], weights, 0.0)
        sums = tl.sum(tl.sum(weights.reshape(M // BLOCK, BLOCK, N // BLOCK, BLOCK), 3), 1)
        j = whole * (N // BLOCK) + tl.arange(0, N // BLOCK)
        columns = tl.minimum(length - j * BLOCK, BLOCK)
        means = sums / (rows[:, None] * columns[None, :])
        tl.store(Out + j[None, :], means, mask=inside & (j < blocks)[None, :])
