"""What stays of a run, and what the page makes of it; without a browser."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

import sparsed
from app import texts
from app.finished import files
from app.finished import views as looks
from app.finished.replay import replay_value
from app.finished.run import Kept, fits, keep, opened, opening, probe_steps
from app.server.desk import Desk
from app.server.limits import Limits
from app.tools import opening as recorder
from sparsed import trace as traces
from sparsed.attention.masks import Masks
from sparsed.config import SamplerConfig, SparseDConfig

STEPS = 8


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """A short race of the bundled model, tracked, its importances kept."""
    model = sparsed.load("mini", device="cpu", dtype="float32")
    sampler = SamplerConfig(steps=STEPS, gen_length=32, block_length=32)
    prompt = "Every word of this prompt is one of many. " * 12
    sparse = SparseDConfig(keep_importance=True, block_size=32, select=0.4)
    made = {
        "dense": sparsed.denoise(model, prompt, sampler=sampler, attention="dense"),
        "sparse": sparsed.denoise(model, prompt, sampler=sampler, attention=sparse, probe_steps=(4, 7)),
    }
    for run in made.values():
        run.result()
    return made


@pytest.fixture(scope="module")
def run(runs) -> Kept:
    found = keep(runs, "a visitor's own text")
    assert found is not None
    return found


def test_steps_that_are_tracked_lie_in_the_sparse_phase() -> None:
    assert probe_steps(64, None) == ()
    for total in range(2, 70):
        for switch in range(1, total):
            steps = probe_steps(total, switch)
            assert steps == sorted(set(steps)) and 1 <= len(steps) <= 4
            assert all(switch <= step < total for step in steps) and steps[-1] == total - 1


def test_the_mask_and_the_importances_are_the_engine_s(runs, run) -> None:
    pattern, look = runs["sparse"].pattern, run.pattern
    assert look is not None and (run.layers, run.heads) == (6, 4)
    for layer in range(6):
        live = Masks.of(pattern)
        for head in range(4):
            wanted = pattern.mask(layer, head).numpy()
            for found in (look, live):
                assert np.array_equal(found.mask(layer)[0, head], wanted)
            importance = pattern.importance[layer][0, head].float().numpy()
            assert np.array_equal(look.importance(layer, head), importance)
    assert look.layout == pattern.layout and look.layout.block_size == 32


def test_every_view_of_a_run_is_a_figure(run) -> None:
    views = [looks.timeline(run), looks.head(run, 2, 3), *(looks.layer(run, 1) or ()), looks.model(run)]
    views += [looks.later(run)]
    assert len(views) == 7
    for view in views:
        assert view is not None and view["label"]
        go.Figure(view["figure"])
        json.dumps(view, allow_nan=False)
    assert views[1]["figure"]["layout"]["title"]["text"] == "Layer 2, head 3"


def test_a_run_that_goes_on_can_be_looked_at(runs, run) -> None:
    live = Masks.of(runs["sparse"].pattern)
    overview, overlap, mass = looks.layer(live, 2)
    over = looks.layer(run, 2)
    assert overlap == over[1]
    assert [trace["z"] for trace in overview["figure"]["data"]] == [trace["z"] for trace in over[0]["figure"]["data"]]
    # How much attention is kept is counted when the run is over.
    assert mass["label"].endswith("appears here when the run is over.") and not mass["figure"]["data"]
    shades = {name: looks.head(live, 2, 1, name)["figure"]["data"][0] for name in texts.SHADES}
    wanted = runs["sparse"].pattern.mask(2, 1).numpy()
    for name, trace in shades.items():
        z = np.frombuffer(base64.b64decode(trace["z"]["bdata"]), np.uint8).reshape(wanted.shape)
        assert np.array_equal(z >= trace["meta"]["kept_from"], wanted), name
    assert len({str(trace["colorscale"]) for trace in shades.values()}) == 3


@pytest.fixture(scope="module")
def ours(runs) -> tuple[Any, Kept]:
    """A run with full generation rows and fresh patterns, tracked, its importances kept; and what stays of its race."""
    dense = runs["dense"]
    sampler = replace(dense.sampler, steps=16, block_length=16)
    attention = SparseDConfig(
        keep_importance=True, block_size=32, select=0.4, skip=0.125, generation_rows="full", refresh=4
    )
    made = {
        "dense": sparsed.denoise(dense.model, dense.prompt[0], sampler=sampler, attention="dense"),
        "sparse": sparsed.denoise(
            dense.model, dense.prompt[0], sampler=sampler, attention=attention, probe_steps=(4, 15)
        ),
    }
    for run in made.values():
        run.result()
    kept = keep(made, "a visitor's own text")
    assert kept is not None
    return made["sparse"], kept


def test_of_a_run_that_selects_again_the_last_pattern_stays_and_words_say_whose(ours) -> None:
    run, kept = ours
    selected = [step.index + 1 for step in run.steps if step.phase == "select"]
    assert selected == [3, 7, 9, 13] == list(kept.selected)
    pattern, layout = kept.pattern, run.pattern.layout
    assert pattern is not None and pattern.full_blocks == layout.blocks - layout.prompt_length // 32 > 0
    for layer in range(6):
        for head in range(4):
            assert np.array_equal(pattern.mask(layer)[0, head], run.pattern.mask(layer, head).numpy())
            importance = run.pattern.importance[layer][0, head].float().numpy()
            assert np.array_equal(pattern.importance(layer, head), importance)
    assert looks.which(kept).endswith("It selected 4 times; these blocks are those of step 13.")
    live = looks.which(Masks.of(run.pattern), selected=9)
    assert live == "Your run, which goes on: its blocks were selected in step 9. More is here when it is over."
    bands = [one["name"] for one in looks.timeline(kept)["figure"]["layout"]["shapes"][1:]]
    assert bands == ["dense", *["select", "sparse"] * 4]
    tracked = looks.later(kept)
    assert "a fresh selection against the one in use" in json.dumps(tracked, ensure_ascii=False)
    # After each selection a line; and what they cost beside dense steps, on the clock.
    assert [shape["x0"] for shape in tracked["figure"]["layout"]["shapes"]] == [step + 0.5 for step in selected]
    spent = {kind: [one.seconds for one in kept.sparse.steps if one.phase == kind] for kind in ("dense", "select")}
    more = sorted(one - median(spent["dense"][1:]) for one in spent["select"])
    said = f"4 selections: {1000 * max(0, (more[1] + more[2]) / 2):.0f} ms each (median) beside a dense step"
    share = f"{100 * max(0, sum(more)) / kept.sparse.seconds:.1f} % of the run"
    assert f"{said}, {share}" in tracked["label"] and said in json.dumps(tracked["figure"]["layout"]["title"])
    (mean,) = (line for line in tracked["figure"]["data"] if line["name"] == "mean of all heads")
    for at, shown in zip(mean["x"], mean["y"], strict=True):
        overlap = run.probes[at - 1].overlap(run.probed[at - 1]).mean()
        assert shown == pytest.approx(100 * float(overlap), abs=0.02)


def test_rows_that_see_every_key_are_drawn_and_said_and_not_compared(ours) -> None:
    run, kept = ours
    blocks, full = kept.pattern.layout.blocks, kept.pattern.full_blocks
    said = f"query blocks {blocks - full} to {blocks - 1} see every key: not selected"
    head, (overview, overlap, bars) = looks.head(kept, 2, 1), looks.layer(kept, 2)
    for view in (head, overview, looks.model(kept)):
        go.Figure(view["figure"])
        assert f". {said}." in view["label"]
    for view in (head, overview, looks.model(kept)):
        assert said in view["figure"]["layout"]["title"]["subtitle"]["text"]
    trace = head["figure"]["data"][0]
    z = np.frombuffer(base64.b64decode(trace["z"]["bdata"]), np.uint8).reshape(blocks, blocks)
    assert (z[blocks - full :] >= trace["meta"]["kept_from"]).all()
    assert [label.endswith("sees every key") for label in trace["y"]] == [row >= blocks - full for row in range(blocks)]
    assert not any("sees every key" in label for label in trace["x"])
    # How alike two heads are is counted where they have chosen.
    masks = [run.pattern.mask(2, one).tolist() for one in range(4)]
    cells = overlap["figure"]["data"][0]["z"]
    for one, other in ((0, 1), (1, 3), (2, 0)):
        both = either = 0
        for row in range(blocks - full):
            for column in range(blocks):
                both += masks[one][row][column] and masks[other][row][column]
                either += masks[one][row][column] or masks[other][row][column]
        assert cells[one][other] == pytest.approx(both / either, abs=6e-4)
    # A bar and its mark both count them: they are computed, and hold all of their rows' attention.
    marks = bars["figure"]["data"][1]["y"]
    assert marks[1] == pytest.approx(100 * sum(map(sum, masks[1])) / blocks**2, abs=0.01)
    json.dumps([head, overview, overlap, bars], allow_nan=False)


def test_without_them_nothing_is_said_of_them(run) -> None:
    for view in (looks.head(run, 2, 1), *looks.layer(run, 2), looks.model(run)):
        assert "every key" not in json.dumps(view)
    assert "selected" not in looks.which(run)


@pytest.fixture(scope="module")
def three(runs) -> dict[str, Any]:
    """The same race with a third lane."""
    dense, sparse = runs["dense"], runs["sparse"]
    pattern = replace(sparse.attention, method="shared")
    baseline = sparsed.denoise(dense.model, dense.prompt[0], sampler=dense.sampler, attention=pattern)
    baseline.result()
    return {**runs, "baseline": baseline}


def test_a_baseline_can_be_looked_at_too(runs, three, run) -> None:
    both = keep(three, "a visitor's own text")
    assert both is not None and list(both.trace.lanes) == ["dense", "sparse", "baseline"]
    ours, theirs = three["sparse"].pattern, three["baseline"].pattern
    shown = both.showing("baseline")
    assert shown.key == both.key and shown.trace is both.trace and both.showing("sparse") is both
    for layer in range(6):
        for head in range(4):
            assert np.array_equal(both.pattern.mask(layer)[0, head], ours.mask(layer, head).numpy())
            assert np.array_equal(shown.pattern.mask(layer)[0, head], theirs.mask(layer, head).numpy())
            # Both lanes have done the same until the select step, and see the same there.
            weights = theirs.importance[layer][0, head].float().numpy()
            assert np.array_equal(shown.pattern.importance(layer, head), weights)
            assert np.array_equal(both.pattern.importance(layer, head), weights)
    # All heads keep the same; how much of their attention that is, is not.
    overview, overlap, bars = looks.layer(shown, 2)
    assert "share 100 %" in overlap["label"] and "share 100 %" not in looks.layer(both, 2)[1]["label"]
    lanes = both.trace.lanes
    assert bars["figure"]["data"][0]["y"] == pytest.approx([100 * m for m in lanes["baseline"].pattern.kept_mass[2]])
    assert looks.model(shown) != looks.model(both) == looks.model(run)
    # The rest of the page is about SparseD.
    assert both.sparse is lanes["sparse"] is shown.sparse
    assert looks.later(shown) == looks.later(both) == looks.later(run)


def test_a_baseline_that_selected_at_another_step_has_importances_of_its_own_or_none(three, tmp_path) -> None:
    path = tmp_path / "run.json"
    trace = traces.record(three, importance=True)
    lane = trace.lanes["baseline"]
    bare = replace(lane, pattern=replace(lane.pattern, importances=()))
    late = replace(bare, attention=replace(lane.attention, skip=0.5))
    for baseline, there in ((bare, True), (late, False)):
        traces.save(replace(trace, lanes={**trace.lanes, "baseline": baseline}), path)
        run = opened(path)
        assert (run.showing("baseline").pattern.importance(1, 2) is not None) == there
        assert run.pattern.importance(1, 2) is not None
    # A record without SparseD shows what there is.
    traces.save(replace(trace, lanes={"dense": trace.lanes["dense"], "other": bare}), path)
    alone = opened(path)
    assert alone.sparse is None and np.array_equal(alone.pattern.mask(2), three["baseline"].pattern.layers[2].mask())
    assert alone.pattern.importance(1, 2) is None and looks.timeline(alone) and looks.later(alone) is None


def test_a_race_of_three_lanes_goes_into_a_file_and_comes_back(three, tmp_path) -> None:
    run = keep(three, "a visitor's own text")
    path = tmp_path / "run.json.gz"
    path.write_bytes(files.download(run, "run.json.gz", lambda text, gold: (True, "")).content)
    again = opened(path)
    assert again.trace == run.trace
    assert np.array_equal(again.showing("baseline").pattern.mask(1), run.showing("baseline").pattern.mask(1))
    names = [trace["name"] for trace in looks.timeline(again)["figure"]["data"]]
    assert names == 2 * ["Full attention", "SparseD", "One pattern for all heads"]
    assert "and One pattern for all heads, 8 steps" in looks.timeline(again)["label"]
    value = replay_value(again.trace)
    assert [lane["text"] for lane in value["lanes"]] == [lane.text[0] for lane in run.trace.lanes.values()]
    # Without importances of its own (a download has none), the choice is shown alone.
    assert again.showing("baseline").pattern.importance(0, 0) is None


def test_it_says_which_run_it_looks_at(runs, run) -> None:
    tokens = f"{run.trace.prompt.tokens:,} prompt tokens"
    assert looks.which(run).startswith(f"Your last run: {tokens}, ") and "blocks of 32" in looks.which(run)
    assert looks.which(run, before=True).startswith(looks.which(run)) and "select step" in looks.which(run, before=True)
    assert looks.which(Masks.of(runs["sparse"].pattern)).startswith("Your run, which goes on")
    recorded = looks.which(Kept(run.trace, False))
    assert recorded.startswith("A recorded run of mini, on ")
    assert run.trace.created[:10] in recorded and tokens in recorded
    assert "press Run" in looks.which(None)


def test_a_run_without_a_pattern_has_nothing_to_look_at(runs) -> None:
    dense = keep({"dense": runs["dense"]}, None)
    assert dense is not None and dense.pattern is None and dense.layers == 0
    assert looks.head(dense, 0, 0) is looks.layer(dense, 0) is looks.model(dense) is looks.later(dense) is None
    assert looks.timeline(dense) is not None
    assert looks.timeline(None) is looks.head(None, 0, 0) is None


def test_runs_without_a_step_leave_nothing(runs) -> None:
    model = runs["dense"].model
    unbegun = sparsed.denoise(model, "one two", attention="dense")
    assert keep({"dense": unbegun}, None) is None
    both = keep({"dense": unbegun, "sparse": runs["sparse"]}, None)
    assert both is not None and set(both.trace.lanes) == {"sparse"}


def test_a_record_opens_again(run, tmp_path) -> None:
    made = files.download(run, "run.json.gz", lambda text, gold: (True, ""))
    path = tmp_path / "run.json.gz"
    path.write_bytes(made.content)
    again = opened(path)
    assert not again.live and again.trace == run.trace and again.key != run.key
    assert again.pattern is not None and np.array_equal(again.pattern.mask(3), run.pattern.mask(3))
    assert made.name == "sparsed-mini-run.json.gz"
    with pytest.raises(KeyError):
        files.download(run, "../secret", lambda text, gold: (True, ""))


def test_a_recorded_importance_is_read_from_the_file(runs, tmp_path) -> None:
    path = tmp_path / "opening.json"
    traces.save(traces.record(runs, importance=True), path)
    look = opened(path).pattern
    wanted = runs["sparse"].pattern.importance[4][0, 1].float().numpy()
    assert look is not None
    assert np.allclose(look.importance(4, 1), wanted, rtol=0.04, atol=1e-7)


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("app.finished.run.MOST_FILE", 10)
    path = tmp_path / "large.json"
    path.write_text("x" * 11)
    with pytest.raises(ValueError, match="large.json is too large for this page"):
        opened(path)


def test_what_was_clicked() -> None:
    assert looks.clicked({"meta": {"layer": 3, "head": 1}, "x": 7, "y": 9}) == (3, 1)
    assert looks.clicked({"meta": {"layers": 6}, "x": 2.4, "y": 0.6}) == (1, 2)
    for nothing in ({}, {"x": "a", "y": 1}, {"x": -3, "y": 1}, {"meta": None}):
        assert looks.clicked(nothing) is None


def test_what_fits_is_kept() -> None:
    assert fits(32, 32, 65_664, 128) and not fits(32, 32, 65_664, 64)


def test_files_have_their_types(run) -> None:
    def judge(text: str, gold: str) -> tuple[bool, str]:
        return True, "right"

    page = files.download(run, "replay.html", judge).content.decode()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    from PIL import Image

    with Image.open(io.BytesIO(files.download(run, "race.gif", judge).content)) as picture:
        assert picture.format == "GIF"
    offered = files.offer(run, "prefix", "?a=1")
    assert {file["name"] for file in offered["files"]} == set(files.FILES) and offered["live"]
    assert all(file["href"] == f"prefix/{run.key}/{file['name']}" for file in offered["files"])


def test_importances_are_kept_as_the_engine_made_them(run) -> None:
    assert run.importance is not None and run.importance[0].dtype == np.float16


def test_importances_of_the_visits_longest_ago_go_first(run, monkeypatch) -> None:
    desk = Desk(SimpleNamespace(at_once=1), "mini", Limits())  # type: ignore[arg-type]
    size = run.importance_bytes
    assert size == sum(layer.nbytes for layer in run.importance) > 0
    monkeypatch.setattr("app.server.visits.MOST_IMPORTANCE", 2 * size)
    runs = [replace(run) for _ in range(4)]
    for number, one in enumerate(runs):
        desk.visits.remember(desk.visits.of(f"visit {number}"), one)
    left = [desk.visits.of(f"visit {number}").kept for number in range(4)]
    assert [one is not None and one.importance is not None for one in left] == [False, False, True, True]
    # Nothing else of them goes: the downloads' addresses still hold.
    assert [one.key for one in left if one] == [one.key for one in runs]
    assert desk.visits.kept(runs[0].key) is left[0]
    assert desk.visits.kept("guessed") is desk.visits.kept("größer 🦊") is None


def test_the_page_begins_with_a_recorded_race_of_the_bundled_model() -> None:
    run = opening()
    assert run is not None and not run.live and run.trace.model.name == "mini"
    assert list(run.trace.lanes) == ["dense", "sparse", "baseline", "sparsed+refresh"]
    assert all(lane.finished for lane in run.trace.lanes.values())
    # Everything that a live run shows afterwards is in the file.
    assert run.pattern is not None and run.pattern.importances and run.pattern.kept_mass and run.trace.prompt.words
    assert run.sparse is not None and len(run.sparse.probes) == 4 and run.trace.prompt.gold
    assert replay_value(run.trace)["mode"] == {"name": "turns", "text": texts.IN_TURNS}


def test_recording_a_race(tmp_path, capsys) -> None:
    path = tmp_path / "race.json.gz"
    assert recorder.main(["--length", "short_context", "--steps", "5", "--out", str(path)]) == 0
    run = opened(path)
    assert {name: len(lane.steps) for name, lane in run.trace.lanes.items()} == {"dense": 5, "sparse": 5}
    assert run.pattern is not None and run.pattern.importance(0, 0) is not None
    third = ["--length", "short_context", "--steps", "5", "--lanes", "streaming_llm", "--out", str(path)]
    assert recorder.main(third) == 0
    run = opened(path)
    assert list(run.trace.lanes) == ["dense", "sparse", "baseline"]
    assert run.trace.lanes["baseline"].attention == replace(
        run.trace.lanes["sparse"].attention, method="streaming_llm", keep_importance=False
    )
    # The importances in the file are those of the select step, which all lanes have alike.
    shown = run.showing("baseline").pattern
    assert shown is not None and np.array_equal(shown.importance(3, 1), run.pattern.importance(3, 1))
    assert recorder.main(["--length", "17", "--steps", "5", "--out", str(path)]) == 2
    assert "error: " in capsys.readouterr().err
