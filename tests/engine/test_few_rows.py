"""Queries for fewer rows than there are keys: every backend gives the rows of its square result."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsed.attention.backends import flash4, flex, gather
from sparsed.attention.pattern import BlockLayout, BlockLists, LayerPattern

SCALE = 0.25
SHAPES = [
    # batch, query heads, key heads, length, block size
    (2, 2, 1, 100, 32),  # grouped queries, partial last block
    (1, 4, 2, 129, 64),  # last block of one row
    (3, 1, 1, 200, 128),
    (1, 2, 2, 128, 64),
    (2, 2, 1, 20, 32),  # one block, not full
]
BACKENDS = {
    "gather": SHAPES, "flex": SHAPES[:3], "flash4": SHAPES,
    # Triton's interpreter takes milliseconds for each row: sequences, groups and a partial block; two tiles of rows in
    # a block, and a last block of one row; whole blocks.
    "triton": [(2, 2, 1, 70, 32), (1, 1, 1, 65, 64), (1, 1, 1, 64, 32)],
    "triton without descriptors": [(2, 1, 1, 33, 32)],
}  # fmt: skip
RowSets = Callable[..., dict[str, Tensor]]


def heads(batch: int, length: int, count: int, seed: int) -> Tensor:
    """As a model lays them out: [batch, length, heads, head_dim], seen transposed."""
    return torch.randn(batch, length, count, 32, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


def ragged(batch: int, count: int, blocks: int) -> LayerPattern:
    """Lists of random length, from none to all; the last query block of the first head keeps all."""
    generator = torch.Generator().manual_seed(blocks)
    counts = torch.randint(0, blocks + 1, (batch, count, blocks), generator=generator, dtype=torch.int32)
    counts[:, 0, -1] = blocks
    chosen = torch.rand(batch, count, blocks, blocks, generator=generator).argsort(-1)
    indices = chosen.masked_fill(torch.arange(blocks) >= counts[..., None], blocks).sort(-1).values
    return LayerPattern(indices.masked_fill(indices == blocks, -1).int(), counts)


def oracle(q: Tensor, k: Tensor, v: Tensor, pattern: LayerPattern, positions: Tensor, size: int) -> Tensor:
    """Row by row in float64. q: of all positions; the result: of `positions`."""
    batch, count, length, dim = q.shape
    out = torch.zeros(batch, count, positions.shape[1], dim, dtype=torch.float64)
    for b in range(batch):
        for n, position in enumerate(positions[b % len(positions)].tolist()):
            for h in range(count):
                kept = pattern.indices[b, h, position // size, : pattern.counts[b, h, position // size]].tolist()
                seen = [p for block in kept for p in range(block * size, min(block * size + size, length))]
                if seen:
                    group = h * k.shape[1] // count
                    scores = k[b, group, seen].double() @ q[b, h, position].double() * SCALE
                    out[b, h, n] = scores.softmax(0) @ v[b, group, seen].double()
    return out


def rows_of(x: Tensor, positions: Tensor) -> Tensor:
    """x, [batch, heads, length, head_dim], at the positions of each sequence."""
    return x.gather(2, positions[:, None, :, None].expand(*x.shape[:2], -1, x.shape[-1]))


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, **options: Any) -> tuple[Tensor, None]:
    """flash-attn-4 as its lists are to be read: a block list for every 128 rows, absent keys in the last block only."""
    given = options["block_sparse_tensors"]
    assert not given.mask_block_cnt.any() and given.block_size == (128, 128) and not options["pack_gqa"]
    out = torch.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in given.full_block_cnt.shape)).tolist():
        blocks = given.full_block_idx[b, h, i, : given.full_block_cnt[b, h, i]].tolist()
        assert blocks == sorted(blocks)
        seen = [p for block in blocks for p in range(block * 128, min(block * 128 + 128, k.shape[1]))]
        if seen:
            rows = slice(i * 128, i * 128 + 128)
            scores = q[b, rows, h] @ k[b, seen, h // group].T * softmax_scale
            out[b, rows, h] = scores.softmax(-1) @ v[b, seen, h // group]
    assert given.full_block_cnt.shape[-1] == -(-q.shape[1] // 128)
    return out, None


@pytest.fixture
def attend(request, monkeypatch) -> Callable[[Tensor, Tensor, Tensor, BlockLists, float], Tensor]:
    """Every backend, as far as a CPU runs it."""
    if request.param == "gather":
        return gather.gather_attention
    if request.param == "flex":
        return flex.flex_attention
    if request.param == "flash4":
        parts = {
            "flash_attn.cute.interface": SimpleNamespace(flash_attn_func=flash_attn_func),
            "flash_attn.cute.block_sparsity": SimpleNamespace(BlockSparseTensorsTorch=SimpleNamespace),
        }
        monkeypatch.setattr(flash4, "import_module", parts.__getitem__)
        monkeypatch.setattr(flash4, "_DTYPES", (torch.float32,))
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        return flash4.flash4_attention
    pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is a GPU here: tests/gpu runs the kernels for real")
    from sparsed.attention.backends import triton

    if request.param != "triton":
        monkeypatch.setattr(triton, "has_tma", lambda *_: False)
    return triton.triton_attention


@pytest.mark.filterwarnings("ignore:.*torch.compile.*")
@pytest.mark.parametrize(
    ("attend", "batch", "query_heads", "key_heads", "length", "size"),
    [(name, *shape) for name, shapes in BACKENDS.items() for shape in shapes],
    indirect=["attend"],
)
def test_fewer_rows_than_keys(
    attend, row_sets: RowSets, batch: int, query_heads: int, key_heads: int, length: int, size: int
) -> None:
    if attend is flash4.flash4_attention:
        size = flash4.BLOCK_SIZE
    q = heads(batch, length, query_heads, 1)
    k, v = (heads(batch, length, key_heads, seed) for seed in (2, 3))
    layout = BlockLayout(length, 0, size)
    pattern = ragged(batch, query_heads, layout.blocks)
    square = attend(q, k, v, pattern.lists(None, layout), SCALE)
    for name, positions in row_sets(length, size, batch).items():
        each = positions.expand(batch, -1)
        lists = pattern.lists(positions, layout)
        out = attend(rows_of(q, each), k, v, lists, SCALE)
        assert out.shape == (batch, query_heads, positions.shape[1], 32) and out.dtype == v.dtype, name
        torch.testing.assert_close(out, rows_of(square, each), rtol=0, atol=1e-5, msg=name)
        wanted = oracle(q, k, v, pattern, positions, size)
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5, msg=name)
    # The next step has other values, and what was prepared is used again.
    again = attend(rows_of(q, each), k, -v, pattern.lists(positions, layout), SCALE)
    torch.testing.assert_close(again, -rows_of(square, each), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "query_heads", "key_heads", "length", "size"), SHAPES)
def test_gather_computes_what_is_asked_for_alone(
    monkeypatch, row_sets: RowSets, batch: int, query_heads: int, key_heads: int, length: int, size: int
) -> None:
    """Rows that only fill a tile cost nothing, nor do keys that are not there."""
    computed = 0

    def counting(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        nonlocal computed
        computed += q.shape[0] * q.shape[2] * k.shape[2]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    monkeypatch.setattr(gather, "scaled_dot_product_attention", counting)
    q, k = heads(batch, length, query_heads, 1), heads(batch, length, key_heads, 2)
    layout = BlockLayout(length, 0, size)
    pattern = ragged(batch, query_heads, layout.blocks)
    scores = pattern.mask().repeat_interleave(size, -1).repeat_interleave(size, -2)[..., :length, :length]
    for name, positions in row_sets(length, size, batch).items():
        each, computed = positions.expand(batch, -1), 0
        gather.gather_attention(rows_of(q, each), k, k, pattern.lists(positions, layout), SCALE)
        assert computed == int(rows_of(scores, each).sum()), name
