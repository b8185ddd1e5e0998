"""What is said about the heads of a pattern, against loops over single pairs and over real attention."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsed.attention import analysis
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.attention.selection.importance import block_importance
from sparsed.attention.selection.isolated import select_blocks

LAYOUTS = st.builds(
    lambda length, size, share: BlockLayout(length, int(share * length), size),
    st.integers(1, 60),
    st.integers(1, 16),
    st.floats(0, 1),
)


def random_pattern(layout: BlockLayout, batch: int, heads: int, layers: int, seed: int) -> Pattern:
    """Query blocks keep different numbers of blocks, some none; importances are any numbers from 0 to 1."""
    rng = np.random.default_rng(seed)
    shape = (batch, heads, layout.blocks, layout.blocks)
    made, importance = [], []
    for _ in range(layers):
        mask = rng.random(shape) < 0.5
        counts = mask.sum(-1)
        kept = max(1, int(counts.max()))
        order = np.argsort(~mask, axis=-1, kind="stable")[..., :kept]
        indices = np.where(np.arange(kept) < counts[..., None], order, -1).astype(np.int32)
        made.append(LayerPattern(torch.from_numpy(indices), torch.from_numpy(counts.astype(np.int32))))
        importance.append(torch.from_numpy(rng.random(shape).astype(np.float16)))
    return Pattern(layout, tuple(made), 0.5, tuple(importance))


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, heads=st.integers(1, 3), row=st.integers(0, 1), seed=st.integers(0, 10**6))
def test_kept_mass_is_the_mean_over_rows_of_shares(layout: BlockLayout, heads: int, row: int, seed: int) -> None:
    pattern = random_pattern(layout, 2, heads, 2, seed)
    shares = analysis.kept_mass(pattern, row)
    assert shares.dtype == torch.float32 and shares.shape == (2, heads)
    assert pattern.importance is not None
    for layer in range(2):
        for head in range(heads):
            mask = pattern.mask(layer, head, row)
            weights = pattern.importance[layer][row, head].double()
            total = 0.0
            for i, (start, end) in enumerate(layout.ranges):
                masses = [float(weights[i, j]) * (last - first) for j, (first, last) in enumerate(layout.ranges)]
                if sum(masses):
                    kept = sum(mass for mass, keeps in zip(masses, mask[i]) if keeps)
                    total += (end - start) * kept / sum(masses)
            assert float(shares[layer, head]) == pytest.approx(total / layout.length, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(2, 50),
    prompt=st.floats(0, 1),
    size=st.integers(1, 12),
    select=st.sampled_from([0.2, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_kept_mass_is_attention_that_lands_on_kept_keys(
    length: int, prompt: float, size: int, select: float, seed: int
) -> None:
    """Token by token: the softmax weights of the keys in kept blocks, averaged over all queries."""
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(1, 2, length, 8, generator=generator)
    k = torch.randn(1, 1, length, 8, generator=generator)
    layout = BlockLayout(length, int(prompt * length), size)
    importance = block_importance(q, k, 0.5, size)
    pattern = Pattern(layout, (select_blocks(importance, layout, select),), select, (importance.half(),))
    shares = analysis.kept_mass(pattern)
    weights = (0.5 * q[0].double() @ k[0].double().transpose(1, 2)).softmax(-1)
    for head in range(2):
        mask = pattern.mask(0, head)
        kept = sum(
            float(weights[head, query, key])
            for query in range(length)
            for key in range(length)
            if mask[query // size, key // size]
        )
        assert float(shares[0, head]) == pytest.approx(kept / length, abs=1e-3)
        assert shares[0, head] <= 1
        if select == 1:
            assert float(shares[0, head]) == pytest.approx(1, abs=1e-6)


def test_kept_mass_does_not_feel_the_rounding_of_many_small_weights() -> None:
    """Even attention over 65,664 keys, each weight rounded up by 0.15 %: the share is still the kept keys' share."""
    layout = BlockLayout(65_664, 65_536, 128)
    importance = torch.full((1, 1, 513, 513), 1 / 65_664, dtype=torch.float16)
    assert abs(float(importance[0, 0, 0, 0]) * 65_664 - 1) > 1e-3
    pattern = Pattern(layout, (select_blocks(importance.float(), layout, 0.3),), 0.3, (importance,))
    assert float(analysis.kept_mass(pattern)) == pytest.approx(155 / 513, abs=1e-6)


def test_kept_mass_of_nothing() -> None:
    pattern = random_pattern(BlockLayout(9, 4, 2), 1, 2, 1, 0)
    assert pattern.importance is not None
    nothing = replace(pattern, importance=(torch.zeros_like(pattern.importance[0]),))
    assert analysis.kept_mass(nothing).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="has no importances"):
        analysis.kept_mass(replace(pattern, importance=None))


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, heads=st.integers(1, 4), row=st.integers(0, 1), seed=st.integers(0, 10**6))
def test_overlap_counts_pairs(layout: BlockLayout, heads: int, row: int, seed: int) -> None:
    pattern = random_pattern(layout, 2, heads, 2, seed)
    kept = [
        [
            {(i, j) for i in range(layout.blocks) for j in range(layout.blocks) if pattern.mask(layer, head, row)[i, j]}
            for head in range(heads)
        ]
        for layer in range(2)
    ]
    between = []
    for layer in range(2):
        found = analysis.head_overlap(pattern, layer, row)
        assert found.dtype == np.float32 and found.shape == (heads, heads)
        for a, mine in enumerate(kept[layer]):
            for b, theirs in enumerate(kept[layer]):
                share = len(mine & theirs) / len(mine | theirs) if mine | theirs else 1
                assert found[a, b] == np.float32(share)
                between += [share] if a != b else []
    mean = analysis.mean_head_overlap(pattern, row)
    if heads == 1:
        assert math.isnan(mean)
    else:
        assert mean == pytest.approx(sum(between) / len(between), abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 7, 64, 65])
def test_overlap_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    pattern = random_pattern(BlockLayout(32, 16, 4), 1, 3, 1, 5)
    whole = analysis.head_overlap(pattern, 0)
    assert 0 < whole[0, 1] < 1
    monkeypatch.setattr(analysis, "_AT_ONCE", at_once)
    np.testing.assert_array_equal(analysis.head_overlap(pattern, 0), whole)


@settings(max_examples=60, deadline=None)
@given(blocks=st.integers(1, 40), most=st.integers(1, 45), heads=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_thumbnails_average_blocks(blocks: int, most: int, heads: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((heads, blocks, blocks)) < 0.4
    small, side = analysis.thumbnails(mask, most)
    cells = small.shape[1]
    assert small.dtype == np.float32 and small.shape == (heads, cells, cells)
    assert cells <= most and (cells - 1) * side < blocks <= cells * side
    if blocks <= most:
        assert side == 1
        np.testing.assert_array_equal(small, mask)
    else:
        assert -(-blocks // (side - 1)) > most  # no finer one would fit
    for head in range(heads):
        for i in range(cells):
            for j in range(cells):
                pairs = [
                    bool(mask[head, row, column])
                    for row in range(i * side, min(blocks, (i + 1) * side))
                    for column in range(j * side, min(blocks, (j + 1) * side))
                ]
                assert small[head, i, j] == np.float32(sum(pairs) / len(pairs))


def test_thumbnails_of_the_longest_sequence() -> None:
    mask = np.zeros((2, 513, 513), dtype=bool)
    mask[1, :, 510:] = True
    small, side = analysis.thumbnails(mask)
    assert side == 5 and small.shape == (2, 103, 103)
    assert not small[0].any() and (small[1, :, -1] == 1).all() and not small[1, :, :-1].any()
    with pytest.raises(ValueError, match="most must be at least 1 cell, not 0"):
        analysis.thumbnails(mask, 0)
