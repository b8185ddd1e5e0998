"""Isolated selection against an oracle written from the paper's text: double precision, number by number."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsed.attention.pattern import BlockLayout
from sparsed.attention.selection import isolated
from sparsed.attention.selection.importance import block_importance
from sparsed.attention.selection.isolated import blocks_to_keep, select_blocks


def oracle_share(select: float, blocks: int) -> int:
    if blocks == 0:
        return 0
    product = Decimal(str(select)) * blocks
    return max(1, int(product.to_integral_value(rounding=ROUND_CEILING)))


def oracle_selection(importance: list[float], prompt: int, size: int, select: float) -> list[int]:
    """The key blocks one query block keeps, from its row of importances."""
    blocks = len(importance)
    generation = [j for j in range(blocks) if j * size >= prompt]
    if not generation:
        generation = [blocks - 1]
    kept = []
    for side in ([j for j in range(blocks) if j not in generation], generation):
        ranked = sorted(side, key=lambda j: (-importance[j], j))
        kept += ranked[: oracle_share(select, len(side))]
    return sorted(kept)


def oracle_importance(
    q: list[list[float]], k: list[list[float]], scale: float, size: int
) -> list[list[float]]:
    """Mean attention weight of every block pair of one head."""
    length = len(q)
    attention = []
    for query in q:
        scores = [scale * sum(x * y for x, y in zip(query, key)) for key in k]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = sum(weights)
        attention.append([weight / total for weight in weights])
    starts = range(0, length, size)
    return [
        [
            sum(
                attention[r][c]
                for r in range(i, min(i + size, length))
                for c in range(j, min(j + size, length))
            )
            / ((min(i + size, length) - i) * (min(j + size, length) - j))
            for j in starts
        ]
        for i in starts
    ]


@pytest.mark.parametrize(
    ("select", "blocks", "expected"),
    [
        (0.55, 100, 55),  # 56 in binary floats
        (0.07, 100, 7),  # 8 in binary floats
        (0.3, 10, 3),
        (0.3, 32, 10),
        (0.3, 1, 1),
        (0.01, 5, 1),
        (1e-05, 5, 1),
        (0.5, 3, 2),
        (1.0, 33, 33),
        (1, 33, 33),
        (0.3, 0, 0),
    ],
)
def test_how_many_blocks_are_kept(select: float, blocks: int, expected: int) -> None:
    assert blocks_to_keep(select, blocks) == expected == oracle_share(select, blocks)


@pytest.mark.parametrize("select", [0, -0.3, 1.01, float("nan")])
def test_select_outside_its_range_is_refused(select: float) -> None:
    with pytest.raises(ValueError, match="select"):
        blocks_to_keep(select, 10)


LAYOUTS = [
    # length, prompt, block size
    (64, 48, 8),
    (61, 48, 8),  # partial last block
    (57, 48, 8),  # last block of one row
    (50, 44, 8),  # a block straddles the boundary
    (48, 45, 8),  # the generation lies inside one block
    (24, 5, 8),  # prompt shorter than a block
    (20, 0, 8),  # no prompt
    (12, 9, 16),  # one block
    (18, 16, 16),  # boundary on a block boundary, two rows after it
    (40, 32, 8),  # generation of exactly one block
]
SELECTS = [0.1, 0.3, 0.5, 0.55, 1.0]


def assert_selection(importance: torch.Tensor, layout: BlockLayout, select: float) -> None:
    pattern = select_blocks(importance, layout, select)
    assert pattern.indices.dtype == pattern.counts.dtype == torch.int32
    assert pattern.indices.shape[:-1] == pattern.counts.shape == importance.shape[:-1]
    assert (pattern.counts == pattern.kept).all()
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in importance.shape[:3])).tolist():
        row = [float(x) for x in importance[b, h, i]]
        expected = oracle_selection(row, layout.prompt_length, layout.block_size, select)
        assert pattern.indices[b, h, i].tolist() == expected


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt", "size"), LAYOUTS)
def test_random_importances(length: int, prompt: int, size: int, select: float) -> None:
    layout = BlockLayout(length, prompt, size)
    torch.manual_seed(length)
    assert_selection(torch.rand(2, 2, layout.blocks, layout.blocks), layout, select)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("length", "prompt", "size"), LAYOUTS)
def test_ties_go_to_the_lower_block(length: int, prompt: int, size: int, select: float) -> None:
    layout = BlockLayout(length, prompt, size)
    n = layout.blocks
    torch.manual_seed(length)
    assert_selection(torch.full((1, 2, n, n), 0.125), layout, select)
    assert_selection(torch.randint(0, 3, (2, 2, n, n)) / 4, layout, select)
    # Equal weights that are too small to be normal numbers, and zeros.
    assert_selection(torch.randint(0, 2, (1, 2, n, n)) * 1e-42, layout, select)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layout_and_any_ties(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6), label="block size")
    length = data.draw(st.integers(1, 40), label="length")
    prompt = data.draw(st.integers(0, length), label="prompt")
    select = data.draw(st.integers(1, 100), label="select in percent") / 100
    layout = BlockLayout(length, prompt, size)
    levels = data.draw(st.integers(1, 5), label="distinct importances")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
    importance = torch.randint(0, levels, (1, 1, layout.blocks, layout.blocks), generator=generator) / 7
    assert_selection(importance, layout, select)


@pytest.mark.parametrize("select", [0.3, 0.5])
@pytest.mark.parametrize(("length", "prompt", "size"), LAYOUTS)
def test_from_queries_and_keys_to_blocks(length: int, prompt: int, size: int, select: float) -> None:
    """The whole way, with grouped queries and a batch of two."""
    torch.manual_seed(length + size)
    q, k = torch.randn(2, 4, length, 4) * 2, torch.randn(2, 2, length, 4)
    layout = BlockLayout(length, prompt, size)
    pattern = select_blocks(block_importance(q, k, 0.5, size), layout, select)
    for b in range(2):
        for h in range(4):
            rows = oracle_importance(q[b, h].double().tolist(), k[b, h // 2].double().tolist(), 0.5, size)
            for i, row in enumerate(rows):
                assert pattern.indices[b, h, i].tolist() == oracle_selection(row, prompt, size, select)


def test_equal_attention_keeps_the_first_blocks_of_each_side() -> None:
    q, k = torch.zeros(1, 2, 64, 8), torch.randn(1, 1, 64, 8)
    pattern = select_blocks(block_importance(q, k, 0.5, 8), BlockLayout(64, 40, 8), 0.4)
    assert (pattern.indices == torch.tensor([0, 1, 5, 6])).all()


@pytest.mark.parametrize("at_once", [1, 7, 60])
def test_rows_are_ranked_some_at_a_time(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Long sequences have more entries than are ranked together; at least a row is."""
    monkeypatch.setattr(isolated, "_AT_ONCE", at_once)
    sizes = []
    real = isolated._most_important
    monkeypatch.setattr(isolated, "_most_important", lambda x, n: sizes.append(x.numel()) or real(x, n))
    layout = BlockLayout(61, 48, 8)
    torch.manual_seed(3)
    assert_selection(torch.randint(0, 4, (2, 3, 8, 8)) / 4, layout, 0.5)
    assert max(sizes) <= max(at_once, 6) and sum(sizes) == 2 * 3 * 8 * 8


def test_importance_that_does_not_fit_or_is_not_a_number_is_refused() -> None:
    layout = BlockLayout(64, 48, 8)
    with pytest.raises(ValueError, match="8 × 8"):
        select_blocks(torch.rand(1, 1, 7, 7), layout, 0.3)
    importance = torch.rand(1, 1, 8, 8)
    importance[0, 0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        select_blocks(importance, layout, 0.3)
