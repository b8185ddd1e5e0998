"""Looking at what the heads of a run keep: while it goes on, from its select step on, and when it is over."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app import texts
from app.accuracy.own import own_run
from app.engine.sentences import error_sentence
from app.finished import views
from app.finished.run import Kept, opened, opening
from app.finished.spent import spent
from app.finished.story import story
from app.finished.what_if import LEAST, why_not
from app.page import accuracy
from app.page.inputs import Server
from app.page.labels import lane_choices
from app.page.layout import Components
from app.page.values import Updates, Values, as_json, files_of, index_in, nothing, one_line, replay_of, what_if_view
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

    def head(self, run: Kept | Masks, visit: Visit) -> Updates:
        """The head that is looked at, at the select that is tried on it, and what is said of that."""
        at, select = self.components.head, visit.what_if
        drawn = views.head(run, *visit.looked_at, visit.shades, select) or nothing(texts.NO_SELECTION)
        tried = what_if_view(run, *visit.looked_at, select)
        return {
            at.blocks: as_json(drawn),
            at.own: gr.update(interactive=tried.own),
            at.what_if_said: one_line(tried.said),
        }

    def own(self, run: Kept | Masks, visit: Visit) -> Updates:
        """The same at the run's own select, to which the slider goes back."""
        visit.what_if = None
        slider = what_if_view(run, *visit.looked_at, None).slider
        return {**self.head(run, visit), self.components.head.what_if: gr.update(**slider)}

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
            at.spent: as_json(spent(run)),
            at.story: as_json(story(run, *visit.looked_at)),
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

    def started(self, http: gr.Request) -> Updates:
        """The first step of a run was made: what one head keeps is not known yet."""
        visit, at = self.server.visit(http), self.components
        if visit.race is None or visit.selected is not None:
            return {at.explorer.which: gr.skip()}
        layout = _layout(visit.race)
        blocks = nothing(texts.NO_PATTERN) if layout is None else views.before_selecting(layout)
        return {
            at.head.blocks: as_json(blocks),
            at.head.what_if: gr.update(interactive=False),
            at.head.own: gr.update(interactive=False),
            at.head.what_if_said: one_line(texts.WHAT_IF_LATER),
            at.explorer.which: one_line(views.which(_last(visit), before=True)),
        }

    def select_step(self, http: gr.Request) -> Updates:
        """The select step was made: what can be looked at while the run goes on."""
        visit = self.server.visit(http)
        if visit.selected is None:
            return {self.components.explorer.which: gr.skip()}  # over already, and shown as that
        return self._pattern(visit.selected, visit)

    # ---- what the visitor chooses -------------------------------------------------------------------------------

    def show_head(self, http: gr.Request, layer: Any, head: Any) -> Updates:
        """The key blocks that one head keeps."""
        visit = self.server.visit(http)
        run = self.looked_at(visit)
        if run is None or not run.layers:
            return self._nothing
        visit.looked_at = (index_in(layer, run.layers), index_in(head, run.heads))
        if visit.race is not None and visit.selected is None:
            return self._nothing  # what stands there is that this run has not selected yet
        return self.head(run, visit)

    def show_shades(self, http: gr.Request, shades: Any) -> Updates:
        """The same head, its importances or its choice alone."""
        visit = self.server.visit(http)
        visit.shades = next((name for name in texts.SHADES if name == shades), "both")
        run = self.looked_at(visit)
        return self._nothing if run is None or not run.layers else self.head(run, visit)

    def show_what_if(self, http: gr.Request, select: Any) -> Updates:
        """What the head would keep at another select."""
        visit = self.server.visit(http)
        run = self.looked_at(visit)
        if why_not(run) or not isinstance(run, Kept) or run.pattern is None or visit.race is not None:
            return self._nothing
        given = select if isinstance(select, (int, float)) and math.isfinite(select) else run.pattern.select
        tried = round(min(1.0, max(LEAST, given)), 2)
        visit.what_if = None if tried == run.pattern.select else tried
        return self.head(run, visit)

    def show_own(self, http: gr.Request) -> Updates:
        """What the head has kept, after another select was tried."""
        visit = self.server.visit(http)
        run = self.looked_at(visit)
        return self._nothing if run is None or visit.race is not None else self.own(run, visit)

    def show_lane(self, http: gr.Request, lane: Any) -> Updates:
        """The same views for the pattern of another lane."""
        visit, at = self.server.visit(http), self.components.explorer
        visit.seen = lane if isinstance(lane, str) else ""
        run = self.looked_at(visit)
        if not isinstance(run, Kept) or not run.layers or visit.race is not None:
            return self._nothing
        layers = self.show_layer(http, visit.looked_at[0])
        return {**self.own(run, visit), **layers, at.atlas: as_json(views.model(run))}

    def show_layer(self, http: gr.Request, layer: Any) -> Updates:
        """All heads of a layer, how much they share, and how much attention each keeps."""
        at = self.components.explorer
        made = views.layer(self.looked_at(self.server.visit(http)), index_in(layer, None))
        if made is None:
            return {at.overview: gr.skip()}
        return {part: as_json(view) for part, view in zip((at.overview, at.overlap, at.mass), made, strict=True)}

    def show_clicked(self, http: gr.Request, clicked: gr.EventData) -> Updates:
        """A thumbnail was clicked: its layer and its head."""
        at = self.components.head
        run = self.looked_at(self.server.visit(http))
        place = views.clicked(sent_with(clicked))
        if run is None or place is None or not (0 <= place[0] < run.layers and 0 <= place[1] < run.heads):
            return self._nothing
        moved = {at.layer: place[0], at.head: place[1]}
        return {**moved, **self.show_head(http, *place), **self.show_layer(http, place[0])}

    @property
    def _nothing(self) -> Updates:
        """What a handler gives that changes nothing."""
        return {self.components.head.blocks: gr.skip()}

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
            **self.own(run, visit),
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
