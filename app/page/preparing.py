"""Before a run: the prompt, what the run will cost, and the settings that follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import gradio as gr

from app.engine import cost
from app.engine.fewer_bits import without_bits
from app.engine.sentences import error_sentence
from app.page.inputs import Given, Server, read
from app.page.labels import (
    fingerprint,
    fitting,
    lanes_named,
    length_choices,
    loading_header,
    model_choices,
    model_header,
    race_time,
)
from app.page.layout import Components
from app.page.settings import follow as follow_settings
from app.page.trouble import trouble
from app.page.values import Updates, as_json
from app.race.fields import usual
from app.race.links import address
from app.race.request import Request, of_characters
from app.server.material import EXPECTED, Material, example, gather, notes
from app.server.measured import Measured
from app.server.models import Loaded, Loading
from app.server.session import follow
from app.texts import TURN

# A visitor presses Run to see what this is; the first run should not keep him waiting.
FIRST_RUN_SECONDS = 30.0


class Preparing:
    """Handlers of everything that changes what the next run will be. Holds nothing of any visit."""

    def __init__(self, server: Server, components: Components) -> None:
        self.server, self.components = server, components

    async def open(self, http: gr.Request, *values: Any) -> AsyncGenerator[Updates, None]:
        """A fresh page: like `prepare`, with the prompt length that suits this machine, which no address need say."""
        given = read(values)
        fresh = self.server.default_length is None and "length" not in given.touched
        async for updates in self._prepare(http, given, fresh=fresh):
            yield updates

    async def prepare(self, http: gr.Request, *values: Any) -> AsyncGenerator[Updates, None]:
        """Shows the prompt, its length, what the run will cost, and moves what the visitor has not set. A model that
        is here already is loaded meanwhile, which is shown too.
        """
        async for updates in self._prepare(http, read(values)):
            yield updates

    def insert(self, name: Any, text: Any) -> Any:
        """The visitor's text with an example at its end, in the form that the model that is here knows."""
        models = self.server.desk.models
        loaded = (models.loaded(name) if isinstance(name, str) else None) or models.loaded(models.default)
        if loaded is None:
            return gr.skip()  # it is being loaded, which the header says
        own = of_characters(str(text or "")).strip()
        return "\n\n".join(filter(None, (own, example(self.server.desk, loaded))))

    async def reckon(self, http: gr.Request, *values: Any) -> Updates:
        """A run is over: what the next one will cost, by what this one took."""
        at, visit = self.components, self.server.visit(http)
        newest = visit.latest
        updates = await asyncio.to_thread(self._prepared, visit.measured, read(values))
        # A preparation of what the visitor has chosen since says it as well.
        shown = (at.panel, at.inputs["length"]) if visit.latest is newest else ()
        return {one: updates[one] for one in shown} or {at.panel: gr.skip()}

    async def _prepare(
        self, http: gr.Request, given: Given, *, fresh: bool = False
    ) -> AsyncGenerator[Updates, None]:
        desk, at = self.server.desk, self.components
        visit = self.server.visit(http)
        visit.latest = mine = object()
        name, job = given["model"], None
        if isinstance(name, str) and name in self.server.models:
            job = desk.models.loading(name) if desk.models.at_once(name) else desk.models.under_way(name)
        if job is not None:
            async for message, new in follow(job):
                if visit.latest is not mine:
                    break
                if new:
                    panel = {"state": "loading", "message": f"{job.label} · {message}"}
                    yield {at.header: loading_header(self.server, name, message), at.panel: as_json(panel)}
        updates: Updates = {}
        if visit.latest is mine:
            updates = await asyncio.to_thread(self._prepared, visit.measured, given, job, fresh)
        # Who did something else meanwhile gets to see that. Something must be yielded: from a generator that
        # yields nothing gradio makes an empty value for every output.
        yield updates if visit.latest is mine else {at.header: gr.skip()}

    def _prepared(
        self, measured: Measured, given: Given, job: Loading | None = None, fresh: bool = False
    ) -> Updates:
        """What a preparation shows, for the model as it is now: in memory, on offer, or failed.

        measured: what the visit's runs took. job: its loading, which is over. fresh: choose the prompt length for this
        machine.
        """
        server, at = self.server, self.components
        length, problem = gr.update(visible=not given.own), ""
        updates: Updates = {
            at.another: gr.update(visible=not given.own), at.inputs["text"]: gr.update(visible=given.own),
            at.inputs["system"]: gr.update(visible=given.own), at.insert: gr.update(visible=given.own),
        }  # fmt: skip
        try:
            asked = server.asked(given.but(kind=server.default_kind) if given.empty else given)
            updates[at.inputs["model"]] = gr.update(choices=model_choices(server, asked))
            updates |= self._following(asked.resolve(server.lengths[asked.length]), given)
            updates[at.header] = model_header(server, asked.model)
            loaded = job.result() if job is not None and job.over else server.desk.models.loaded(asked.model)
            if loaded is not None and fresh:
                asked = replace(asked, length=server.desk.speed.longest(loaded, asked, FIRST_RUN_SECONDS))
                length["value"] = asked.length
            # How long a model takes that is not here, nobody knows.
            length["choices"] = length_choices(server, asked, loaded, measured)
            if given.empty:
                panel: dict[str, Any] = {"state": "empty"}
            elif loaded is None:
                panel, problem = self._offer(asked)
            else:
                material = gather(server.desk, asked, loaded)
                updates |= self._following(material.asked, given)
                panel, problem = self._ready(material, loaded, measured), material.refused or ""
            if not given.empty:
                panel["asks"] = fingerprint(asked)
        except EXPECTED as error:
            if not isinstance(error, ValueError):
                server.desk.journal.error(error)
            panel, problem = {"state": "problem"}, error_sentence(error)
        updates[at.trouble] = trouble(server, problem, given["model"])
        usual_length = given["length"] if fresh else server.default_length
        start = usual(server.desk.models.default, server.default_kind, usual_length)
        updates[at.address] = address(given.values, given.touched, start)
        return {at.panel: as_json(panel), at.inputs["length"]: length, **updates}

    def _following(self, asked: Request, given: Given) -> Updates:
        return follow_settings(self.components.inputs, asked, given.values, given.touched)

    def _ready(self, material: Material, loaded: Loaded, measured: Measured) -> dict[str, Any]:
        """The prompt of a model in memory, and what the run will cost. Raises what the engine raises."""
        learned = measured.applied(material.estimated, loaded, material.asked, material.tokens)
        estimated = None if material.refused else learned
        said = [] if material.refused else notes(self.server.desk, material, loaded)
        most = cost.span(material.most_seconds)
        return {
            "state": "ready",
            "question": material.question,
            "turn": TURN.format(number=len(material.asked.history) // 2 + 1) if material.asked.history else "",
            "text": "\n\n".join([*(text for _, text in material.asked.history), material.text]),
            "needed": [] if isinstance(material.prompt, str) else list(material.prompt.needed),
            "tokens": material.tokens,
            "gold": material.gold is not None,
            "lanes": lanes_named(material.asked),
            "estimate": f"{race_time(estimated, material.asked)} on this machine" if estimated else "",
            # Of a conversation its first question says it.
            "ends": f"a run longer than {most} is stopped" if estimated and not material.asked.history else "",
            "notes": said,
        }

    def _offer(self, asked: Request) -> tuple[dict[str, Any], str]:
        """What Run will do first for a model that is not in memory, or the sentence why it cannot."""
        spec, reason = self.server.models[asked.model], self.server.desk.models.too_large(asked.model)
        size = f"{spec.download_gb:.1f} GB, " if spec.parameters else ""
        first = (
            f"{spec.label} is not in memory: Run downloads it first ({size}if it is not here already). The prompt is "
            "made with its own tokenizer then."
        )
        other = fitting(self.server, without_bits(asked.model), asked) if reason else asked.model
        instead = "" if other == asked.model else f" {self.server.models[other].label} fits: choose it in Settings."
        refused = f"{spec.label} is too large for this machine: {reason}.{instead}" if reason else ""
        return {"state": "offer", "offer": "" if reason else first}, refused
