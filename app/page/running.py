"""A run: Run, what is streamed meanwhile, Stop, and the tab that is closed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app.figures import timeline
from app.finished import views
from app.lengths.gains import MOST_POINTS, points_of
from app.page.asking import Asking
from app.page.comparing import gains_of
from app.page.inputs import Server, read
from app.page.labels import fingerprint, loading_header, model_header, stage_before
from app.page.layout import Components
from app.page.looking import Looking
from app.page.talking import Talking
from app.page.trouble import in_page_words, trouble
from app.page.values import Updates, as_json, one_line
from app.race.links import link
from app.server.session import perform
from app.server.visits import Visit

# Drawing a chart costs the browser more than drawing the lanes: it follows at a slower pace.
TIMELINE_SECONDS = 0.4


class Running:
    """Handlers of a run from Run to its end. Holds nothing of any visit."""

    def __init__(
        self, server: Server, components: Components, looking: Looking, asking: Asking, talking: Talking
    ) -> None:
        self.server, self.components, self.looking = server, components, looking
        self.asking, self.talking = asking, talking

    def begin(self, http: gr.Request) -> Updates:
        """Run pressed; a Stop from now on counts, be the run on its way yet."""
        visit = self.server.visit(http)
        visit.stopping = False
        return self._buttons(visit, running=True)

    def _buttons(self, visit: Visit, *, running: bool) -> Updates:
        """Whatever starts a run waits while one goes on: nothing of that one can be lost."""
        at = self.components
        waiting = {button: gr.update(interactive=not running) for button in at.starters}
        run = gr.update(value="Running …" if running else "Run", interactive=not running)
        stop = gr.update(value="Stop", interactive=running)
        # What was said of the last run does not stand over the next one.
        said = {at.trouble: trouble(self.server)} if running else {at.series.ask: self.asking.offered(visit)}
        talk = as_json({"state": "busy"}) if running else self.talking.offered(visit)
        return {**waiting, at.run: run, at.stop: stop, at.talk: talk, **said}

    async def run(self, http: gr.Request, *values: Any) -> AsyncIterator[Updates]:
        """One race, streamed: the first value says that it is being prepared, the last how it ended."""
        server, at, visit, given = self.server, self.components, self.server.visit(http), read(values)
        visit.refused = ("", None)
        try:
            asked = server.asked(given)
        except ValueError as error:
            visit.refused = (str(error), given["model"])
            yield {at.stage: as_json(stage_before(server, "refused", ""))}
            return
        asks = fingerprint(asked)
        waiting, next_timeline = False, 0.0
        async with contextlib.aclosing(perform(server.desk, visit, asked)) as stream:
            async for shown in stream:
                stage = shown.stage
                if shown.over and stage["state"] in ("refused", "failed") and shown.times is None:
                    # It has no place on the lanes, which stay as they are.
                    visit.refused, stage = (stage["message"], asked.model), {**stage, "message": ""}
                # A model that was loaded changes what the page says of it: its view asks for that.
                about = {"message": in_page_words(stage["message"]), "loaded": shown.loaded is not None, "asks": asks}
                updates: Updates = {at.stage: as_json({**stage, **about})}
                if shown.times is not None and (shown.over or time.monotonic() >= next_timeline):
                    figure = timeline.timeline(shown.times)
                    updates[at.timeline] = as_json({"figure": figure, "label": _timeline_label(shown.stage)})
                    next_timeline = time.monotonic() + TIMELINE_SECONDS
                if shown.loading:
                    updates[at.header] = loading_header(server, asked.model, shown.loading)
                    waiting = True
                elif shown.loaded is not None:
                    waiting = False
                elif shown.over and waiting:
                    updates[at.header] = model_header(server, asked.model)
                if shown.over and shown.times is not None:
                    visit.ran = asked
                    visit.points = (*visit.points, *points_of(shown.stage))[-MOST_POINTS:]
                yield updates

    def over(self, http: gr.Request, *values: Any) -> Updates:
        """A run has ended, or did not begin: everything that shows the last run."""
        at, given = self.components, read(values)
        visit = self.server.visit(http)
        # Refused beside another run of this visit: the buttons are that one's.
        free = {} if visit.running else self._buttons(visit, running=False)
        if visit.refused[0]:
            return {**free, at.trouble: trouble(self.server, *visit.refused)}
        if not visit.unseen or visit.kept is None:
            run = self.looking.looked_at(visit)
            head = {} if run is None else self.looking.own(run, visit)
            which = one_line(views.which(run, selected=visit.selected_in))
            return {**free, **head, at.explorer.which: which}
        visit.unseen, visit.seen = False, ""
        shown = self.looking.everything(visit.kept, visit, link(given.values, given.touched))
        return {**free, **shown, at.lengths.gains: gains_of(visit), at.last: visit.kept.key}

    def stop(self, http: gr.Request) -> Any:
        """Stop pressed: the running step is the last."""
        self.server.desk.visits.stop(http.session_hash)
        return gr.update(value="Stopping …", interactive=False)


def _timeline_label(snapshot: dict[str, Any]) -> str:
    parts = [
        f"{lane['label']}: {lane['step']} of {lane['total']} steps, {lane['ms_per_step']} milliseconds per step"
        for lane in snapshot["lanes"]
        if lane["ms_per_step"] is not None
    ]
    return "Line chart of the time per step. " + "; ".join(parts)
