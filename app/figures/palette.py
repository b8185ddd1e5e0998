"""The colours of assets/page/colours.css, their only home, and the styles of lanes, for what Python draws.

Figures name colours as CSS variables, so that one figure serves the light and the dark design: the page's script puts
the values in their place when it draws. `palette` gives the values themselves, for pictures.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from app.assets import PAGE
from app.lanes import LaneSpec

INK, STRONG, MUTED, GRID = "var(--sd-ink)", "var(--sd-ink-strong)", "var(--sd-muted)", "var(--sd-grid)"
PANEL, HATCH = "var(--sd-panel)", "var(--sd-hatch)"
SKIPPED, KEPT, KEPT_GENERATION = "var(--sd-skipped)", "var(--sd-kept)", "var(--sd-kept-generation)"
CLEAR = "rgba(0,0,0,0)"
_VARIABLE = re.compile(r"var\(--(?:sd-)?([\w-]+)\)")


class LaneStyle(NamedTuple):
    """How a lane is drawn: not by colour alone."""

    # A CSS variable.
    colour: str
    # Plotly's names of the line's style and of the marker.
    dash: str
    symbol: str


LANES = tuple(
    LaneStyle(f"var(--lane-{place})", dash, symbol)
    for place, (dash, symbol) in enumerate(
        (
            ("solid", "circle"),
            ("dash", "diamond"),
            ("dot", "square"),
            ("dashdot", "triangle-up"),
            ("longdash", "x"),
            ("longdashdot", "star"),
        ),
        start=1,
    )
)


def style_of(lane: LaneSpec) -> LaneStyle:
    """How this lane is drawn."""
    return LANES[lane.style - 1]


def palette(dark: bool = False) -> dict[str, str]:
    """The colours of the light or of the dark design as "#rrggbb", by the names of their variables without "--" and
    "sd-": "ink", "lane-1", "lane-1-soft".
    """
    style = (PAGE / "colours.css").read_text(encoding="utf-8")
    block = style[style.index(".dark {" if dark else ".light {") :].partition("}")[0]
    given = dict(re.findall(r"--(?:sd-)?([\w-]+):\s*(.+);", block))
    return {name: _VARIABLE.sub(lambda other: given[other[1]], value) for name, value in given.items()}


def with_values(figure: dict[str, Any], dark: bool = False) -> dict[str, Any]:
    """A figure with the colours themselves in place of their variables: for what is drawn outside of the page."""
    values = palette(dark)

    def read(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: read(value) for key, value in part.items()}
        if isinstance(part, list):
            return [read(value) for value in part]
        if isinstance(part, str):
            return _VARIABLE.sub(lambda found: values[found[1]], part)
        return part

    drawn: dict[str, Any] = read(figure)
    return drawn
