"""Blocks and their sides, and what a pattern says about itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from sparsed.attention.backends.registry import executed_density
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.attention.selection.isolated import select_blocks


def sides_by_the_text(length: int, prompt: int, size: int) -> list[bool]:
    """For each key block, is it on the generation side? Read off the definition, one block at a time."""
    starts = list(range(0, length, size))
    generation = [start >= prompt for start in starts]
    if not any(generation):
        generation[-1] = True
    return generation


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_sides_follow_the_definition(size: int) -> None:
    for length, prompt in itertools.product(range(1, 26), range(26)):
        if prompt > length:
            continue
        layout = BlockLayout(length, prompt, size)
        generation = sides_by_the_text(length, prompt, size)
        assert layout.blocks == len(generation)
        assert [j >= layout.prompt_blocks for j in range(layout.blocks)] == generation
        assert layout.generation_blocks == sum(generation) >= 1
        ranges = layout.ranges
        assert len(ranges) == layout.blocks and ranges[0][0] == 0 and ranges[-1][1] == length
        assert all(end - start == size for start, end in ranges[:-1])
        assert ranges[-1][1] - ranges[-1][0] == layout.last_block_rows


@pytest.mark.parametrize(
    ("length", "prompt", "size", "prompt_blocks", "generation_blocks"),
    [
        (4096 + 64, 4096, 128, 32, 1),  # the generation starts on a block boundary and is half a block
        (4090 + 64, 4090, 128, 32, 1),  # block 31 straddles and is prompt
        (
            4000 + 64,
            4000,
            128,
            31,
            1,
        ),  # all of the generation lies in blocks that start before it: 31 is generation
        (128 + 128, 128, 128, 1, 1),
        (20 + 12, 20, 32, 0, 1),  # a single block: generation, and no prompt block
        (30 + 64, 30, 32, 1, 2),  # a prompt shorter than a block
        (96 + 1, 96, 32, 3, 1),  # a last block of one row
        (64, 0, 32, 0, 2),
    ],
)
def test_sides_of_known_layouts(
    length: int, prompt: int, size: int, prompt_blocks: int, generation_blocks: int
) -> None:
    layout = BlockLayout(length, prompt, size)
    assert (layout.prompt_blocks, layout.generation_blocks) == (prompt_blocks, generation_blocks)


@pytest.mark.parametrize(("length", "prompt", "size"), [(0, 0, 8), (8, 9, 8), (8, -1, 8), (8, 4, 0)])
def test_impossible_layouts_are_refused(length: int, prompt: int, size: int) -> None:
    with pytest.raises(ValueError, match="must"):
        BlockLayout(length, prompt, size)


def padded_layer() -> LayerPattern:
    indices = torch.tensor([[0, 2, -1], [1, -1, -1], [0, 1, 2]], dtype=torch.int32)[None, None]
    return LayerPattern(indices, torch.tensor([[[2, 1, 3]]], dtype=torch.int32))


def test_mask_leaves_padding_out() -> None:
    layer = padded_layer()
    expected = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert torch.equal(layer.mask()[0, 0], expected)
    pattern = Pattern(BlockLayout(10, 8, 4), (layer,), 0.5)
    assert torch.equal(pattern.mask(0, 0), expected)


@pytest.mark.parametrize(("length", "size"), [(20, 32), (128, 32), (200, 32), (193, 64), (300, 128), (7, 1)])
def test_lists_of_some_rows(row_sets, length: int, size: int) -> None:
    """Every row lies once, in order, in a tile of its own query block, which sees what that block keeps."""
    layout = BlockLayout(length, 0, size)
    layer = select_blocks(torch.rand(3, 2, layout.blocks, layout.blocks), layout, 0.4)
    for name, positions in row_sets(length, size, 3).items():
        lists = layer.lists(positions, layout)
        given = positions.expand(3, -1)
        tiles = lists.counts.shape[-1]
        assert tiles == max(len(row.unique()) for row in given // size), name
        assert lists.indices.is_contiguous() and lists.counts.is_contiguous(), name
        assert lists.indices.dtype == lists.counts.dtype == torch.int32, name
        laid = lists.into_tiles(given[:, None, :, None])
        assert laid.shape == (3, 1, tiles * size, 1) and torch.equal(lists.out_of_tiles(laid)[:, 0, :, 0], given), name
        for b, row in enumerate(given.tolist()):
            touched = sorted({position // size for position in row})
            shares = [[position for position in row if position // size == block] for block in touched]
            in_tiles = laid[b, 0, :, 0].view(tiles, size)
            for i, share in enumerate(shares):
                assert in_tiles[i, : len(share)].tolist() == share, name
                assert torch.equal(lists.mask()[b, :, i], layer.mask()[b, :, touched[i]]), name
                assert torch.equal(lists.counts[b, :, i], layer.counts[b, :, touched[i]]), name
            rows = lists.tile_rows.expand(3, -1)[b].tolist()
            assert rows == [len(share) for share in shares] + [0] * (tiles - len(shares)), name
            assert not lists.counts[b, :, len(shares) :].any(), name


def test_lists_of_all_rows_are_the_pattern_itself() -> None:
    layout = BlockLayout(10, 8, 4)
    layer = padded_layer()
    lists, q = layer.lists(None, layout), torch.rand(1, 2, 10, 8)
    assert lists.indices is layer.indices and lists.counts is layer.counts and lists.rows is None
    assert lists.into_tiles(q) is q and lists.out_of_tiles(q) is q
    assert lists.tile_rows.tolist() == [[4, 4, 2]]
    assert (lists.tile, lists.key_length, lists.key_blocks, lists.missing_keys) == (4, 10, 3, 2)
    assert torch.equal(lists.mask(), layer.mask())


def test_lists_are_made_once_for_a_set_of_rows() -> None:
    layout = BlockLayout(12, 8, 4)
    layer, other = padded_layer(), padded_layer()
    square = layer.lists(None, layout)
    sets = [torch.tensor([[n, n + 1]]) for n in range(10)]
    made = layer.lists(sets[0], layout)
    made.plans["backend"] = "what it derived"
    assert layer.lists(sets[0], layout) is made
    # Told apart by identity: the same positions in another tensor are another set.
    assert layer.lists(sets[0].clone(), layout) is not made
    # All layers of a forward share how the rows lie, not what they see.
    assert other.lists(sets[0], layout) is not made and other.lists(sets[0], layout).rows is made.rows
    for positions in sets[1:]:
        assert layer.lists(positions, layout) is layer.lists(positions, layout)
    # Few are remembered, so that a run that never asks for the same rows twice does not grow; the square one stays.
    assert len(layer._lists) <= 5 and layer.lists(sets[0], layout) is not made
    assert layer.lists(None, layout) is square
    # Another layout of the same blocks is another problem.
    assert layer.lists(None, BlockLayout(11, 8, 4)).missing_keys == 1 and layer.lists(None, layout).missing_keys == 0


def test_densities() -> None:
    layout = BlockLayout(10, 8, 4)  # blocks of 4, 4 and 2
    pattern = Pattern(layout, (padded_layer(),), 0.5)
    assert pattern.requested_density == pytest.approx(6 / 9)
    assert executed_density("gather", pattern) == pytest.approx((4 * (4 + 2) + 4 * 4 + 2 * 10) / 100)


def test_executed_density_is_what_the_backend_computes() -> None:
    pattern = Pattern(BlockLayout(300, 200, 128), (padded_layer(),), 0.5)  # blocks of 128, 128 and 44
    rows, kept = (128, 128, 44), ((0, 2), (1,), (0, 1, 2))
    asked = sum(rows[i] * rows[j] for i, blocks in enumerate(kept) for j in blocks)
    assert executed_density("gather", pattern) == pytest.approx(asked / 300**2)
    for name in ("triton", "flash4"):
        assert executed_density(name, pattern) == pytest.approx(6 * 128**2 / 300**2)
    assert executed_density("flex", pattern) == pytest.approx(6 / 9)
    # Three rows of the first block and two of the last.
    few = torch.tensor([[1, 5, 127, 256, 299]])
    assert executed_density("gather", pattern, few) == pytest.approx((3 * (128 + 44) + 2 * 300) / (5 * 300))
    for name in ("triton", "flash4"):
        assert executed_density(name, pattern, few) == pytest.approx((2 + 3) * 128**2 / (5 * 300))
    assert executed_density("flex", pattern, few) == pytest.approx(5 / 6)


def test_densities_of_everything_are_one() -> None:
    layout = BlockLayout(37, 20, 8)
    layer = select_blocks(torch.rand(2, 3, 5, 5), layout, 1.0)
    pattern = Pattern(layout, (layer, layer), 1.0)
    assert pattern.requested_density == 1.0
    assert executed_density("gather", pattern) == 1.0


def test_overlap_is_intersection_over_union_per_layer_and_head() -> None:
    layout = BlockLayout(16, 12, 4)
    first = select_blocks(torch.rand(2, 3, 4, 4), layout, 0.4)
    second = select_blocks(torch.rand(2, 3, 4, 4), layout, 0.4)
    a, b = Pattern(layout, (first, second), 0.4), Pattern(layout, (second, second), 0.4)
    overlap = a.overlap(b)
    assert overlap.shape == (2, 3) and overlap.dtype == torch.float32
    assert torch.equal(overlap[1], torch.ones(3))
    for head in range(3):
        mine = {(r, i, int(j)) for r in range(2) for i in range(4) for j in first.indices[r, head, i]}
        theirs = {(r, i, int(j)) for r in range(2) for i in range(4) for j in second.indices[r, head, i]}
        assert float(overlap[0, head]) == pytest.approx(len(mine & theirs) / len(mine | theirs))


def test_overlap_of_unlike_patterns_is_refused() -> None:
    layout = BlockLayout(16, 12, 4)
    layer = select_blocks(torch.rand(1, 2, 4, 4), layout, 0.5)
    other = select_blocks(torch.rand(1, 3, 4, 4), layout, 0.5)
    with pytest.raises(ValueError, match="layers"):
        Pattern(layout, (layer,), 0.5).overlap(Pattern(layout, (layer, layer), 0.5))
    with pytest.raises(ValueError, match="shapes"):
        Pattern(layout, (layer,), 0.5).overlap(Pattern(layout, (other,), 0.5))
