"""The section "Accuracy against speed": the evaluation that comes with the app, and the visitor's last run on it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.accuracy import paper, words
from app.accuracy.own import OwnRun
from app.accuracy.shipped import RECOMMENDED_METHOD, lengths, shipped
from app.figures.tradeoff import tradeoff
from app.page.inputs import Server
from app.page.values import Updates, as_json, view_of
from sparsed.evaluation.recommend import most_asked

# What the figure's speeds are → by the clock, or by operations.
SPEEDS = {"operations executed": False, "the clock of the machine that answered": True}
NO_RUN = "Your last run will be marked here, each lane at its speed-up on this machine."


@dataclass(frozen=True)
class Accuracy:
    """The components of the section."""

    length: gr.Dropdown
    # By what speed is told: a value of SPEEDS.
    speed: gr.Dropdown
    said: gr.HTML
    chart: gr.HTML


def build() -> Accuracy:
    """Makes them, inside the page that is being built."""
    gr.HTML("<h2>Accuracy against speed</h2>", apply_default_css=False)
    start = most_asked(shipped())
    with gr.Row():
        length = gr.Dropdown(
            lengths(shipped()), value=start, label="Prompt length", elem_id="sd-accuracy-length", min_width=160,
            info="What an evaluation of the bundled model found there.",
        )  # fmt: skip
        speed = gr.Dropdown(
            list(SPEEDS), value=next(iter(SPEEDS)), label="Speed by", elem_id="sd-accuracy-speed", min_width=160,
            info="Of the evaluation; your run is always by this machine’s clock.",
        )  # fmt: skip
    said = gr.HTML(_said(start, None), apply_default_css=False, elem_id="sd-accuracy-said")
    chart = view_of("chart", _chart(start, None), "sd-tradeoff")
    gr.HTML(paper.table(), apply_default_css=False, elem_id="sd-accuracy-paper")
    return Accuracy(length, speed, said, chart)


def of_run(at: Accuracy, own: OwnRun | None, measured: bool = False) -> Updates:
    """The section after a run, at its length where the evaluation has that one; None: of a record, which is no run of
    the visitor's. measured: the figure is by the clock.
    """
    start = most_asked(shipped())
    length = (own.length_of(lengths(shipped())) if own is not None else None) or start
    return {at.length: length, at.said: _said(length, own), at.chart: as_json(_chart(length, own, measured))}


class Weighing:
    """The handler of the section. Holds nothing of any visit."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def show(self, http: gr.Request, length: Any, speed: Any) -> tuple[Any, Any]:
        """Another prompt length, or speeds of the other kind."""
        if length not in lengths(shipped()) or speed not in list(SPEEDS):
            return gr.skip(), gr.skip()
        visit = self.server.visit(http)
        visit.by_clock = SPEEDS[speed]
        return _said(length, visit.own), as_json(_chart(length, visit.own, visit.by_clock))


def _said(length: str, own: OwnRun | None) -> str:
    """What wins and what loses there, and how the visitor's run fits in, as HTML."""
    lines = [*words.findings(shipped(), length), words.where(shipped())]
    told = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{told}</ul><p>{html.escape(_of_own(length, own))}</p>"


def _of_own(length: str, own: OwnRun | None) -> str:
    if own is None:
        return NO_RUN
    about = f"Your last run ({own.model}, {own.tokens:,} prompt tokens)"
    if not own.marks:
        return f"{about} was stopped, or has no speed-up to mark."
    if own.length_of([length]) is None:
        return f"{about} has another length: its marks are not on this figure."
    return f"{about}: {'; '.join(mark.words for mark in own.marks)}. One question, and this machine’s clock."


def _chart(length: str, own: OwnRun | None, measured: bool = False) -> dict[str, Any]:
    marks = own.marks if own is not None and own.length_of([length]) else ()
    return tradeoff(shipped(), length, measured, recommended=RECOMMENDED_METHOD, marks=marks)._asdict()
