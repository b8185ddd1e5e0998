"""Accuracy against speed: a point for each setting of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from app.figures.base import Figure, base_layout, empty
from app.figures.labels import Spot, place
from app.figures.palette import GRID, LANES, MUTED, STRONG, LaneStyle
from app.figures.shared import View, title_of
from sparsed.config import METHOD_LABELS
from sparsed.evaluation.methods import own_settings
from sparsed.evaluation.recommend import MEAN, recommend
from sparsed.evaluation.tables import method_label

# Pixels of the figure, and of its margins.
WIDTH, HEIGHT = 980, 640
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 84, 108


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


def family_of(method: str) -> str:
    """The family of a method, by its name: a key of FAMILIES."""
    plain, own = method.partition(":")[0], own_settings(method)
    if plain == "dense":
        return "dense"
    if plain != "sparsed":
        return "baseline"
    if own.get("generation_rows") == "full":
        return "full"
    return "refresh" if own.get("refresh", "0") != "0" else "pattern"


def lengths_of(summary: Mapping[str, Any], measured: bool = False) -> list[str]:
    """The prompt lengths at which there is something to draw, shortest first."""
    name = "measured_speed" if measured else "speed"
    known = [row["length"] for row in summary["lengths"] if row.get(name) is not None and row["method"] != "dense"]
    return list(dict.fromkeys(known))


def tradeoff(summary: Mapping[str, Any], length: str, measured: bool = False, width: int = WIDTH) -> View:
    """How many answers are right, with their Wilson interval, against how fast they are, full attention being 1.

    summary: of `sparsed.evaluation.scores.summarise`, or the JSON that `eval --json` writes. measured: speed by the
    clock instead of by executed operations. The band is within 1 point of full attention; rings are around SparseD as
    published and what `recommend` finds (by executed cost, either way). Of methods that ran the very same settings only
    the one said in fewest is drawn. width: of the figure in pixels, at which names cover nothing; a name that has no
    place there is left to the hover.
    """
    name = "measured_speed" if measured else "speed"
    rows = [row for row in _distinct(summary, length) if row.get(name) is not None]
    if not any(row["method"] != "dense" for row in rows):
        return View(empty(f"No setting has a known speed at {length}."), f"No setting has a known speed at {length}.")
    best = recommend(summary, length)
    best_method = None if best is None else best.method
    speeds, shares = [row[name] for row in rows], [100 * row["accuracy"] for row in rows]
    low = min(100 * row["interval"][0] for row in rows)
    # A little more than the points need: names stand above and below them.
    x_range = [math.log10(min(speeds) / 1.25), math.log10(max(speeds) * 1.4)]
    y_range = [max(-3.0, low - 6), 104.0]
    marks = [row["method"] for row in rows if row["method"] in (best_method, published(summary))]
    across, upwards = width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    a_point = upwards / (y_range[1] - y_range[0])
    spots = [
        Spot(
            text=_name(row["method"], best_method, published(summary)),
            x=(math.log10(speed) - x_range[0]) / (x_range[1] - x_range[0]) * across,
            y=(share - y_range[0]) * a_point,
            below=(share - 100 * row["interval"][0]) * a_point,
            above=(100 * row["interval"][1] - share) * a_point,
        )
        for row, speed, share in zip(rows, speeds, shares, strict=True)
    ]
    # Names that matter most get their places first.
    order = sorted(range(len(rows)), key=lambda i: (_rank(rows[i]["method"], marks), -shares[i], -speeds[i]))
    dense = next((100 * row["accuracy"] for row in rows if row["method"] == "dense"), None)
    levels = [] if dense is None else [(dense - y_range[0]) * a_point]
    placed = place([spots[i] for i in order], across, upwards, levels)
    annotations = [
        _annotation(rows[i], speeds[i], shares[i], spots[i].text, offset, rows[i]["method"] in marks)
        for i, offset in zip(order, placed, strict=True)
        if offset is not None
    ]
    shapes = [] if dense is None else _band(dense)
    ticks = [2.0**power for power in range(-4, 12) if x_range[0] <= power * math.log10(2) <= x_range[1]]
    how = "seconds of the steps" if measured else "operations executed"
    layout = base_layout(
        title=title_of(
            f"Accuracy against speed, {length} prompts",
            f"exact match with its 95 % Wilson interval · speed-up over full attention by {how} · shaded: within "
            f"{100 * MEAN:g} point of full attention",
        ),
        xaxis={
            "title": {"text": f"speed-up ({how}, logarithmic)"},
            "type": "log",
            "range": x_range,
            "tickvals": ticks,
            "ticktext": [f"{tick:g}×" for tick in ticks],
        },
        yaxis={"title": {"text": "right answers (percent)"}, "range": y_range, "tickvals": list(range(0, 101, 10))},
        height=HEIGHT,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top", "itemsizing": "constant"},
        margin={"l": LEFT, "r": RIGHT, "t": TOP, "b": BOTTOM},
        shapes=shapes,
        annotations=annotations,
        hovermode="closest",
    )
    data = [*_rings(rows, name, marks), *_traces(rows, name)]
    return View({"data": data, "layout": layout}, _words(summary, rows, length, name, how))


def _distinct(summary: Mapping[str, Any], length: str) -> list[Mapping[str, Any]]:
    """The rows of that length; of those that ran the same settings the one whose method says fewest of its own."""
    ran: dict[str, list[str]] = {}
    for row in summary.get("settings", ()):
        if row["length"] == length:
            ran.setdefault(row["method"], []).append(json.dumps([row["attention"], row["sampler"]], sort_keys=True))
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
    plain, own = method.partition(":")[0], own_settings(method)
    whole = _settings(own) or "SparseD"
    if method == as_published:
        return f"<b>SparseD as published{', and recommended' if best == method else ''}</b>"
    if plain not in ("dense", "sparsed"):
        whole = ", ".join(filter(None, [METHOD_LABELS.get(plain, plain), _settings(own)]))
    if method == best:
        return f"<b>recommended: {whole}</b>"
    if plain == "dense":
        return _settings(own) or "full attention"
    if family_of(method) == "full":
        own.pop("generation_rows")
        return _settings(own) or "skip and select as SparseD"
    return whole


def _settings(own: Mapping[str, str]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in own.items())


def _rank(method: str, marks: Collection[str]) -> int:
    return 0 if method in marks else 1 if method == "dense" else 2


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


def _traces(rows: Sequence[Mapping[str, Any]], name: str) -> list[Figure]:
    """The points of each family that has some."""
    traces = []
    for key, family in FAMILIES.items():
        own = [row for row in rows if family_of(row["method"]) == key]
        if not own:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": family.name,
                "x": [round(row[name], 4) for row in own],
                "y": [round(100 * row["accuracy"], 3) for row in own],
                "text": [_hover(row) for row in own],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"symbol": family.style.symbol, "size": 9, "color": family.style.colour},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(100 * (row["interval"][1] - row["accuracy"]), 3) for row in own],
                    "arrayminus": [round(100 * (row["accuracy"] - row["interval"][0]), 3) for row in own],
                    "color": family.style.colour,
                    "thickness": 1,
                    "width": 3,
                },
            }
        )
    return traces


def _rings(rows: Sequence[Mapping[str, Any]], name: str, marks: Collection[str]) -> list[Figure]:
    """Around the points of note, below them."""
    own = [row for row in rows if row["method"] in marks]
    ring = {"symbol": "circle-open", "size": 19, "color": STRONG, "line": {"width": 2}}
    return [
        {
            "type": "scatter", "mode": "markers", "name": "marked", "showlegend": False, "hoverinfo": "skip",
            "x": [round(row[name], 4) for row in own], "y": [round(100 * row["accuracy"], 3) for row in own],
            "marker": ring,
        }
    ]  # fmt: skip


def _hover(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    lines = [
        f"<b>{method_label(row['method'])}</b>",
        f"{100 * row['accuracy']:.1f} % right ({100 * low:.1f}–{100 * high:.1f}), {row['questions']} questions",
    ]
    if row.get("difference") is not None:
        low, high = row["difference_interval"]
        lines.append(f"{100 * row['difference']:+.1f} points to full attention ({100 * low:+.1f} … {100 * high:+.1f})")
    speeds = [(row.get("speed"), "by operations"), (row.get("measured_speed"), "as measured")]
    lines.append("; ".join(f"{speed:.2f}× {how}" for speed, how in speeds if speed is not None))
    if row.get("forwards") is not None:
        lines.append(f"{row['forwards']:.1f} forwards an answer")
    return "<br>".join(lines)


def _annotation(
    row: Mapping[str, Any], speed: float, share: float, text: str, offset: tuple[float, float], strong: bool
) -> Figure:
    """A name; where it is not beside its point, a line leads to it. Offsets are pixels, up being positive."""
    right, up = offset
    colour = STRONG if strong else FAMILIES[family_of(row["method"])].style.colour
    common: Figure = {
        "x": math.log10(speed), "y": share, "xref": "x", "yref": "y", "text": text, "name": row["method"],
        "xanchor": "center", "yanchor": "middle", "font": {"size": 12 if strong else 11, "color": colour},
    }  # fmt: skip
    return {
        **common, "showarrow": True, "ax": round(right, 1), "ay": round(-up, 1), "arrowhead": 0, "arrowwidth": 0.8,
        "arrowcolor": MUTED, "standoff": 6, "borderpad": 0,
    }  # fmt: skip


def _words(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], length: str, name: str, how: str
) -> str:
    """The figure in a few sentences."""
    said = [f"Accuracy against speed of {len(rows)} settings at {length}, by {how}."]
    best = recommend(summary, length)
    named = [("Full attention", "dense")]
    if (method := published(summary)) is not None:
        named.append(("SparseD as published", method))
    if best is not None and best.method != method:
        named.append((f"The recommended setting ({method_label(best.method)})", best.method))
    for words, method in named:
        for row in rows:
            if row["method"] == method:
                said.append(f"{words}: {100 * row['accuracy']:.1f} % right at {row[name]:.2f}×.")
    return " ".join(said)
