"""The plotly figures: valid for plotly, and showing exactly what they were given."""

from __future__ import annotations

import json
import random
import time

import plotly.graph_objects as go
import pytest

from app import charts


def figure_of(lanes: dict[str, int], switch_step: int | None = 3, total: int = 10) -> charts.Figure:
    times = {lane: [0.1 * (i + 1) for i in range(steps)] for lane, steps in lanes.items()}
    phases = {
        lane: [
            "dense" if lane == "dense" or i < 2 else "select" if i == 2 else "sparse" for i in range(steps)
        ]
        for lane, steps in lanes.items()
    }
    return charts.timeline(times, phases, total=total, switch_step=switch_step)


def test_plotly_accepts_every_figure() -> None:
    mask = [[True, False], [False, True]]
    figures = [
        figure_of({"dense": 4, "sparse": 6}),
        figure_of({"dense": 0, "sparse": 0}),
        charts.heatmap(mask, layer=0, head=1, length=50, prompt_length=20, block_size=32, prompt_blocks=1),
        charts.empty("Nothing yet."),
    ]
    for figure in figures:
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


def test_the_timeline_shows_every_step_of_both_lanes_from_one() -> None:
    dense, sparse = figure_of({"dense": 3, "sparse": 5})["data"]
    assert dense["x"] == [1, 2, 3] and sparse["x"] == [1, 2, 3, 4, 5]
    assert dense["y"] == pytest.approx([100, 200, 300]) and sparse["text"][2] == "select"
    assert dense["line"]["dash"] != sparse["line"]["dash"]
    assert dense["marker"]["symbol"] != sparse["marker"]["symbol"]


def test_the_switch_line_stands_between_the_select_step_and_the_first_sparse_one() -> None:
    # The engine counts from 0: steps 0 and 1 dense, step 2 selects, step 3 is the first sparse one. On the
    # page these are 1, 2, 3 and 4.
    layout = figure_of({"dense": 4, "sparse": 6}, switch_step=3)["layout"]
    (line,) = layout["shapes"]
    assert line["x0"] == line["x1"] == 3.5
    (label,) = layout["annotations"]
    assert label["x"] == 3.5 and "after step 3" in label["text"]


def test_without_a_switch_there_is_no_line() -> None:
    layout = figure_of({"dense": 4, "sparse": 4}, switch_step=None)["layout"]
    assert layout["shapes"] == [] and layout["annotations"] == []


def test_the_heatmap_is_the_mask() -> None:
    rng = random.Random(0)
    mask = [[rng.random() < 0.3 for _ in range(41)] for _ in range(41)]
    figure = charts.heatmap(
        mask, layer=2, head=5, length=1300, prompt_length=1200, block_size=32, prompt_blocks=38
    )
    cells = figure["data"][0]["z"]
    assert [[value > 0 for value in row] for row in cells] == mask
    kept = {value for row in cells for value in row[38:]}, {value for row in cells for value in row[:38]}
    assert kept == ({0, 2}, {0, 1})
    share = 100 * sum(map(sum, mask)) / 41**2
    assert figure["layout"]["title"]["text"] == f"Layer 2, head 5: {share:.1f} % of blocks kept"


def test_the_boundary_between_prompt_and_generation_is_drawn_on_both_axes() -> None:
    mask = [[True] * 5 for _ in range(5)]
    figure = charts.heatmap(
        mask, layer=0, head=0, length=150, prompt_length=90, block_size=32, prompt_blocks=3
    )
    upright, level = figure["layout"]["shapes"]
    assert upright["x0"] == upright["x1"] == 2.5 and level["y0"] == level["y1"] == 2.5
    assert (upright["y0"], upright["y1"]) == (-0.5, 4.5)


@pytest.mark.parametrize("prompt_blocks", [0, 1])
def test_one_block_has_no_boundary(prompt_blocks: int) -> None:
    figure = charts.heatmap(
        [[True]], layer=0, head=0, length=20, prompt_length=10, block_size=32, prompt_blocks=prompt_blocks
    )
    assert figure["layout"]["shapes"] == []


def test_the_hover_names_blocks_and_their_tokens() -> None:
    labels = charts.block_labels(length=150, prompt_length=90, block_size=32, prompt_blocks=3)
    assert labels[0] == "0 · tokens 0–31 · prompt"
    assert labels[2] == "2 · tokens 64–95 · prompt and the first generated tokens"
    assert labels[4] == "4 · tokens 128–149 · generation"
    assert len(set(labels)) == len(labels) == 5
    figure = charts.heatmap(
        [[True] * 5] * 5, layer=0, head=0, length=150, prompt_length=90, block_size=32, prompt_blocks=3
    )
    assert figure["data"][0]["x"] == figure["data"][0]["y"] == labels
    assert "%{x}" in figure["data"][0]["hovertemplate"] and "%{y}" in figure["data"][0]["hovertemplate"]


def test_colours_are_variables_of_the_page() -> None:
    """A colour written into a figure would be wrong in the light or in the dark design."""
    text = json.dumps(figure_of({"dense": 4, "sparse": 6})) + json.dumps(charts.empty("x"))
    assert "#" not in text and "var(--sd-dense)" in text and "var(--sd-sparse)" in text


def test_figures_are_cheap_enough_to_build_beside_a_running_engine() -> None:
    times = {"dense": [0.1] * 1024, "sparse": [0.1] * 1024}
    phases = {"dense": ["dense"] * 1024, "sparse": ["sparse"] * 1024}
    mask = [[(i * j) % 3 == 0 for j in range(513)] for i in range(513)]
    start = time.perf_counter()
    charts.timeline(times, phases, total=1024, switch_step=205)
    charts.heatmap(
        mask, layer=0, head=0, length=65664, prompt_length=65536, block_size=128, prompt_blocks=512
    )
    assert time.perf_counter() - start < 0.5


def test_the_axis_of_a_run_that_may_end_early_follows_the_steps() -> None:
    times = {"dense": [0.1] * 20, "sparse": [0.1] * 16}
    phases = {key: ["dense"] * len(seconds) for key, seconds in times.items()}
    short = charts.timeline(times, phases, total=128, switch_step=None, at_most=True)
    assert short["layout"]["xaxis"]["range"] == [0, 26] and short["layout"]["shapes"] == []
    ahead = charts.timeline(times, phases, total=128, switch_step=27, at_most=True)
    assert ahead["layout"]["xaxis"]["range"][1] > 27.5
    near = charts.timeline(times, phases, total=21, switch_step=None, at_most=True)
    assert near["layout"]["xaxis"]["range"] == [0, 22]
