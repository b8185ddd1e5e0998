"""The lanes of a race as data: their keys, labels and styles, and a race of five of them with the real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sparsed
from app.engine.copies import line_up
from app.engine.local import SparsedEngine
from app.finished import views
from app.finished.replay import final_snapshot
from app.finished.run import keep, opened, recorded
from app.lanes import (
    AS_RECOMMENDED,
    FURTHER,
    MOST_LANES,
    OTHER_ROWS,
    PAIR,
    PRESETS,
    LaneSpec,
    headline,
    is_recommended,
    lanes_for,
    lanes_of,
    reference,
    watched,
)
from app.race.canvas import Canvas
from app.race.lane_view import FEW_ROWS, LaneView, ranges_of
from app.race.race import Lane, Race
from app.race.snapshot import Stage
from sparsed import trace as traces
from sparsed.config import (
    CACHES,
    FULL_ATTENTION,
    METHOD_LABELS,
    RECOMMENDED,
    AttentionConfig,
    CacheConfig,
    SamplerConfig,
    SparseDConfig,
)

FIVE = ("dense", "sparsed", "sliding_window", "streaming_llm", "random")


def lanes_with(*methods: str, **settings: Any) -> tuple[LaneSpec, ...]:
    return lanes_of(FULL_ATTENTION if one == "dense" else AttentionConfig(one, **settings) for one in methods)


def test_the_lanes_that_are_offered_keep_their_keys() -> None:
    lanes = lanes_for(SparseDConfig(skip=0.1), ["random"])
    assert tuple(lane.key for lane in lanes) == ("dense", "sparse", "baseline")
    assert [lane.label for lane in lanes] == ["Full attention", "SparseD", "Random blocks"]
    assert [lane.name for lane in lanes] == ["full attention", "SparseD", "random blocks"]
    assert [lane.style for lane in lanes] == [1, 2, 3] and lanes[:2] == lanes_for(SparseDConfig(skip=0.1))
    assert lanes[2].attention == replace(lanes[1].attention, method="random")
    assert [lane.switch_step(20) for lane in lanes] == [None, 3, 3]
    assert [lane.key for lane in PAIR] == ["dense", "sparse"]


def test_up_to_six_lanes_have_keys_labels_and_styles_of_their_own() -> None:
    for methods in ((*FIVE, "shared"), ("sparsed",) * 6, ("dense", "random", "random", "dense", "sparsed", "dense")):
        lanes = lanes_with(*methods)
        for what in ("key", "label", "style"):
            assert len({getattr(lane, what) for lane in lanes}) == len(lanes) == MOST_LANES
        assert all(lane.label.startswith(METHOD_LABELS[one]) for lane, one in zip(lanes, methods, strict=True))
    assert [lane.key for lane in lanes_with(*FIVE)] == ["dense", "sparse", "baseline", "streaming_llm", "random"]
    with pytest.raises(ValueError, match="^A race has 6 lanes at most.$"):
        lanes_with(*FIVE, "shared", "random")


def test_a_label_tells_what_is_added_to_the_paper_s_and_whose_that_is() -> None:
    settings: list[dict[str, Any]] = [
        {}, {"generation_rows": "pattern", "refresh": 0}, {"generation_rows": "full"}, {"refresh": 8},
        {"generation_rows": "full", "refresh": 16},
    ]  # fmt: skip
    told = [(lane.label, lane.whose, lane.method) for one in settings for lane in lanes_of([SparseDConfig(**one)])]
    paper, ours = "the paper’s", "ours"
    assert told == [
        ("SparseD", paper, "SparseD"), ("SparseD", paper, "SparseD"),
        ("SparseD, full generation rows", ours, "SparseD"), ("SparseD, refresh 8", ours, "SparseD"),
        ("SparseD, full generation rows, refresh 16", ours, "SparseD"),
    ]  # fmt: skip
    # A baseline is nobody's of the two, until something of ours is added to it.
    window, more = lanes_of([AttentionConfig("sliding_window"), AttentionConfig("random", refresh=4)])
    assert (window.whose, more.label, more.whose) == ("", "Random blocks, refresh 4", ours)
    assert lanes_of([FULL_ATTENTION])[0].whose == ""


def test_the_recommended_lane_is_the_one_with_its_settings_and_no_other() -> None:
    for length in (300, 3999, 4000, 70_000):
        for resolved in (False, True):
            attention = replace(RECOMMENDED, isolated=True, keep_importance=True)
            (lane,) = lanes_of([attention.resolve(length) if resolved else attention])
            assert (lane.label, lane.whose) == ("SparseD, recommended", "ours")
    assert is_recommended(RECOMMENDED) and not is_recommended(SparseDConfig()) and not is_recommended(FULL_ATTENTION)
    for other in (
        {"skip": 0.05}, {"select": 0.3}, {"block_size": 64}, {"refresh": 8}, {"generation_rows": "pattern"},
        {"isolated": False}, {"reuse": False}, {"selection": "reference"}, {"method": "random"},
    ):  # fmt: skip
        lane = lanes_of([replace(RECOMMENDED, **other)])[0]
        assert "recommended" not in lane.label and "recommended" not in lane.resolve(5000).label, other
    # With a cache it is our combination.
    (cached,) = lanes_of([RECOMMENDED], [CacheConfig("dual").resolve()])
    assert (cached.label, cached.whose) == ("SparseD, recommended + Fast-dLLM, dual", "ours")
    assert FURTHER[AS_RECOMMENDED] == "SparseD, recommended · ours"
    assert FURTHER[OTHER_ROWS] == "SparseD, full generation rows · ours"
    (preset,) = (further for name, further in PRESETS.items() if "recommended" in name)
    assert [lane.whose for lane in lanes_for(SparseDConfig(), preset)] == ["", "the paper’s", "ours"]


@pytest.mark.parametrize("length", [None, 500, 5000])
def test_the_recommended_lane_is_offered_whatever_sparsed_s_own_lane_has(length: int | None) -> None:
    for own in (SparseDConfig(), SparseDConfig(skip=0.4, select=0.6, block_size=64, refresh=4, generation_rows="full")):
        own = replace(own, keep_importance=True, on_no_gain="dense")
        lanes = lanes_for(own if length is None else own.resolve(length), [AS_RECOMMENDED])
        assert is_recommended(lanes[2].attention) and lanes[2].attention.resolve(length or 0) == replace(
            RECOMMENDED, keep_importance=True, on_no_gain="dense"
        ).resolve(length or 0)
    # Where it has the recommended settings itself, the published ones stand beside it.
    lanes = lanes_for(RECOMMENDED, [AS_RECOMMENDED])
    assert [lane.label for lane in lanes] == ["Full attention", "SparseD, recommended", "SparseD"]
    assert lanes[2].attention.resolve(5000) == SparseDConfig().resolve(5000)


@pytest.mark.parametrize("resolved", [False, True])
def test_the_third_lane_may_be_sparsed_with_the_other_generation_rows(resolved: bool) -> None:
    for rows, refresh, theirs in (
        ("pattern", 0, ("full", 0)), ("pattern", 8, ("full", 8)), ("full", 0, ("pattern", 0)),
        ("full", 8, ("pattern", 0)),
    ):  # fmt: skip
        ours = SparseDConfig(skip=0.1, select=0.4, generation_rows=rows, refresh=refresh)
        lanes = lanes_for(ours.resolve(500) if resolved else ours, [OTHER_ROWS])
        assert [lane.key for lane in lanes] == ["dense", "sparse", "baseline"]
        assert len({lane.label for lane in lanes}) == 3
        assert headline(lanes) is lanes[1] and lanes[1].attention == lanes_for(lanes[1].attention)[1].attention
        third = lanes[2].attention.resolve(500)
        assert (third.generation_rows, third.refresh) == theirs
        assert replace(third, generation_rows=rows, refresh=refresh) == ours.resolve(500)
        # Of the two exactly one is the paper's, unless the visitor's own lane refreshes.
        whose = sorted(lane.whose for lane in lanes[1:])
        assert whose == (["ours", "ours"] if (rows, refresh) == ("pattern", 8) else ["ours", "the paper’s"])


def test_every_lane_on_offer_says_what_it_is_and_whose_and_stands_where_a_record_has_it() -> None:
    baselines = set(METHOD_LABELS) - {"dense", "sparsed"}
    cached = {f"{method}+{cache}" for method in ("dense", "sparsed") for cache in CACHES if cache != "none"}
    assert set(FURTHER) == {AS_RECOMMENDED, OTHER_ROWS, *baselines, *cached}
    whose = {"dense+dual": "as published", "dense+refresh": "ours", "sparsed+dual": "our combination"}
    whose |= {"sparsed+refresh": "ours", AS_RECOMMENDED: "ours", OTHER_ROWS: "ours", "random": ""}
    for name, said in whose.items():
        lane = lanes_for(SparseDConfig(), [name])[2]
        assert (lane.whose, lane.key) == (said, name if "+" in name else "baseline")
        assert FURTHER[name] == (f"{lane.label} · {said}" if said else lane.label)
    labels = [lane.label for lane in lanes_for(SparseDConfig(), PRESETS["The paper’s table"])]
    assert labels == [
        "Full attention", "SparseD", "Sliding window", "StreamingLLM", "Full attention + dKV-Cache",
        "Full attention + Fast-dLLM, dual",
    ]  # fmt: skip
    # The factor's sentence: "12 s with full attention, 2 s with …".
    assert lanes_for(SparseDConfig(), ["dense+dual"])[2].name == "full attention + Fast-dLLM, dual"
    with pytest.raises(ValueError, match="^A race has 6 lanes at most.$"):
        lanes_for(SparseDConfig(), list(FURTHER)[:5])


def test_a_planned_step_computes_the_rows_that_a_run_s_does() -> None:
    model = sparsed.load("mini", device="cpu", dtype="float32")
    sampler = SamplerConfig(steps=16, gen_length=16, block_length=8)
    for name in ("full_rows", "dense+delayed", "sparsed+dual"):
        lane = lanes_for(SparseDConfig(skip=0.2, block_size=32), [name])[2].resolve(60)
        run = SparsedEngine().denoise(model, "A b. " * 8, sampler, lane.attention, "auto", cache=lane.cache)
        made = [(step.phase, step.rows if step.rows < run.length else None) for step in run]
        assert [(step.phase, step.rows) for step in lane.plan(16, 2, 16)] == made, name


def test_the_phases_as_planned_are_those_of_a_loop_over_the_steps() -> None:
    for steps, blocks in ((48, 1), (48, 3), (12, 4), (7, 1), (30, 2), (31, 4), (11, 8)):
        turns = sorted(step % blocks for step in range(steps))  # the block of each step
        starts = {turns.index(block) for block in range(blocks)}
        for skip in (0.0, 0.2, 0.5, 1.0):
            for refresh in (0, 2, 3, 8, 100):
                lane = lanes_for(SparseDConfig(skip=skip, refresh=refresh))[1]
                first, since, slow = next(n for n in range(steps + 1) if n >= round(skip * steps, 9)), 0, []
                for step in range(steps):
                    begins = step in starts
                    if step < first:
                        slow.append("dense")
                    elif step == first or (refresh and (begins or since == refresh)):
                        slow.append("select")
                        since = 0
                    else:
                        slow.append("sparse")
                    since += 1
                assert list(lane.phases(steps, blocks)) == slow, (steps, blocks, skip, refresh)
                sparse = [step for step, phase in enumerate(slow) if phase == "sparse"]
                assert lane.switch_step(steps, blocks) == (sparse[0] if sparse else None)


def test_the_reference_is_full_attention_that_comes_first_and_the_headline_is_sparsed() -> None:
    lanes = lanes_with(*FIVE)
    assert reference(lanes) is lanes[0] and headline(lanes) is lanes[1]
    assert reference(lanes[1:]) is None and headline(lanes[2:]) is None and reference(()) is None
    seen = watched(lanes, True, (4, 7))
    assert [lane.probe_steps for lane in seen] == [(), (4, 7), (), (), ()]
    assert [lane.attention.keep_importance for lane in seen] == [None, True, None, None, None]
    assert watched(lanes[2:], True, (4,)) == lanes[2:]


def test_five_lanes_of_the_real_engine_race_are_kept_and_open_again(tmp_path: Path) -> None:
    model = sparsed.load("mini", device="cpu", dtype="float32")
    sampler = SamplerConfig(steps=8, gen_length=32, block_length=32)
    prompt = "Every word of this prompt is one of many. " * 12
    lanes = watched(lanes_with(*FIVE, skip=0.25, select=0.4, block_size=32), True, (5,))
    runs = line_up(SparsedEngine(), (model,), prompt, sampler, lanes, "gather")
    stage = Stage(
        [
            LaneView(
                lane,
                Canvas(32, model.tokens_text, model.end_ids),
                planned=lane.plan(run.total, 1),
                positions=run.length,
                backend=run.backend,
                parallel=32,
            )
            for lane, run in zip(lanes, runs.values(), strict=True)
        ],
        end_ids=model.end_ids,
    )
    for update in Race([Lane(key, run) for key, run in runs.items()]):
        live = stage.apply(update)
    assert live["state"] == "done" and (live["reference"], live["headline"]) == ("dense", "sparse")
    # Every lane but the reference has its factor and its agreement, and the headline's are SparseD's.
    assert [lane["speedup"] is None for lane in live["lanes"]] == [True, False, False, False, False]
    assert [lane["same"] is None for lane in live["lanes"]] == [True, False, False, False, False]
    for lane, run in zip(live["lanes"][1:], list(runs.values())[1:], strict=True):
        spent = [sum(step.seconds for step in one.steps) for one in (runs["dense"], run)]
        assert lane["speedup"]["ratio"] == pytest.approx(spent[0] / spent[1], abs=1e-4)
        tokens = [one.result().tokens[0].tolist()[-32:] for one in (runs["dense"], run)]
        same, compared = lane["same"]["same"], lane["same"]["compared"]
        # Behind its end token an answer has ended, whatever stands there.
        ended = [[model.eos_id if model.eos_id in row[:place] else row[place] for place in range(32)] for row in tokens]
        assert same == sum(one[place] == two[place] for one, two in [ended] for place in range(compared))
    assert live["speedup"] == live["lanes"][1]["speedup"]
    assert live["agreement"]["same"] == live["lanes"][1]["same"]["same"]
    kept = keep(runs, prompt)
    assert kept is not None
    traces.save(kept.trace, tmp_path / "five.json.gz")
    again = opened(tmp_path / "five.json.gz")
    assert [lane.key for lane in recorded(again.trace)] == [lane.key for lane in lanes] == list(runs)
    shown = final_snapshot(again.trace)
    for lane, one in zip(shown["lanes"], live["lanes"], strict=True):
        for what in ("key", "label", "style", "cells", "speedup", "same", "phases"):
            assert lane[what] == one[what]
    for lane in lanes[1:]:
        mask = runs[lane.key].pattern.mask(1, 2).numpy()
        assert (again.showing(lane.key).pattern.mask(1)[0, 2] == mask).all()
    lines = views.timeline(again)["figure"]["data"][:5]
    assert [line["name"] for line in lines] == [lane.label for lane in lanes]
    assert len({line["line"]["color"] for line in lines}) == 5


def test_a_record_of_runs_with_a_cache_opens_as_what_they_were(tmp_path: Path) -> None:
    model = sparsed.load("mini", device="cpu", dtype="float32")
    sampler = SamplerConfig(steps=8, gen_length=32, block_length=16)
    asked = {
        "cached": ("dense", CacheConfig("dual")),
        "sparse": (SparseDConfig(skip=0.1, select=0.4, block_size=32), CacheConfig("refresh", 2)),
        "dense": ("dense", None),
    }
    runs = {
        name: sparsed.denoise(model, "Many words. " * 30, sampler=sampler, attention=attention, cache=cache)
        for name, (attention, cache) in asked.items()
    }
    for run in runs.values():
        run.result()
    traces.save(traces.record(runs), tmp_path / "cached.json")
    trace = opened(tmp_path / "cached.json").trace
    lanes = recorded(trace)
    assert [(lane.label, lane.full, name) for lane, name in lanes.items()] == [
        ("Full attention", True, "dense"),
        ("Full attention + Fast-dLLM, dual", False, "cached"),
        ("SparseD + Refresh, every 2", False, "sparse"),
    ]
    shown = final_snapshot(trace)
    assert shown["reference"] == "dense" and not any(lane["never_sparse"] for lane in shown["lanes"])
    for lane, name in zip(shown["lanes"], lanes.values(), strict=True):
        made = runs[name].steps
        kinds = [step.phase if step.rows == runs[name].length else FEW_ROWS for step in made]
        assert lane["phases"] == ranges_of(kinds) and lane["kind"] == kinds[-1]
        assert (FEW_ROWS in kinds) == (name != "dense") and lane["rows"] == made[-1].rows
        assert lane["step_rows"] == (None if name == "dense" else [step.rows for step in made])
        assert lane["info"]["rows"] == runs[name].info.record()["rows"]
        ratio = sum(step.seconds for step in runs["dense"].steps) / sum(step.seconds for step in made)
        assert (lane["speedup"] is None) == (name == "dense")
        assert name == "dense" or lane["speedup"]["ratio"] == pytest.approx(ratio, abs=1e-3)
