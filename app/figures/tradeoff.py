"""Accuracy against speed: a point for each method of an evaluation, at one prompt length or at several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.figures.base import Figure, base_layout, empty
from app.figures.own_run import Mark, room_for, with_marks
from app.figures.palette import GRID, LANES, MUTED, STRONG, LaneStyle
from app.figures.points import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, Ranges, in_words, markers, names
from app.figures.shared import View, title_of
from sparsed.config import CACHE_LABELS
from sparsed.evaluation.methods import own_settings, parts_of
from sparsed.evaluation.recommend import MEAN, most_asked, recommend

__all__ = ["FAMILIES", "HEIGHT", "MOST_LENGTHS", "WIDTH", "family_of", "lengths_of", "tradeoff"]

# So many lengths can be told apart by their styles.
MOST_LENGTHS = len(LANES)


class Family(NamedTuple):
    """Settings that are drawn alike."""

    name: str
    style: LaneStyle


FAMILIES = {
    key: Family(name, style)
    for (key, name), style in zip(
        (
            ("dense", "Full attention"),
            ("pattern", "SparseD"),
            ("full", "SparseD, the generation sees every key"),
            ("refresh", "SparseD, fresh patterns"),
            ("baseline", "Baselines"),
        ),
        LANES[:5],
        strict=True,
    )
}
# How a cache is drawn where the colours are lengths.
CACHE_SYMBOLS = {
    "none": "circle", "prefix": "triangle-up", "dual": "triangle-down", "delayed": "diamond", "refresh": "square",
}  # fmt: skip


def family_of(method: str) -> str:
    """The family of a method, by the attention that its name says: a key of FAMILIES."""
    attention, _, own = parts_of(method)
    if attention == "dense":
        return "dense"
    if attention != "sparsed":
        return "baseline"
    if own.get("generation_rows") == "full":
        return "full"
    return "refresh" if own.get("refresh", "0") != "0" else "pattern"


def lengths_of(summary: Mapping[str, Any], measured: bool = False) -> list[str]:
    """The prompt lengths at which there is something to draw, shortest first."""
    name = "measured_speed" if measured else "speed"
    known = [row["length"] for row in summary["lengths"] if row.get(name) is not None and row["method"] != "dense"]
    return list(dict.fromkeys(known))


def tradeoff(
    summary: Mapping[str, Any],
    length: str | Sequence[str],
    measured: bool = False,
    width: int = WIDTH,
    recommended: str | None = None,
    marks: Sequence[Mark] = (),
) -> View:
    """How many answers are right, with their Wilson interval, against how fast they are, full attention being 1.

    summary: of `sparsed.evaluation.scores.summarise`, or the JSON that `eval --json` writes. measured: speed by the
    clock instead of by executed operations. Of methods that ran the very same settings only the one said in fewest is
    drawn. width: of the figure in pixels, at which names cover nothing; a name that has no place there is left to the
    hover.

    At one length the colours are families of attention, markers with a cache are open, the band is within 1 point of
    full attention, and rings are around SparseD as published and what is recommended: that method, or what `recommend`
    finds where most questions were asked (by executed cost and without caches, either way). marks: the lanes of a run
    of one's own, drawn below. At several (MOST_LENGTHS at most, each once) the colours are lengths, the symbols caches,
    those of full attention open; and a line leads for each length from full attention along those methods that no
    other one there beats in both, speed and accuracy.
    """
    lengths = [length] if isinstance(length, str) else list(length)
    speed = "measured_speed" if measured else "speed"
    rows = {one: [row for row in distinct(summary, one) if row.get(speed) is not None] for one in lengths}
    for one, own in rows.items():
        if not any(row["method"] != "dense" for row in own):
            said = f"No setting has a known speed at {one}."
            return View(empty(said), said)
    how = "seconds of the steps" if measured else "operations executed"
    if recommended is None and (best := recommend(summary, most_asked(summary, lengths))) is not None:
        recommended = best.method
    if len(lengths) == 1:
        view = _families(summary, lengths[0], rows[lengths[0]], speed, how, width, recommended, marks)
        return with_marks(view, marks)
    return _curves(rows, speed, how, width, recommended)


def _families(
    summary: Mapping[str, Any],
    length: str,
    rows: Sequence[Mapping[str, Any]],
    speed: str,
    how: str,
    width: int,
    best_method: str | None,
    marks: Sequence[Mark],
) -> View:
    """The methods of one length. best_method: the recommended one. marks: what there must be room for."""
    as_published = published(summary)
    full = _dense(rows)
    levels = [] if full is None else [100 * float(full["accuracy"])]
    points = []
    for row in rows:
        method = row["method"]
        strong, style = method in (best_method, as_published), FAMILIES[family_of(method)].style
        rank = 0 if strong else 1 if method == "dense" else 2
        symbol = style.symbol if parts_of(method).cache == "none" else f"{style.symbol}-open"
        name = _name(method, best_method, as_published)
        points.append(Point(row, row[speed], name, style.colour, symbol, rank, strong, full))
    ranges = room_for(marks, Ranges.of(points))
    traces = [_rings([point for point in points if point.strong])]
    for key, family in FAMILIES.items():
        own = [point for point in points if family_of(point.row["method"]) == key]
        for symbol, name in ((family.style.symbol, ""), (f"{family.style.symbol}-open", ", with a cache")):
            drawn = [point for point in own if point.symbol == symbol]
            traces += [markers(drawn, family.name + name)] if drawn else []
    layout = _layout(
        ranges,
        how,
        f"{length} prompts",
        f"shaded: within {100 * MEAN:g} point of full attention",
        *_fewer(points),
        shapes=[shape for level in levels for shape in _band(level)],
        annotations=names(points, ranges, width, levels),
    )
    said = [f"Accuracy against speed of {len(rows)} settings at {length}, by {how}."]
    told = [("Full attention", "dense"), ("SparseD as published", as_published)]
    if best_method is not None and best_method != as_published:
        told.append((f"The recommended setting ({in_words(best_method)})", best_method))
    said += [
        f"{words}: {point.right:.1f} % right at {point.speed:.2f}×."
        for words, method in told
        for point in points
        if point.row["method"] == method
    ]
    return View({"data": traces, "layout": layout}, " ".join(said))


def _curves(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], speed: str, how: str, width: int, recommended: str | None
) -> View:
    """The methods of several lengths."""
    traces: list[Figure] = []
    points: list[Point] = []
    said = [f"Accuracy against speed at {', '.join(rows)}, by {how}."]
    for style, (length, methods) in zip(LANES, rows.items()):
        its = [_point(row, row[speed], length, style.colour, _dense(methods), recommended) for row in methods]
        dense = next((point for point in its if point.row["method"] == "dense"), None)
        line = curve(its, dense)
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": length, "legendgroup": length, "hoverinfo": "skip",
                "x": [round(point.speed, 4) for point in line], "y": [round(point.right, 3) for point in line],
                "line": {"color": style.colour, "dash": style.dash, "width": 1.5},
            }
        )  # fmt: skip
        traces.append(markers(its, f"{length}, methods", legendgroup=length, showlegend=False))
        points += its
        if dense is not None:
            near = max((point for point in its if point.right >= dense.right - 100 * MEAN), key=lambda one: one.speed)
            said.append(
                f"{length}: full attention {dense.right:.1f} % right; the fastest within {100 * MEAN:g} point of that "
                f"is {in_words(near.row['method'])}, {near.right:.1f} % at {near.speed:.2f}×."
            )
    called = ""
    if recommended is not None and any(point.row["method"] == recommended for point in points):
        said.append(f"Recommended: {in_words(recommended)}.")
        called = f" · recommended: {in_words(recommended)}"
    asked = {parts_of(point.row["method"]).cache for point in points}
    traces += [
        {
            "type": "scatter", "mode": "markers", "name": CACHE_LABELS[cache], "x": [None], "y": [None],
            "marker": {"symbol": symbol, "size": 9, "color": MUTED}, "hoverinfo": "skip",
        }
        for cache, symbol in CACHE_SYMBOLS.items()
        if cache in asked
    ]  # fmt: skip
    ranges = Ranges.of(points)
    layout = _layout(
        ranges,
        how,
        f"prompts of {', '.join(rows)}",
        "open: full attention",
        "a line leads from full attention along what no other method of that length beats in both" + called,
        *_fewer(points),
        annotations=names(points, ranges, width),
    )
    return View({"data": traces, "layout": layout}, " ".join(said))


def _dense(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["method"] == "dense"), None)


def _point(
    row: Mapping[str, Any],
    speed: float,
    length: str,
    colour: str,
    dense: Mapping[str, Any] | None,
    recommended: str | None,
) -> Point:
    """Where the colours are lengths: a name stands where the symbol does not say the method."""
    parts = parts_of(row["method"])
    symbol = CACHE_SYMBOLS.get(parts.cache, "cross") + ("-open" if parts.attention == "dense" else "")
    if row["method"] == "dense":
        return Point(row, speed, f"full attention, {length}", colour, symbol, 0)
    name = ""
    if row["method"] == recommended:
        name = "recommended"
    elif parts.own or parts.attention not in ("dense", "sparsed"):
        name = in_words(row["method"])
    return Point(row, speed, name, colour, symbol, dense=dense)


def curve(points: Sequence[Point], first: Point | None) -> list[Point]:
    """Those than which no other one is both as fast and as accurate, and more in one; the slowest first. Before them
    the `first` one, if there is one.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (-one.speed, -one.right)):
        if not kept or point.right > kept[-1].right:
            kept.append(point)
    return [*([] if first is None or first in kept else [first]), *kept[::-1]]


def _fewer(points: Sequence[Point]) -> list[str]:
    moved = any(point.moved for point in points)
    return ["asked fewer questions than full attention: placed by the paired difference to it"] if moved else []


def _layout(ranges: Ranges, how: str, prompts: str, drawn: str, *lines: str, **more: Any) -> Figure:
    across, upwards = ranges.axes
    return base_layout(
        title=title_of(
            f"Accuracy against speed, {prompts}",
            f"exact match with its 95 % Wilson interval · speed-up over full attention by {how} · {drawn}",
            *lines,
        ),
        xaxis={"title": {"text": f"speed-up ({how}, logarithmic)"}, **across},
        yaxis=upwards,
        height=HEIGHT,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top", "itemsizing": "constant"},
        margin={"l": LEFT, "r": RIGHT, "t": TOP, "b": BOTTOM},
        hovermode="closest",
        **more,
    )


def distinct(summary: Mapping[str, Any], length: str) -> list[Mapping[str, Any]]:
    """The rows of that length; of those that ran the same settings the one whose method says fewest of its own."""
    ran: dict[str, list[str]] = {}
    for row in summary.get("settings", ()):
        if row["length"] == length:
            settings = [row["attention"], row["sampler"], row.get("cache")]
            ran.setdefault(row["method"], []).append(json.dumps(settings, sort_keys=True))
    rows = [row for row in summary["lengths"] if row["length"] == length]
    seen: set[str] = set()
    found = []
    for row in sorted(rows, key=lambda row: len(own_settings(row["method"]))):
        alike = repr(ran.get(row["method"], row["method"]))
        if alike not in seen:
            found.append(row)
        seen.add(alike)
    return [row for row in rows if row in found]


def published(summary: Mapping[str, Any]) -> str | None:
    """The method with the settings that the paper publishes: SparseD, unless the folder has settings of its own."""
    given = (summary.get("key") or {}).get("attention") or {}
    return "sparsed" if all(value is None for value in given.values()) else None


def _name(method: str, best: str | None, as_published: str | None) -> str:
    """What stands at a point: what its family's colour does not say; of the points of note all."""
    attention, cache, own = parts_of(method)
    if method == as_published:
        return f"<b>SparseD as published{', and recommended' if best == method else ''}</b>"
    if method == best:
        return f"<b>recommended: {_settings(own) or 'SparseD' if attention == 'sparsed' else in_words(method)}</b>"
    if attention not in ("dense", "sparsed"):
        return in_words(method)
    if family_of(method) == "full":
        own = {name: value for name, value in own.items() if name != "generation_rows"}
    if cache != "none":
        return ", ".join(filter(None, [f"+ {CACHE_LABELS.get(cache, cache)}", _settings(own)]))
    alone = {"dense": "full attention", "full": "skip and select as SparseD"}.get(family_of(method), "SparseD")
    return _settings(own) or alone


def _settings(own: Mapping[str, str]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in own.items())


def _band(dense: float) -> list[Figure]:
    """Within 1 point of full attention, and full attention itself."""
    across = {"xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    return [
        {
            "type": "rect", "name": "near", **across, "y0": dense - 100 * MEAN, "y1": dense + 100 * MEAN,
            "fillcolor": GRID, "line": {"width": 0},
        },
        {
            "type": "line", "name": "dense", **across, "y0": dense, "y1": dense,
            "line": {"color": LANES[0].colour, "width": 1, "dash": "dot"},
        },
    ]  # fmt: skip


def _rings(points: Sequence[Point]) -> Figure:
    """Around the points of note, below them."""
    return {
        "type": "scatter", "mode": "markers", "name": "marked", "showlegend": False, "hoverinfo": "skip",
        "x": [round(point.speed, 4) for point in points], "y": [round(point.right, 3) for point in points],
        "marker": {"symbol": "circle-open", "size": 19, "color": STRONG, "line": {"width": 2}},
    }  # fmt: skip
