"""Where a step's time goes is what the steps say, and only of records that say it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from app import texts
from app.finished.html import to_html
from app.finished.run import Kept, opening
from app.finished.spent import spent
from sparsed import trace as traces
from sparsed.trace.types import Trace


@pytest.fixture
def record() -> Trace:
    """The recorded race, with attention of this share of a step: 60 % in full attention, else by the step's number."""
    run = opening()
    assert run is not None
    lanes = {}
    for name, lane in run.trace.lanes.items():
        shares = [0.6 if step.phase == "dense" and step.rows is None else 0.01 * step.index for step in lane.steps]
        told = (replace(step, attention_seconds=s * step.seconds) for step, s in zip(lane.steps, shares, strict=True))
        lanes[name] = replace(lane, steps=tuple(told))
    return replace(run.trace, lanes=lanes)


def test_each_kind_of_step_has_its_medians(record: Trace) -> None:
    value = spent(Kept(record, True))
    json.dumps(value, allow_nan=False)
    found = {lane["key"]: [kind["name"] for kind in lane["kinds"]] for lane in value["lanes"]}
    assert found == {
        "dense": ["dense"],
        "sparse": ["dense", "select", "sparse"],
        "sliding_window" if "sliding_window" in found else "baseline": ["dense", "sparse"],  # it has nothing to select
        "sparsed+refresh": ["dense", "few rows", "select", "sparse"],
    }
    longest = 0.0
    for lane in value["lanes"]:
        steps = record.lanes[{"sliding_window": "baseline"}.get(lane["key"], lane["key"])].steps
        assert sum(kind["steps"] for kind in lane["kinds"]) == len(steps)
        for kind in lane["kinds"]:
            if kind["name"] == "few rows":
                these = [step for step in steps if step.rows is not None]
            else:
                phases = ("dense", "select") if "select" not in found[lane["key"]] and kind["name"] == "dense" else ()
                these = [step for step in steps if step.rows is None and step.phase in (*phases, kind["name"])]
            assert kind["seconds"] == median(step.seconds for step in these)
            assert kind["attention"] == median(step.attention_seconds for step in these)
            assert 0 <= kind["attention"] <= kind["seconds"]
            longest = max(longest, kind["seconds"])
    assert value["most"] == longest
    # 60 % of it are attention: without, a step is 2.5 times as fast.
    step = median(step.seconds for step in record.lanes["dense"].steps)
    assert len(value["said"]) == 1
    assert value["said"][0].startswith(f"Even with attention for free a step would take {400 * step:.0f} ms, ")
    assert "at most 2.50× as fast at this length" in value["said"][0]
    (kind,) = value["lanes"][0]["kinds"]
    assert kind["said"] == f"{1000 * step:.0f} ms: {600 * step:.0f} ms attention, {400 * step:.0f} ms the rest"


def test_a_record_keeps_it_and_the_exported_page_shows_it(record: Trace, tmp_path: Path) -> None:
    traces.save(record, tmp_path / "run.json.gz")
    again = traces.load(tmp_path / "run.json.gz")
    assert spent(Kept(again, False)) == spent(Kept(record, True))
    told = spent(Kept(record, True))["lanes"][0]["kinds"][0]["said"]
    assert f'"said":"{told}"' in to_html(record)


def test_a_record_without_it_says_so_and_draws_nothing() -> None:
    run = opening()
    assert run is not None
    if all(step.attention_seconds is None for step in run.trace.lanes["dense"].steps):
        assert spent(run) == {"said": [texts.NOT_APART], "lanes": [], "most": 0.0}
        assert '"spent":null' in to_html(run.trace)
    assert spent(None)["lanes"] == []


def test_attention_is_no_longer_than_its_step(record: Trace, tmp_path: Path) -> None:
    lane = record.lanes["dense"]
    for seconds in (-1e-9, lane.steps[0].seconds * 1.001):
        steps = (replace(lane.steps[0], attention_seconds=seconds), *lane.steps[1:])
        wrong = replace(record, lanes={**record.lanes, "dense": replace(lane, steps=steps)})
        traces.save(wrong, tmp_path / "run.json")
        with pytest.raises(ValueError, match="step 0 took .* and its attention"):
            traces.load(tmp_path / "run.json")
