"""Small values that handlers send to the page."""

from __future__ import annotations

import html
import json
import math
from typing import Any, Literal, NamedTuple

import gradio as gr

from app.figures import base
from app.finished import files, what_if
from app.finished.replay import Judge, replay_value
from app.finished.run import Kept
from sparsed.attention.masks import Masks

# What a handler gives: the components that change, and their new values; or a value for each of its outputs.
Updates = dict[Any, Any]
Values = tuple[Any, ...]


def as_json(value: Any) -> str:
    """A view's value as text. Gradio's front end walks through every object it is given several times, a string
    it just passes on: with many small updates that is most of the browser's work. No "<" is left in it.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def view_of(kind: str, value: Any, element: str) -> gr.HTML:
    """A component that assets/page/ draws from a JSON value."""
    return gr.HTML(
        value=value if isinstance(value, str) else as_json(value),
        html_template='<div class="sd-view"></div>',
        # Gradio may run this before the script in the page's head has arrived; then it waits in a list for
        # it.
        js_on_load=(
            f"const go = () => window.sparsed.mount('{kind}', element, props, watch, trigger);"
            "window.sparsed?.started ? go() : (window.sparsedWaiting ??= []).push(go);"
        ),
        apply_default_css=False,
        elem_id=element,
    )


def index_in(value: Any, count: int | None) -> int:
    """What came from a slider as an index below count; any number without it. What is no number is 0."""
    index = max(0, int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else 0
    return index if count is None else min(index, count - 1)


def toast(sentence: str) -> None:
    """Says something at the edge of the page; gradio would take it for HTML."""
    gr.Warning(html.escape(sentence))


def one_line(sentence: str) -> str:
    """A sentence, which may hold words of a visitor, as HTML."""
    return f"<p>{html.escape(sentence)}</p>"


def names_of(listed: Any) -> set[str]:
    """The names in a list with commas, which comes from the browser and may be anything."""
    return set(str(listed or "").split(","))


def nothing(sentence: str) -> dict[str, Any]:
    """A chart that says why there is nothing to draw yet."""
    return {"figure": base.empty(sentence), "label": sentence}


class Tried(NamedTuple):
    """slider: what the slider of select has, {"value", "interactive"}. own: can one go back? said: a sentence."""

    slider: dict[str, Any]
    own: bool
    said: str


def what_if_view(run: Kept | Masks | None, layer: int, head: int, select: float | None) -> Tried:
    """What stands below the blocks of a head: another select, or None for the run's own."""
    pattern = run.pattern if isinstance(run, Kept) else run
    mine = 1.0 if pattern is None else pattern.select
    reason = what_if.why_not(run)
    if reason or not isinstance(run, Kept):
        return Tried({"value": mine, "interactive": False}, False, reason)
    layer, head = min(layer, run.layers - 1), min(head, run.heads - 1)
    tried = None if select is None else what_if.what_if(run, layer, head, select)
    said = what_if.said(run, layer, head, tried)
    return Tried({"value": mine if select is None else select, "interactive": True}, select is not None, said)


def replay_of(run: Kept | None, judge: Judge) -> Any:
    """The replay of a run that is over; a recorded one begins by itself."""
    if run is None:
        return None
    old = not run.live
    way: Literal["step", "clock"] = "clock" if old else "step"
    return replay_value(run.trace, of_record=old, autoplay=old, way=way, judge=judge)


def files_of(run: Kept | None, link: str = "") -> Any:
    """What can be downloaded of a run. link: brings its settings back."""
    return None if run is None else files.offer(run, files.RUNS, link)
