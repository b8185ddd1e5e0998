"""The packed form of a pattern: nothing is lost on the way there and back."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks, coded
from sparsed.attention.pattern import LayerPattern, Pattern

ROOT = Path(__file__).resolve().parents[2]


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Pattern, list[np.ndarray]]:
    """A pattern and its masks, made apart from each other. Every layer has other slots, every query block other counts,
    some of them none.
    """
    size, length = draw(st.integers(1, 8)), draw(st.integers(1, 70))
    layout = BlockLayout(length, draw(st.integers(0, length)), size)
    batch, heads, layers = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape, n = (batch, heads, layout.blocks, layout.blocks), layout.blocks
    masks = [rng.random(shape) < rng.random() for _ in range(layers)]
    made = []
    for mask in masks:
        counts = mask.sum(-1)
        kept = int(rng.integers(counts.max(), n + 1))
        indices = np.full((*counts.shape, kept), -1, dtype=np.int32)
        for place in np.ndindex(counts.shape):
            indices[place][: counts[place]] = [block for block in range(n) if mask[place][block]]
        made.append(LayerPattern(torch.from_numpy(indices), torch.from_numpy(counts.astype(np.int32))))
    weights = [torch.from_numpy(rng.random(shape).astype(np.float16)) for _ in range(layers * draw(st.booleans()))]
    return Pattern(layout, tuple(made), draw(st.floats(0.05, 1)), tuple(weights) or None), masks


def small(indices: list[list[int]], counts: list[int], length: int, kept: int) -> tuple[Pattern, list[np.ndarray]]:
    blocks = len(indices)
    mask = np.zeros((1, 1, blocks, blocks), dtype=bool)
    for row, (blocks_of, count) in enumerate(zip(indices, counts)):
        mask[0, 0, row, blocks_of[:count]] = True
    layer = LayerPattern(torch.tensor([[indices]], dtype=torch.int32), torch.tensor([[counts]], dtype=torch.int32))
    return Pattern(BlockLayout(length, 0, 32), (layer,), 0.3, None), [mask]


@settings(max_examples=150, deadline=None)
@given(patterns())
@example(small([[0]], [1], 20, 1))
@example(small([[1, -1], [0, 1]], [1, 2], 40, 2))
def test_there_and_back_a_pattern_is_the_same(given: tuple[Pattern, list[np.ndarray]]) -> None:
    pattern, wanted = given
    masks = Masks.of(pattern)
    assert masks.layers == len(wanted) and masks.layout == pattern.layout
    for layer, mask in enumerate(wanted):
        found = masks.mask(layer)
        assert found.dtype == np.bool_ and np.array_equal(found, mask)
        for head in range(masks.heads):
            alone = masks.of_head(layer, head)
            assert np.array_equal(alone.mask(0), mask[:1, head : head + 1])
            assert alone.requested_density == pytest.approx(mask[0, head].mean())
    assert masks.requested_density == pytest.approx(pattern.requested_density)
    # On its way to another process it is the same thing still, and no part of it is torch's.
    sent = pickle.dumps(masks)
    assert b"torch" not in sent
    assert pickle.loads(sent) == masks
    back = pickle.loads(sent).to_pattern()
    assert back.layout == pattern.layout and back.select == pattern.select
    for mine, theirs in zip(back.layers, pattern.layers, strict=True):
        assert torch.equal(mine.indices, theirs.indices) and mine.indices.dtype == theirs.indices.dtype
        assert torch.equal(mine.counts, theirs.counts) and mine.counts.dtype == theirs.counts.dtype
    assert (back.importance is None) == (pattern.importance is None)
    for layer, weights in enumerate(pattern.importance or ()):
        assert torch.equal(back.importance[layer], weights) and back.importance[layer].dtype == torch.float16
        for head in range(masks.heads):
            seen = masks.importance(layer, head)
            assert seen.dtype == np.float32 and np.array_equal(seen, weights[0, head].float().numpy())
    if pattern.importance is None:
        assert masks.importance(0, 0) is None


@given(patterns())
@settings(max_examples=40, deadline=None)
def test_masks_are_told_apart_by_what_they_hold(given: tuple[Pattern, list[np.ndarray]]) -> None:
    pattern, wanted = given
    masks = Masks.of(pattern)
    flipped = list(masks.bits)
    flipped[-1] = flipped[-1] ^ np.uint8(128)
    others = [
        replace(masks, bits=tuple(flipped)),
        replace(masks, kept_mass=((0.5,) * masks.heads,) * masks.layers),
        replace(masks, layout=BlockLayout(pattern.layout.length + 1, 0, pattern.layout.block_size)),
        replace(masks, importances=() if masks.importances else tuple(coded(mask * 0.5) for mask in wanted)),
    ]
    assert masks == Masks.of(pattern) and all(masks != other for other in others) and masks != wanted


def test_a_bit_for_a_pair_and_importances_that_are_shared() -> None:
    layout = BlockLayout(65_536 + 128, 65_536, 128)
    shape = (1, 2, layout.blocks, layout.blocks)
    indices = torch.arange(154, dtype=torch.int32).expand(*shape[:3], 154).contiguous()
    layer = LayerPattern(indices, torch.full(shape[:3], 154, dtype=torch.int32))
    weights = torch.rand(shape).to(torch.float16)
    masks = Masks.of(Pattern(layout, (layer,), 0.3, (weights,)))
    assert np.shares_memory(masks.importances[0], weights.numpy())
    assert replace(masks, importances=()).nbytes == -(-2 * 513**2 // 8)
    assert masks.nbytes == -(-2 * 513**2 // 8) + weights.nbytes


def test_codes_are_within_the_stated_error_and_stay_what_they_are() -> None:
    """Every float16 from 0 to 1 there is; and a code that is coded again is the same."""
    known = np.arange(0x3C01, dtype=np.uint16).view(np.float16)[None, None, None]
    masks = Masks(BlockLayout(1, 0, 1), 0.3, 1, 1, (1,), (np.array([128], np.uint8),), (), (coded(known),))
    found, true = masks.importance(0, 0)[0].astype(np.float64), known[0, 0, 0].astype(np.float64)
    assert (found[true == 0] == 0).all() and found[-1] == 1
    some = true > 0
    assert np.abs(found[some] / true[some] - 1).max() <= (2**0.05 - 1) * 1.0001
    assert masks.importances[0].dtype == np.uint8
    assert np.array_equal(coded(found[None].astype(np.float32))[0], masks.importances[0].ravel())
    # Where there are codes of one row only, the engine's form of several rows has no importances.
    assert replace(masks, batch=2, bits=(np.array([192], np.uint8),)).to_pattern().importance is None


def test_opening_a_record_and_looking_at_it_needs_no_torch() -> None:
    code = (
        "import sys; from app.finished import views; from app.finished.story import story; "
        "from app.finished.run import opening; run = opening(); "
        "made = [views.head(run, 1, 2), *views.layer(run, 3), views.model(run), views.later(run)]; "
        "made.append(story(run, 1, 2)); "
        "assert all(made) and run.pattern.importance(1, 2) is not None and run.pattern.requested_density; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
