"""The baselines' patterns against slow readings of their definitions, block by block."""

from __future__ import annotations

import pytest
import torch

from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.selection.baselines import random_blocks, shared_by_heads, sliding_window, streaming_llm
from sparsed.attention.selection.isolated import select_blocks

SELECTS = [0.05, 0.1, 0.3, 0.5, 0.75, 1.0]
# (length, prompt), blocks of 8: long prompt, a boundary inside a block, a generation of most of the sequence, no
# prompt block at all, and one block altogether.
LAYOUTS = [(100, 80), (97, 96), (64, 60), (160, 24), (8, 3), (16, 1), (5, 2)]


def sides_of(layout: BlockLayout) -> list[str]:
    """Which side each key block is on, from the text alone."""
    sides = ["generation" if j * 8 >= layout.prompt_length else "prompt" for j in range(layout.blocks)]
    if "generation" not in sides:
        sides[-1] = "generation"
    return sides


def density_of(layout: BlockLayout, select: float) -> int:
    """Blocks that SparseD keeps for a query block."""
    importance = torch.rand(1, 1, layout.blocks, layout.blocks)
    return int(select_blocks(importance, layout, select).counts[0, 0, 0])


def nearest(candidates: list[int], i: int, count: int) -> set[int]:
    return set(sorted(candidates, key=lambda j: (abs(i - j), j))[:count])


def kept_by(pattern: LayerPattern, row: int, head: int, i: int) -> list[int]:
    return pattern.indices[row, head, i].tolist()


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt"), LAYOUTS)
def test_sliding_window(length: int, prompt: int, select: float) -> None:
    layout = BlockLayout(length, prompt, 8)
    window = sliding_window(layout, select, 2, 3)
    kept, sides = density_of(layout, select), sides_of(layout)
    assert window.counts.shape == (2, 3, layout.blocks) and (window.counts == kept).all()
    whole_generation = sides.count("generation") <= kept
    for i in range(layout.blocks):
        expected = nearest(list(range(layout.blocks)), i, kept)
        if whole_generation and sides[i] == "generation":
            # All of the generation, and the last prompt blocks before it.
            expected = set(range(layout.blocks - kept, layout.blocks))
        for row in range(2):
            for head in range(3):
                assert kept_by(window, row, head, i) == sorted(expected)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt"), LAYOUTS)
def test_streaming_llm(length: int, prompt: int, select: float) -> None:
    layout = BlockLayout(length, prompt, 8)
    pattern = streaming_llm(layout, select, 2, 3)
    kept, sides = density_of(layout, select), sides_of(layout)
    assert (pattern.counts == kept).all()
    if kept == 1:
        assert torch.equal(pattern.indices, sliding_window(layout, select, 2, 3).indices)
        return
    others = list(range(1, layout.blocks))
    for i in range(layout.blocks):
        expected = {0} | nearest(others, max(i, 1), kept - 1)
        if sides[i] == "generation" and sides.count("generation") <= kept - 1:
            expected = {0} | set(range(layout.blocks - kept + 1, layout.blocks))
        assert kept_by(pattern, 1, 2, i) == sorted(expected), i
        assert (pattern.indices[:, :, i] == pattern.indices[0, 0, i]).all()


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt"), LAYOUTS)
def test_random_blocks_keep_as_many_of_each_side_and_themselves(length: int, prompt: int, select: float) -> None:
    layout = BlockLayout(length, prompt, 8)
    sides = sides_of(layout)
    chosen = select_blocks(torch.rand(2, 3, layout.blocks, layout.blocks), layout, select)
    pattern = random_blocks(layout, select, 2, 3, seed=1)
    assert torch.equal(pattern.counts, chosen.counts)
    for row in range(2):
        for head in range(3):
            for i in range(layout.blocks):
                mine, sparsed = kept_by(pattern, row, head, i), kept_by(chosen, row, head, i)
                assert i in mine and len(set(mine)) == len(mine)
                assert sorted(sides[j] for j in mine) == sorted(sides[j] for j in sparsed)


def test_random_blocks_are_drawn_anew_for_every_row_head_and_query_block_and_evenly() -> None:
    layout = BlockLayout(400, 320, 8)  # 40 prompt blocks and 10 of the generation
    pattern = random_blocks(layout, 0.3, 4, 16, seed=7)
    drawn = pattern.mask().float()
    drawn.diagonal(dim1=-2, dim2=-1).zero_()
    # A prompt query block draws 11 of 39 other prompt blocks and 3 of 10 of the generation, a generation one 12 of 40
    # and 2 of 9.
    shares = drawn.mean((0, 1))
    off = ~torch.eye(50, dtype=torch.bool)
    for rows, columns, expected in [
        (slice(0, 40), slice(0, 40), 11 / 39), (slice(0, 40), slice(40, 50), 3 / 10),
        (slice(40, 50), slice(0, 40), 12 / 40), (slice(40, 50), slice(40, 50), 2 / 9),
    ]:  # fmt: skip
        share = shares[rows, columns][off[rows, columns]]
        assert abs(float(share.mean()) - expected) < 1e-6
        # 64 draws a cell: six standard deviations.
        assert (share - expected).abs().max() < 6 * (expected * (1 - expected) / 64) ** 0.5
    again, other = random_blocks(layout, 0.3, 4, 16, seed=7), random_blocks(layout, 0.3, 4, 16, seed=8)
    assert torch.equal(again.indices, pattern.indices)
    assert not torch.equal(other.indices, pattern.indices)
    flat = pattern.indices.reshape(-1, 15)
    assert len(torch.unique(flat, dim=0)) == len(flat)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt"), LAYOUTS)
def test_shared_by_heads_ranks_the_mean_of_the_heads(length: int, prompt: int, select: float) -> None:
    layout = BlockLayout(length, prompt, 8)
    blocks = layout.blocks
    importance = torch.rand(2, 3, blocks, blocks)
    pattern = shared_by_heads(importance.mean(1, keepdim=True), layout, select, importance.shape[1])
    for row in range(2):
        mean = [
            [sum(float(importance[row, h, i, j]) for h in range(3)) / 3 for j in range(blocks)] for i in range(blocks)
        ]
        for i in range(blocks):
            expected: list[int] = []
            for side in ("prompt", "generation"):
                columns = [j for j, of in enumerate(sides_of(layout)) if of == side]
                count = -(-int(round(select * 100)) * len(columns) // 100)
                expected += sorted(columns, key=lambda j: -mean[i][j])[: max(1, count) if columns else 0]
            for head in range(3):
                assert kept_by(pattern, row, head, i) == sorted(expected)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt"), LAYOUTS)
def test_without_isolation_all_blocks_are_ranked_together(length: int, prompt: int, select: float) -> None:
    layout = BlockLayout(length, prompt, 8)
    importance = torch.rand(2, 3, layout.blocks, layout.blocks)
    pattern = select_blocks(importance, layout, select, isolated=False)
    kept = density_of(layout, select)
    for row in range(2):
        for head in range(3):
            for i in range(layout.blocks):
                weights = importance[row, head, i].tolist()
                expected = sorted(range(layout.blocks), key=lambda j: (-weights[j], j))[:kept]
                assert kept_by(pattern, row, head, i) == sorted(expected)


def test_without_isolation_ties_go_to_the_lower_block() -> None:
    layout = BlockLayout(80, 64, 8)
    pattern = select_blocks(torch.ones(1, 1, 10, 10), layout, 0.3, isolated=False)
    assert pattern.indices[0, 0, 9].tolist() == [0, 1, 2, 3]  # ⌈0.3 · 8⌉ + ⌈0.3 · 2⌉
