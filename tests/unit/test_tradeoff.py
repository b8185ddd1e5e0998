"""The figure of accuracy against speed shows what it was given, and the names of its points cover nothing."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from app.figures.labels import LINE, MARKER, Spot, place, size_of
from app.figures.points import CROWDED
from app.figures.tradeoff import FAMILIES, WIDTH, family_of, lengths_of, tradeoff
from app.tools.tradeoff import main
from sparsed.evaluation.methods import ablations
from sparsed.evaluation.scores import wilson


def summary_of(points: dict[str, tuple[float, int]], questions: int = 200, length: str = "4k") -> dict[str, Any]:
    """Method → speed and right answers. The clock says half of each speed."""
    right = points["dense"][1] if "dense" in points else questions
    rows = []
    for method, (speed, got) in points.items():
        away = None if method == "dense" else (got - right) / questions
        rows.append(
            {"length": length, "method": method, "type": "lookup", "questions": questions, "right": got,
             "accuracy": got / questions, "interval": wilson(got, questions), "forwards": 48.0, "difference": away,
             "difference_interval": None if away is None else (away - 0.01, away + 0.01), "speed": speed,
             "measured_speed": speed / 2}
        )  # fmt: skip
    return {"lengths": rows, "cells": rows, "doubts": []}


POINTS = {
    "dense": (1.0, 190), "sparsed": (1.6, 150), "sparsed:select=0.1": (2.0, 100),
    "sparsed:select=0.1,generation_rows=full": (2.1, 189), "sparsed:refresh=8": (1.4, 180),
    "dense:threshold=0.9": (9.0, 190), "sparsed:threshold=0.9": (10.0, 150), "sliding_window": (1.6, 60),
    "dense+prefix": (6.0, 170), "sparsed+refresh:cache_refresh=4": (7.0, 185), "shared+dual": (8.0, 120),
}  # fmt: skip


def named(figure: dict[str, Any], name: str) -> list[Any]:
    return [one for one in figure["data"] if one["name"] == name]


@pytest.mark.parametrize("measured", [False, True])
def test_every_setting_is_a_point_with_its_interval(measured: bool) -> None:
    view = tradeoff(summary_of(POINTS), "4k", measured)
    go.Figure(view.figure)
    found: dict[tuple[float, float], tuple[float, float, str]] = {}
    for key, family in FAMILIES.items():
        for cached in ("", ", with a cache"):
            for trace in named(view.figure, family.name + cached):
                symbol = family.style.symbol + ("-open" if cached else "")
                assert (trace["marker"]["color"], trace["marker"]["symbol"]) == (family.style.colour, symbol)
                bars = trace["error_y"]
                for x, y, up, down in zip(trace["x"], trace["y"], bars["array"], bars["arrayminus"], strict=True):
                    found[x, y] = y - down, y + up, key + cached
    expected = {}
    for method, (speed, right) in POINTS.items():
        low, high = wilson(right, 200)
        at = round(speed / 2 if measured else speed, 4), round(right / 2, 3)
        key = family_of(method) + (", with a cache" if "+" in method else "")
        expected[at] = pytest.approx(100 * low, abs=0.01), pytest.approx(100 * high, abs=0.01), key
    assert found == expected
    assert [family_of(method) for method in POINTS] == [
        "dense", "pattern", "pattern", "full", "refresh", "dense", "pattern", "baseline", "dense", "pattern", "baseline"
    ]  # fmt: skip


def test_the_band_is_one_point_around_full_attention_and_what_matters_is_marked() -> None:
    view = tradeoff(summary_of(POINTS), "4k")
    near, dense = view.figure["layout"]["shapes"]
    assert (near["y0"], near["y1"], dense["y0"]) == (94, 96, 95)
    (ring,) = named(view.figure, "marked")
    # As published, and the fastest within a point: other samplers are not in question.
    assert sorted(zip(ring["x"], ring["y"], strict=True)) == [(1.6, 75), (2.1, 94.5)]
    names = {one["name"]: one["text"] for one in view.figure["layout"]["annotations"]}
    assert names == {
        "dense": "full attention", "sparsed": "<b>SparseD as published</b>", "sparsed:select=0.1": "select 0.1",
        "sparsed:select=0.1,generation_rows=full": "<b>recommended: select 0.1, generation rows full</b>",
        "sparsed:refresh=8": "refresh 8", "dense:threshold=0.9": "threshold 0.9",
        "sparsed:threshold=0.9": "threshold 0.9", "sliding_window": "Sliding window",
        "dense+prefix": "+ Fast-dLLM, prefix", "sparsed+refresh:cache_refresh=4": "+ Refresh, cache refresh 4",
        "shared+dual": "One pattern for all heads + Fast-dLLM, dual",
    }  # fmt: skip
    for one in view.figure["layout"]["annotations"]:
        speed, right = POINTS[one["name"]]
        assert (one["x"], one["y"]) == (pytest.approx(math.log10(speed)), pytest.approx(right / 2))
    assert "recommended setting (SparseD, select 0.1, generation rows full): 94.5 % right at 2.10×" in view.label
    # Colours are variables: the page has two designs.
    assert "#" not in json.dumps(view.figure)


def test_the_published_setting_may_be_the_recommended_one_and_there_may_be_none() -> None:
    texts = [
        one["text"]
        for points in ({"dense": (1.0, 190), "sparsed": (1.6, 190)}, {"dense": (1.0, 190), "sparsed": (1.6, 20)})
        for one in tradeoff(summary_of(points), "4k").figure["layout"]["annotations"]
        if one["name"] == "sparsed"
    ]
    assert texts == ["<b>SparseD as published, and recommended</b>", "<b>SparseD as published</b>"]
    # A folder whose sparse methods have another skip throughout holds no published setting.
    summary = summary_of({"dense": (1.0, 190), "sparsed": (1.6, 20)})
    for skip, text in ((None, "<b>SparseD as published</b>"), (0.3, "SparseD")):
        summary["key"] = {"attention": {"skip": skip, "select": None}}
        view = tradeoff(summary, "4k")
        assert view.figure["layout"]["annotations"][skip is not None]["text"] == text
        assert ("as published" in view.label) == (skip is None)


def test_settings_that_ran_alike_are_one_point() -> None:
    summary = summary_of({"dense": (1.0, 190), "sparsed:select=0.3": (1.6, 150), "sparsed": (1.6, 150)})
    ran = {"dense": 1, "sparsed": 2, "sparsed:select=0.3": 2}
    summary["settings"] = [
        {"length": "4k", "method": method, "attention": {"kind": kind}, "sampler": {"steps": 48}}
        for method, kind in ran.items()
    ]
    assert {one["name"] for one in tradeoff(summary, "4k").figure["layout"]["annotations"]} == {"dense", "sparsed"}
    summary["settings"][2]["sampler"] = {"steps": 24}
    assert len(tradeoff(summary, "4k").figure["layout"]["annotations"]) == 3


def test_several_lengths_have_a_curve_each() -> None:
    """From full attention along what nothing of that length beats in both."""
    summary = summary_of(POINTS)
    shorter = summary_of({"sparsed": (1.2, 199), "sparsed+dual": (4.0, 199), "dense+dual": (3.0, 180)}, length="1k")
    more = summary_of({"dense": (1.0, 198), "sparsed+dual": (5.0, 199)}, length="8k")
    for rows in (shorter["lengths"], more["lengths"]):
        summary["lengths"] += [{**row, "rows": 0.25} for row in rows]
    view = tradeoff(summary, ["1k", "4k", "8k"])
    go.Figure(view.figure)
    lines = {one["name"]: list(zip(one["x"], one["y"], strict=True)) for one in view.figure["data"] if "line" in one}
    # No full attention; of 4k's methods those of 190 right at 9 and of 150 at 10; a slower and less right beginning.
    assert lines == {"1k": [(4.0, 99.5)], "4k": [(1.0, 95), (9.0, 95), (10.0, 75)], "8k": [(1.0, 99), (5.0, 99.5)]}
    colours = set()
    for length, methods in (("1k", shorter), ("4k", summary_of(POINTS)), ("8k", more)):
        (trace,) = named(view.figure, f"{length}, methods")
        colours.add(trace["marker"]["color"])
        symbols = {row["speed"]: row["method"] for row in methods["lengths"]}
        for x, symbol in zip(trace["x"], trace["marker"]["symbol"], strict=True):
            attention, _, cache = symbols[x].partition(":")[0].partition("+")
            shape = {"": "circle", "prefix": "triangle-up", "dual": "triangle-down", "refresh": "square"}[cache]
            assert symbol == shape + ("-open" if attention == "dense" else "")
    assert len(colours) == 3 and "#" not in json.dumps(view.figure)
    # Of the methods that colour and symbol say no name stands there, of full attention its length.
    names = [one["text"] for one in view.figure["layout"]["annotations"]]
    assert {"full attention, 4k", "full attention, 8k", "SparseD, refresh 8", "Sliding window"} <= set(names)
    # What the rule finds at the length that was asked most; its words stand once.
    best = "SparseD, select 0.1, generation rows full"
    assert names.count("recommended") == 1 and best not in names
    assert f"recommended: {best}" in view.figure["layout"]["title"]["subtitle"]["text"]
    assert not {"SparseD", "SparseD + Fast-dLLM, dual"} & set(names)
    assert "8k: full attention 99.0 % right; the fastest within 1 point of that is SparseD + Fast" in view.label
    assert "25.0 % of the rows computed" in "".join(named(view.figure, "8k, methods")[0]["text"])
    assert tradeoff(summary, ["4k"]) == tradeoff(summary, "4k")


@pytest.mark.parametrize("lengths", ["4k", ["4k", "1k"]])
def test_methods_asked_fewer_questions_stand_by_their_paired_difference(lengths: Any) -> None:
    """The first 100 of 400 questions were the easy ones: full attention has 96 of them, and 300 of all."""
    few, rows = [], []
    for length in lengths if isinstance(lengths, list) else [lengths]:
        few += summary_of({"dense": (1.0, 96), "sparsed": (1.5, 91)}, 100, length)["lengths"]
        rows += [*summary_of({"dense": (1.0, 300)}, 400, length)["lengths"], few[-1]]
    figure = tradeoff({"lengths": rows, "cells": rows, "doubts": []}, lengths).figure
    low, high = wilson(91, 100)
    for trace in figure["data"]:
        for x, y, up, down in zip(trace["x"], trace["y"], *_bars(trace), strict=True):
            assert (x, y) in ((1.0, 75.0), (1.5, 70.0), (None, None))  # nothing: an entry of the legend
            if x == 1.5 and up is not None:
                assert (y + up, y - down) == pytest.approx((100 * high - 21, 100 * low - 21), abs=0.01)
    said = "asked fewer questions than full attention"
    assert said in figure["layout"]["title"]["subtitle"]["text"]
    alike = tradeoff({"lengths": few, "cells": few, "doubts": []}, lengths).figure
    assert said not in alike["layout"]["title"]["subtitle"]["text"]


def _bars(trace: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    bars = trace.get("error_y")
    return (bars["array"], bars["arrayminus"]) if bars else ([None] * len(trace["x"]), [None] * len(trace["x"]))


def test_lengths_without_a_speed_have_no_figure() -> None:
    summary = summary_of(POINTS)
    for row in summary_of(POINTS, length="8k")["lengths"]:
        summary["lengths"].append({**row, "speed": None})
    assert lengths_of(summary) == ["4k"] and lengths_of(summary, measured=True) == ["4k", "8k"]
    assert tradeoff(summary, "8k").label == "No setting has a known speed at 8k."
    assert lengths_of(summary_of({"dense": (1.0, 190)})) == []


@pytest.mark.parametrize("seed", range(6))
def test_names_cover_neither_points_nor_each_other(seed: int) -> None:
    draw = random.Random(seed)
    spots = [
        Spot("x" * draw.randint(3, 24), draw.uniform(20, 880), draw.gauss(300, 60), draw.random() * 30, 20)
        for _ in range(10 * seed + 1)
    ]
    width, height, level = 900, 450, 310
    places = place(spots, width, height, [level])
    boxes = []
    for spot, offset in zip(spots, places, strict=True):
        if offset is not None:
            wide, high = size_of(spot.text)
            x, y = spot.x + offset[0], spot.y + offset[1]
            boxes.append((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2))
    assert len(boxes) >= 0.9 * len(spots) and places[0] is not None
    solid = boxes + [(s.x - MARKER, s.y - MARKER, s.x + MARKER, s.y + MARKER) for s in spots]
    for i, (left, bottom, right, top) in enumerate(boxes):
        assert left >= 0 and bottom >= 0 and right <= width and top <= height
        for other in solid[:i] + solid[i + 1 :]:
            assert right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom
    # Alone, a name stands beside its point, and not on the line.
    ((_, up),) = place([Spot("alone", 400, level)], width, height, [level])  # type: ignore[misc]
    assert LINE / 2 < abs(up) < 30


def test_the_command_writes_a_page_or_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, page, figure = tmp_path / "scores.json", tmp_path / "t.html", tmp_path / "t.json"
    scores.write_text(json.dumps(summary_of(POINTS)), "utf-8")
    assert main([str(scores), "--out", str(page), "--dark"]) == 0
    said = page.read_text("utf-8")
    assert "SparseD as published" in said and 'src="http' not in said and "var(--sd" not in said
    assert main([str(scores), "--out", str(figure), "--methods", "sparsed"]) == 0
    drawn = json.loads(figure.read_text("utf-8"))
    assert {one["name"] for one in drawn["layout"]["annotations"]} == {"dense", "sparsed"}
    assert "2 settings at 4k, by operations executed. Full attention: 95.0 % right at 1.00×" in capsys.readouterr().out


def test_of_a_whole_folder_of_ablations_those_have_names_that_have_room_beside_them() -> None:
    draw = random.Random(0)
    points = {method: (draw.uniform(0.8, 12), draw.randint(120, 200)) for method in ablations(["all"])}
    points["dense"] = 1.0, 190
    named = tradeoff(summary_of(points), "4k").figure["layout"]["annotations"]
    assert len(points) > CROWDED and 0.5 * len(points) < len(named) < len(points)
    # None has a long line to it but those of note; and fewer points have all their names.
    far = {one["name"] for one in named if max(abs(one["ax"]) - size_of(one["text"])[0] / 2, abs(one["ay"])) > 60}
    assert far <= {"sparsed", "dense"} and "sparsed" in {one["name"] for one in named}
    less = dict(list(points.items())[:CROWDED])
    assert len(tradeoff(summary_of(less), "4k").figure["layout"]["annotations"]) > 0.9 * len(less)
    # On a phone only those that have a place; the points of note come first.
    few = tradeoff(summary_of(points), "4k", width=390).figure["layout"]["annotations"]
    assert "sparsed" in {one["name"] for one in few} and len(few) < len(points) and WIDTH > 390


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "{tmp}/t.gif"], r"--out must end in \.html, .png, .json, not"),
        (["--length", "4k", "8k"], "--length must be one of 4k, not '8k'"),
        (["--questions", "5"], "--questions needs a folder of answers, and .*scores.json is none"),
        (["--methods", "shared"], "no setting beside full attention whose speed is known"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(summary_of(POINTS)), "utf-8")
    given = [option.replace("{tmp}", str(tmp_path)) for option in options]
    assert main([str(tmp_path / "scores.json"), "--out", str(tmp_path / "t.json"), *given]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_more_lengths_than_styles_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["512", "1k", "2k", "4k", "8k", "16k", "32k"]
    rows = [row for length in lengths for row in summary_of(POINTS, length=length)["lengths"]]
    (tmp_path / "s.json").write_text(json.dumps({"lengths": rows, "cells": rows}), "utf-8")
    assert main([str(tmp_path / "s.json"), "--length", *lengths, "--out", str(tmp_path / "t.json")]) == 2
    assert "--length takes 6 lengths at most, not 7" in capsys.readouterr().err
    assert main([str(tmp_path / "s.json"), "--length", *lengths[1:], "--out", str(tmp_path / "t.json")]) == 0


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in ((None, "is not there"), ("{", "is no JSON file"), ("[1]", "is not what python -m sparsed")):
        if content is not None:
            (tmp_path / "a.json").write_text(content, "utf-8")
        assert main([str(tmp_path / "a.json"), "--out", str(tmp_path / "t.json")]) == 2
        assert said in capsys.readouterr().err
