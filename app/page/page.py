"""The page: layout and wiring. What is computed is computed elsewhere; here it is only connected.

Inputs → `request.parse` (once) → `race` → `stage` and `charts` → the components. The components that change
while a run goes on are `gr.HTML` with a JSON value that assets/page/ draws with textContent: text from a
visitor or a model never becomes HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import gradio as gr

from app import lanes, texts
from app.api import endpoints
from app.engine import cost
from app.engine.sentences import error_sentence
from app.finished import files, replay
from app.finished import views as looks
from app.finished.patterns import Selected
from app.finished.run import Kept, opened, opening
from app.lengths import chart as chart_module
from app.lengths import comparison as comparison_module
from app.lengths import forecast, table
from app.lengths import pins as pins_module
from app.lengths.chart import chart_label
from app.lengths.pins import with_pins
from app.page.serving import RUNS
from app.page.settings import Settings
from app.page.values import Updates, Values, as_json, index_in, names_of, nothing, one_line, toast, view_of
from app.race import links, request
from app.race.request import FOLLOWING, OWN_TEXT, Request
from app.race.snapshot import before_run
from app.server import limits
from app.server.desk import Desk
from app.server.gradio_internals import forget_session, look_for_work_every, sent_with
from app.server.material import EXPECTED, Material, gather, notes
from app.server.models import Loaded, Loading
from app.server.session import follow, perform
from app.server.visits import Visit
from sparsed.models.catalogue import ModelSpec

# Drawing a chart costs the browser more than drawing the lanes: it follows at a slower pace.
TIMELINE_SECONDS = 0.4
# How often gradio looks whether there is something to do.
QUEUE_SECONDS = 0.02
# What visitors uploaded is deleted after so long.
UPLOADS_SECONDS = 3600
# A visitor presses Run to see what this is; the first run should not keep him waiting.
FIRST_RUN_SECONDS = 30.0
# Below this estimated speed-up the page says at which length there is more to see.
WORTH_IT = 1.15
NO_TIMELINE = "Each step's time appears here when a run starts."
NO_PATTERN = "The blocks a head keeps appear here at the select step."
NO_SELECTION = "The last run ended before its select step."
NOT_TRACKED = "The last run was not tracked: tick “Track the pattern” in the settings, and run."
TRACK_NEXT = "The last run was not tracked. “Track the pattern” is ticked now: press Run."
# The inputs of a run before those that follow the model, in the order of the page.
INPUTS = ("model", "kind", "length", "question", "text", "skip", "selection", "seed", "backend", "track", "third")
# Runs in the browser: adds a name to those of the settings that the visitor has set himself.
_TOUCH = """(names) => [...new Set([...(names ?? "").split(","), "%s"])].filter(Boolean).sort().join(",")"""


def build_page(desk: Desk, *, default_kind: str, default_length: str | None = None) -> gr.Blocks:
    """The whole page around `desk`. Call `launch(**serving.launch_options(desk))` on what it
    returns.

    default_length: the prompt length of a fresh page; None takes the longest whose race is done within
    FIRST_RUN_SECONDS on this machine.
    """
    return _Page(desk, default_length, default_kind).build()


class _Page:
    """Builds the components once; the handlers are its methods. Holds nothing of any visit."""

    def __init__(self, desk: Desk, default_length: str | None, default_kind: str) -> None:
        self.desk = desk
        self.lengths = dict(desk.engine.lengths())
        self.kinds = dict(desk.engine.kinds())
        self.default_length = default_length
        self.default_kind = default_kind

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """Name → row of the list; grows where any model may be loaded."""
        return self.desk.engine.models()

    # ---- layout --------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        with gr.Blocks(
            title=texts.TITLE, analytics_enabled=False, fill_width=True, delete_cache=(UPLOADS_SECONDS, UPLOADS_SECONDS)
        ) as page:
            self.header = view_of("header", self._loading_header(self.desk.models.default, "starting"), "sd-header")
            with gr.Row(elem_id="sd-controls", equal_height=False):
                self.kind = gr.Dropdown(
                    [(label, name) for name, label in self.kinds.items()] + [("Your own text", OWN_TEXT)],
                    value=self.default_kind,
                    label="Question",
                    info="What the model is asked.",
                    elem_id="sd-kind",
                    min_width=180,
                    scale=3,
                )
                self.length = gr.Dropdown(
                    [(self._length_label(name), name) for name in self.lengths],
                    value=self.default_length or next(iter(self.lengths)),
                    label="Prompt length",
                    info="The longer, the more SparseD saves.",
                    elem_id="sd-length",
                    min_width=180,
                    scale=3,
                )
                self.another = gr.Button("Another question", elem_id="sd-another", min_width=150, scale=1)
                self.run_button = gr.Button(
                    "Run", variant="primary", elem_id="sd-run", min_width=110, scale=1
                )
                self.stop_button = gr.Button(
                    "Stop", interactive=False, elem_id="sd-stop", min_width=90, scale=1
                )
            with gr.Row(elem_id="sd-examples"):
                gr.HTML("<span>Try</span>", apply_default_css=False, elem_classes="sd-try")
                self.examples = [
                    (gr.Button(label, size="sm", elem_classes="sd-example"), chosen)
                    for label, chosen in texts.EXAMPLES.items()
                    if chosen[0] in self.kinds and chosen[1] in self.lengths
                ]
            self.text = gr.Textbox(
                label="Your own text",
                info="Sent to the model as one message. Mini only knows its own small world of invented documents.",
                lines=4,
                max_lines=12,
                max_length=request.MAX_CHARACTERS,
                visible=False,
                elem_id="sd-text",
            )
            self.panel = view_of("prompt", {"state": "loading"}, "sd-prompt")
            usual = self.models[self.desk.models.default].defaults
            models = [(self._model_label(name), name) for name in self.models]
            self.settings = Settings(models, self.desk.models.default, usual, any_model=self.desk.any_model)
            first = opening()
            self.stage = view_of("stage", self._opening(), "sd-stage")
            self.replay = view_of("replay", self._replay(first), "sd-replay")
            with gr.Row(elem_id="sd-charts", equal_height=False):
                with gr.Column(scale=3, min_width=320, elem_classes="sd-card"):
                    gr.HTML("<h2>Time per step</h2>", apply_default_css=False)
                    self.timeline = view_of("chart", looks.timeline(first) or nothing(NO_TIMELINE), "sd-timeline")
                with gr.Column(scale=2, min_width=320, elem_classes="sd-card"):
                    gr.HTML("<h2>Blocks kept by one head</h2>", apply_default_css=False)
                    layers, heads = (1, 1) if first is None else (max(1, first.layers - 1), max(1, first.heads - 1))
                    with gr.Row(elem_id="sd-head-choice"):
                        there = first is not None
                        self.layer = gr.Slider(
                            0, layers, value=min(1, layers), step=1, label="Layer", info="Counted from 0.",
                            interactive=there, elem_id="sd-layer", min_width=140,
                        )  # fmt: skip
                        self.head = gr.Slider(
                            0, heads, value=0, step=1, label="Head", info="Counted from 0.", interactive=there,
                            elem_id="sd-head", min_width=140,
                        )  # fmt: skip
                    # Where a run had more lanes with a pattern than one.
                    seen = self._seen_choices(first)
                    self.seen = gr.Dropdown(
                        seen, value=seen[0][1], label="Lane", info="Whose blocks are shown.", elem_id="sd-seen",
                        visible=len(seen) > 1,
                    )  # fmt: skip
                    self.shades = gr.Dropdown(
                        [(label, name) for name, label in texts.SHADES.items()], value="both", label="Show",
                        info="What the colours of the cells stand for.", elem_id="sd-shades",
                    )  # fmt: skip
                    self.heatmap = view_of("chart", looks.head(first, 1, 0) or nothing(NO_PATTERN), "sd-heatmap")
                    gr.HTML(texts.MASK_LEGEND, apply_default_css=False)
            self._explorer(first)
            self._comparison()
            with gr.Accordion("How it works", open=False, elem_id="sd-how"):
                gr.HTML(texts.HOW, apply_default_css=False)
                self.picture = view_of("chart", looks.picture(first) or nothing(NO_PATTERN), "sd-picture")
            gr.HTML(texts.FOOTER, apply_default_css=False)
            # Names from `request.FOLLOWING`, with commas. It lives in the browser, so that a value set just before
            # Run is pressed counts, however slow the server.
            self.touched = gr.Textbox("", visible="hidden", elem_id="sd-touched")
            endpoints.add(self.desk)
            self._wire(page)
        # No event is run past the queue.
        page.queue(api_open=False)
        self.blocks = page
        look_for_work_every(QUEUE_SECONDS, page)
        return page

    def _explorer(self, first: Kept | None) -> None:
        """What the heads keep, beside each other."""
        with gr.Column(elem_id="sd-explorer", elem_classes="sd-card"):
            gr.HTML("<h2>Look inside</h2>", apply_default_css=False)
            self.looking = gr.HTML(one_line(looks.which(first)), apply_default_css=False, elem_id="sd-looking")
            with gr.Row(elem_id="sd-observations"):
                self.observations = []
                for name, (claim, button) in texts.OBSERVATIONS.items():
                    with gr.Column(min_width=220, elem_classes="sd-observation"):
                        gr.HTML(f"<p>{claim}</p>", apply_default_css=False)
                        self.observations.append(gr.Button(button, size="sm", elem_id=f"sd-observe-{name}"))
            with gr.Tabs(elem_id="sd-tabs") as self.tabs:
                with gr.Tab("Heads of one layer", id="layer") as self.layer_tab:
                    overview, overlap, mass = looks.layer(first, 1) or (nothing(NO_PATTERN),) * 3
                    self.overview = view_of("chart", overview, "sd-overview")
                    with gr.Row(equal_height=False):
                        with gr.Column(min_width=320):
                            self.overlap = view_of("chart", overlap, "sd-overlap")
                        with gr.Column(min_width=320):
                            self.mass = view_of("chart", mass, "sd-mass")
                with gr.Tab("Whole model", id="model"):
                    self.atlas = view_of("chart", looks.model(first) or nothing(NO_PATTERN), "sd-atlas")
                with gr.Tab("Later steps", id="later"):
                    self.tracking = view_of("chart", looks.later(first) or nothing(NOT_TRACKED), "sd-tracking")
                with gr.Tab("Take it away", id="takeaway"):
                    self.takeaway = view_of("takeaway", self._offer_files(first), "sd-takeaway")
                    self.upload = gr.UploadButton(
                        "Open a record (run.json.gz)", file_types=[".gz", ".json"], elem_id="sd-upload", size="sm"
                    )
                    self.upload_said = gr.HTML("", apply_default_css=False, elem_id="sd-upload-said")

    def _comparison(self) -> None:
        """The same race at several prompt lengths."""
        with gr.Column(elem_id="sd-compare", elem_classes="sd-card"):
            gr.HTML("<h2>Compare prompt lengths</h2>", apply_default_css=False)
            with gr.Row(equal_height=False):
                self.compared = gr.Dropdown(
                    [(self._length_label(name), name) for name in self.lengths], value=list(self.lengths)[:2],
                    multiselect=True, label="Prompt lengths", elem_id="sd-compare-lengths", min_width=260, scale=4,
                    info="The question and the settings above, one race for each length.",
                )  # fmt: skip
                self.compare_button = gr.Button(
                    "Compare", variant="primary", elem_id="sd-compare-run", min_width=110, scale=1
                )
                self.compare_stop = gr.Button(
                    "Stop", interactive=False, elem_id="sd-compare-stop", min_width=90, scale=1
                )
                self.pin_button = gr.Button("Pin", elem_id="sd-compare-pin", min_width=90, scale=1)
                self.unpin_button = gr.Button("Clear pins", elem_id="sd-compare-clear", min_width=110, scale=1)
            self.compare_said = gr.HTML("", apply_default_css=False, elem_id="sd-compare-said")
            self.comparison = view_of("comparison", with_pins(None, ()), "sd-comparison")
            self.comparison_chart = view_of(
                "chart", {"figure": chart_module.chart(()), "label": chart_label(())}, "sd-comparison-chart"
            )

    def _wire(self, page: gr.Blocks) -> None:
        chosen = self.settings
        following = chosen.following
        inputs = [
            chosen.model, self.kind, self.length, chosen.question, self.text, chosen.skip, chosen.selection,
            chosen.seed, chosen.backend, chosen.track, chosen.third, *following.values(), self.touched,
        ]  # fmt: skip
        prepared = [
            self.header, self.panel, self.length, self.another, self.text, chosen.model, *following.values(),
        ]  # fmt: skip
        # What comes from the browser may be anything. `request.parse` and the handlers check it, in sentences of ours;
        # gradio's own checks would refuse what a link has set, and every event after it.
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
        # A preparation may wait for a model; nobody else's may wait for it.
        prepare: dict[str, Any] = {**quiet, "concurrency_limit": None}
        page.load(self.follow_link, None, inputs, **prepare).then(self.open, inputs, prepared, **prepare)
        # A value the visitor has set himself is not moved when the model or the prompt length changes.
        for name, component in following.items():
            component.input(
                None, self.touched, self.touched, js=_TOUCH % name, queue=False, trigger_mode="multiple", **quiet
            ).then(self.prepare, inputs, prepared, **prepare)
        gr.on(
            [
                self.kind.input, self.length.input, chosen.question.input,
                self.text.change,  # its input event misses what is pasted or deleted
                chosen.skip.input, chosen.selection.input, chosen.backend.input, chosen.third.input,
            ],
            self.prepare, inputs, prepared, trigger_mode="always_last", **prepare,
        )  # fmt: skip
        # Another choice ends the waiting for the model chosen before.
        chosen.model.input(self.prepare, inputs, prepared, trigger_mode="multiple", **prepare)
        self.another.click(
            None, chosen.question, chosen.question, js="(number) => (number ?? 0) + 1", queue=False, **quiet
        ).then(self.prepare, inputs, prepared, **prepare)
        for button, values in self.examples:
            sets = [self.kind, self.length, chosen.question, chosen.third][: len(values)]
            button.click(
                None, None, sets, js=f"() => {json.dumps(values)}", queue=False, **quiet,
            ).then(self.prepare, inputs, prepared, **prepare)  # fmt: skip
        place, looked = [self.layer, self.head], [self.overview, self.overlap, self.mass]
        selected = [self.heatmap, *place, self.seen, *looked, self.looking]
        over = [*selected, self.replay, self.atlas, self.tracking, self.takeaway, self.picture]
        buttons = [self.run_button, self.stop_button]
        run: dict[str, Any] = {"concurrency_limit": None, **quiet}

        def race(after: Any) -> None:
            """Runs when `after`, a listener's method, says so. Only what changes with every step is an output of the
            stream: gradio makes each output's component anew for each value, which takes the engine's time.
            """
            after(self.begin, None, buttons, queue=False, **quiet).then(
                self.run, inputs, [self.stage, self.timeline, self.header], **run
            ).then(self.over, inputs, [*over, *buttons], **run)

        race(self.run_button.click)
        # The stage's view tells these three: the first step was made, the pattern is there, a model was loaded.
        self.stage.play(self.started, None, [self.heatmap, self.looking], queue=False, **quiet)
        self.stage.select(self.select_step, None, selected, queue=False, **quiet)
        self.stage.load(self.prepare, inputs, prepared, **prepare)
        self.stop_button.click(self.stop, None, self.stop_button, queue=False, **quiet)
        look: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **quiet}
        gr.on([self.layer.input, self.head.input], self.show_head, place, self.heatmap, **look)
        self.shades.input(self.show_shades, self.shades, self.heatmap, **look)
        self.seen.input(self.show_lane, self.seen, [self.heatmap, *looked, self.atlas], **look)
        self.layer.input(self.show_layer, self.layer, looked, **look)
        self.layer_tab.select(self.show_layer, self.layer, looked, **look)
        gr.on([self.overview.click, self.atlas.click], self.show_clicked, None, [*place, self.heatmap, *looked], **look)
        differ, stay, early = self.observations
        differ.click(lambda: gr.update(selected="layer"), None, self.tabs, queue=False, **quiet)
        stay.click(self.observe_later, None, [self.tabs, self.tracking, chosen.track], queue=False, **quiet)
        race(
            early.click(None, None, chosen.skip, js="() => 0", queue=False, **quiet)
            .then(self.prepare, inputs, prepared, **prepare)
            .then
        )
        # But for a file: gradio sees to it that it is one that was uploaded.
        sent = {**run, "preprocess": True}
        self.upload.upload(self.open_file, self.upload, [*over, self.timeline, self.upload_said], **sent)
        compared = [self.comparison, self.comparison_chart]
        pressed = [self.compare_button, self.compare_stop, self.run_button]
        self.compare_button.click(self.compare, [self.compared, *inputs], [*compared, *pressed], **run)
        self.compare_stop.click(self.stop, None, self.compare_stop, queue=False, **quiet)
        self.pin_button.click(self.pin, None, compared, queue=False, **quiet)
        self.unpin_button.click(self.unpin, None, compared, queue=False, **quiet)
        self.compared.input(self.foresee, [self.compared, *inputs], self.compare_said, **look)
        page.unload(self.leave)

    # ---- small values --------------------------------------------------------------------------------------

    def _length_label(self, name: str, remark: str = "") -> str:
        shown = name.replace("_", " ")
        return f"{shown} · {remark}" if remark else f"{shown} · {self.lengths[name]:,} tokens"

    def _model_label(self, name: str, remark: str = "") -> str:
        spec = self.models[name]
        size = "" if spec.bundled else f"{spec.download_gb:.1f} GB download" if spec.parameters else "from the Hub"
        return " · ".join(filter(None, (spec.label, remark or size)))

    def _model_choices(self) -> list[tuple[str, str]]:
        """Every model, with what it takes to have it here, or the reason why it is too large for this machine."""
        choices = []
        for name in self.models:
            reason = self.desk.models.too_large(name)
            remark = f"too large here: {reason}" if reason else ""
            if self.desk.models.loaded(name) and not self.models[name].bundled:
                remark = "in memory"
            choices.append((self._model_label(name, remark), name))
        return choices

    def _header(self, *chips: str, busy: bool = False) -> str:
        return as_json({"title": texts.TITLE, "tagline": texts.TAGLINE, "chips": chips, "busy": busy})

    def _loading_header(self, name: str, message: str) -> str:
        return self._header(f"loading {self.models[name].name}", message, busy=True)

    def _model_header(self, name: str) -> str:
        loaded = self.desk.models.loaded(name)
        if loaded is None:
            return self._header(self.models[name].name, "not in memory")
        return self._header(loaded.model.name, loaded.place, self.desk.engine.backend(loaded.model))

    def _opening(self, state: str = "idle", message: str = texts.START) -> dict[str, Any]:
        """The stage before a run, as it would be with the settings that nobody has touched."""
        defaults = self.desk.models.defaults(self.desk.models.default)
        usual = defaults.resolve(defaults)
        return before_run(
            lanes.PAIR,
            usual.gen_length,
            usual.block_length,
            total=usual.steps,
            state=state,
            message=message,
        )

    @staticmethod
    def _given(values: Values) -> dict[str, Any]:
        """What the inputs hold, by name."""
        return dict(zip((*INPUTS, *FOLLOWING), values[:-1], strict=True))

    def _parse(self, *values: Any) -> Request:
        given = self._given(values)
        for name in FOLLOWING:
            if name not in names_of(values[-1]):
                given[name] = None
        chosen = given["model"]
        if isinstance(chosen, str):
            self.desk.engine.admit(chosen)
        # What is no string is refused by `parse`.
        defaults = self.desk.models.defaults(chosen if isinstance(chosen, str) else self.desk.models.default)
        given = self.settings.within(given, defaults)
        return request.parse(
            **given, defaults=defaults, models=self.models, kinds=self.kinds, lengths=self.lengths
        )

    # ---- handlers ------------------------------------------------------------------------------------------

    async def open(self, http: gr.Request, *values: Any) -> AsyncGenerator[Updates, None]:
        """A fresh page: like `prepare`, with the prompt length that suits this machine."""
        linked = "length" in names_of(values[-1])
        async for updates in self._prepare(http, values, fresh=self.default_length is None and not linked):
            yield updates

    async def prepare(self, http: gr.Request, *values: Any) -> AsyncGenerator[Updates, None]:
        """Shows the prompt, its length, what the run will cost, and moves what the visitor has not set. A model that
        is here already is loaded meanwhile, which is shown too.
        """
        async for updates in self._prepare(http, values):
            yield updates

    async def _prepare(
        self, http: gr.Request, values: Values, *, fresh: bool = False
    ) -> AsyncGenerator[Updates, None]:
        visit = self.desk.visits.of(http.session_hash)
        visit.latest = mine = object()
        name, job = values[0], None
        if isinstance(name, str) and name in self.models:
            job = self.desk.models.loading(name) if self.desk.models.at_once(name) else self.desk.models.under_way(name)
        if job is not None:
            async for message, new in follow(job):
                if visit.latest is not mine:
                    break
                if new:
                    panel = {"state": "loading", "message": f"{job.label} · {message}"}
                    yield {self.header: self._loading_header(name, message), self.panel: as_json(panel)}
        updates: Updates = {}
        if visit.latest is mine:
            updates = await asyncio.to_thread(self._prepared, values, job, fresh)
        # Who did something else meanwhile gets to see that. Something must be yielded: from a generator that
        # yields nothing gradio makes an empty value for every output.
        yield updates if visit.latest is mine else {self.header: gr.skip()}

    def _prepared(self, values: Values, job: Loading | None = None, fresh: bool = False) -> Updates:
        """What a preparation shows, for the model as it is now: in memory, on offer, or failed.

        job: its loading, which is over. fresh: choose the prompt length for this machine.
        """
        own = values[1] == OWN_TEXT
        empty = own and not str(values[4] or "").strip()
        length = gr.update(visible=not own)
        updates: Updates = {self.another: gr.update(visible=not own), self.text: gr.update(visible=own)}
        given, touched = self._given(values), names_of(values[-1])
        try:
            asked = self._parse(*([values[0], self.default_kind, *values[2:]] if empty else values))
            updates[self.settings.model] = gr.update(choices=self._model_choices())
            updates |= self.settings.follow(asked.resolve(self.lengths[asked.length]), given, touched)
            updates[self.header] = self._model_header(asked.model)
            loaded = job.result() if job is not None and job.over else self.desk.models.loaded(asked.model)
            if loaded is None:
                # How long a model takes that is not here, nobody knows.
                length["choices"] = [(self._length_label(n), n) for n in self.lengths]
                panel = {"state": "empty"} if empty else self._offer(asked)
            else:
                if fresh:
                    asked = replace(asked, length=self.desk.speed.longest(loaded, asked, FIRST_RUN_SECONDS))
                    length["value"] = asked.length
                length["choices"] = self._length_choices(asked, loaded)
                if empty:
                    panel = {"state": "empty"}
                else:
                    material = gather(self.desk, asked, loaded)
                    updates |= self.settings.follow(material.asked, given, touched)
                    panel = self._ready(material, loaded)
        except EXPECTED as error:
            if not isinstance(error, ValueError):
                self.desk.journal.error(error)
            panel = {"state": "problem", "problem": error_sentence(error)}
        return {self.panel: as_json(panel), self.length: length, **updates}

    def _ready(self, material: Material, loaded: Loaded) -> dict[str, Any]:
        """The prompt of a model in memory, and what the run will cost. Raises what the engine raises."""
        estimated = material.estimated
        return {
            "state": "ready",
            "question": material.question,
            "text": material.text,
            "tokens": material.tokens,
            "gold": material.gold is not None,
            "estimate": f"{_time(estimated, material.asked)} on this machine" if estimated else "",
            "ends": f"ended after {cost.span(material.most_seconds)} at the latest" if estimated else "",
            "refused": material.refused or "",
            "notes": []
            if material.refused
            else [*notes(self.desk, material, loaded), *self._where_it_pays(material, loaded)],
        }

    def _where_it_pays(self, material: Material, loaded: Loaded) -> list[str]:
        """At a length without gain: from which on there is one, by this machine's estimates. Built prompts only."""
        asked, here, lane = material.asked, material.estimated, material.asked.headline.key
        if here is None or asked.kind == OWN_TEXT or asked.switch_step is None or here.gain(lane) >= WORTH_IT:
            return []
        for name, tokens in self.lengths.items():
            there = self.desk.speed.estimate(loaded, asked.resolve(tokens), tokens)
            if tokens > material.tokens and there is not None and there.gain(lane) >= WORTH_IT:
                return [
                    f"At this length attention is a small part of the work, and SparseD gains little on this machine; "
                    f"it pays off from {name} on ({_time(there, asked)})."
                ]
        return []

    def _offer(self, asked: Request) -> dict[str, Any]:
        """What Run will do first for a model that is not in memory."""
        spec, reason = self.models[asked.model], self.desk.models.too_large(asked.model)
        size = f"{spec.download_gb:.1f} GB, " if spec.parameters else ""
        first = (
            f"{spec.label} is not in memory: Run downloads it first ({size}if it is not here already). The prompt is "
            "made with its own tokenizer then."
        )
        return {
            "state": "offer",
            "offer": "" if reason else first,
            "refused": f"{spec.label} is too large for this machine: {reason}." if reason else "",
        }

    def _length_choices(self, asked: Request, loaded: Loaded) -> list[tuple[str, str]]:
        """Every prompt length, with the time it takes here, or the reason why it is too long for this
        machine.
        """
        room = self.desk.speed.room(loaded)
        choices = []
        for name, tokens in self.lengths.items():
            estimated = self.desk.speed.estimate(loaded, asked.resolve(tokens), tokens)
            reason = limits.reason(estimated, room, length=tokens + asked.gen_length)
            remark = _time(estimated, asked) if estimated else ""
            choices.append((self._length_label(name, f"too long here: {reason}" if reason else remark), name))
        return choices

    def begin(self, http: gr.Request) -> Values:
        """Run pressed; a Stop from now on counts, be the run on its way yet."""
        self.desk.visits.of(http.session_hash).stopping = False
        return gr.update(value="Running …", interactive=False), gr.update(value="Stop", interactive=True)

    async def run(self, http: gr.Request, *values: Any) -> AsyncIterator[Updates]:
        """One race, streamed: the first value says that it is being prepared, the last how it ended."""
        try:
            asked = self._parse(*values)
        except ValueError as error:
            yield {self.stage: as_json(self._opening("refused", str(error)))}
            return
        visit = self.desk.visits.of(http.session_hash)
        waiting, next_timeline = False, 0.0
        async with contextlib.aclosing(perform(self.desk, visit, asked)) as stream:
            async for shown in stream:
                # A model that was loaded changes what the page says of it: its view asks for that.
                updates: Updates = {self.stage: as_json({**shown.stage, "loaded": shown.loaded is not None})}
                if shown.timeline is not None and (shown.over or time.monotonic() >= next_timeline):
                    updates[self.timeline] = as_json({"figure": shown.timeline, "label": _timeline_label(shown.stage)})
                    next_timeline = time.monotonic() + TIMELINE_SECONDS
                if shown.loading:
                    updates[self.header] = self._loading_header(asked.model, shown.loading)
                    waiting = True
                elif shown.loaded is not None:
                    waiting = False
                elif shown.over and waiting:
                    updates[self.header] = self._model_header(asked.model)
                yield updates

    def started(self, http: gr.Request) -> Values:
        """The first step of a run was made: what one head keeps is not known yet."""
        visit = self.desk.visits.of(http.session_hash)
        if visit.race is None or visit.selected is not None:
            return gr.skip(), gr.skip()
        return as_json(nothing(NO_PATTERN)), one_line(looks.which(self._kept(visit), before=True))

    def select_step(self, http: gr.Request) -> Updates:
        """The select step was made: what can be looked at while the run goes on."""
        visit = self.desk.visits.of(http.session_hash)
        run = visit.selected
        if run is None:
            return {self.looking: gr.skip()}  # over already, and shown as that
        return self._look(run, visit)

    def over(self, http: gr.Request, *values: Any) -> Updates:
        """A run has ended, or did not begin: everything that shows the last run."""
        free = {
            self.run_button: gr.update(value="Run", interactive=True),
            self.stop_button: gr.update(value="Stop", interactive=False),
        }
        visit = self.desk.visits.of(http.session_hash)
        if not visit.unseen or visit.kept is None:
            run = self._looked_at(visit)
            head = gr.skip() if run is None else self._head(run, visit)
            return {**free, self.heatmap: head, self.looking: one_line(looks.which(run))}
        visit.unseen, visit.seen = False, ""
        return {**free, **self._after(visit.kept, visit, links.link(self._given(values), names_of(values[-1])))}

    def stop(self, http: gr.Request) -> Any:
        """Stop pressed: the running step is the last."""
        self.desk.visits.stop(http.session_hash)
        return gr.update(value="Stopping …", interactive=False)

    def leave(self, http: gr.Request) -> None:
        """The tab was closed."""
        self.desk.visits.leave(http.session_hash)
        forget_session(http.session_hash, self.blocks)

    # ---- comparing prompt lengths ------------------------------------------------------------------------------

    def foresee(self, lengths: Any, *values: Any) -> str:
        """How long the comparison of these lengths will take here."""
        try:
            said = forecast.outlook(self.desk, self._parse(*values), lengths or ())
        except ValueError as error:
            said = str(error)
        return one_line(said)

    async def compare(self, http: gr.Request, lengths: Any, *values: Any) -> AsyncIterator[Values]:
        """A race for each length, streamed row by row."""
        visit = self.desk.visits.of(http.session_hash)
        busy = (gr.update(interactive=False), gr.update(value="Stop", interactive=True), gr.update(interactive=False))
        free = (gr.update(interactive=True), gr.update(value="Stop", interactive=False), gr.update(interactive=True))
        try:
            asked = self._parse(*values)
        except ValueError as error:
            toast(str(error))
            yield (gr.skip(), gr.skip(), *free)
            return
        started, rows_done = False, -1
        async with contextlib.aclosing(comparison_module.compare(self.desk, visit, asked, lengths or ())) as stream:
            async for value in stream:
                if value["rows"]:
                    visit.comparison = value
                over = value["state"] != "running"
                drawn = len(table.done(value["rows"]))
                chart = gr.skip() if drawn == rows_done else _compared(value, visit.pins)
                buttons = free if over else (gr.skip(),) * 3 if started else busy
                if over and not started:
                    # Refused: perhaps beside a run, whose buttons these are.
                    buttons = (*free[:2], gr.skip())
                started, rows_done = True, drawn
                yield (as_json(with_pins(value, visit.pins)), chart, *buttons)

    def pin(self, http: gr.Request) -> Values:
        """Keeps the last comparison in the chart, beside those to come."""
        visit = self.desk.visits.of(http.session_hash)
        visit.pins = pins_module.pin(visit.pins, visit.comparison)
        return self._pinned(visit)

    def unpin(self, http: gr.Request) -> Values:
        """Lets go of all pinned comparisons."""
        visit = self.desk.visits.of(http.session_hash)
        visit.pins = ()
        return self._pinned(visit)

    def _pinned(self, visit: Visit) -> Values:
        return as_json(with_pins(visit.comparison, visit.pins)), _compared(visit.comparison, visit.pins)

    # ---- looking at a run that is over --------------------------------------------------------------------------

    def _kept(self, visit: Visit) -> Kept | None:
        """The visit's last run that is over, or the recorded one before the first."""
        return visit.kept or opening()

    def _looked_at(self, visit: Visit) -> Kept | Selected | None:
        """What the page looks at: the run that goes on, once it has selected, or the last one that is over."""
        last = self._kept(visit)
        return visit.selected or (last and last.showing(visit.seen))

    def show_head(self, http: gr.Request, layer: Any, head: Any) -> Any:
        """The key blocks that one head keeps."""
        visit = self.desk.visits.of(http.session_hash)
        run = self._looked_at(visit)
        if run is None or not run.layers:
            return gr.skip()
        visit.looked_at = (index_in(layer, run.layers), index_in(head, run.heads))
        if visit.race is not None and visit.selected is None:
            return gr.skip()  # what stands there is that this run has not selected yet
        return self._head(run, visit)

    def show_shades(self, http: gr.Request, shades: Any) -> Any:
        """The same head, its importances or its choice alone."""
        visit = self.desk.visits.of(http.session_hash)
        visit.shades = next((name for name in texts.SHADES if name == shades), "both")
        run = self._looked_at(visit)
        return gr.skip() if run is None or not run.layers else self._head(run, visit)

    def show_lane(self, http: gr.Request, lane: Any) -> Values:
        """The same views for the pattern of another lane."""
        visit = self.desk.visits.of(http.session_hash)
        visit.seen = lane if isinstance(lane, str) else ""
        run = self._looked_at(visit)
        if not isinstance(run, Kept) or not run.layers or visit.race is not None:
            return (gr.skip(),) * 5
        return (self._head(run, visit), *self.show_layer(http, visit.looked_at[0]), as_json(looks.model(run)))

    @staticmethod
    def _seen_choices(run: Kept | Selected | None) -> list[tuple[str, str]]:
        """The lanes to choose between; SparseD's alone while a run goes on, and where there is nothing to choose."""
        there = run.lanes if isinstance(run, Kept) and run.sparse is not None else {}
        large = lanes.headline(there) or lanes.PAIR[1]
        others = (lane for lane, made in there.items() if lane != large and not lane.full and made.pattern is not None)
        return [(lane.label, lane.key) for lane in (large, *others)]

    def _head(self, run: Kept | Selected, visit: Visit) -> str:
        return as_json(looks.head(run, *visit.looked_at, visit.shades) or nothing(NO_SELECTION))

    def show_layer(self, http: gr.Request, layer: Any) -> Values:
        """All heads of a layer, how much they share, and how much attention each keeps."""
        views = looks.layer(self._looked_at(self.desk.visits.of(http.session_hash)), index_in(layer, None))
        return (gr.skip(),) * 3 if views is None else tuple(as_json(view) for view in views)

    def observe_later(self, http: gr.Request) -> Values:
        """The tab of the later steps; where the last run was not tracked, the next one will be."""
        view = looks.later(self._kept(self.desk.visits.of(http.session_hash)))
        tabs = gr.update(selected="later")
        return tabs, as_json(view or nothing(TRACK_NEXT)), gr.skip() if view else True

    def show_clicked(self, http: gr.Request, clicked: gr.EventData) -> Values:
        """A thumbnail was clicked: its layer and its head."""
        run = self._looked_at(self.desk.visits.of(http.session_hash))
        place = looks.clicked(sent_with(clicked))
        if run is None or place is None or not (0 <= place[0] < run.layers and 0 <= place[1] < run.heads):
            return (gr.skip(),) * 6
        return (*place, self.show_head(http, *place), *self.show_layer(http, place[0]))

    def _sliders(self, run: Kept | Selected, visit: Visit) -> Updates:
        layer, head = visit.looked_at
        return {
            self.layer: gr.update(maximum=max(1, run.layers - 1), value=layer, interactive=True),
            self.head: gr.update(maximum=max(1, run.heads - 1), value=head, interactive=True),
        }

    def _replay(self, run: Kept | None) -> Any:
        """The replay of a run that is over; a recorded one begins by itself."""
        if run is None:
            return None
        judge, old = self.desk.engine.verdict, not run.live
        way: Literal["step", "clock"] = "clock" if old else "step"
        return replay.replay_value(run.trace, recorded=old, autoplay=old, way=way, judge=judge)

    def _offer_files(self, run: Kept | None, link: str = "") -> Any:
        return None if run is None else files.offer(run, RUNS, link)

    def _look(self, run: Kept | Selected, visit: Visit) -> Updates:
        """The pattern of a run: the head that is looked at, or the last one that this run has, and all heads of its
        layer.
        """
        layer, head = visit.looked_at
        if run.layers:
            visit.looked_at = (min(layer, run.layers - 1), min(head, run.heads - 1))
        choices = self._seen_choices(run)
        overview, overlap, mass = looks.layer(run, visit.looked_at[0]) or (nothing(NO_SELECTION),) * 3
        return {
            self.heatmap: self._head(run, visit),
            self.overview: as_json(overview),
            self.overlap: as_json(overlap),
            self.mass: as_json(mass),
            self.looking: one_line(looks.which(run)),
            self.seen: gr.update(choices=choices, value=choices[0][1], visible=len(choices) > 1),
            **(self._sliders(run, visit) if run.layers else {}),
        }

    def _after(self, run: Kept, visit: Visit, link: str = "") -> Updates:
        """Everything that shows a run that is over, but for its times."""
        return {
            **self._look(run, visit),
            self.replay: as_json(self._replay(run)),
            self.atlas: as_json(looks.model(run) or nothing(NO_SELECTION)),
            self.tracking: as_json(looks.later(run) or nothing(NOT_TRACKED)),
            self.takeaway: as_json(self._offer_files(run, link)),
            self.picture: as_json(looks.picture(run) or nothing(NO_SELECTION)),
        }

    async def open_file(self, http: gr.Request, path: Any) -> AsyncIterator[Updates]:
        """A record that the visitor brings back; it takes the place of the last run."""
        visit = self.desk.visits.of(http.session_hash)
        if visit.running:
            yield {self.upload_said: one_line("A run goes on: stop it, or wait for its end, and open the file then.")}
            return
        try:
            run = await asyncio.to_thread(opened, str(path))
            updates = await asyncio.to_thread(self._after, run, visit)
        except EXPECTED as error:
            yield {self.upload_said: one_line(error_sentence(error))}
            return
        visit.kept, visit.selected, visit.seen = run, None, ""
        # The replay draws the stage.
        updates[self.timeline] = as_json(looks.timeline(run) or nothing(NO_TIMELINE))
        yield {**updates, self.upload_said: ""}

    def follow_link(self, http: gr.Request) -> Values:
        """What a link's query sets; the rest stays as it is."""
        names = (*INPUTS, *FOLLOWING)
        values, problems = links.from_link(dict(http.query_params))
        touched = ",".join(sorted({*values} & {*FOLLOWING, "length"}))
        if values:
            usual = {
                "model": self.desk.models.default, "kind": self.default_kind, "length": next(iter(self.lengths)),
                "question": 0, "text": "", "skip": 0.2, "selection": "paper", "seed": 0, "backend": "auto",
            }  # fmt: skip
            values = self.settings.within(values, self.desk.models.defaults(self.desk.models.default))
            given = {**usual, **values}
            try:
                self._parse(*[given.get(name) for name in names], touched)
            except ValueError as error:
                values, touched = {}, ""
                problems = [f"This link cannot be followed. {error}"]
        for problem in problems:
            toast(problem)
        updates = [gr.update(value=values[name]) if name in values else gr.skip() for name in names]
        return (*updates, touched if values else gr.skip())


def _compared(comparison: dict[str, Any] | None, pins: Any) -> str:
    """The chart of a comparison and of the pinned ones."""
    rows = comparison["rows"] if comparison else ()
    return as_json({"figure": chart_module.chart(rows, pins), "label": chart_label(rows, pins)})


def _time(estimated: cost.Estimate, asked: Request) -> str:
    """How long the race takes, in words; with a threshold it may be over earlier."""
    return cost.about(estimated.seconds) + (" at most" if asked.at_most else "")


def _timeline_label(snapshot: dict[str, Any]) -> str:
    parts = [
        f"{lane['label']}: {lane['step']} of {lane['total']} steps, {lane['ms_per_step']} milliseconds per step"
        for lane in snapshot["lanes"]
        if lane["ms_per_step"] is not None
    ]
    return "Line chart of the time per step. " + "; ".join(parts)
