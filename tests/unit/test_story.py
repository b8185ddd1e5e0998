"""The scenes of how it works are drawn from the run, number by number."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from app import texts
from app.finished.run import Kept, opening
from app.finished.story import CELLS, SHADES, shrunk, story


@pytest.fixture
def run() -> Kept:
    found = opening()
    assert found is not None
    return found


def scenes(run: Kept | None, layer: int = 1, head: int = 0) -> dict[str, dict]:
    value = story(run, layer, head)
    json.dumps(value, allow_nan=False)
    assert [scene["key"] for scene in value["scenes"]] == ["masks", "dense", "select", "sparse", "cache"]
    for scene, told in zip(value["scenes"], texts.SCENES.values(), strict=True):
        assert (scene["title"], scene["words"]) == told
    return {scene["key"]: scene for scene in value["scenes"]}


def test_each_scene_leads_to_its_step(run: Kept) -> None:
    lanes = run.trace.lanes
    phases = [step.phase for step in lanes["sparse"].steps]
    made = scenes(run)
    steps = {key: (scene["lane"], scene["step"]) for key, scene in made.items()}
    assert made["masks"]["said"].startswith(f"After step {made['masks']['step']} of 48: ")
    assert steps == {
        "masks": ("sparse", made["masks"]["step"]),
        "dense": ("sparse", phases.index("select")),
        "select": ("sparse", phases.index("select") + 1),
        "sparse": ("sparse", phases.index("sparse") + 1),
        "cache": ("sparsed+refresh", len(lanes["sparsed+refresh"].steps)),
    }
    assert phases[: phases.index("select")] == ["dense"] * phases.index("select")


def test_the_canvas_is_the_run_s_when_half_is_written(run: Kept) -> None:
    scene = scenes(run)["masks"]
    lane, ends = run.trace.lanes["sparse"], run.trace.end_ids
    first_end = min(one.position for step in lane.steps for one in step.committed if one.token in ends)
    written: dict[int, tuple[int, int]] = {}
    for step in lane.steps:
        for commit in step.committed:
            written[commit.position] = (step.index, commit.token)
        there = sum(position <= first_end for position in written)
        if there >= (first_end + 1) / 2:
            break
    cells = scene["drawing"]["cells"]
    assert len(cells) == run.trace.gen_length
    for position, (text, state) in enumerate(cells):
        at, token = written.get(position, (None, None))
        shown = "masked" if at is None else "end" if token in ends else "fresh" if at == step.index else "settled"
        assert state == shown and (token is None or text == run.trace.vocabulary[token])
    said = f"{there} of the answer’s {first_end + 1} tokens are written."
    assert scene["said"] == f"After step {step.index + 1} of 48: {said}"


def test_the_maps_are_those_of_the_head(run: Kept) -> None:
    assert run.pattern is not None
    blocks = run.pattern.layout.blocks
    made = scenes(run, 3, 2)
    drawn = {key: np.array([[int(digit) for digit in row] for row in made[key]["drawing"]["rows"]]) for key in
             ("dense", "select", "sparse")}  # fmt: skip
    per_cell = -(-blocks // CELLS)
    assert all(cells.shape == (-(-blocks // per_cell),) * 2 for cells in drawn.values())
    assert (drawn["dense"] == SHADES).all()
    mask = run.pattern.mask(3)[0, 2]
    for row, column in np.ndindex(drawn["sparse"].shape):
        part = [slice(at * per_cell, (at + 1) * per_cell) for at in (row, column)]
        assert abs(drawn["sparse"][row, column] - SHADES * mask[part[0], part[1]].mean()) <= 0.5001
    # The more important, the darker.
    weights = run.pattern.importance(3, 2)
    assert weights is not None
    ordered = drawn["select"].ravel()[np.argsort(shrunk(weights, per_cell), axis=None)]
    assert (np.diff(ordered) >= 0).all() and ordered[-1] == SHADES
    assert f"all {blocks**2:,} pairs" in made["dense"]["said"]
    assert f"{100 * mask.sum() / blocks**2:.1f}\u00a0% of the pairs" in made["sparse"]["said"]
    for key in drawn:
        assert "layer 3, head 2" in made[key]["said"]
        edge = run.pattern.layout.prompt_blocks / per_cell / len(drawn[key])
        assert made[key]["drawing"]["edge"] == pytest.approx(edge, abs=1e-4)
    assert scenes(run, 99, 99)["sparse"]["said"].count("layer 5, head 3") == 1  # the last ones that it has


def test_the_cache_s_scene_counts_its_rows(run: Kept) -> None:
    scene = scenes(run)["cache"]
    positions = run.trace.prompt.tokens + run.trace.gen_length
    rows = [step.rows or positions for step in run.trace.lanes["sparsed+refresh"].steps]
    assert scene["drawing"]["shares"] == pytest.approx([100 * one / positions for one in rows], abs=0.06)
    assert f"{100 * sum(rows) / (positions * len(rows)):.0f}\u00a0% of the rows" in scene["said"]


def test_what_a_run_has_not_done_is_not_drawn(run: Kept) -> None:
    alone = {name: run.trace.lanes[name] for name in ("dense", "sparse")}
    made = scenes(Kept(replace(run.trace, lanes=alone), True))
    assert (made["cache"]["drawing"], made["cache"]["step"], made["cache"]["said"]) == (None, None, texts.NO_CACHE)
    # Stopped before its select step.
    few = {
        name: replace(lane, steps=lane.steps[:5], pattern=None, finished=False, switch_step=None)
        for name, lane in alone.items()
    }
    made = scenes(Kept(replace(run.trace, lanes=few), True))
    for key in ("dense", "select", "sparse"):
        assert (made[key]["drawing"], made[key]["step"], made[key]["said"]) == (None, None, texts.NO_SELECTION)
    assert made["masks"]["said"].startswith("After step 5 of 48: ") and made["masks"]["step"] == 5
    # Without importances the chosen pairs are shown.
    assert run.trace.lanes["sparse"].pattern is not None
    bare = replace(alone["sparse"], pattern=replace(run.trace.lanes["sparse"].pattern, importances=()))
    made = scenes(Kept(replace(run.trace, lanes={**alone, "sparse": bare}), True))
    assert made["select"]["drawing"] == made["sparse"]["drawing"] and "chosen" in made["select"]["said"]
    assert all(scene["drawing"] is scene["step"] is None for scene in scenes(None).values())
