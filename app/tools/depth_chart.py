"""Draws an evaluation as length × depth heatmaps, one for each method: python -m app.tools.depth_chart runs/eval
--out depth.html

Needle-in-a-haystack style: across, the prompt's length; downwards, where the needed documents stood; the colour is the
share of answers that were right. Questions that need no document have no depth and are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsed.edge import go_on, program
from sparsed.evaluation.reading import doubts, read_records
from sparsed.evaluation.scores import summarise
from sparsed.evaluation.tables import heading
from sparsed.files import check, write
from sparsed.questions.lengths import token_budget

# Shades of one hue, dark for right: read without colour too. Every cell also carries its number.
SHADES = ((0.0, "#f2f4f7"), (0.5, "#8fb4dd"), (1.0, "#14497f"))


def heatmap(rows: list[dict[str, Any]]) -> go.Figure:
    """A heatmap of accuracy in percent for each method, lengths across, depths downwards.

    rows: the "depths" of `sparsed.evaluation.scores.summarise`. Raises ValueError if there are none.
    """
    if not rows:
        raise ValueError("No answer of this evaluation has a depth: its questions need no document.")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lengths = sorted({row["length"] for row in rows}, key=token_budget)
    depths = sorted({row["depth"] for row in rows})
    across = 2 if len(methods) in (2, 4) else min(3, len(methods))
    down = -(-len(methods) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[heading(method, rows) for method in methods],
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.28 / down,
    )
    for place, method in enumerate(methods):
        cells = {(row["length"], row["depth"]): row for row in rows if row["method"] == method}
        shares: list[list[float | None]] = []
        said: list[list[str]] = []
        for depth in depths:
            line = [cells.get((length, depth)) for length in lengths]
            shares.append([None if row is None else 100 * row["accuracy"] for row in line])
            said.append(["" if row is None else f"{row['right']} of {row['questions']} right" for row in line])
        figure.add_trace(
            go.Heatmap(
                x=lengths,
                y=[f"{100 * depth:g} %" for depth in depths],
                z=shares,
                customdata=said,
                coloraxis="coloraxis",
                texttemplate="%{z:.0f}",
                hovertemplate="%{x}, depth %{y}: %{customdata}<extra></extra>",
                xgap=1,
                ygap=1,
            ),
            row=place // across + 1,
            col=place % across + 1,
        )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text="depth of the needed documents", col=1)
    figure.update_xaxes(title_text="prompt length, tokens", row=down)
    figure.update_layout(
        template="plotly_white",
        title="Right answers by prompt length and by where the needed documents stand",
        coloraxis={"colorscale": SHADES, "cmin": 0, "cmax": 100, "colorbar": {"title": "right, %"}},
        height=140 + 300 * down,
        margin={"t": 100},
    )
    return figure


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return program(lambda: _draw(arguments))


def _draw(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m app.tools.depth_chart", description=__doc__)
    parser.add_argument("folder", type=Path, help="what python -m sparsed eval --out wrote")
    parser.add_argument("--methods", nargs="+", help="only these; default every method of the evaluation")
    parser.add_argument("--out", type=Path, default=Path("depth.html"), help="the page to write")
    given = parser.parse_args(arguments)
    go_on()
    check(given.out, "--out")
    summary = summarise(read_records(given.folder), doubts=doubts(given.folder))
    rows = summary["depths"]
    figure = heatmap([row for row in rows if given.methods is None or row["method"] in given.methods])
    # plotly.js inside: the page works without a network.
    write(given.out, figure.to_html(include_plotlyjs=True))
    for doubt in summary["doubts"]:
        print(f"note: {doubt}", file=sys.stderr)
    print(f"{given.out}: {len(figure.data)} heatmaps")


if __name__ == "__main__":
    sys.exit(main())
