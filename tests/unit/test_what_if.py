"""Another select, tried on the importances of a run that is over, against the paper's rule row by row."""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_CEILING, Decimal

import numpy as np
import pytest

from app import texts
from app.finished import views
from app.finished.evidence import evidence
from app.finished.run import Kept, opening
from app.finished.what_if import LEAST, STEP, own, said, what_if, why_not
from app.page.values import what_if_view
from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks, coded

STOPS = [Decimal(str(LEAST)) + n * Decimal(str(STEP)) for n in range(99)]
LAYERS, HEADS = 2, 3


def kept_by_the_rule(row: list[float], layout: BlockLayout, select: Decimal, isolated: bool = True) -> list[int]:
    """The key blocks that a query block keeps: the most important of each side, of equals the first."""
    blocks = list(range(len(row)))
    generation = [j for j in blocks if j * layout.block_size >= layout.prompt_length] or blocks[-1:]
    sides = [[j for j in blocks if j not in generation], generation]
    numbers = [max(1, int((select * len(side)).to_integral_value(ROUND_CEILING))) if side else 0 for side in sides]
    if not isolated:
        sides, numbers = [blocks], [sum(numbers)]
    kept = []
    for side, number in zip(sides, numbers, strict=True):
        kept += sorted(side, key=lambda j: (-row[j], j))[:number]
    return sorted(kept)


def share_by_the_rule(weights: np.ndarray, mask: np.ndarray, layout: BlockLayout) -> float:
    """The share of attention in the mask, number by number: every query row counts the same."""
    widths = [end - start for start, end in layout.ranges]
    total = 0.0
    for row, kept, rows in zip(weights.tolist(), mask.tolist(), widths, strict=True):
        parts = [weight * width for weight, width in zip(row, widths, strict=True)]
        total += rows * sum(part for part, there in zip(parts, kept, strict=True) if there) / sum(parts)
    return total / layout.length


def run_of(layout: BlockLayout, *, live: bool = True, full: bool = False, isolated: bool = True) -> Kept:
    """A run with importances by lot, many of them equal; the run itself has kept the first blocks of every row."""
    first = opening()
    assert first is not None and first.sparse is not None
    draw = np.random.default_rng(layout.length)
    shape = (1, HEADS, layout.blocks, layout.blocks)
    weights = [(draw.integers(1, 40, shape) / 64).astype(np.float16) for _ in range(LAYERS)]
    kept = np.zeros(shape, dtype=bool)
    kept[..., :2] = True
    full_blocks = layout.generation_query_blocks if full else 0
    kept[:, :, layout.blocks - full_blocks :] = True
    masks = Masks(
        layout, 0.3, 1, HEADS, (2,) * LAYERS, (np.packbits(kept),) * LAYERS, ((0.5,) * HEADS,) * LAYERS,
        tuple(weights if live else map(coded, weights)), full_blocks,
    )  # fmt: skip
    attention = replace(
        first.sparse.attention, isolated=isolated, block_size=layout.block_size,
        generation_rows="full" if full else "pattern",
    )  # fmt: skip
    lanes = {**first.trace.lanes, "sparse": replace(first.sparse, pattern=masks, attention=attention)}
    return Kept(replace(first.trace, lanes=lanes), live, tuple(weights) if live else None)


@pytest.mark.parametrize(
    ("layout", "made"),
    [
        (BlockLayout(700, 600, 32), {}),  # 22 blocks, the last one partly filled
        (BlockLayout(704, 600, 64), {"full": True}),
        (BlockLayout(1500, 1400, 128), {"live": False}),
        (BlockLayout(130, 100, 128), {}),  # a block a side
        (BlockLayout(700, 600, 32), {"isolated": False, "live": False}),
    ],
)
def test_every_stop_keeps_what_the_rule_keeps(layout: BlockLayout, made: dict[str, bool]) -> None:
    run = run_of(layout, **made)
    assert why_not(run) == "" and run.pattern is not None
    isolated = made.get("isolated", True)
    # Another head, of another layer, shows by a few stops that it is another.
    for layer, head, stops in ((0, 0, STOPS), (1, 2, [*STOPS[1::6], STOPS[-1]])):
        weights = run.pattern.importance(layer, head)
        assert weights is not None
        rows = weights.tolist()
        for select in stops:
            tried = what_if(run, layer, head, float(select))
            expected = np.zeros((layout.blocks, layout.blocks), dtype=bool)
            for number, row in enumerate(rows):
                expected[number, kept_by_the_rule(row, layout, select, isolated)] = True
            expected[layout.blocks - run.pattern.full_blocks :] = True
            assert np.array_equal(tried.mask, expected), (layer, head, select)
            assert tried.mass == pytest.approx(share_by_the_rule(weights, expected, layout), abs=1e-5)
        assert tried.mask.all() and tried.mass == pytest.approx(1)  # the last stop
        assert np.array_equal(own(run, layer, head).mask, run.pattern.mask(layer)[0, head])


def test_the_map_and_the_evidence_show_it_and_say_so() -> None:
    run = opening()
    assert run is not None and run.pattern is not None
    tried = what_if(run, 2, 1, 0.1)
    view = views.head(run, 2, 1, "both", 0.1)
    assert view is not None
    layout = view["figure"]["layout"]
    assert layout["title"]["text"] == "Layer 2, head 1, if select were 0.1" and layout["meta"]["map"]["select"] == 0.1
    assert view["label"].startswith("Block mask of layer 2, head 1, if select were 0.1: ")
    assert f"{100 * tried.mask.mean():.1f} % of blocks kept" in layout["title"]["subtitle"]["text"]
    assert views.head(run, 2, 1)["figure"]["layout"]["meta"]["map"]["select"] is None
    given, mine = evidence(run, 2, 1, tried), evidence(run, 2, 1)
    assert given is not None and mine is not None
    assert given["what_if"] == {"lane": "sparse", "select": 0.1} and mine["what_if"] is None
    assert given["lanes"]["sparse"] != mine["lanes"]["sparse"]
    assert {**given["lanes"], "sparse": 0} == {**mine["lanes"], "sparse": 0}  # what other lanes kept, they kept


def test_both_are_said_and_less_than_all_is_not_called_all() -> None:
    run = run_of(BlockLayout(700, 600, 32))
    tried = replace(what_if(run, 0, 0, 0.5), mass=0.99996)
    assert said(run, 0, 0, tried) == (
        f"At 0.5 this head would keep {100 * tried.mask.mean():.1f}\u00a0% of blocks and 99.9\u00a0% of attention;"
        " at the run’s own 0.3 it keeps 9.1\u00a0% and 50.0\u00a0%."
    )
    shown = what_if_view(run, 9, 9, None)  # a head that this run does not have: its last one
    assert shown == ({"value": 0.3, "interactive": True}, False, said(run, 1, 2, None))
    assert what_if_view(run, 0, 0, 0.5)[:2] == ({"value": 0.5, "interactive": True}, True)


def test_where_it_cannot_be_tried_a_sentence_says_why() -> None:
    run = opening()
    assert run is not None and run.pattern is not None
    assert why_not(None) == why_not(run.pattern) == texts.WHAT_IF_LATER
    ended = {**run.trace.lanes, "sparse": replace(run.trace.lanes["sparse"], pattern=None)}
    assert why_not(Kept(replace(run.trace, lanes=ended), False)) == texts.NO_SELECTION
    assert why_not(run.showing("sliding_window" if run.lane("sliding_window") else "baseline")) == texts.WHAT_IF_BY_RULE
    bare = replace(run.pattern, importances=())
    lanes = {**run.trace.lanes, "sparse": replace(run.trace.lanes["sparse"], pattern=bare)}
    assert why_not(Kept(replace(run.trace, lanes=lanes), False)) == texts.WHAT_IF_UNKNOWN
    shown = what_if_view(Kept(replace(run.trace, lanes=lanes), False), 0, 0, 0.1)
    assert shown == ({"value": 0.3, "interactive": False}, False, texts.WHAT_IF_UNKNOWN)
