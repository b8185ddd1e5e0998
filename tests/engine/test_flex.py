"""The flex backend without compilation: the mask it asks for and the lists it hands over. Kernels: tests/gpu."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsed.attention.backends.flex import TILE, executed_density, flex_attention, unavailable
from sparsed.attention.backends.gather import gather_attention
from sparsed.attention.pattern import BlockLayout, LayerPattern

SCALE = 0.25
SHAPES = [
    # batch, query heads, key heads, length, block size
    (1, 4, 4, 256, 128),
    (2, 4, 2, 257, 128),  # grouped queries, batch of two, last block of one row
    (1, 4, 2, 300, 32),
    (2, 2, 1, 129, 64),
    (1, 2, 1, 20, 32),  # one block, not full
]


def tensors(batch: int, heads: int, key_heads: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with the strides transformers gives them: heads lie inside a position."""
    torch.manual_seed(length)
    return tuple(torch.randn(batch, length, h, 16).transpose(1, 2) for h in (heads, key_heads, key_heads))  # type: ignore[return-value]


def ragged(batch: int, heads: int, blocks: int) -> LayerPattern:
    """A random pattern in which query blocks keep unlike numbers of blocks: the first none, the last all."""
    generator = torch.Generator().manual_seed(blocks)
    counts = torch.randint(0, blocks + 1, (batch, heads, blocks), generator=generator, dtype=torch.int32)
    counts[..., 0], counts[..., -1] = 0, blocks
    chosen = torch.rand(batch, heads, blocks, blocks, generator=generator).argsort(-1)
    padding = torch.arange(blocks) >= counts[..., None]
    indices = chosen.masked_fill(padding, blocks).sort(-1).values
    return LayerPattern(indices.masked_fill(indices == blocks, -1).int(), counts)


def listed(counts: Tensor, lists: Tensor, tiles: int) -> Tensor:
    """Bool [batch, heads, tiles, tiles]: the entries of index lists."""
    valid = torch.arange(lists.shape[-1]) < counts[..., None]
    columns = torch.where(valid, lists, tiles).long()
    return torch.zeros(*counts.shape, tiles + 1).scatter_(-1, columns, 1)[..., :tiles].bool()


@pytest.mark.filterwarnings("ignore:.*torch.compile.*")
@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "size"), SHAPES)
def test_equals_gather(batch: int, heads: int, key_heads: int, length: int, size: int) -> None:
    q, k, v = tensors(batch, heads, key_heads, length)
    pattern = ragged(batch, heads, -(-length // size))
    lists = pattern.lists(None, BlockLayout(length, 0, size))
    out = flex_attention(q, k, v, lists, SCALE)
    expected = gather_attention(q, k, v, lists, SCALE)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.compile.*")
@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "size"), SHAPES)
def test_full_and_partial_tiles(batch: int, heads: int, key_heads: int, length: int, size: int) -> None:
    """A tile is full if every score of it is asked for, partial if some are, and in no list otherwise."""
    pattern = ragged(batch, heads, -(-length // size))
    q, k, v = tensors(batch, heads, key_heads, length)
    lists = pattern.lists(None, BlockLayout(length, 0, size))
    flex_attention(q, k, v, lists, SCALE)
    (mask,) = lists.plans.values()

    assert mask.kv_indices.is_contiguous() and mask.full_kv_indices.is_contiguous()
    assert mask.kv_indices.shape == mask.full_kv_indices.shape  # torch 2.11's kernel needs it
    tiles = -(-length // TILE)
    asked = torch.zeros(batch, heads, tiles * TILE, tiles * TILE)
    scores = pattern.mask().repeat_interleave(size, -1).repeat_interleave(size, -2)[..., :length, :length]
    asked[..., :length, :length] = scores
    # Rows past the end are never stored: they take nothing from a tile.
    asked[..., length:, :] = asked[..., length - 1 : length, :]
    share = asked.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE)).mean((-1, -3))
    full = listed(mask.full_kv_num_blocks, mask.full_kv_indices, tiles)
    partial = listed(mask.kv_num_blocks, mask.kv_indices, tiles)
    assert not (full & partial).any()
    assert torch.equal(full | partial, share > 0)
    assert (share[full] == 1).all()
    if length % TILE == 0:
        assert torch.equal(full, share == 1)
    visited = executed_density(pattern.lists(None, BlockLayout(length, length, size)))
    assert visited == pytest.approx(float((share > 0).float().mean()))


def test_what_it_cannot_do() -> None:
    q, k, v = tensors(1, 2, 2, 200)
    with pytest.raises(ValueError, match="block_size that divides 128, not 48"):
        flex_attention(q, k, v, ragged(1, 2, 5).lists(None, BlockLayout(200, 0, 48)), SCALE)
    assert "needs a CUDA or ROCm GPU" in (unavailable("cpu") or "")
