"""Looking at what the heads of a run keep: while it goes on, from its select step on, and when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app import texts
from app.accuracy.own import own_run
from app.engine.sentences import error_sentence
from app.finished import views
from app.finished.run import Kept, opened, opening
from app.page import accuracy
from app.page.inputs import Server
from app.page.labels import lane_choices
from app.page.layout import Components
from app.page.values import Updates, Values, as_json, files_of, index_in, nothing, one_line, replay_of
from app.race.race import Race
from app.server.gradio_internals import sent_with
from app.server.material import EXPECTED
from app.server.visits import Visit
from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks


class Looking:
    """Handlers of the views of a pattern. Holds nothing of any visit."""

    def __init__(self, server: Server, components: Components) -> None:
        self.server, self.components = server, components

    def looked_at(self, visit: Visit) -> Kept | Masks | None:
        """What the page looks at: the run that goes on, once it has selected, or the last one that is over."""
        last = _last(visit)
        return visit.selected or (last and last.showing(visit.seen))

    def head(self, run: Kept | Masks, visit: Visit) -> str:
        """The head that is looked at."""
        return as_json(views.head(run, *visit.looked_at, visit.shades) or nothing(texts.NO_SELECTION))

    def everything(self, run: Kept, visit: Visit, link: str = "") -> Updates:
        """Everything that shows a run that is over, but for its times. link: brings its settings back."""
        at = self.components
        played = replay_of(run, self.server.desk.engine.verdict)
        visit.own = own_run(run, played)
        return {
            **self._pattern(run, visit),
            **accuracy.of_run(at.accuracy, visit.own, visit.by_clock),
            at.replay: as_json(played),
            at.explorer.atlas: as_json(views.model(run) or nothing(texts.NO_SELECTION)),
            at.explorer.tracking: as_json(views.later(run) or nothing(texts.NOT_TRACKED)),
            at.explorer.files: as_json(files_of(run, link)),
            at.picture: as_json(views.picture(run) or nothing(texts.NO_SELECTION)),
        }

    def again(self, http: gr.Request, key: Any) -> Updates:
        """The page was loaded anew: the last run of before, by its key, which the browser has kept."""
        run = self.server.desk.visits.kept(key) if isinstance(key, str) and key else None
        if run is None:
            return {self.components.replay: gr.skip()}
        visit = self.server.visit(http)
        visit.kept = run
        drawn = as_json(views.timeline(run) or nothing(texts.NO_TIMELINE))
        return {**self.everything(run, visit), self.components.timeline: drawn}

    # ---- while a run goes on ----------------------------------------------------------------------------------

    def started(self, http: gr.Request) -> Values:
        """The first step of a run was made: what one head keeps is not known yet."""
        visit = self.server.visit(http)
        if visit.race is None or visit.selected is not None:
            return gr.skip(), gr.skip()
        layout = _layout(visit.race)
        blocks = nothing(texts.NO_PATTERN) if layout is None else views.before_selecting(layout)
        return as_json(blocks), one_line(views.which(_last(visit), before=True))

    def select_step(self, http: gr.Request) -> Updates:
        """The select step was made: what can be looked at while the run goes on."""
        visit = self.server.visit(http)
        if visit.selected is None:
            return {self.components.explorer.which: gr.skip()}  # over already, and shown as that
        return self._pattern(visit.selected, visit)

    # ---- what the visitor chooses -------------------------------------------------------------------------------

    def show_head(self, http: gr.Request, layer: Any, head: Any) -> Any:
        """The key blocks that one head keeps."""
        visit = self.server.visit(http)
        run = self.looked_at(visit)
        if run is None or not run.layers:
            return gr.skip()
        visit.looked_at = (index_in(layer, run.layers), index_in(head, run.heads))
        if visit.race is not None and visit.selected is None:
            return gr.skip()  # what stands there is that this run has not selected yet
        return self.head(run, visit)

    def show_shades(self, http: gr.Request, shades: Any) -> Any:
        """The same head, its importances or its choice alone."""
        visit = self.server.visit(http)
        visit.shades = next((name for name in texts.SHADES if name == shades), "both")
        run = self.looked_at(visit)
        return gr.skip() if run is None or not run.layers else self.head(run, visit)

    def show_lane(self, http: gr.Request, lane: Any) -> Values:
        """The same views for the pattern of another lane."""
        visit = self.server.visit(http)
        visit.seen = lane if isinstance(lane, str) else ""
        run = self.looked_at(visit)
        if not isinstance(run, Kept) or not run.layers or visit.race is not None:
            return (gr.skip(),) * 5
        return (self.head(run, visit), *self.show_layer(http, visit.looked_at[0]), as_json(views.model(run)))

    def show_layer(self, http: gr.Request, layer: Any) -> Values:
        """All heads of a layer, how much they share, and how much attention each keeps."""
        made = views.layer(self.looked_at(self.server.visit(http)), index_in(layer, None))
        return (gr.skip(),) * 3 if made is None else tuple(as_json(view) for view in made)

    def show_clicked(self, http: gr.Request, clicked: gr.EventData) -> Values:
        """A thumbnail was clicked: its layer and its head."""
        run = self.looked_at(self.server.visit(http))
        place = views.clicked(sent_with(clicked))
        if run is None or place is None or not (0 <= place[0] < run.layers and 0 <= place[1] < run.heads):
            return (gr.skip(),) * 6
        return (*place, self.show_head(http, *place), *self.show_layer(http, place[0]))

    def observe_later(self, http: gr.Request) -> Values:
        """The tab of the later steps; where the last run was not tracked, the next one will be."""
        view = views.later(_last(self.server.visit(http)))
        tabs = gr.update(selected="later")
        return tabs, as_json(view or nothing(texts.TRACK_NEXT)), gr.skip() if view else True

    async def open_file(self, http: gr.Request, path: Any) -> AsyncIterator[Updates]:
        """A record that the visitor brings back; it takes the place of the last run."""
        at, visit = self.components, self.server.visit(http)
        said = at.explorer.upload_said
        if visit.running:
            yield {said: one_line("A run goes on: stop it, or wait for its end, and open the file then.")}
            return
        try:
            run = await asyncio.to_thread(opened, str(path))
            updates = await asyncio.to_thread(self.everything, run, visit)
        except EXPECTED as error:
            yield {said: one_line(error_sentence(error))}
            return
        visit.kept, visit.ran, visit.selected, visit.seen = run, None, None, ""
        # The replay draws the stage.
        updates[at.timeline] = as_json(views.timeline(run) or nothing(texts.NO_TIMELINE))
        yield {**updates, said: ""}

    # ---- what they have in common -------------------------------------------------------------------------------

    def _pattern(self, run: Kept | Masks, visit: Visit) -> Updates:
        """The pattern of a run: the head that is looked at, or the last one that this run has, and all heads of its
        layer.
        """
        at, (layer, head) = self.components, visit.looked_at
        sliders: Updates = {}
        if run.layers:
            visit.looked_at = layer, head = min(layer, run.layers - 1), min(head, run.heads - 1)
            sliders = {
                at.head.layer: gr.update(maximum=max(1, run.layers - 1), value=layer, interactive=True),
                at.head.head: gr.update(maximum=max(1, run.heads - 1), value=head, interactive=True),
            }
        choices = lane_choices(run)
        overview, overlap, mass = views.layer(run, layer) or (nothing(texts.NO_SELECTION),) * 3
        return {
            at.head.blocks: self.head(run, visit),
            at.explorer.overview: as_json(overview),
            at.explorer.overlap: as_json(overlap),
            at.explorer.mass: as_json(mass),
            at.explorer.which: one_line(views.which(run, selected=visit.selected_in)),
            at.head.lane: gr.update(choices=choices, value=choices[0][1], visible=len(choices) > 1),
            **sliders,
        }


def _layout(race: Race) -> BlockLayout | None:
    """The blocks of a race whose lanes are to become sparse; None where none is."""
    for lane in race.lanes:
        run = lane.run.info.record()
        if run["attention"]["method"] != "dense":
            prompt, generated = run["prompt_tokens"], run["sampler"]["gen_length"]
            return BlockLayout(prompt + generated, prompt, run["attention"]["block_size"])
    return None


def _last(visit: Visit) -> Kept | None:
    """The visit's last run that is over, or the recorded one before the first."""
    return visit.kept or opening()
