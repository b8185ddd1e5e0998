"""The plotly figures: valid for plotly, and showing exactly what they were given."""

from __future__ import annotations

import json
import time

import plotly.graph_objects as go
import pytest

from app.figures import base, timeline
from app.lanes import lanes_for
from app.race.snapshot import StepTimes
from sparsed.config import SparseDConfig

TWO = lanes_for(SparseDConfig())


def ranges(total: int, switch_step: int | None) -> list[tuple[str, int, int]]:
    """The phases of a run that selects once, from and to which step, counted from 1."""
    if switch_step is None:
        return [("dense", 1, total)]
    dense = [("dense", 1, switch_step - 1)] if switch_step > 1 else []
    return [*dense, ("select", switch_step, switch_step), ("sparse", switch_step + 1, total)]


def figure_of(lanes: dict[str, int], switch_step: int | None = 3, total: int = 10) -> base.Figure:
    times = {lane: [0.1 * (i + 1) for i in range(steps)] for lane, steps in lanes.items()}
    phases = {
        lane: [
            "dense" if lane == "dense" or i < 2 else "select" if i == 2 else "sparse" for i in range(steps)
        ]
        for lane, steps in lanes.items()
    }
    return timeline.timeline(StepTimes(TWO, times, phases, total=total, ranges=ranges(total, switch_step)))


def test_plotly_accepts_every_figure() -> None:
    figures = [
        figure_of({"dense": 4, "sparse": 6}),
        figure_of({"dense": 0, "sparse": 0}),
        base.empty("Nothing yet."),
    ]
    for figure in figures:
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


def test_the_timeline_shows_every_step_of_both_lanes_from_one() -> None:
    dense, sparse, *_ = figure_of({"dense": 3, "sparse": 5})["data"]
    assert dense["x"] == [1, 2, 3] and sparse["x"] == [1, 2, 3, 4, 5]
    assert dense["y"] == pytest.approx([100, 200, 300]) and sparse["text"][2] == "select"
    assert dense["line"]["dash"] != sparse["line"]["dash"]
    assert dense["marker"]["symbol"] != sparse["marker"]["symbol"]


def test_the_switch_line_stands_between_the_select_step_and_the_first_sparse_one() -> None:
    # The engine counts from 0: steps 0 and 1 dense, step 2 selects, step 3 is the first sparse one. On the
    # page these are 1, 2, 3 and 4.
    layout = figure_of({"dense": 4, "sparse": 6}, switch_step=3)["layout"]
    line, *spans = layout["shapes"]
    assert line["name"] == "switch" and line["x0"] == line["x1"] == 3.5
    label = layout["annotations"][0]
    assert label["x"] == 3.5 and "after step 3" in label["text"]
    # Behind it the phases, each step in the middle of its own.
    assert [(span["name"], span["x0"], span["x1"]) for span in spans] == [
        ("dense", 0.5, 2.5), ("select", 2.5, 3.5), ("sparse", 3.5, 10.5),
    ]  # fmt: skip


def test_a_run_that_selects_in_its_first_step_has_no_dense_phase() -> None:
    shapes = figure_of({"dense": 4, "sparse": 6}, switch_step=1)["layout"]["shapes"]
    assert [shape["name"] for shape in shapes] == ["switch", "select", "sparse"]


def test_below_it_each_lane_s_clock_and_how_far_they_are_apart() -> None:
    figure = figure_of({"dense": 4, "sparse": 6})
    clocks = figure["data"][2:]
    assert [clock["yaxis"] for clock in clocks] == ["y2", "y2"]
    assert clocks[0]["y"] == pytest.approx([0.1, 0.3, 0.6, 1.0])
    assert clocks[1]["y"][-1] == pytest.approx(2.1)
    # Both lanes have made four steps, in the same time.
    assert figure["layout"]["annotations"][1]["text"] == "1.00× after 4 steps"
    times = {"dense": [3.0, 3.0], "sparse": [3.0, 1.0]}
    phases = {"dense": ["dense"] * 2, "sparse": ["select", "sparse"]}
    said = timeline.timeline(StepTimes(TWO, times, phases, total=4, ranges=ranges(4, 1)))["layout"]["annotations"]
    assert said[1]["text"] == "1.50× after 2 steps" and said[1]["y"] == 6.0
    # As the stage says it: slower lanes, and those that are as good as equal.
    for last, words in ((5.0, "1.33× slower after 2 steps"), (3.05, "0.99× after 2 steps")):
        slow = {"dense": [3.0, 3.0], "sparse": [3.0, last]}
        found = timeline.timeline(StepTimes(TWO, slow, phases, total=4, ranges=ranges(4, 1)))["layout"]["annotations"]
        # Above both clocks.
        assert (found[1]["text"], found[1]["y"]) == (words, pytest.approx(max(6.0, 3.0 + last)))
    # Before a lane is sparse a factor would be noise.
    assert len(figure_of({"dense": 3, "sparse": 3})["layout"]["annotations"]) == 1


@pytest.mark.parametrize(
    ("switch", "made", "turns", "apart"),
    [
        (10, 48, (10.5, "left"), (48, "right")), (10, 20, (10.5, "left"), (10.5, "left")),
        (24, 48, (24.5, "right"), (24.5, "right")), (40, 48, (40.5, "right"), (40.5, "right")),
    ],
)  # fmt: skip
def test_no_text_crosses_the_switch_line(switch, made, turns, apart) -> None:
    times = {lane: [0.1] * made for lane in ("dense", "sparse")}
    phases = {"dense": ["dense"] * made, "sparse": ["dense"] * switch + ["sparse"] * (made - switch)}
    steps = StepTimes(TWO, times, phases, total=48, ranges=ranges(48, switch))
    said = timeline.timeline(steps)["layout"]["annotations"]
    assert [(one["x"], one["xanchor"]) for one in said] == [turns, apart]


def test_without_a_switch_there_is_no_line() -> None:
    layout = figure_of({"dense": 4, "sparse": 4}, switch_step=None)["layout"]
    assert layout["shapes"] == [] and layout["annotations"] == []


def test_the_hover_names_blocks_and_their_tokens() -> None:
    labels = base.block_labels(length=150, prompt_length=90, block_size=32, prompt_blocks=3)
    assert labels[0] == "0 · tokens 0–31 · prompt"
    assert labels[2] == "2 · tokens 64–95 · prompt and the first generated tokens"
    assert labels[4] == "4 · tokens 128–149 · generation"
    assert len(set(labels)) == len(labels) == 5


def test_colours_are_variables_of_the_page() -> None:
    """A colour written into a figure would be wrong in the light or in the dark design."""
    text = json.dumps(figure_of({"dense": 4, "sparse": 6})) + json.dumps(base.empty("x"))
    assert "#" not in text and "var(--lane-1)" in text and "var(--lane-2)" in text


def test_figures_are_cheap_enough_to_build_beside_a_running_engine() -> None:
    times = {"dense": [0.1] * 1024, "sparse": [0.1] * 1024}
    phases = {"dense": ["dense"] * 1024, "sparse": ["sparse"] * 1024}
    start = time.perf_counter()
    timeline.timeline(StepTimes(TWO, times, phases, total=1024, ranges=ranges(1024, 205)))
    assert time.perf_counter() - start < 0.5


def test_the_axis_of_a_run_that_may_end_early_follows_the_steps() -> None:
    times = {"dense": [0.1] * 20, "sparse": [0.1] * 16}
    phases = {key: ["dense"] * len(seconds) for key, seconds in times.items()}
    short = timeline.timeline(StepTimes(TWO, times, phases, total=128, ranges=ranges(128, None), at_most=True))
    assert short["layout"]["xaxis"]["range"] == [0, 26] and short["layout"]["shapes"] == []
    ahead = timeline.timeline(StepTimes(TWO, times, phases, total=128, ranges=ranges(128, 27), at_most=True))
    assert ahead["layout"]["xaxis"]["range"][1] > 27.5
    near = timeline.timeline(StepTimes(TWO, times, phases, total=21, ranges=ranges(21, None), at_most=True))
    assert near["layout"]["xaxis"]["range"] == [0, 22]


def test_a_third_lane_has_a_line_and_a_clock_and_leaves_the_factor_alone() -> None:
    times = {"dense": [3.0, 3.0, 3.0], "sparse": [3.0, 1.0], "baseline": [1.0]}
    phases = {"dense": ["dense"] * 3, "sparse": ["select", "sparse"], "baseline": ["select"]}
    three = lanes_for(SparseDConfig(), ["streaming_llm"])
    figure = timeline.timeline(StepTimes(three, times, phases, total=4, ranges=ranges(4, 1)))
    go.Figure(figure)
    assert [line["name"] for line in figure["data"]] == 2 * ["Full attention", "SparseD", "StreamingLLM"]
    assert [len(line["x"]) for line in figure["data"]] == 2 * [3, 2, 1]
    for what in ("dash", "color"):
        assert len({line["line"][what] for line in figure["data"][:3]}) == 3
    assert len({line["marker"]["symbol"] for line in figure["data"][:3]}) == 3
    # Over the steps that full attention and SparseD both have.
    assert figure["layout"]["annotations"][1]["text"] == "1.50× after 2 steps"
    without = {lane: times[lane] for lane in ("dense", "sparse")}
    two = timeline.timeline(StepTimes(TWO, without, phases, total=4, ranges=ranges(4, 1)))
    assert two["layout"] == figure["layout"] and two["data"] == [*figure["data"][:2], *figure["data"][3:5]]


def test_each_selection_has_its_band_and_the_line_stands_at_the_first() -> None:
    three = lanes_for(SparseDConfig(refresh=3, generation_rows="full"))
    phases = ["dense", "select", "sparse", "sparse", "select", "sparse"]
    times = {"dense": [0.1] * 6, "sparse": [0.1] * 6}
    made = [("dense", 1, 1), ("select", 2, 2), ("sparse", 3, 4), ("select", 5, 5), ("sparse", 6, 9), ("select", 10, 10)]
    given = StepTimes(three, times, {"dense": ["dense"] * 6, "sparse": phases}, 10, made)
    figure = timeline.timeline(given)
    go.Figure(figure)
    line, *bands = figure["layout"]["shapes"]
    assert (line["name"], line["x0"]) == ("switch", 2.5) and given.switch_step == 2
    assert [(one["name"], one["x0"] + 0.5, one["x1"] - 0.5) for one in bands] == made
    assert figure["layout"]["annotations"][0]["text"] == "SparseD turns sparse after step 2"
    assert figure["data"][1]["name"] == "SparseD, full generation rows, refresh 3"
    assert [size > 6 for size in figure["data"][1]["marker"]["size"]] == [phase == "select" for phase in phases]
    # Where the end is not known, the axis ends before what is only planned.
    open_end = [*made[:-1], ("select", 60, None)]
    _, *bands = timeline.timeline(StepTimes(three, times, given.phases, 96, open_end, True))["layout"]["shapes"]
    assert [one["name"] for one in bands] == ["dense", "select", "sparse", "select", "sparse"]
    assert bands[-1]["x1"] == 8.5
