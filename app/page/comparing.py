"""Comparing prompt lengths: one race for each, the table, the chart, and what is pinned in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app.lengths import comparison, forecast, pins, table
from app.lengths.chart import chart, chart_label
from app.lengths.gains import gains, gains_label
from app.lengths.pins import with_pins
from app.page.inputs import Server, read
from app.page.values import Values, as_json, one_line, toast
from app.server.visits import Visit
from app.texts import NOTHING_TO_PIN


class Comparing:
    """Handlers of the comparison. Holds nothing of any visit."""

    def __init__(self, server: Server, starters: int) -> None:
        """starters: how many buttons start a race."""
        self.server, self.starters = server, starters

    def foresee(self, lengths: Any, *values: Any) -> str:
        """How long the comparison of these lengths will take here."""
        try:
            said = forecast.outlook(self.server.desk, self.server.asked(read(values)), lengths or ())
        except ValueError as error:
            said = str(error)
        return one_line(said)

    async def compare(self, http: gr.Request, lengths: Any, *values: Any) -> AsyncIterator[Values]:
        """A race for each length, streamed row by row."""
        desk = self.server.desk
        visit = self.server.visit(http)
        waits, ready, others = gr.update(interactive=False), gr.update(interactive=True), self.starters
        busy = (waits, gr.update(value="Stop", interactive=True), *(waits,) * others)
        free = (ready, gr.update(value="Stop", interactive=False), *(ready,) * others)
        try:
            asked = self.server.asked(read(values))
        except ValueError as error:
            toast(str(error))
            yield (gr.skip(), gr.skip(), gr.skip(), *free)
            return
        started, rows_done = False, -1
        async with contextlib.aclosing(comparison.compare(desk, visit, asked, lengths or ())) as stream:
            async for value in stream:
                if value["rows"]:
                    visit.comparison = value
                over = value["state"] != "running"
                drawn = len(table.done(value["rows"]))
                figures = (gr.skip(), gr.skip()) if drawn == rows_done else charts_of(visit, value)
                buttons = free if over else (gr.skip(),) * len(busy) if started else busy
                if over and not started:
                    # Refused: perhaps beside a run, whose buttons these are.
                    buttons = (*free[:2], *(gr.skip(),) * others)
                started, rows_done = True, drawn
                yield (as_json(with_pins(value, visit.pins)), *figures, *buttons)

    def pin(self, http: gr.Request) -> Values:
        """Keeps the last comparison in the chart, beside those to come."""
        visit = self.server.visit(http)
        visit.pins = pins.pin(visit.pins, visit.comparison)
        if not visit.pins:
            toast(NOTHING_TO_PIN)
        return _pinned(visit)

    def unpin(self, http: gr.Request) -> Values:
        """Lets go of all pinned comparisons."""
        visit = self.server.visit(http)
        visit.pins = ()
        return _pinned(visit)


def _pinned(visit: Visit) -> Values:
    return as_json(with_pins(visit.comparison, visit.pins)), *charts_of(visit, visit.comparison)


def charts_of(visit: Visit, compared: dict[str, Any] | None) -> tuple[str, str]:
    """Speed-ups and seconds of a comparison, with what is pinned and, of the speed-ups, the visit's single runs."""
    rows = compared["rows"] if compared else ()
    seconds = {"figure": chart(rows, visit.pins), "label": chart_label(rows, visit.pins)}
    return gains_of(visit), as_json(seconds)


def gains_of(visit: Visit) -> str:
    """The speed-ups of whatever the visit has run."""
    given = visit.comparison["rows"] if visit.comparison else (), visit.pins, visit.points
    return as_json({"figure": gains(*given), "label": gains_label(*given)})
