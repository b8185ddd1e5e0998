# mypy: ignore-errors
"""A Gluon kernel for Hopper: attention over listed key blocks, with one warp that loads and two groups that compute.

Each program takes one query block after the other. Its loading warp walks the block list and fills a ring of shared
buffers by TMA; two warpgroups compute half of the block's rows each and read the same tiles. A group starts the scores
of one tile and the values of the tile before together, so that the tensor cores work while it does the softmax. (Making
the two groups take turns, a third stage, and one program per query block were each tried on an H200 and none was
faster.)
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

# 384 threads share 65536 registers: 168 each at the start, then 240 for those that compute and 24 for those that load.
REGISTERS = 168
_COMPUTE, _LOAD = gl.constexpr(240), gl.constexpr(24)


@gluon.jit
def _slot(n, STAGES: gl.constexpr):
    """Which buffer of the ring the n-th tile uses, and the parity of the phase in which it is filled."""
    return n % STAGES, (n // STAGES) & 1


@gluon.jit
def _load(
    Q, K, V, q_ring, k_ring, v_ring, q_bars, k_bars, v_bars, Index, Count, items, heads, group, blocks, slots,
    M: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The loading warp: queries of each item, its key and value tiles from the last listed to the first."""
    q_ready, q_free = q_bars
    k_ready, k_free = k_bars
    v_ready, v_free = v_bars
    done = 0
    taken = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        which, first = item // blocks, item % blocks * (2 * M)
        batch, head = which // heads, which % heads
        key_head = head // group
        count = gl.load(Count + item)
        index = Index + gl.to_tensor(item).to(gl.int64) * slots
        block = gl.load(index + count - 1, mask=count > 0, other=0)
        for t in range(count):
            start = block * N
            block = gl.load(index + count - 2 - t, mask=t < count - 1, other=0)
            slot, phase = _slot(done + t, STAGES)
            mbarrier.wait(k_free.index(slot), phase ^ 1)
            mbarrier.expect(k_ready.index(slot), K.block_type.nbytes)
            tma.async_copy_global_to_shared(K, [batch, key_head, start, 0], k_ready.index(slot), k_ring.index(slot))
            if t == 0:
                q_slot, q_phase = _slot(taken, STAGES)
                ready = q_ready.index(q_slot)
                mbarrier.wait(q_free.index(q_slot), q_phase ^ 1)
                mbarrier.expect(ready, 2 * Q.block_type.nbytes)
                tma.async_copy_global_to_shared(Q, [batch, head, first, 0], ready, q_ring.index(q_slot * 2))
                tma.async_copy_global_to_shared(Q, [batch, head, first + M, 0], ready, q_ring.index(q_slot * 2 + 1))
            mbarrier.wait(v_free.index(slot), phase ^ 1)
            mbarrier.expect(v_ready.index(slot), V.block_type.nbytes)
            tma.async_copy_global_to_shared(V, [batch, key_head, start, 0], v_ready.index(slot), v_ring.index(slot))
        done += count
        taken += (count > 0).to(gl.int32)


@gluon.jit
def _scores(q, k_ring, slot, layout: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr):
    """Starts q kᵀ for the tile in a slot."""
    k = k_ring.index(slot).reshape([N, D]).permute((1, 0))
    return warpgroup_mma(q, k, gl.zeros([M, N], gl.float32, layout), use_acc=False, is_async=True)


@gluon.jit
def _compute(
    q_ring, k_ring, v_ring, q_bars, k_bars, v_bars, Out, Index, Count,
    o_batch, o_head, o_row, items, heads, blocks, slots, q_length, k_length, scale,
    HALF: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: rows HALF · M and on of each query block."""
    q_ready, q_free = q_bars
    k_ready, k_free = k_bars
    v_ready, v_free = v_bars
    score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    value: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    left_side: gl.constexpr = gl.DotOperandLayout(0, value, 2)
    dtype: gl.constexpr = v_ring.dtype
    row = gl.arange(0, M, gl.SliceLayout(1, value))
    column = gl.arange(0, D, gl.SliceLayout(0, value))
    key = gl.arange(0, N, gl.SliceLayout(0, score))
    done = 0
    taken = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        which, first = item // blocks, item % blocks * (2 * M) + HALF * M
        batch, head = which // heads, which % heads
        count = gl.load(Count + item)
        place = Out + batch.to(gl.int64) * o_batch + head.to(gl.int64) * o_head
        place = place + (first + row)[:, None].to(gl.int64) * o_row + column[None, :]
        inside = (first + row < q_length)[:, None]
        if count > 0:
            last = gl.load(Index + gl.to_tensor(item).to(gl.int64) * slots + count - 1)
            q_slot, q_phase = _slot(taken, STAGES)
            mbarrier.wait(q_ready.index(q_slot), q_phase)
            q = q_ring.index(q_slot * 2 + HALF).reshape([M, D])

            # The last listed tile comes first: the only one that may be partly filled.
            slot, phase = _slot(done, STAGES)
            mbarrier.wait(k_ready.index(slot), phase)
            scores = _scores(q, k_ring, slot, score, M, N, D)
            scores = warpgroup_mma_wait(0, deps=[scores])
            mbarrier.arrive(k_free.index(slot), count=1)
            scores = gl.where((last * N + key < k_length)[None, :], scores, -float("inf"))
            top = gl.max(scores, 1) * scale
            weights = gl.exp2(scores * scale - top[:, None])
            total = gl.sum(weights, 1)
            left = gl.convert_layout(weights.to(dtype), left_side)
            mixed = gl.zeros([M, D], gl.float32, value)
            for n in range(done + 1, done + count):
                v_slot = slot
                v_phase = phase
                slot, phase = _slot(n, STAGES)
                mbarrier.wait(k_ready.index(slot), phase)
                scores = _scores(q, k_ring, slot, score, M, N, D)
                mbarrier.wait(v_ready.index(v_slot), v_phase)
                v = v_ring.index(v_slot).reshape([N, D])
                mixed = warpgroup_mma(left, v, mixed, is_async=True)
                scores = warpgroup_mma_wait(1, deps=[scores])
                mbarrier.arrive(k_free.index(slot), count=1)
                higher = gl.maximum(top, gl.max(scores, 1) * scale)
                weights = gl.exp2(scores * scale - higher[:, None])
                shrink = gl.exp2(top - higher)
                total = total * shrink + gl.sum(weights, 1)
                top = higher
                # Long fulfilled; it keeps the assembler from moving the softmax behind the wait for the values.
                mbarrier.wait(v_ready.index(v_slot), v_phase)
                left = gl.convert_layout(weights.to(dtype), left_side)
                mixed, left, total = warpgroup_mma_wait(0, deps=[mixed, left, total])
                mbarrier.arrive(v_free.index(v_slot), count=1)
                mixed = mixed * gl.convert_layout(shrink, gl.SliceLayout(1, value))[:, None]
            mbarrier.arrive(q_free.index(q_slot), count=1)
            mbarrier.wait(v_ready.index(slot), phase)
            mixed = warpgroup_mma(left, v_ring.index(slot).reshape([N, D]), mixed, is_async=True)
            mixed = warpgroup_mma_wait(0, deps=[mixed])
            mbarrier.arrive(v_free.index(slot), count=1)
            mixed = mixed / gl.convert_layout(total, gl.SliceLayout(1, value))[:, None]
            gl.store(place, mixed.to(Out.dtype.element_ty), mask=inside)
        else:
            # A query block that keeps nothing gives zeros.
            gl.store(place, gl.zeros([M, D], Out.dtype.element_ty, value), mask=inside)
        done += count
        taken += (count > 0).to(gl.int32)


@gluon.jit(do_not_specialize=["items", "heads", "group", "blocks", "slots", "q_length", "k_length"])
def warp_specialized_forward(
    Q, K, V, Out, Index, Count,
    o_batch, o_head, o_row, items, heads, group, blocks, slots, q_length, k_length, scale,
    N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Out = softmax(scale · Q Kᵀ) V over the key blocks listed for each block of N query rows.

    Q: descriptor of tiles [1, 1, N // 2, D]; K, V: of [1, 1, N, D]. items: batch · heads · blocks, one program taking
    every num_programs-th. Index: int32 [items, slots], ascending; Count: int32 [items]. scale: times log2(e), above 0.
    """
    M: gl.constexpr = N // 2
    q_ring = gl.allocate_shared_memory(Q.dtype, [2 * STAGES, 1, 1, M, D], Q.layout)
    k_ring = gl.allocate_shared_memory(K.dtype, [STAGES, 1, 1, N, D], K.layout)
    v_ring = gl.allocate_shared_memory(V.dtype, [STAGES, 1, 1, N, D], V.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # A tile is ready when its bytes have come, and free when both groups have read it.
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)
        mbarrier.init(v_free.index(i), count=2)
        mbarrier.init(q_ready.index(i), count=1)
        mbarrier.init(q_free.index(i), count=2)

    q_bars, k_bars, v_bars = (q_ready, q_free), (k_ready, k_free), (v_ready, v_free)
    gl.warp_specialize(
        [
            (_compute, (
                q_ring, k_ring, v_ring, q_bars, k_bars, v_bars, Out, Index, Count,
                o_batch, o_head, o_row, items, heads, blocks, slots, q_length, k_length, scale, 0, M, N, D, STAGES,
            )),
            (_compute, (
                q_ring, k_ring, v_ring, q_bars, k_bars, v_bars, Out, Index, Count,
                o_batch, o_head, o_row, items, heads, blocks, slots, q_length, k_length, scale, 1, M, N, D, STAGES,
            )),
            (_load, (
                Q, K, V, q_ring, k_ring, v_ring, q_bars, k_bars, v_bars, Index, Count,
                items, heads, group, blocks, slots, M, N, STAGES,
            )),
        ],
        [4, 1],
        [_COMPUTE, _LOAD],
    )  # fmt: skip
