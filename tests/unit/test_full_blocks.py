"""Query blocks that see every key: what a pattern with them says about itself, against loops over rows and keys."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsed.attention import analysis
from sparsed.attention.backends.registry import executed_density
from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks
from sparsed.attention.pattern import LayerPattern, Pattern


@dataclass
class Case:
    """A pattern, and the same as plain lists: kept[layer][row][head][query block] are the key blocks of its list."""

    pattern: Pattern
    kept: list[list[list[list[list[int]]]]]
    full: list[bool]  # by query block: does it hold a generation position?


def blocks_of(length: int, size: int) -> list[range]:
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def made(length: int, prompt: int, size: int, batch: int, heads: int, layers: int, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    cuts = blocks_of(length, size)
    n = len(cuts)
    full = [any(position >= prompt for position in cut) for cut in cuts]
    kept, parts = [], []
    for _ in range(layers):
        lists = [[[sorted(rng.permutation(n)[: rng.integers(0, n + 1)].tolist()) for _ in cuts] for _ in range(heads)]
                 for _ in range(batch)]  # fmt: skip
        slots = max(1, *(len(one) for row in lists for head in row for one in head))
        indices = [[[one + [-1] * (slots - len(one)) for one in head] for head in row] for row in lists]
        counts = [[[len(one) for one in head] for head in row] for row in lists]
        layer = LayerPattern(torch.tensor(indices, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32))
        parts.append(layer.with_full(sum(full)))
        # What is given stays as it is.
        assert torch.equal(layer.counts, torch.tensor(counts, dtype=torch.int32)) and layer.full_blocks == 0
        kept.append(lists)
    weights = tuple(torch.from_numpy(rng.random((batch, heads, n, n)).astype(np.float16)) for _ in range(layers))
    return Case(Pattern(BlockLayout(length, prompt, size), tuple(parts), 0.4, weights), kept, full)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = draw(st.sampled_from([32, 64, 128]))
    length = draw(st.integers(2, 420))
    prompt = draw(
        st.one_of(
            st.just(0), st.integers(0, (length - 1) // size).map(lambda n: n * size),
            st.integers(0, min(size, length) - 1), st.integers(0, length - 1), st.just(length - 1),
        )
    )  # fmt: skip
    numbers = (draw(st.integers(1, 2)) for _ in range(3))
    return made(length, prompt, size, *numbers, draw(st.integers(0, 2**32)))


def seen(case: Case, layer: int, row: int, head: int) -> list[set[int]]:
    """The key blocks that each query block sees."""
    n = len(case.full)
    return [set(range(n)) if case.full[i] else set(case.kept[layer][row][head][i]) for i in range(n)]


def places(case: Case) -> list[tuple[int, int, int]]:
    kept = case.kept
    return [(a, b, c) for a in range(len(kept)) for b in range(len(kept[0])) for c in range(len(kept[0][0]))]


EDGES = [
    made(96, 64, 32, 1, 2, 1, 1),  # the generation starts on a block boundary
    made(97, 65, 32, 2, 1, 2, 2),  # a block straddles; the last block has one row
    made(128, 127, 128, 1, 1, 1, 3),  # one block, and it is full
    made(300, 20, 64, 2, 2, 1, 4),  # a prompt within the first block: all are full
    made(300, 0, 32, 1, 2, 1, 5),
    made(420, 300, 32, 2, 2, 2, 6),
]


@settings(max_examples=50, deadline=None)
@given(cases())
@example(EDGES[0])
@example(EDGES[1])
@example(EDGES[2])
@example(EDGES[3])
@example(EDGES[4])
@example(EDGES[5])
def test_masks_and_densities_are_those_of_the_loops(case: Case) -> None:
    pattern, layout = case.pattern, case.pattern.layout
    length, size, n = layout.length, layout.block_size, layout.blocks
    widths = [len(cut) for cut in blocks_of(length, size)]
    assert layout.generation_query_blocks == pattern.full_blocks == sum(case.full) >= 1
    assert case.full == [False] * (n - sum(case.full)) + [True] * sum(case.full)
    pairs = scores = whole = visited = 0
    for layer, row, head in places(case):
        blocks = seen(case, layer, row, head)
        mask = pattern.mask(layer, head, row)
        assert [set(line.nonzero()[:, 0].tolist()) for line in mask] == blocks
        assert torch.equal(pattern.layers[layer].mask()[row, head], mask)
        tiles = set()
        for i, kept in enumerate(blocks):
            made_layer = pattern.layers[layer]
            indices, count = made_layer.indices[row, head, i], int(made_layer.counts[row, head, i])
            assert indices.dtype == torch.int32 and (indices[count:] == -1).all()
            # A backend has nothing to do where all is seen.
            assert indices[:count].tolist() == ([] if case.full[i] else sorted(kept))
            pairs += len(kept)
            scores += sum(widths[i] * widths[j] for j in kept)
            if case.full[i]:
                whole += widths[i] * length
            else:
                whole += (len(kept) + (len(kept) % 2 if size == 32 else 0)) * size**2
                tiles |= {(i * size // 128, j * size // 128) for j in kept}
        visited += len(tiles)
    lists = len(places(case))
    assert pattern.requested_density == pytest.approx(pairs / (lists * n**2), abs=1e-12)
    assert executed_density("gather", pattern) == pytest.approx(scores / (lists * length**2), abs=1e-12)
    for name in ("triton", "flash4"):
        assert executed_density(name, pattern) == pytest.approx(whole / (lists * length**2), abs=1e-12)
    full_rows = sum(width for width, full in zip(widths, case.full) if full)
    side = -(-length // 128)
    flex = visited / (lists * side**2) + full_rows / length
    assert executed_density("flex", pattern) == pytest.approx(flex, abs=1e-6)
    if all(case.full):
        names = ("gather", "triton", "flash4", "flex")
        assert {executed_density(name, pattern) for name in names} == {pattern.requested_density} == {1.0}


@settings(max_examples=30, deadline=None)
@given(cases())
@example(EDGES[2])
@example(EDGES[3])
@example(EDGES[5])
def test_kept_mass_and_overlaps(case: Case) -> None:
    pattern = case.pattern
    cuts = blocks_of(pattern.layout.length, pattern.layout.block_size)
    batch, heads = len(case.kept[0]), len(case.kept[0][0])
    for row in range(batch):
        shares = analysis.kept_mass(pattern, row)
        for layer in range(len(case.kept)):
            for head in range(heads):
                weights, total = pattern.importance[layer][row, head].double().tolist(), 0.0
                for i, kept in enumerate(seen(case, layer, row, head)):
                    mass = [weight * len(cut) for weight, cut in zip(weights[i], cuts)]
                    total += len(cuts[i]) * sum(mass[j] for j in kept) / sum(mass) if sum(mass) else 0
                assert float(shares[layer, head]) == pytest.approx(total / pattern.layout.length, abs=1e-5)
            # Heads are alike in what was selected; what everything sees would make them more so.
            found = analysis.head_overlap(pattern, layer, row)
            for one in range(heads):
                for two in range(heads):
                    a, b = (
                        {(i, j) for i, kept in enumerate(case.kept[layer][row][head]) if not case.full[i] for j in kept}
                        for head in (one, two)
                    )
                    wanted = len(a & b) / len(a | b) if a | b else 1.0
                    assert found[one, two] == pytest.approx(wanted, abs=1e-6)
    other = made(
        pattern.layout.length, pattern.layout.prompt_length, pattern.layout.block_size, batch, heads, len(case.kept), 99
    )
    # Rows of the prompt are compared, whichever of the two patterns gives the others everything.
    plain = Pattern(pattern.layout, tuple(layer.with_full(0) for layer in other.pattern.layers), 0.4)
    for theirs in (other.pattern, plain):
        for overlap in (pattern.overlap(theirs), theirs.overlap(pattern)):
            assert overlap.dtype == torch.float32
            for layer in range(len(case.kept)):
                for head in range(heads):
                    a, b = (
                        {(row, i, j) for row in range(batch) for i, kept in enumerate(one.kept[layer][row][head])
                         if not case.full[i] for j in kept}
                        for one in (case, other)
                    )  # fmt: skip
                    wanted = len(a & b) / len(a | b) if a | b else 1.0
                    assert float(overlap[layer, head]) == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(cases())
@example(EDGES[2])
@example(EDGES[3])
@example(EDGES[5])
def test_packed_taken_apart_and_joined_it_is_the_same(case: Case) -> None:
    pattern = case.pattern
    masks = pickle.loads(pickle.dumps(Masks.of(pattern)))
    assert masks == Masks.of(pattern) and masks.full_blocks == sum(case.full)
    assert masks.requested_density == pytest.approx(pattern.requested_density)
    for layer, row, head in places(case):
        wanted = np.zeros((len(case.full),) * 2, dtype=bool)
        for i, kept in enumerate(seen(case, layer, row, head)):
            wanted[i, list(kept)] = True
        assert np.array_equal(masks.mask(layer)[row, head], wanted)
        if row == 0:
            alone = masks.of_head(layer, head)
            assert np.array_equal(alone.mask(0)[0, 0], wanted) and alone.full_blocks == masks.full_blocks
    back = masks.to_pattern()
    assert back.full_blocks == pattern.full_blocks
    assert back.requested_density == pattern.requested_density
    assert executed_density("gather", back) == executed_density("gather", pattern)
    batch, heads = len(case.kept[0]), len(case.kept[0][0])
    rows = torch.tensor([batch - 1, 0, batch - 1])
    for mine, given_layer in zip(back.layers, pattern.layers, strict=True):
        halves = [given_layer.of_heads(slice(head, head + 1)) for head in range(heads)]
        wider = LayerPattern.joined([*halves[:-1], halves[-1]])
        for one in (mine, wider, given_layer.to("cpu")):
            assert torch.equal(one.indices, given_layer.indices) and torch.equal(one.counts, given_layer.counts)
            assert one.full_blocks == given_layer.full_blocks
        assert torch.equal(given_layer.of_rows(rows).mask(), given_layer.mask()[rows])
        for head, half in enumerate(halves):
            assert torch.equal(half.mask(), given_layer.mask()[:, head : head + 1])


def test_heads_of_unequal_slots_are_joined() -> None:
    """As of two processes, whose lists have other lengths."""
    one, two = (made(200, 100, 32, 2, 1, 1, seed).pattern.layers[0] for seed in (1, 2))
    short = LayerPattern(two.indices[..., :1].clamp(min=-1), two.counts.clamp(max=1), two.full_blocks)
    both = LayerPattern.joined([one, short])
    assert both.full_blocks == one.full_blocks and both.kept == one.kept > short.kept
    assert torch.equal(both.mask(), torch.cat([one.mask(), short.mask()], dim=1))


@pytest.mark.parametrize(("length", "prompt", "size"), [(97, 65, 32), (300, 20, 64), (96, 64, 32), (200, 199, 128)])
def test_lists_of_some_rows_are_empty_where_all_is_seen(row_sets, length: int, prompt: int, size: int) -> None:
    case = made(length, prompt, size, 3, 2, 1, length)
    layer, layout = case.pattern.layers[0], case.pattern.layout
    first = case.full.index(True) * size
    for name, positions in {"all": None, **row_sets(length, size, 3)}.items():
        lists = layer.lists(positions, layout)
        given = (torch.arange(length)[None] if positions is None else positions).tolist()
        full = [[position >= first for position in row] for row in given]
        if not any(map(any, full)):
            assert lists.full is None, name
            continue
        start, those = lists.full
        assert start == min(row.index(True) if True in row else len(row) for row in full), name
        if those is None:
            assert all(all(row[start:]) for row in full), name
        else:
            assert those.dtype == torch.bool and those.shape == (len(given), 1, len(given[0]) - start, 1), name
            assert those[:, 0, :, 0].tolist() == [row[start:] for row in full], name
        blocks = lists.into_tiles(torch.tensor(given).expand(3, -1)[:, None, :, None])[:, 0, :, 0] // size
        for b in range(3):
            for tile in range(lists.counts.shape[-1]):
                if int(lists.tile_rows.expand(3, -1)[b, tile]) and case.full[int(blocks[b, tile * size])]:
                    assert not lists.counts[b, :, tile].any() and (lists.indices[b, :, tile] == -1).all(), name
