"""Comparing prompt lengths, without a browser: the stand-in engine and a desk of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

from app.assets import together
from app.engine.cost import Estimate, Speed
from app.engine.peak import LANES_WORDS, Peak
from app.lanes import lanes_for
from app.lengths import comparison as comparison_module
from app.lengths import forecast
from app.lengths import paper as published
from app.lengths import table as table_module
from app.lengths.chart import chart, chart_label
from app.lengths.comparison import BUSY, NOT_BEGUN, compare
from app.lengths.forecast import outlook
from app.lengths.gains import Point, gains, gains_label, points_of
from app.lengths.pins import Pin, pin, with_pins
from app.lengths.recorded import RECORDED, legend
from app.lengths.table import Comparison, Row, Table
from app.page.serving import SCRIPTS, STYLES
from app.race.request import OWN_TEXT, parse
from app.server.desk import Desk
from app.server.limits import Limits
from app.server.observer import Measured
from app.server.session import perform
from app.server.visits import Visit
from sparsed.config import AttentionConfig
from sparsed.models import LoadError

PACE = 0.002


class Noted:
    """A run that remembers the seconds of its steps. error: what its third step raises."""

    def __init__(self, run: Any, name: str, attention: Any, error: BaseException | None) -> None:
        self._run, self.name, self.attention, self._error = run, name, attention, error
        self.sparse = not attention.dense
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def __next__(self) -> Any:
        if self._error is not None and len(self.seconds) == 2:
            raise self._error
        step = next(self._run)
        self.seconds.append(step.seconds)
        return step


class Noting:
    """The stand-in engine that remembers its runs, and whose runs fail or report what a test asks for."""

    def __init__(self, fake: Any) -> None:
        self._fake = fake
        self.runs: list[Any] = []
        # Prompt length → what its sparse lane raises in its third step, and why it has no such question.
        self.failing: dict[str, BaseException] = {}
        self.missing: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def build_prompt(self, model: Any, length: str, kind: str, seed: int, chat: bool | None = None) -> Any:
        if length in self.missing:
            raise ValueError(self.missing[length])
        made = self._fake.build_prompt(model, length, kind, seed)
        self.names[made.text] = length
        return made

    def denoise(self, model: Any, prompt: str, sampler: Any, attention: Any, *more: Any, **named: Any) -> Any:
        run = self._fake.denoise(model, prompt, sampler, attention, *more, **named)
        name = self.names.get(prompt, "")
        noted = Noted(run, name, attention, self.failing.get(name) if not attention.dense else None)
        self.runs.append(noted)
        return noted


@pytest.fixture
def engine(fake_engine: Any) -> Noting:
    return Noting(fake_engine.FakeEngine(pace=PACE, load_seconds=0.0))


def desk_of(engine: Any, **limited: Any) -> Desk:
    desk = Desk(engine, "mini", Limits(**limited))
    desk.models.load("mini")
    engine.runs.clear()  # those that measured the speed
    return desk


def asked_of(desk: Desk, model: str = "mini", **given: Any) -> Any:
    given = {"kind": "about", "length": "4k", "text": "", "steps": 16, **given}
    return parse(
        model=model, question=0, seed=0, backend="auto", defaults=desk.models.defaults(model),
        models=desk.engine.models(), kinds=["about"], lengths=desk.engine.lengths(), **given,
    )  # fmt: skip


def collect(
    desk: Desk,
    visit: Visit,
    asked: Any,
    lengths: list[str],
    act: Callable[[Comparison], None] = lambda _: None,
) -> list[Comparison]:
    return listen(compare(desk, visit, asked, lengths), act)


def listen(stream: AsyncIterator[Any], act: Callable[[Any], None] = lambda _: None) -> list[Any]:
    """Everything of a stream, in a thread of its own: Playwright keeps an event loop in the main one."""

    async def run() -> list[Any]:
        seen = []
        async for value in stream:
            seen.append(value)
            act(value)
        return seen

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result(timeout=60)


def free(desk: Desk, visit: Visit, model: str = "mini") -> bool:
    """Is everything that a comparison takes given back?"""
    return not len(desk.queue) and not desk.models.held(model) and visit.race is None and not visit.running


def states(value: Comparison) -> dict[str, str]:
    return {row["length"]: row["state"] for row in value["rows"]}


# ---- a comparison ------------------------------------------------------------------------------------------


def test_two_lengths_end_with_two_rows_that_hold_the_numbers_of_their_runs(engine: Noting, fake_engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    visit.selected = last = SimpleNamespace()  # type: ignore[assignment]
    seen = collect(desk, visit, asked_of(desk), ["1k", "short_context", "1k"])
    end = seen[-1]
    assert end["state"] == "done" and end["message"] == "Done: 2 lengths compared." and end["progress"] == 1
    assert [row["length"] for row in end["rows"]] == ["short_context", "1k"]
    assert [row["state"] for row in end["rows"]] == ["done", "done"]
    assert [row["tokens"] for row in end["rows"]] == [252, 1020]
    assert len(engine.runs) == 4
    for row in end["rows"]:
        dense, sparse = sorted((run for run in engine.runs if run.name == row["length"]), key=lambda run: run.sparse)
        assert (row["dense_steps"], row["sparse_steps"], row["step"], row["total"]) == (16, 16, 32, 32)
        assert row["dense_seconds"] == round(sum(dense.seconds), 6)
        assert row["sparse_seconds"] == round(sum(sparse.seconds), 6)
        assert row["speedup"]["ratio"] == round(sum(dense.seconds) / sum(sparse.seconds), 4)
        # The stand-in writes the right answer in both lanes, and an end token.
        answer = len(fake_engine.SEED_WORDS.split()) + 1
        assert (row["agreement"]["same"], row["agreement"]["compared"]) == (answer, answer)
        assert row["agreement"]["text"] == "100\u00a0%"
        assert row["dense_right"] is row["sparse_right"] is True and row["published"] is None
    json.dumps(seen, allow_nan=False)
    assert free(desk, visit)
    # What the visitor looked at before is still there, and nothing was kept or measured beside the races.
    assert visit.selected is last
    assert [run.attention.keep_importance for run in engine.runs if run.sparse] == [False, False]


def test_rows_arrive_one_by_one_and_progress_never_goes_back(engine: Noting) -> None:
    desk = desk_of(engine)
    seen = collect(desk, Visit(), asked_of(desk), ["short_context", "1k"])
    assert states(seen[0]) == {"short_context": "waiting", "1k": "waiting"}
    progress = [value["progress"] for value in seen]
    assert progress == sorted(progress) and progress[0] == 0 and len(set(progress)) > 2
    # Every value is one of its own: what was yielded does not change any more.
    assert seen[0]["rows"][0]["step"] == 0
    steps = [value["rows"][0]["step"] for value in seen]
    assert steps == sorted(steps) and steps[-1] == 32
    first = next(value for value in seen if states(value)["short_context"] == "done")
    assert states(first)["1k"] == "waiting" and first["state"] == "running"
    assert first["message"].startswith("short context: SparseD was ")
    # By then as much is done as the first race is expected to take of both.
    costs = forecast.foresee(desk, asked_of(desk), ["short_context", "1k"])
    short, long = (cost.seconds for cost, _ in costs.values() if cost)
    assert first["progress"] == pytest.approx(short / (short + long), abs=1e-4)
    running = [value for value in seen if states(value)["1k"] == "running"]
    assert running and all(value["rows"][0] == first["rows"][0] for value in running)
    said = running[-1]["rows"][1]
    assert (
        f"1 of 2 lengths done · 1k: step {said['step']} of 32, both lanes together · " in running[-1]["progress_text"]
    )
    assert running[-1]["progress_text"].endswith(" left")
    assert {value["state"] for value in seen[:-1]} == {"running"}


def test_half_a_race_counts_by_the_time_of_its_lanes() -> None:
    table = Table([table_module.row_of("4k", 4096, None)], "", "", "")
    table.costs = {"4k": (Estimate({"dense": 30.0, "sparse": 10.0}, 0), "")}
    lanes = [
        {"key": "dense", "step": 8, "total": 16, "progress": 0.5},
        {"key": "sparse", "step": 4, "total": 16, "progress": 0.25},
    ]
    stage = {"lanes": lanes, "state": "running", "notes": [], "message": "", "mode": None}
    table.take("4k", stage, 4090, None)
    value = table.value("running", "")
    assert value["progress"] == round((30 * 0.5 + 10 * 0.25) / 40, 4)
    assert value["estimate"] == "about 40 s" and value["progress_text"].endswith("about 20 s left")
    assert value["rows"][0]["message"] == "Step 12 of 32, both lanes together."
    # At the same time: what is left is what the longer lane has left.
    table.costs = {"4k": (Estimate({"dense": 30.0, "sparse": 10.0}, 0, devices=2), "")}
    table.take("4k", stage, 4090, None)
    value = table.value("running", "")
    assert value["progress"] == 0.5
    assert value["estimate"] == "about 30 s" and value["progress_text"].endswith("about 15 s left")
    lanes[0]["progress"] = 0.9
    table.take("4k", stage, 4090, None)
    assert table.value("running", "")["progress"] == 0.75


def test_what_is_left_follows_what_lanes_at_the_same_time_took() -> None:
    table = Table([table_module.row_of(name, 4096, None) for name in ("4k", "8k")], "", "", "")
    costs = Estimate({"dense": 30.0, "sparse": 10.0}, 0, devices=2)
    table.costs = {"4k": (costs, ""), "8k": (costs, "")}
    table.rows["4k"] |= {"state": "done", "dense_seconds": 60.0, "sparse_seconds": 20.0}
    # Each took twice as long as expected.
    assert table._left(0.5) == "about 1 min left"


def test_the_table_says_how_the_lanes_shared_the_machine() -> None:
    table = Table([table_module.row_of(name, 1024, None) for name in ("1k", "16k")], "", "", "")
    lanes = [{"key": key, "step": 1, "total": 4, "progress": 0.25} for key in ("dense", "sparse")]
    stage = {"lanes": lanes, "state": "running", "notes": [], "message": ""}
    assert table.value("running", "")["mode"] == ""
    turns, together = ({"name": name, "text": ""} for name in ("turns", "together"))
    table.take("1k", {**stage, "mode": turns}, 1000, None)
    assert table.value("running", "")["mode"] == "The lanes take turns on one device."
    table.take("16k", {**stage, "mode": together}, 1000, None)
    said = "Each lane has a GPU of its own; both run at the same time"
    assert table.value("running", "")["mode"] == f"{said} at 16k; at the other lengths they take turns."
    table.take("1k", {**stage, "mode": together}, 1000, None)
    assert table.value("running", "")["mode"] == f"{said}."


def test_stop_in_the_second_length_keeps_the_first(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    made_at_stop: list[int] = []

    def act(value: Comparison) -> None:
        if value["rows"][1]["step"] and not made_at_stop:
            visit.stop()
            made_at_stop.append(sum(len(run.seconds) for run in engine.runs))

    seen = collect(desk, visit, asked_of(desk, steps=64), ["short_context", "1k", "2k"], act)
    end = seen[-1]
    assert end["state"] == "stopped" and states(end) == {"short_context": "done", "1k": "stopped", "2k": "stopped"}
    first, second, third = end["rows"]
    assert first["speedup"] and first["dense_seconds"] > 0 and first["agreement"]["text"] == "100\u00a0%"
    assert second["dense_seconds"] is None and second["message"] == f"Stopped after {second['step']} of 128 steps."
    assert third["message"] == NOT_BEGUN and third["tokens"] is None
    # At most the step that was running when Stop was pressed.
    assert sum(len(run.seconds) for run in engine.runs) <= made_at_stop[0] + 1
    assert free(desk, visit)
    assert collect(desk, visit, asked_of(desk), ["short_context"])[-1]["state"] == "done"


def test_stop_between_two_lengths_is_not_lost(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()

    def act(value: Comparison) -> None:
        if states(value) == {"short_context": "done", "1k": "waiting"}:
            visit.stop()

    end = collect(desk, visit, asked_of(desk), ["short_context", "1k"], act)[-1]
    assert end["state"] == "stopped" and states(end) == {"short_context": "done", "1k": "stopped"}
    assert len(engine.runs) == 2 and free(desk, visit)
    # Nor is one that comes when the next race has been asked for, but not begun.
    visit.stop()
    last = listen(perform(desk, visit, asked_of(desk), Measured()))[-1]
    assert last.stage["state"] == "stopped" and len(engine.runs) == 2 and free(desk, visit)


def test_every_lane_is_raced_at_each_length(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    asked = asked_of(desk, lanes=["sliding_window", "sparsed+refresh"])
    seen = collect(desk, visit, asked, ["short_context", "1k"])
    end, keys = seen[-1], ["dense", "sparse", "baseline", "sparsed+refresh"]
    assert end["state"] == "done" and end["label"].endswith(" · with Sliding window; SparseD + Refresh")
    assert len(engine.runs) == 8 and any("all 4 lanes together" in value["progress_text"] for value in seen)
    for row in end["rows"]:
        assert [lane["key"] for lane in row["lanes"]] == keys and row["total"] == row["step"] == 4 * 16
        took = [sum(run.seconds) for run in engine.runs if run.name == row["length"]]
        for key, seconds in zip(keys, took, strict=True):
            assert row[f"{key}_seconds"] == pytest.approx(seconds, abs=1e-6)
            gain = row[f"{key}_speedup"]
            assert gain is None if key == "dense" else gain["ratio"] == pytest.approx(took[0] / seconds, abs=1e-3)
            # The stand-in's window is wrong.
            assert row[f"{key}_right"] is (key != "baseline") and row["infos"][key]["total"] == 16
            same = row[f"{key}_agreement"]
            assert same is None if key == "dense" else (same["text"] == "100\u00a0%") is (key != "baseline")
        assert row["speedup"] == row["sparse_speedup"]
    # A line a lane in its own colours, and its speed-up in them again; SparseD's is the one that is written.
    figure = gains(end["rows"])
    data, axis = chart(end["rows"])["data"], figure["layout"]["yaxis"]
    # A cache's speed-up is ten times SparseD's, and both can be read.
    ratios = [row[f"{key}_speedup"]["ratio"] for row in end["rows"] for key in keys[1:]]
    assert axis["type"] == "log" and 10 ** axis["range"][0] < min(ratios) and 10 ** axis["range"][1] > max(ratios)
    assert axis["ticktext"] == [f"{mark:g}×" for mark in axis["tickvals"]] and 1 in axis["tickvals"]
    labels = ["Full attention", "SparseD", "Sliding window", "SparseD + Refresh"]
    assert [trace["name"] for trace in data] == labels
    assert len({trace["line"]["color"] for trace in data}) == 4
    own = here(figure)
    assert [trace["line"]["color"] for trace in own] == [trace["line"]["color"] for trace in data[1:]]
    assert ["text" in trace["mode"] for trace in own] == [True, False, False]
    row, said = end["rows"][0], gains_label(end["rows"])
    assert f"SparseD + Refresh {row['sparsed+refresh_speedup']['text']} " in said
    # What it will take counts them all.
    cost, _ = forecast.foresee(desk, asked, ["1k"])["1k"]
    assert cost is not None and list(cost.lanes) == keys
    assert free(desk, visit)


def test_what_a_race_needed_is_known_when_it_fails_before_its_first_step(engine: Noting, monkeypatch) -> None:
    noted = []
    monkeypatch.setattr("app.engine.peak.Peak.note", lambda peak: noted.append(peak))
    desk, visit, measured = desk_of(engine), Visit(), Measured()
    denoise = engine.denoise

    def failing(*given: Any) -> Any:
        run = denoise(*given)

        def warm_up() -> None:
            raise RuntimeError("no kernel image is available")

        run.warm_up = warm_up
        return run

    engine.denoise = failing  # type: ignore[method-assign]
    last = listen(perform(desk, visit, asked_of(desk), measured))[-1]
    assert last.stage["state"] == "failed" and noted == [measured.peak] and measured.peak is not None
    assert len(engine.runs) == 1 and engine.runs[0].closed and not len(desk.queue)


def test_stop_while_it_waits_for_the_device(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    other = desk.queue.join()

    def act(value: Comparison) -> None:
        if "before yours" in value["rows"][0]["message"]:
            visit.stop()

    end = collect(desk, visit, asked_of(desk), ["short_context", "1k"], act)[-1]
    assert states(end) == {"short_context": "stopped", "1k": "stopped"} and engine.runs == []
    assert end["rows"][0]["message"] == "Stopped before it began."
    assert len(desk.queue) == 1 and other.position == 0
    other.leave()
    assert free(desk, visit)


def test_who_waits_is_let_in_between_two_lengths(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    places: list[Any] = []

    def act(value: Comparison) -> None:
        if value["rows"][0]["state"] == "running" and not places:
            places.append(desk.queue.join())
        if "before yours" in value["rows"][1]["message"]:
            assert places[0].position == 0
            places[0].leave()

    seen = collect(desk, visit, asked_of(desk), ["short_context", "1k"], act)
    assert any("before yours" in value["rows"][1]["message"] for value in seen)
    assert seen[-1]["state"] == "done" and free(desk, visit)


def test_closing_the_stream_frees_the_device(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()

    async def scenario() -> None:
        async with contextlib.aclosing(compare(desk, visit, asked_of(desk, steps=64), ["1k", "2k"])) as stream:
            async for value in stream:
                if value["rows"][0]["step"]:
                    break
        # Closed, and not only forgotten.
        assert visit.race is None and not visit.running
        for _ in range(200):
            if free(desk, visit):
                return
            await asyncio.sleep(0.02)

    with ThreadPoolExecutor(1) as alone:  # Playwright has a loop in the main thread
        alone.submit(asyncio.run, scenario()).result()
    assert free(desk, visit)
    assert {run.name for run in engine.runs} == {"1k"} and 0 < sum(len(run.seconds) for run in engine.runs) < 128
    assert collect(desk, visit, asked_of(desk), ["short_context"])[-1]["state"] == "done"


def test_a_comparison_does_not_begin_beside_a_run_of_the_same_visit(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    visit.running = True
    (only,) = collect(desk, visit, asked_of(desk), ["1k"])
    assert (only["state"], only["message"], only["rows"]) == ("refused", BUSY, [])
    assert visit.running and engine.runs == []


# ---- lengths that cannot be run ----------------------------------------------------------------------------


def test_a_refused_length_in_the_middle_does_not_end_the_others(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    engine.missing["1k"] = "There is no such question at 1k."
    end = collect(desk, visit, asked_of(desk), ["short_context", "1k", "2k"])[-1]
    assert states(end) == {"short_context": "done", "1k": "refused", "2k": "done"} and end["progress"] == 1
    assert end["rows"][1]["message"] == "There is no such question at 1k." and end["rows"][1]["speedup"] is None
    assert end["state"] == "done" and end["message"].startswith("Done: 2 of 3 lengths compared")
    assert free(desk, visit)


def test_a_length_beyond_the_limits_is_refused_with_the_sentence_and_weighs_nothing(engine: Noting) -> None:
    desk, visit = desk_of(engine, max_tokens=1500), Visit()
    seen = collect(desk, visit, asked_of(desk), ["short_context", "2k"])
    end = seen[-1]
    assert states(end) == {"short_context": "done", "2k": "refused"}
    assert end["rows"][1]["message"].startswith("2,108 tokens are more than this page takes (1,500)")
    first = next(value for value in seen if states(value)["short_context"] == "done")
    assert first["progress"] == 1 and states(first)["2k"] == "waiting"
    refused = "Too long here: 2k (more than 1,500 tokens)."
    assert outlook(desk, asked_of(desk), ["2k"]) == refused
    assert outlook(desk, asked_of(desk), ["2k", "short_context"]) == f"1 length: under 1 s on this machine. {refused}"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "This machine ran out of memory in the lane “SparseD”."),
        (RuntimeError("CUDA error: out of memory"), "This machine ran out of memory in the lane “SparseD”."),
        (RuntimeError("the kernel failed"), "RuntimeError: the kernel failed"),
    ],
)
def test_a_failing_length_does_not_end_the_others(engine: Noting, error: BaseException, says: str) -> None:
    desk, visit = desk_of(engine), Visit()
    engine.failing["1k"] = error
    end = collect(desk, visit, asked_of(desk), ["short_context", "1k", "2k"])[-1]
    assert states(end) == {"short_context": "done", "1k": "failed", "2k": "done"} and end["progress"] == 1
    failed = end["rows"][1]
    assert says in failed["message"] and failed["dense_seconds"] is failed["memory"] is None and failed["step"] >= 4
    assert end["rows"][2]["speedup"] and end["state"] == "done" and free(desk, visit)


def test_a_model_that_cannot_be_loaded_ends_the_whole(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()

    def load(*_: Any) -> Any:
        raise LoadError("There is no network.")

    engine.load = load  # type: ignore[attr-defined]
    end = collect(desk, visit, asked_of(desk, "dreamer"), ["short_context", "1k"])[-1]
    assert (end["state"], end["message"], end["progress"]) == ("failed", "There is no network.", 0.2)
    assert states(end) == {"short_context": "refused", "1k": "stopped"}
    assert end["rows"][1]["message"] == "The model could not be loaded." and free(desk, visit, "dreamer")


def test_a_model_that_is_not_in_memory_is_loaded_first(engine: Noting) -> None:
    desk, visit = desk_of(engine), Visit()
    asked = asked_of(desk, "dreamer")
    assert outlook(desk, asked, ["1k"]) == "1 length: how long that takes here is not known yet."
    seen = collect(desk, visit, asked, ["short_context"])
    assert any(value["rows"][0]["message"].startswith("Dreamer-7B · ") for value in seen)
    assert seen[0]["estimate"] == "" and seen[-1]["estimate"] and seen[-1]["rows"][0]["state"] == "done"
    assert free(desk, visit, "dreamer")


@pytest.mark.parametrize(
    ("kind", "lengths", "says"),
    [
        ("about", [], forecast.NOTHING_CHOSEN),
        (OWN_TEXT, ["1k"], forecast.OWN_HAS_ONE),
        ("about", ["1k", "3k"], "The prompt length '3k' is not one of short_context, 1k, 2k, 4k, 64k."),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(engine: Noting, kind: str, lengths: list[str], says: str) -> None:
    desk, visit = desk_of(engine), Visit()
    (only,) = collect(desk, visit, asked_of(desk, kind=kind, text="hello" if kind == OWN_TEXT else ""), lengths)
    assert (only["state"], only["message"], only["rows"]) == ("refused", says, []) and free(desk, visit)


def test_a_run_that_never_becomes_sparse_has_no_speed_up(engine: Noting) -> None:
    desk = desk_of(engine)
    asked = asked_of(desk, steps=64)
    asked = replace(asked, sampler=replace(asked.sampler, threshold=0.9))
    end = collect(desk, Visit(), asked, ["short_context"])[-1]
    (row,) = end["rows"]
    assert row["state"] == "done" and row["speedup"] is None and (row["dense_steps"], row["total"]) == (11, 128)
    assert row["notes"] == ["SparseD: This run never became sparse: it was done after 11 steps."]
    # What stands in SparseD's column is not reported as SparseD's.
    assert row["never_sparse"] and row["infos"]["sparse"]["phases"]["sparse"] == 0
    assert "never sparse" in chart_label(end["rows"])
    told = {trace["name"]: trace["text"] for trace in chart(end["rows"])["data"]}
    assert ["never sparse" in text for text in told["SparseD"] + told["Full attention"]] == [True, False]
    assert end["label"] == "mini · up to 64 steps · default select · threshold 0.9"
    assert [trace["name"] for trace in chart(end["rows"])["data"]] == ["Full attention", "SparseD"]
    assert here(gains(end["rows"])) == []
    assert outlook(desk, asked, ["1k"]).endswith(" on this machine at most.")


def test_the_whole_is_estimated_beforehand(engine: Noting) -> None:
    desk = desk_of(engine)
    asked = asked_of(desk)
    loaded = desk.models.loaded("mini")
    assert loaded is not None and loaded.speed is not None
    desk.models.set_speed("mini", Speed(0.001, 0.0))
    # 256 + 64 and 1024 + 64 tokens at 1 ms each, 16 steps, two lanes: 45 s; nothing is saved without attention.
    assert outlook(desk, asked, ["1k", "short_context", "1k"]) == "2 lengths: about 45 s on this machine."
    assert outlook(desk, asked, []) == forecast.NOTHING_CHOSEN
    chosen = replace(asked, lanes=lanes_for(replace(asked.attention, select=0.3, skip=0.1)))
    assert comparison_module.label(desk, chosen) == "mini · 16 steps · select 0.3 · skip 0.1"


# ---- memory ------------------------------------------------------------------------------------------------

BLOCK = 200 * 2**20


def take_and_give_back(size: int) -> None:
    """Touches so many bytes of fresh memory and returns it to the system."""
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can set the high-water mark back")
def test_peak_memory_is_that_of_the_work_alone() -> None:
    peak = Peak(SimpleNamespace())
    take_and_give_back(2 * BLOCK)
    peak.begin()
    if not peak._marked:
        pytest.skip("this system does not let a process set its high-water mark back")
    peak.note()
    low = peak.bytes
    assert low is not None
    take_and_give_back(BLOCK)
    peak.note()
    assert peak.bytes is not None and 0.9 * BLOCK < peak.bytes - low < 1.5 * BLOCK
    peak.begin()
    peak.note()
    assert peak.bytes is not None and peak.bytes < low + 0.5 * BLOCK


def test_where_the_mark_cannot_be_set_back_only_a_new_record_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsed.machine._set_mark_back", lambda: False)
    monkeypatch.setattr("sparsed.machine.largest_resident", lambda: largest)
    largest: int | None = 1000
    peak = Peak(SimpleNamespace())
    peak.begin()
    peak.note()
    assert peak.bytes is None
    largest = 1500
    peak.note()
    assert peak.bytes == 1500
    largest = None
    peak.begin()
    peak.note()
    assert peak.bytes is None


def test_on_a_gpu_the_peaks_of_the_devices_that_hold_weights_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    reset: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: {0: 3, 2: 40}[gpu])
    weights = [SimpleNamespace(device=SimpleNamespace(index=index)) for index in (2, 0, 2)]
    network = SimpleNamespace(parameters=lambda: weights)
    peak = Peak(SimpleNamespace(device=SimpleNamespace(type="cuda"), network=network))
    peak.begin()
    peak.note()
    assert reset == [0, 2] and peak.bytes == 43 and "GPU" in peak.words
    # Lanes with GPUs of their own: the one that held most.
    small, large = (
        SimpleNamespace(device=SimpleNamespace(type="cuda"), network=SimpleNamespace(parameters=lambda one=one: [one]))
        for one in (weights[1], weights[0])
    )
    reset.clear()
    lanes = Peak(small, large)
    lanes.begin()
    lanes.note()
    assert reset == [0, 2] and lanes.bytes == 40 and lanes.words == LANES_WORDS
    other = Peak(SimpleNamespace(device=SimpleNamespace(type="mps")))
    other.begin()
    other.note()
    assert other.bytes is None and other.words == ""


def test_memory_is_taken_before_the_device_is_free_for_others(engine: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        """A peak that only knows who had the device."""

        words = "how"

        def __init__(self, _: Any) -> None:
            self.bytes: int | None = None
            self.queue: list[int] = []

        def begin(self) -> None:
            self.queue.append(len(desk.queue))

        def note(self) -> None:
            self.queue.append(len(desk.queue))
            self.bytes = 100 * len(self.queue)
            told.append(self)

    told: list[Told] = []
    monkeypatch.setattr("app.server.observer.Peak", Told)
    desk = desk_of(engine)
    end = collect(desk, Visit(), asked_of(desk), ["short_context", "1k"])[-1]
    # Begun once and noted once, when no step runs any more and the place in the line is still taken.
    assert [one.queue for one in told] == [[1, 1]] * 2 and len({id(one) for one in told}) == 2
    assert [row["memory"] for row in end["rows"]] == [200, 200] and end["memory"] == "how"


# ---- published figures, chart, pins ------------------------------------------------------------------------


def test_the_published_figures_are_those_of_the_nearest_model() -> None:
    assert published.source("dream").model == "Dream-7B"
    assert {published.source(family).model for family in ("llada", "llama", "qwen3")} == {"LLaDA-1.5"}
    llada = published.source("llada").runs
    assert [round(run.gain, 2) for run in llada.values()] == [0.93, 0.99, 1.07, 1.16, 1.25]
    for one in (llada, published.source("dream").runs):
        assert list(one) == ["4k", "8k", "16k", "32k", "64k"]
        assert all(abs(run.dense / run.sparse - run.gain) < 0.01 for run in one.values())


def row_of(name: str, budget: int, dense: float, sparse: float, paper: Any = None, **more: Any) -> Row:
    ratio = {"ratio": dense / sparse, "text": f"{dense / sparse:.2f}×", "words": "faster"}
    row = table_module.row_of(name, budget, paper)
    return {
        **row, "tokens": budget - 4, "state": "done", "dense_seconds": dense, "sparse_seconds": sparse,
        "speedup": ratio, **more,
    }  # fmt: skip


@pytest.fixture
def rows() -> list[Row]:
    llada = published.source("llada").runs
    return [
        row_of("2k", 2048, 10.0, 11.0),
        row_of("4k", 4096, 70.5, 50.2, llada["4k"]),
        row_of("8k", 8192, 300.0, 200.0, llada["8k"]),
        {**table_module.row_of("16k", 16384, llada["16k"]), "state": "running"},
    ]


def here(figure: Any) -> list[Any]:
    """What is drawn of this page's own runs: the recorded lines are not in the legend."""
    return [trace for trace in figure["data"] if trace["showlegend"] or "legendgroup" in trace]


def test_the_chart_shows_exactly_the_rows_that_are_done(rows: list[Row]) -> None:
    figure = chart(rows)
    go.Figure(figure)
    json.dumps(figure, allow_nan=False)
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert traces["Full attention"]["x"] == ["2k", "4k", "8k"] and traces["Full attention"]["y"] == [10.0, 70.5, 300.0]
    assert traces["SparseD"]["y"] == [11.0, 50.2, 200.0]
    assert len(traces) == 2
    layout = figure["layout"]
    assert layout["xaxis"]["categoryarray"] == ["2k", "4k", "8k", "16k"] and layout["yaxis"]["type"] == "log"
    # From 7 s to 420 s.
    assert layout["yaxis"]["range"] == pytest.approx([0.8451, 2.6232], abs=1e-3)
    assert layout["yaxis"]["ticktext"] == ["10 s", "30 s", "1 min", "3 min"]
    (own,) = here(gains(rows))
    assert own["x"] == [2048, 4096, 8192] and own["y"] == [10 / 11, 70.5 / 50.2, 1.5]
    assert own["text"] == ["0.91×", "1.40×", "1.50×"]
    assert own["textposition"] == ["bottom center", "top center", "top center"]


def test_nothing_measured_is_said_and_not_drawn(rows: list[Row]) -> None:
    for figure in (chart([]), chart(rows[3:])):
        go.Figure(figure)
        assert figure["data"] == [] and "appear<br>here" in figure["layout"]["annotations"][0]["text"]


def test_the_recorded_speed_ups_are_always_drawn(rows: list[Row]) -> None:
    tokens = {"1k": 1024, "4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536}
    wanted = {
        f"{name} · {one.machine}": ([tokens[length] for length in line], [round(gain, 4) for gain in line.values()])
        for one in RECORDED
        for name, line in one.lines.items()
    }
    assert len(wanted) == 9 and wanted["SparseD · One A800 GPU, the paper"] == (
        [4096, 8192, 16384, 32768, 65536], [0.9268, 0.9895, 1.0652, 1.1577, 1.25],
    )  # fmt: skip
    for figure in (gains(), gains(rows), gains(rows[3:])):
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)
        quiet = [trace for trace in figure["data"] if not trace["showlegend"]]
        assert {trace["name"]: (trace["x"], trace["y"]) for trace in quiet} == wanted
        # Told apart without colours, of which they have one.
        assert len({(trace["marker"]["symbol"], trace["line"]["dash"]) for trace in quiet}) == len(wanted)
        assert len({trace["line"]["color"] for trace in quiet}) == 1
        for axis, at in (("xaxis", "x"), ("yaxis", "y")):
            low, high = (10**end for end in figure["layout"][axis]["range"])
            assert figure["layout"][axis]["type"] == "log"
            assert all(low < value < high for trace in figure["data"] for value in trace[at])
    assert here(gains()) == here(gains(rows[3:])) == [] and not gains()["layout"]["showlegend"]
    said = gains_label()
    assert "SparseD + Fast-dLLM, dual, One H200 GPU: 8.68× at 4k to 33.80× at 64k" in said and "Here" not in said
    # Every line has its machine and how it was measured in words beside the chart.
    words = legend()
    for one in RECORDED:
        assert one.machine in words and one.whose in words and all(command in words for command in one.commands)
        assert one.commands or "paper" in one.machine
    assert all(trace["name"].split(" · ")[0] in words for trace in gains()["data"])


def test_single_runs_are_points_at_their_length() -> None:
    lanes = [
        {"key": "dense", "label": "Full attention", "style": 1, "speedup": None, "info": {"prompt_tokens": 1020}},
        {"key": "sparse", "label": "SparseD", "style": 2, "info": {"prompt_tokens": 1020},
         "speedup": {"ratio": 1.25, "text": "1.25×", "words": "faster"}},
        {"key": "baseline", "label": "Sliding window", "style": 3, "info": {"prompt_tokens": 1020},
         "speedup": {"ratio": 0.5, "text": "2.00×", "words": "slower"}},
    ]  # fmt: skip
    stage = {"state": "done", "lanes": lanes}
    assert points_of({**stage, "state": "stopped"}) == ()
    points = points_of(stage)
    assert points == (
        Point("sparse", "SparseD", 2, 1020, 1.25, "1.25× faster"),
        Point("baseline", "Sliding window", 3, 1020, 0.5, "2.00× slower"),
    )
    longer = Point("sparse", "SparseD", 2, 120_000, 60.0, "60.00× faster")
    figure = gains(points=[*points, longer])
    go.Figure(figure)
    sparse, window = here(figure)
    assert (sparse["x"], sparse["y"], window["x"], window["y"]) == ([1020, 120_000], [1.25, 60.0], [1020], [0.5])
    assert {sparse["mode"], window["mode"]} == {"markers"}
    # Stronger than what is recorded, and within the axes.
    assert min(sparse["marker"]["size"], window["marker"]["size"]) > max(
        trace["marker"]["size"] for trace in gains()["data"]
    )
    assert 10 ** figure["layout"]["xaxis"]["range"][1] > 120_000 and 10 ** figure["layout"]["yaxis"]["range"][1] > 60
    assert "1,020 tokens: Sliding window 2.00× slower" in gains_label(points=points)


def test_pinned_comparisons_are_laid_over_the_new_one(rows: list[Row]) -> None:
    old = Pin("mini · 32 steps", (row_of("1k", 1024, 3.0, 2.0), row_of("4k", 4096, 40.0, 20.0)))
    older = Pin("mini · 16 steps", (row_of("4k", 4096, 20.0, 10.0),))
    figure = chart(rows, [older, old])
    go.Figure(figure)
    assert len(figure["data"]) == 2 + 2 + 2
    pinned = [trace for trace in figure["data"] if "legendgroup" in trace]
    assert [trace["name"] for trace in pinned if trace["showlegend"]] == [
        "pinned: mini · 16 steps", "pinned: mini · 32 steps",
    ]  # fmt: skip
    dense, sparse = pinned[2:]
    assert (dense["x"], dense["y"], sparse["y"]) == (["1k", "4k"], [3.0, 40.0], [2.0, 20.0])
    assert {trace["marker"]["symbol"] for trace in pinned[:2]} == {"square-open", "square"}
    assert {trace["marker"]["symbol"] for trace in pinned[2:]} == {"triangle-up-open", "triangle-up"}
    assert figure["layout"]["xaxis"]["categoryarray"] == ["1k", "2k", "4k", "8k", "16k"]
    factors = gains(rows, [older, old])
    go.Figure(factors)
    first, second, current = here(factors)
    assert (second["x"], second["y"], first["y"]) == ([1024, 4096], [1.5, 2.0], [2.0])
    assert (first["name"], second["marker"]["symbol"]) == ("pinned: mini · 16 steps", "triangle-up")
    assert first["showlegend"] and first["line"]["width"] < current["line"]["width"]
    # Pins alone are a chart too.
    go.Figure(chart([], [old]))
    assert len(chart([], [old])["data"]) == 2
    assert "4k: 1 min 10 s with full attention, 50.2 s with SparseD; " in chart_label(rows, [old])
    assert "4k: SparseD 1.40× faster" in gains_label(rows, [old])
    assert gains_label(rows, [old]).endswith("Pinned beside it: mini · 32 steps.")
    assert chart_label(rows, [old]).endswith("pinned beside it: mini · 32 steps")


def test_pins_hold_what_is_done_once_each_and_the_oldest_gives_way(rows: list[Row]) -> None:
    def comparison(label: str, of: list[Row]) -> Comparison:
        return {"label": label, "rows": of}

    pins: tuple[Pin, ...] = ()
    assert pin(pins, None) == pin(pins, comparison("none is done", rows[3:])) == ()
    pins = pin(pins, comparison("0", rows))
    assert pins == (Pin("0", tuple(rows[:3])),)
    assert pin(pins, comparison("0", rows)) == pins
    for number in range(1, 6):
        pins = pin(pins, comparison(str(number), rows))
    assert [one.label for one in pins] == ["2", "3", "4", "5"]
    shown = with_pins(comparison("now", rows), pins[:1])
    assert shown["rows"] == rows and shown["pins"] == [{"label": "2", "rows": rows[:3]}]
    before = with_pins(None, pins)
    assert before["rows"] == [] and before["state"] == "idle" and len(before["pins"]) == 4
    json.dumps(before, allow_nan=False)


def test_two_comparisons_on_one_device_take_turns(engine: Noting, fake_engine: Any) -> None:
    desk = desk_of(engine)
    visits = [Visit(), Visit()]
    overlaps = fake_engine.Run.overlaps
    ends: list[Comparison] = []

    def run(visit: Visit) -> None:
        ends.append(collect(desk, visit, asked_of(desk), ["short_context", "1k"])[-1])

    threads = [threading.Thread(target=run, args=(visit,)) for visit in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [end["state"] for end in ends] == ["done", "done"] and fake_engine.Run.overlaps == overlaps
    assert len(engine.runs) == 8 and all(free(desk, visit) for visit in visits)


# ---- the view ----------------------------------------------------------------------------------------------


def test_the_view_draws_every_row_as_text(chromium: Any, rows: list[Row]) -> None:
    hostile = "<img src=x onerror='document.title=1'>"
    refused = {**table_module.row_of("32k", 32768, None), "state": "refused", "message": hostile}
    done = {**rows[1], "dense_right": True, "sparse_right": False, "sparse_verdict": hostile, "memory": 3 * 2**29}
    done["agreement"] = {"same": 24, "compared": 25, "text": "96.0\u00a0%"}
    value = {
        "state": "running", "message": hostile, "label": "mini", "question": hostile, "progress": 0.25, "paper": "P.",
        "progress_text": "1 of 3 lengths done", "estimate": "", "memory": "M.",
        "rows": [done, refused, {**rows[3], "step": 5, "total": 32}],
    }  # fmt: skip
    values = [with_pins(None, ()), with_pins(value, [Pin(hostile, tuple(rows[:2]))]), with_pins(value, ())]
    # A pinned one of other lanes: they are columns of their own.
    window = table_module.row_of("4k", 4096, None, lanes_for(AttentionConfig(), ["sliding_window"]))
    gain, same = {"text": "1.60×", "words": "faster"}, {"same": 3, "compared": 25, "text": "12.0\u00a0%"}
    window |= {**rows[1], "lanes": window["lanes"], "baseline_never_sparse": False, "baseline_verdict": "",
               "baseline_seconds": 44.0, "baseline_right": False, "baseline_speedup": gain,
               "baseline_agreement": same, "baseline_steps": None}  # fmt: skip
    values.append(with_pins(value, [Pin("three", (window,))]))
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    try:
        page.set_content('<body class="light"><div class="gradio-container"><div class="sd-view"></div></div>')
        page.add_style_tag(content=together(STYLES))
        page.add_script_tag(content=together(SCRIPTS))
        page.evaluate(
            """(first) => {
              window.props = { value: JSON.stringify(first) };
              const watch = (_, update) => (window.update = update);
              window.sparsed.mount("comparison", document.querySelector(".gradio-container"), window.props, watch);
            }""",
            values[0],
        )
        assert not page.is_visible("table") and "press Compare" in page.inner_text(".sd-compare")

        def show(index: int) -> None:
            page.evaluate("(value) => { window.props.value = JSON.stringify(value); window.update(); }", values[index])

        def visible(row: str) -> list[str]:
            cells = page.locator(f"{row} > :not([hidden])")
            return [" ".join(text.split()) for text in cells.all_inner_texts()]

        show(1)
        assert page.locator("tbody").count() == 2 and page.locator("tbody:not([data-pin]) > tr").count() == 3
        current = "tbody:not([data-pin]) > tr"
        assert visible(f"{current}[data-length='4k']") == [
            "4k 4,092 tokens", "✓ done", "1 min 10 s", "50.2 s", "1.40× faster", "96.0 % 24 of 25", "✓ right",
            f"✗ wrong {hostile}", "1.50 GiB", "0.93× 38 → 41 s",
        ]  # fmt: skip
        assert visible(f"{current}[data-length='32k']") == ["32k", "⊘ refused", hostile]
        assert visible(f"{current}[data-length='16k']")[:3] == ["16k", "▶ running step 5 of 32", "–"]
        assert page.inner_text("tbody[data-pin] th[scope=rowgroup]") == f"Pinned: {hostile}"
        assert page.locator("tbody[data-pin] tr[data-length]").count() == 2
        assert page.inner_text("caption") == f"mini · {hostile}" and page.locator("img").count() == 0
        bar = page.locator("[role=progressbar]")
        assert (bar.get_attribute("aria-valuenow"), bar.get_attribute("aria-valuetext")) == (
            "25",
            "1 of 3 lengths done",
        )
        assert page.locator("thead th[scope=col]").count() == 10
        assert page.locator("tbody th[scope=row]").count() == 5
        alignment = "(cell) => getComputedStyle(cell).textAlign"
        assert {cell.evaluate(alignment) for cell in page.query_selector_all("td[data-column]")} == {"right"}
        # On a phone the table is scrolled inside its box, by keyboard too; the page is not.
        box, page_width = page.locator(".sd-compare-box"), "document.documentElement.scrollWidth"
        assert box.evaluate("(box) => box.scrollWidth > box.clientWidth + 300") and page.evaluate(page_width) == 390
        assert box.get_attribute("tabindex") == "0"
        show(2)
        assert page.locator("tbody").count() == 1 and page.locator(current).count() == 3
        show(3)
        heads = page.locator("thead th").all_inner_texts()
        assert len(heads) == 12 and (heads[4], heads[9]) == ("Sliding window", "Sliding window’s answer")
        assert visible("tbody[data-pin] tr[data-length]")[4] == "44.0 s 1.60× faster, 12.0 % same"
        assert visible("tbody[data-pin] tr[data-length]")[9] == "✗ wrong"
        assert [visible(f"{current}[data-length='4k']")[place] for place in (3, 4, 9)] == ["50.2 s", "–", "–"]
        assert visible(f"{current}[data-length='32k']") == ["32k", "⊘ refused", hostile]
        show(0)
        assert not page.is_visible("table") and page.locator("tbody tr").count() == 0
    finally:
        page.close()
