"""The evaluation that comes with the app: it is the bundled model's, and what is said of it is what its numbers say."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

from app.accuracy import paper, shipped, words
from app.accuracy.own import OwnRun, own_run
from app.accuracy.shipped import PUBLISHED_METHOD, RECOMMENDED_METHOD, SHIPPED, packed, unpacked
from app.figures.own_run import Mark
from app.figures.palette import LANES
from app.figures.tradeoff import tradeoff
from app.page import accuracy as section
from app.tools.evaluation import main
from sparsed.config import RECOMMENDED, SparseDConfig
from sparsed.evaluation.methods import parse_method, parts_of
from sparsed.evaluation.plan import TYPES
from sparsed.evaluation.recommend import candidates, most_asked, recommend, recommended
from sparsed.evaluation.scores import Answer, paired, wilson
from sparsed.models.fingerprint import fingerprint
from sparsed.results_folder import Folder
from sparsed.runs import RunRecord

HELD = json.loads(SHIPPED.read_text("utf-8"))


def table_of(name: str) -> list[dict[str, Any]]:
    """The rows of the file as they stand there."""
    columns, rows = HELD[name]["columns"], HELD[name]["rows"]
    return [{column: row[at] for at, column in enumerate(columns)} for row in rows]


def test_the_shipped_numbers_are_those_of_the_bundled_model() -> None:
    bundled = fingerprint(SHIPPED.with_name("mini"))
    assert HELD["keys"][0]["weights"] == bundled, "mini is another one: evaluate it, and make the file anew"
    assert SHIPPED.stat().st_size < 200_000
    assert {"device", "dtype", "versions", "prompts", "sampler"} <= HELD["keys"][0].keys() and HELD["model"] == "mini"


def test_the_recommended_setting_is_the_one_that_the_shipped_numbers_recommend() -> None:
    assert parse_method(RECOMMENDED_METHOD, SparseDConfig()).attention == RECOMMENDED
    summary = shipped.shipped()
    length = most_asked(summary)
    asked = {row["length"]: row["questions"] for row in table_of("lengths")}
    assert length == "4k" and asked["4k"] == max(asked.values()) >= 200
    best = recommend(summary, length)
    assert best is not None and best.method == RECOMMENDED_METHOD and len(candidates(summary, length)) >= 5


def test_what_is_read_is_what_the_file_says() -> None:
    summary = shipped.shipped()
    for name in ("lengths", "cells"):
        for row, held in zip(summary[name], table_of(name), strict=True):
            assert {key: row[key] for key in held} == held
            assert row["accuracy"] == held["right"] / held["questions"]
            assert row["interval"] == wilson(held["right"], held["questions"])
    for row in table_of("lengths"):
        own = [one for one in table_of("cells") if (one["length"], one["method"]) == (row["length"], row["method"])]
        assert sum(one["questions"] for one in own) == row["questions"]
        assert sum(one["right"] for one in own) == row["right"] and len(own) == 9
    assert set(words.KINDS) == set(TYPES)


@pytest.mark.parametrize("value", [None, [], {}, {"model": "mini"}, {**HELD, "cells": {"columns": [], "rows": [[1]]}}])
def test_another_file_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not what python -m app.tools.evaluation writes"):
        unpacked(value)


# Kind → method → right or wrong, question by question.
MADE = {
    "chain4": {"dense": "1111", "sparsed": "1100", RECOMMENDED_METHOD: "1111", "sparsed+dual": "0111"},
    "list": {"dense": "1110", "sparsed": "1111", RECOMMENDED_METHOD: "1110", "sparsed+dual": "1000"},
}
SIZES = {"layers": 1, "hidden": 4, "heads": 2, "key_heads": 2, "head_dim": 2, "intermediate": 4, "vocabulary": 8}


def answer(kind: str, method: str, index: int, exact: bool, seconds: float) -> Answer:
    parts = parts_of(method)
    attention = {"method": "dense"} if method == "dense" else {"method": "sparsed", "reuse": True, **parts.own}
    run = RunRecord(
        sampler={"steps": 4, "gen_length": 8, "cfg_scale": 0.0}, attention=attention, backend="gather",
        dense_backend="sdpa", dtype="float32", device="cpu", prompt_tokens=92, batch=1,
        phases={"dense": 4, "select": 0, "sparse": 0} if method == "dense" else {"dense": 0, "select": 1, "sparse": 3},
        forwards=4, total=4, finished=True, switch_step=None, notes=[], cache={"method": parts.cache},
    )  # fmt: skip
    return Answer(
        kind, "1k", index, kind, method, exact, int(exact), 1, 0, "", None, None if method == "dense" else 1.0, seconds,
        [1], prompt="p", run=run, density=None if method == "dense" else 0.5, head_rows=32,
    )  # fmt: skip


def folder_of(place: Path, made: dict[str, dict[str, str]] = MADE, **changes: Any) -> Path:
    """A folder of those answers, its key with the `changes`."""
    key = {"weights": "5c1f", "dtype": "float32", "device": "cpu (a machine)", "versions": {"torch": "9.9"}}
    key |= {"attention": dict.fromkeys(("skip", "select", "generation_rows")), "sampler": {"steps": 4, "stop": []}}
    folder = Folder(place, key | changes, about={"model": "tiny", "sizes": SIZES})
    for kind, methods in made.items():
        for method, answers in methods.items():
            for index, right in enumerate(answers):
                seconds = 1.0 if method == "dense" else 2.0
                folder.add("records", asdict(answer(kind, method, index, right == "1", seconds)))
    return place


def test_a_folder_becomes_a_small_file_that_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.json"
    assert main([str(folder_of(tmp_path / "eval")), "--out", str(out)]) == 0
    summary = unpacked(json.loads(out.read_text("utf-8")))
    assert (summary["model"], summary["key"]["weights"]) == ("tiny", "5c1f")
    for row in summary["cells"]:
        dense, own = MADE[row["type"]]["dense"], MADE[row["type"]][row["method"]]
        won = sum(a < b for a, b in zip(dense, own, strict=True))
        lost = sum(a > b for a, b in zip(dense, own, strict=True))
        assert (row["right"], row["questions"]) == (own.count("1"), 4)
        if row["method"] != "dense":
            assert row["difference"] == pytest.approx((won - lost) / 4, abs=1e-9)
            assert row["difference_interval"] == pytest.approx(paired(won, lost, 4), abs=1e-9)
    speeds = {row["method"]: (row["speed"], row["measured_speed"]) for row in summary["lengths"]}
    assert speeds["dense"] == (1.0, 1.0) and all(fast > 1 and slow == 0.5 for fast, slow in list(speeds.values())[1:])
    said = capsys.readouterr().out
    assert recommended(summary)[0] in said and "small.json: " in said


def test_an_evaluation_goes_on_in_another_folder(tmp_path: Path) -> None:
    """A method at a length is asked again, or another one; what it was made with stands beside it."""
    first, small, joined = tmp_path / "first", tmp_path / "small.json", tmp_path / "joined.json"
    assert main([str(folder_of(first)), "--out", str(small)]) == 0
    # A later version: its sampler has a setting more. Fewer questions of "sparsed", more of full attention.
    later = {"sampler": {"steps": 4, "stop": [], "canvas": "fixed"}, "versions": {"torch": "9.10"}}
    other = "sparsed:skip=0.4"
    asked = {kind: {"dense": "111011", "sparsed": "11", other: "110011"} for kind in MADE}
    second = folder_of(tmp_path / "second", asked, **later)
    assert main([str(second), str(small), "--out", str(joined)]) == 0
    summary, before = (unpacked(json.loads(file.read_text("utf-8"))) for file in (joined, small))
    assert [key["versions"]["torch"] for key in summary["keys"]] == ["9.10", "9.9"]
    rows = {row["method"]: row for row in summary["lengths"]}
    assert {name: row["made"] for name, row in rows.items()} == {
        "dense": 0, other: 0, "sparsed": 1, RECOMMENDED_METHOD: 1, "sparsed+dual": 1,
    }  # fmt: skip
    assert {name: row["questions"] for name, row in rows.items() if row["made"] == 0} == {"dense": 12, other: 12}
    kept = [row for row in before["lengths"] if row["method"] != "dense"]
    assert [{**row, "made": 0} for row in summary["lengths"] if row["made"] == 1] == kept
    assert len(summary["cells"]) == len(rows) * len(MADE)
    # Nothing new: the same file, and a key that made none of the rows is not kept.
    again = tmp_path / "again.json"
    assert main([str(joined), str(small), "--out", str(again)]) == 0
    assert again.read_text("utf-8") == joined.read_text("utf-8")
    assert main([str(first), str(small), "--out", str(again)]) == 0
    assert again.read_text("utf-8") == small.read_text("utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "77aa"}, {"device": "cuda (another)"}, {"dtype": "bfloat16"}, {"quantize": "int8"},
        {"sampler": {"steps": 9}}, {"sampler": {"steps": 4, "canvas": "growing"}}, {"attention": {"refresh": 8}},
    ],
)  # fmt: skip
def test_answers_of_something_else_do_not_come_into_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    first, other = folder_of(tmp_path / "first"), folder_of(tmp_path / "other", **change)
    assert main([str(first), str(other), "--out", str(tmp_path / "small.json")]) == 2
    assert re.search(rf"other is not like .*first \({next(iter(change))}", capsys.readouterr().err)
    assert not (tmp_path / "small.json").exists()


def test_a_folder_that_does_not_say_whose_its_answers_are_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in ("model", "key"):
        place = folder_of(tmp_path / change)
        plan = json.loads((place / "plan.json").read_text("utf-8"))
        del plan[change]
        (place / "plan.json").write_text(json.dumps(plan), "utf-8")
        assert main([str(place), "--out", str(tmp_path / "small.json")]) == 2
        assert "does not say with which weights" in capsys.readouterr().err and not (tmp_path / "small.json").exists()


def test_what_wins_and_what_loses_is_said_by_how_much(tmp_path: Path) -> None:
    assert main([str(folder_of(tmp_path / "eval")), "--out", str(tmp_path / "small.json")]) == 0
    summary = unpacked(json.loads((tmp_path / "small.json").read_text("utf-8")))
    dense, paper_s, ours, cached = words.findings(summary, "1k")
    assert dense == "tiny, 8 questions of 2 kinds at 1k: full attention has 87.5\u00a0% right."
    low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in paired(1, 2, 8))
    speed = f"{next(row['speed'] for row in summary['lengths'] if row['method'] == 'sparsed'):.2f}×"
    assert paper_s == (
        f"SparseD as published: −12.5 points ({low} … {high}) at {speed} (0.50× by the clock); loses on four hops "
        "(−50.0)."
    )
    assert ours.startswith("Recommended, skip 0, select 0.2, full generation rows: 0.0 points (") and ours.endswith(
        "; no kind loses more than 3 points."
    )
    assert cached.startswith("With a cache (1 settings): −37.5 points at ") and cached.endswith(
        "; loses on lists (−50.0) and four hops (−25.0)."
    )
    assert words.evidence(summary).startswith(
        "Recommended: skip 0, select 0.2, full generation rows. tiny at 1k, 8 questions: 0.0 points ("
    )
    assert "one a machine (float32, torch 9.9)" in words.where(summary)
    # Without the recommended setting nothing is claimed.
    fewer = {**summary, "lengths": [row for row in summary["lengths"] if row["method"] != RECOMMENDED_METHOD]}
    assert words.evidence(fewer) == "" and not [line for line in words.findings(fewer, "1k") if "Recommended" in line]


@pytest.mark.parametrize("length", shipped.lengths(shipped.shipped()))
def test_the_sentences_hold_the_shipped_numbers(length: str) -> None:
    summary, said = shipped.shipped(), " ".join(words.findings(shipped.shipped(), length))
    for row in table_of("lengths"):
        if row["length"] == length and row["method"] in (PUBLISHED_METHOD, RECOMMENDED_METHOD):
            clock = f" ({row['measured_speed']:.2f}× by the clock)" if row["measured_speed"] else ";"
            assert f"at {row['speed']:.2f}×{clock}" in said
    cached = [row for row in table_of("lengths") if row["length"] == length and "+" in row["method"]]
    means = {}
    for kind in TYPES:
        cells = [
            one["difference"] for one in table_of("cells")
            if (one["length"], one["type"]) == (length, kind) and "+" in one["method"]
        ]  # fmt: skip
        if cells:
            means[kind] = sum(cells) / len(cells)
    caches = said.partition("With a cache")[2]
    assert caches.startswith(f" ({len(cached)} settings)") if cached else not caches
    for kind, mean in means.items():
        assert (f"{words.KINDS[kind]} (−{-100 * mean:.1f})" in caches) == (mean < -0.03)
    best = recommend(summary, length)
    assert ("By this length alone" in said) == (best is not None and best.method != RECOMMENDED_METHOD)
    asked = any((row["length"], row["method"]) == (length, RECOMMENDED_METHOD) for row in table_of("lengths"))
    assert ("Recommended, " in said) == asked != ("the recommended setting was not measured there" in said)


@pytest.mark.parametrize("length", shipped.lengths(shipped.shipped()))
def test_the_page_s_figure_has_the_shipped_points_and_marks_the_recommended_one(length: str) -> None:
    drawn = section._chart(length, None)["figure"]
    go.Figure(drawn)
    rows = [row for row in table_of("lengths") if row["length"] == length]
    points = {
        (x, y) for one in drawn["data"] if "error_y" in one for x, y in zip(one["x"], one["y"], strict=True)
    }  # fmt: skip
    (dense,) = (row for row in rows if row["method"] == "dense")
    whole = dense["right"] / dense["questions"]
    # What was asked fewer questions than full attention stands by its paired difference.
    right = {
        row["method"]: row["right"] / row["questions"]
        if row["questions"] == dense["questions"] else whole + row["difference"] for row in rows
    }  # fmt: skip
    assert points == {(round(row["speed"], 4), round(100 * right[row["method"]], 3)) for row in rows}
    (rings,) = (one for one in drawn["data"] if one["name"] == "marked")
    marked = {(row["speed"], row["method"]) for row in rows if row["method"] in (PUBLISHED_METHOD, RECOMMENDED_METHOD)}
    assert sorted(rings["x"]) == sorted(round(speed, 4) for speed, _ in marked)
    names = {one["name"]: one["text"] for one in drawn["layout"]["annotations"]}
    words = "<b>recommended: skip 0, select 0.2, generation rows full</b>"
    assert names.get(RECOMMENDED_METHOD) == (words if RECOMMENDED_METHOD in right else None)
    assert names[PUBLISHED_METHOD] == "<b>SparseD as published</b>"
    assert "#" not in json.dumps(drawn)


MARKS = (
    Mark("Full attention", 1.0, True, LANES[0]), Mark("SparseD", 1.4, True, LANES[1]),
    Mark("Sliding window", 0.02, False, LANES[2]), Mark("SparseD + Refresh", 40.0, None, LANES[3]),
)  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_run_of_one_s_own_has_a_line_for_each_lane_below_the_points(count: int) -> None:
    marks, plain = MARKS[:count], tradeoff(shipped.shipped(), "4k")
    view = tradeoff(shipped.shipped(), "4k", marks=marks)
    go.Figure(view.figure)
    assert tradeoff(shipped.shipped(), "4k", marks=()) == plain
    (own,) = (one for one in view.figure["data"] if one["name"].startswith("your run"))
    assert own["x"] == [mark.speed for mark in marks]
    assert own["marker"]["symbol"] == ["circle", "circle", "x", "circle-open"][:count]
    assert own["marker"]["color"] == [mark.style.colour for mark in marks]
    assert own["text"][0] == "your run: Full attention, 1.00×, right"
    layout, lowest = view.figure["layout"], min(row["interval"][0] for row in shipped.shipped()["lengths"]
                                                if row["length"] == "4k")  # fmt: skip
    (left, right), (bottom, top) = (10 ** edge for edge in layout["xaxis"]["range"]), layout["yaxis"]["range"]
    assert all(left < x < right for x in own["x"]) and all(bottom < y < 100 * lowest for y in own["y"])
    assert len(set(own["y"])) == count and sorted(own["y"]) == own["y"]
    lines = [shape for shape in layout["shapes"] if shape["name"] == "your run"]
    assert [(line["x0"], line["x1"], line["y1"]) for line in lines] == [(mark.speed, mark.speed, top) for mark in marks]
    assert view.label.endswith(f"{marks[-1].words}.") and view.label.startswith(plain.label)


def kept(live: bool = True, tokens: int = 4090) -> Any:
    about = SimpleNamespace(label="<b>mini</b>", name="mini")
    prompt = SimpleNamespace(tokens=tokens, length="4k")
    return SimpleNamespace(live=live, trace=SimpleNamespace(model=about, prompt=prompt))


def lane(key: str, style: int, speedup: float | None, right: bool | None) -> dict[str, Any]:
    told = None if speedup is None else {"ratio": speedup}
    return {"key": key, "label": key.title(), "style": style, "speedup": told, "right": right}


def test_a_run_s_marks_are_its_lanes_speed_ups() -> None:
    lanes = [lane("dense", 1, None, True), lane("sparse", 2, 1.31, False), lane("never", 3, None, True)]
    played: dict[str, Any] = {"state": "done", "reference": "dense", "lanes": lanes}
    made = own_run(kept(), played)
    assert made == OwnRun(
        "<b>mini</b>", 4090, (Mark("Dense", 1.0, True, LANES[0]), Mark("Sparse", 1.31, False, LANES[1])), "4k"
    )
    assert own_run(kept(live=False), played) is None
    stopped = own_run(kept(), {**played, "state": "stopped"})
    assert stopped is not None and stopped.marks == ()
    names = ["512", "1k", "2k", "4k", "16k"]
    for tokens, name in ((4096, "4k"), (4056, "4k"), (3900, None), (1015, "1k"), (8190, None), (252, None)):
        assert replace(made, tokens=tokens, length=None).length_of(names) == name
        # A question's prompt has the length that was asked for.
        assert replace(made, tokens=tokens).length_of(names) == "4k"
        assert replace(made, tokens=tokens, length="8k").length_of(names) is None


def test_what_the_section_says_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = MARKS[:2]
    assert section._said("4k", None).endswith(f"<p>{section.NO_RUN}</p>")
    here = section._said("4k", OwnRun("<b>x</b>", 4090, marks))
    assert "Your last run (&lt;b&gt;x&lt;/b&gt;, 4,090 prompt tokens): Full attention, 1.00×, right; SparseD" in here
    assert "<b>" not in here
    assert "has another length" in section._said("1k", OwnRun("x", 4090, marks))
    assert "was stopped, or has no speed-up" in section._said("4k", OwnRun("x", 4090, ()))
    for length, drawn in (("4k", True), ("1k", False)):
        chart = json.dumps(section._chart(length, OwnRun("x", 4090, marks)))
        assert ("your run: SparseD" in chart) == drawn
    assert section._chart("4k", OwnRun("x", 4090, ())) == section._chart("4k", None)
    # After a run the section is at its length, or at the one that was asked most.
    at = section.Accuracy("length", "speed", "said", "chart")  # type: ignore[arg-type]
    for tokens, length in ((1020, "1k"), (8190, "8k"), (8000, "4k"), (16_300, "16k")):
        assert section.of_run(at, OwnRun("x", tokens, marks))["length"] == length  # type: ignore[index]
    assert section.of_run(at, None) == {
        "length": "4k", "said": section._said("4k", None), "chart": section.as_json(section._chart("4k", None))
    }  # fmt: skip


def test_a_length_that_is_none_changes_nothing() -> None:
    visit = SimpleNamespace(own=None, by_clock=False)
    server = SimpleNamespace(visit=lambda http: visit)
    weighing = section.Weighing(server)  # type: ignore[arg-type]
    for wrong in (None, 4, "3k", ["4k"], {}):
        for given in ((wrong, "operations executed"), ("16k", wrong)):
            made = weighing.show(None, *given)  # type: ignore[arg-type]
            assert all(one == {"__type__": "update"} for one in made) and not visit.by_clock
    for speed, by_clock in section.SPEEDS.items():
        said, chart = weighing.show(None, "16k", speed)  # type: ignore[arg-type]
        assert "at 16k:" in said and visit.by_clock == by_clock
        assert f"by {'seconds of the steps' if by_clock else 'operations executed'}" in json.loads(chart)["label"]
        assert json.loads(chart) == section._chart("16k", None, by_clock)


def test_the_paper_s_row_is_told_as_the_paper_s() -> None:
    said = paper.table()
    assert re.findall(r"<td>([\d.]+)</td>", said) == [
        "90.45", "90.89", "88.18", "86.64", "90.13", "89.76", "81.41", "81.68"
    ]  # fmt: skip
    assert "Not measured here." in said and paper.PAPER in said and said.count('scope="row"') == 2


def test_what_is_packed_is_what_the_figure_draws() -> None:
    """The pictures may be made from the small file as from the folder."""
    summary = shipped.shipped()
    again = unpacked(json.loads(packed(summary, summary["model"])))
    assert again == summary and shipped.is_packed(HELD) and not shipped.is_packed(summary)
