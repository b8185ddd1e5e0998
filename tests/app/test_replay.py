"""The replay value: its changes make the canvas of every step, and its end is what the live run left."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from races import ENDS, MASK, MODEL, PROMPT, judge, make_race, make_run, read, slow_cells

from app.finished.replay import FRAME, final_snapshot, origin, replay_value
from app.finished.run import opening, recorded
from app.lanes import lanes_of
from app.race.canvas import Canvas
from app.race.lane_view import LaneView
from app.race.race import LaneStep, Update
from app.race.snapshot import Stage, mode
from sparsed import trace as traces
from sparsed.denoising.answers import Answers

DENSE, SPARSE, BASELINE = "dense", "sparse", "baseline"


races = st.builds(
    lambda seed, cells, total, made, skip, threshold, refresh: make_race(
        seed, cells, total, tuple(min(steps, total) for steps in made), skip, threshold, refresh
    ),
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 12),
    st.one_of(
        st.just((12, 12)),
        st.just((12, 12, 12)),
        st.just((12, 12, 12, 12, 12)),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        st.tuples(*[st.integers(1, 12)] * 3),
        st.tuples(*[st.integers(1, 12)] * 4),
    ),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.sampled_from([None, None, 0.9]),
    st.sampled_from([0, 0, 2, 5]),
)


def play(value: dict[str, Any], key: str) -> list[list[list[Any]]]:
    """The cells after 0, 1, … steps, as the page makes them from the changes."""
    lane = next(lane for lane in value["lanes"] if lane["key"] == key)
    cells: list[list[Any]] = [["", 0, None, 0] for _ in range(value["cells"])]
    states = [[list(cell) for cell in cells]]
    for step, changes in enumerate(lane["changes"], start=1):
        for index, text, confidence, end in changes:
            cells[index] = [text, cells[index][1] or step, confidence, end]
        states.append([list(cell) for cell in cells])
    return states


def live_stage(runs: dict[str, Any], judge: Any) -> dict[str, Any]:
    """The last snapshot of a stage that was fed as the page feeds it while a race goes on."""
    lanes = []
    for lane, run in zip(lanes_of(run.attention for run in runs.values()), runs.values(), strict=True):
        lanes.append(
            LaneView(
                lane,
                Canvas(run.sampler.gen_length, read, ENDS),
                planned=lane.plan(run.total, 1),
                backend={"sdpa": "torch SDPA"}.get(run.backend, run.backend),
                parallel=run.sampler.block_length,
                positions=7 + run.sampler.gen_length,
                at_most=run.sampler.at_most,
                source=run,
            )
        )
    stage = Stage(
        lanes,
        run_id=3,
        end_ids=ENDS,
        gold="Ann.",
        judge=judge,
        read=lambda tokens: Answers(MODEL).read(tokens).text,
        question="Who?",
        mode=mode(len(lanes), 1),
    )
    longest = max(len(run.steps) for run in runs.values())
    for index in range(longest):
        made = [(key, run) for key, run in runs.items() if index < len(run.steps)]
        stage.apply(Update(tuple(LaneStep(key, run.steps[index]) for key, run in made), "running", ()))
    over = tuple(key for key, run in runs.items() if run.finished)
    stage.message = "" if len(over) == len(runs) else "Stopped. What was written so far stays here."
    return stage.apply(Update((), "done" if len(over) == len(runs) else "stopped", over))


@settings(max_examples=80, deadline=None)
@given(races)
def test_the_changes_make_the_canvas_of_every_step(race) -> None:
    runs, trace = race
    value = json.loads(json.dumps(replay_value(trace), allow_nan=False))
    for key, run in runs.items():
        canvas = Canvas(run.sampler.gen_length, read, ENDS)
        states = play(value, key)
        assert len(states) == len(run.steps) + 1
        assert states[0] == canvas.cells()
        for made, step in enumerate(run.steps, start=1):
            canvas.apply(step)
            assert states[made] == canvas.cells() == slow_cells(run, made)


def test_pieces_of_a_character_join_when_the_last_of_them_comes() -> None:
    run = make_run(0, True, 3, 3, 3, 0.0)
    for index, cell in enumerate((2, 0, 1)):
        tokens = [0xE2, 0x82, 0xAC]
        shown = {2}, {0, 2}, {0, 1, 2}
        run.steps[index].committed = torch.tensor([[place == cell for place in range(3)]])
        row = [tokens[place] if place in shown[index] else MASK for place in range(3)]
        run.steps[index].tokens = torch.tensor([row])
        run.steps[index].confidence = torch.tensor([[0.5 if place == cell else torch.nan for place in range(3)]])
    value = replay_value(traces.record(run))
    states = play(value, DENSE)
    assert [[cell[0] for cell in state] for state in states] == [
        ["", "", ""],
        ["", "", "\ufffd"],
        ["\ufffd", "", "\ufffd"],
        ["€", "", ""],
    ]
    # The cells that were there before keep the step they were committed in.
    assert [cell[1] for cell in states[3]] == [2, 3, 1]


@settings(max_examples=80, deadline=None)
@given(races)
def test_the_end_is_what_the_live_run_left(race) -> None:
    runs, trace = race
    live = live_stage(runs, judge)
    final = final_snapshot(trace, run=3, judge=judge)
    value = replay_value(trace, run=3, judge=judge)
    for gone in (live, final):
        del gone["sequence"]
    live["steps"] = []
    assert final == live
    assert {name: value[name] for name in live if name in value and name != "lanes"} == {
        name: live[name] for name in live if name in value and name != "lanes"
    }
    for lane, shown, run in zip(value["lanes"], live["lanes"], runs.values(), strict=True):
        same = ("key", "label", "style", "backend", "parallel", "total", "at_most", "text", "right", "verdict", "same")
        same = (*same, "speedup")
        assert [lane[name] for name in same] == [shown[name] for name in same]
        assert shown["phases"] == (lane["made"] if lane["finished"] else lane["ranges"])
        assert lane["finished"] == run.finished
        # What follows a rule selects nothing: to the page that step is one more dense step.
        ruled = run.attention.method == "streaming_llm"
        assert lane["phases"] == ["dense" if ruled and s.phase == "select" else s.phase for s in run.steps]
        assert lane["ms"] == pytest.approx([1000 * step.seconds for step in run.steps], abs=1e-6)
    everything = all(run.finished for run in runs.values())
    assert (value["gold"] == "Ann.") == everything and (value["state"] == "done") == everything


def test_the_phases_as_planned_survive_an_early_end() -> None:
    """With a threshold the run was over before its switch; while it went on, the page showed the switch."""
    runs, trace = make_race(5, 12, 10, (3, 2), 0.5, 0.9)
    assert trace.lanes["sparse"].switch_step is None
    lane = replay_value(trace)["lanes"][1]
    assert lane["ranges"] == [["dense", 1, 5], ["select", 6, 6], ["sparse", 7, None]]
    assert lane["made"] == [["dense", 1, 2]] and lane["at_most"] is True


def test_a_later_selection_is_replayed_as_what_it_is() -> None:
    _, trace = make_race(5, 12, 10, (10, 8), 0.2, None, 3)
    lane = replay_value(trace)["lanes"][1]
    # Stopped after the eighth step: what was made, and what was planned.
    assert lane["ranges"] == [
        ["dense", 1, 2], ["select", 3, 3], ["sparse", 4, 5], ["select", 6, 6], ["sparse", 7, 8], ["select", 9, 9],
        ["sparse", 10, 10],
    ]  # fmt: skip
    assert lane["made"] == lane["ranges"][:5]
    assert lane["phases"] == ["dense", "dense", "select", "sparse", "sparse", "select", "sparse", "sparse"]
    assert (lane["label"], lane["whose"]) == ("SparseD, refresh 3", "ours")


@pytest.mark.parametrize("dense", [True, False])
def test_one_lane_alone(dense) -> None:
    trace = traces.record(make_run(2, dense, 9, 6, 6, 0.2), prompt=PROMPT)
    assert list(trace.lanes) == ["dense" if dense else "sparsed"]
    value = replay_value(trace, judge=judge)
    assert [lane["key"] for lane in value["lanes"]] == [DENSE if dense else SPARSE]
    assert value["speedup"] is None and value["agreement"] is None
    assert value["gold"] == "Ann." and value["lanes"][0]["verdict"] is not None


def test_lanes_are_known_by_what_they_do_and_the_dense_one_comes_first() -> None:
    runs = {"SparseD": make_run(1, False, 5, 4, 4, 0.2), "full": make_run(1, True, 5, 4, 4, 0.2)}
    trace = traces.record(runs)
    assert [(lane.key, name) for lane, name in recorded(trace).items()] == [(DENSE, "full"), (SPARSE, "SparseD")]
    value = replay_value(trace)
    assert [lane["key"] for lane in value["lanes"]] == [DENSE, SPARSE]
    assert value["question"] == "your own text" and value["gold"] is None
    # Two of a kind have names of their own; more lanes than there are styles are too many.
    again = {name: make_run(number, False, 5, 4, 4, 0.2) for number, name in enumerate("abcdef")}
    lanes = replay_value(traces.record(again))["lanes"]
    assert len({lane["key"] for lane in lanes}) == len({lane["label"] for lane in lanes}) == 6
    assert (lanes[0]["key"], lanes[0]["label"]) == (SPARSE, "SparseD")
    with pytest.raises(ValueError, match="^A race has 6 lanes at most.$"):
        replay_value(traces.record({**again, "g": make_run(6, False, 5, 4, 4, 0.2)}))


def test_a_baseline_is_the_third_lane_and_is_called_by_its_pattern() -> None:
    names = {"sliding_window": "Sliding window", "streaming_llm": "StreamingLLM", "random": "Random blocks",
             "shared": "One pattern for all heads"}  # fmt: skip
    for pattern, label in names.items():
        runs = {
            "b": make_run(3, False, 6, 4, 4, 0.2, None, pattern),
            "SparseD": make_run(1, False, 6, 4, 4, 0.2, None, "sparsed"),
            "full": make_run(1, True, 6, 4, 4, 0.2),
        }
        trace = traces.record(runs, prompt=PROMPT)
        known = [(lane.key, name) for lane, name in recorded(trace).items()]
        assert known == [(DENSE, "full"), (SPARSE, "SparseD"), (BASELINE, "b")]
        value = replay_value(trace, judge=judge)
        assert [lane["label"] for lane in value["lanes"]] == ["Full attention", "SparseD", label]
        assert value["lanes"][1]["ranges"] == [["dense", 1, 1], ["select", 2, 2], ["sparse", 3, 4]]
        ruled = pattern in ("sliding_window", "streaming_llm")
        selects = [["dense", 1, 2], ["sparse", 3, 4]] if ruled else value["lanes"][1]["ranges"]
        assert value["lanes"][2]["ranges"] == selects
        # Its agreement is with full attention, and its own; the headline is SparseD's.
        two = replay_value(replace(trace, lanes={name: trace.lanes[name] for name in ("full", "SparseD")}), judge=judge)
        assert (value["speedup"], value["agreement"]) == (two["speedup"], two["agreement"])
        assert two["lanes"] == value["lanes"][:2]
        written = [runs[name].steps[-1].tokens[0].tolist() for name in ("full", "b")]
        length = max(next((i + 1 for i, token in enumerate(row) if token in ENDS), 6) for row in written)
        pairs = [(a[i], b[i]) for a, b in [written] for i in range(length)]
        alike = sum(a == b or (a in ENDS and b in ENDS) for a, b in pairs)
        assert value["lanes"][2]["same"]["detail"].startswith(f"{alike} of {length} tokens are the same")
    alone = replay_value(traces.record({"full": runs["full"], "b": runs["b"]}))
    assert [lane["key"] for lane in alone["lanes"]] == [DENSE, BASELINE]
    assert alone["speedup"] is None and alone["agreement"] is None and alone["lanes"][1]["same"]
    assert list(traces.record(runs["b"]).lanes) == ["shared"]


def test_a_record_says_where_it_comes_from() -> None:
    _, trace = make_race(1, 5, 4, (4, 4), 0.2, None)
    trace = replace(trace, created="2026-11-22T09:30:00+00:00", machine={"cpu": "Chip", "cores": 4, "gpu": "Card"})
    assert replay_value(trace)["recorded"] is None
    assert replay_value(trace, of_record=True)["recorded"] == {
        "machine": "Chip, 4 cores",
        "date": "2026-11-22",
        "model": "Fake",
    }
    on_gpu = replace(trace, model=replace(trace.model, device="cuda"))
    assert origin(on_gpu)["machine"] == "Card"
    shared = replace(on_gpu, model=replace(on_gpu.model, processes=2))
    assert origin(shared)["machine"] == "2 × Card"
    assert "2 processes share every step" in replay_value(shared)["mode"]["text"]
    assert origin(replace(trace, machine={}))["machine"] == "cpu"
    assert replay_value(trace)["autoplay"] is False and replay_value(trace, autoplay=True)["autoplay"] is True


def test_what_was_loaded_from_a_file_replays_the_same(tmp_path) -> None:
    _, trace = make_race(8, 20, 8, (8, 5), 0.2, None)
    traces.save(trace, tmp_path / "race.json.gz")
    assert replay_value(traces.load(tmp_path / "race.json.gz"), judge=judge) == replay_value(trace, judge=judge)


def test_what_the_steps_computed_is_counted_over_the_record_s_masks() -> None:
    run = opening()
    assert run is not None
    positions = run.trace.prompt.tokens + run.trace.gen_length
    seen = set()
    for shown, (lane, made) in zip(replay_value(run.trace)["lanes"], run.lanes.items(), strict=True):
        counted = [frame[FRAME.index("counted")] for frame in shown["frames"]]
        if lane.full:
            assert counted == [None] * len(counted)
            continue
        assert made.pattern is not None
        blocks = -(-positions // made.attention.block_size)
        heads = [head for layer in range(made.pattern.layers) for head in made.pattern.mask(layer)[0]]
        kept = sum(int(np.count_nonzero(head)) for head in heads) / len(heads)
        pairs: list[float] | None = [0.0, 0]
        rows = [0, 0]
        assert counted[0] == {"pairs": pairs, "rows": rows}
        for step, after in zip(made.steps, counted[1:], strict=True):
            few = step.rows is not None
            rows = [rows[0] + (step.rows if step.rows is not None else positions), rows[1] + positions]
            if few or pairs is None:  # which of the rows is not told
                pairs = None
            else:
                pairs = [pairs[0] + (kept if step.phase == "sparse" else blocks**2), pairs[1] + blocks**2]
            assert after["rows"] == rows
            assert (after["pairs"] is None) == (pairs is None)
            assert pairs is None or after["pairs"] == pytest.approx(pairs, abs=0.01)
        seen.add((few, pairs is None, made.pattern.full_blocks > 0))
    # One without a cache, and one with it.
    assert {(False, False, False), (True, True, False)} <= seen
