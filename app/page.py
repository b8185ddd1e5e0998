"""The page: layout and wiring. What is computed is computed elsewhere; here it is only connected.

Inputs → `request.parse` (once) → `race` → `stage` and `charts` → the components. The components that change
while a run goes on are `gr.HTML` with a JSON value that assets/page.js draws with textContent: text from a
visitor or a model never becomes HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
import importlib.util
import json
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app import charts, compare, kept, limits, looks, replay, request, stage, takeaway, words
from app.desk import Desk, Loaded, Loading, Visit, error_sentence, log_error
from app.kept import Kept
from app.request import FOLLOWING, OWN_TEXT, SAMPLER_FIELDS, Request
from app.session import EXPECTED, Material, follow, gather, notes, perform
from app.theme import theme
from sparsed.models.catalogue import ModelSpec

ASSETS = Path(__file__).resolve().parent.parent / "assets"
STYLE, SCRIPT = "page.css", "page.js"
# What the page's script is made of, in this order; the later ones define views with the tools of the first.
SCRIPTS = ("page.js", "replay.js", "compare.js", "explore.js")
# Below the root of the page: its own style and script, and the plotly.js that the plotly package brings.
STATIC = "sparsed-static"
# Below the root too: the files of a run, by its key.
RUNS = "sparsed-run"

# Drawing a chart costs the browser more than drawing the lanes: it follows at a slower pace.
TIMELINE_SECONDS = 0.4

# A visitor presses Run to see what this is; the first run should not keep him waiting.
FIRST_RUN_SECONDS = 30.0
# Below this estimated speed-up the page says at which length there is more to see.
WORTH_IT = 1.15

GENERATIONS = (16, 32, 64, 128, 256)
LEAST_STEPS, MOST_STEPS = 8, 256
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
OFF = 0
# What is said below a setting, where the algorithm has nothing else to say.
INFO = {
    "block_length": "Blocks of the answer are finished from left to right.",
    "threshold": "Commits every surer token; ends a run early.",
    "top_p": "Draws from the likeliest; 1 is off.",
}
STEPS_INFO = "More steps, fewer tokens each."
STEPS_AT_MOST_INFO = "At most: the threshold may end it."

NO_TIMELINE = "Each step's time appears here when a run starts."
NO_PATTERN = "The blocks a head keeps appear here at the select step."
NO_SELECTION = "The last run ended before its select step."
NOT_TRACKED = "The last run was not tracked: tick “Track the pattern” in the settings, and run."
TRACK_NEXT = "The last run was not tracked. “Track the pattern” is ticked now: press Run."

# The inputs of a run before those that follow the model, in the order of the page.
INPUTS = ("model", "kind", "length", "question", "text", "skip", "selection", "seed", "backend", "track")
# How many outputs show a run that is over.
AFTER = 8

Outputs = tuple[Any, ...]


def build_page(desk: Desk, *, default_kind: str, default_length: str | None = None) -> gr.Blocks:
    """The whole page around `desk`. Call `launch(**launch_options(desk))` on what it returns.

    default_length: the prompt length of a fresh page; None takes the longest whose race is done within
    FIRST_RUN_SECONDS on this machine.
    """
    return _Page(desk, default_length, default_kind).build()


def launch_options(desk: Desk) -> dict[str, Any]:
    """Arguments for `Blocks.launch` that the page needs: theme, style, script, its static files and its downloads."""
    return {
        "theme": theme(),
        "head": _head(),
        "app_kwargs": {"routes": [*_routes(), _downloads(desk)]},
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": True,
    }


def _plotly_script() -> Path:
    """plotly.js as the installed plotly package ships it; plotly itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ImportError("plotly is not installed; run: pip install -r requirements.txt")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _routes() -> list[Any]:
    plotly = _plotly_script()
    year = {"Cache-Control": "public, max-age=31536000, immutable"}

    async def plotly_js(_: Any) -> FileResponse:
        return FileResponse(plotly, media_type="text/javascript", headers=year)

    async def page_js(_: Any) -> Response:
        return Response(script(), media_type="text/javascript", headers=year)

    async def page_css(_: Any) -> FileResponse:
        return FileResponse(ASSETS / STYLE, media_type="text/css", headers=year)

    return [
        Route(f"/{STATIC}/plotly.js", plotly_js),
        Route(f"/{STATIC}/{SCRIPT}", page_js),
        Route(f"/{STATIC}/{STYLE}", page_css),
    ]


def _downloads(desk: Desk) -> Route:
    async def file(http: Any) -> Response:
        run, name = desk.kept(http.path_params["key"]), http.path_params["name"]
        if run is None or name not in takeaway.FILES:
            said = "This run is not kept any more: the page was closed, or another run took its place."
            return PlainTextResponse(said, status_code=404)
        made = await asyncio.to_thread(takeaway.download, run, name, desk.engine.verdict)
        headers = {"Content-Disposition": f'attachment; filename="{made.name}"', "Cache-Control": "no-store"}
        return Response(made.content, media_type=made.media_type, headers=headers)

    return Route(f"/{RUNS}/{{key}}/{{name}}", file)


def script() -> str:
    """The page's own script, in one piece."""
    parts = [(ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join([*parts, "window.sparsed.start();\n"])


def _head() -> str:
    def address(name: str, content: str) -> str:
        return f"{STATIC}/{name}?v={hashlib.sha256(content.encode()).hexdigest()[:12]}"

    style = address(STYLE, (ASSETS / STYLE).read_text(encoding="utf-8"))
    plotly = _plotly_script()
    version = f"{STATIC}/plotly.js?v={plotly.stat().st_size}"
    return (
        f'<meta name="description" content="{words.TAGLINE}">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="stylesheet" href="{style}">'
        f'<script src="{address(SCRIPT, script())}" data-plotly="{version}"></script>'
    )


def _sent(value: Any) -> str:
    """A view's value as text. Gradio's front end walks through every object it is given several times, a string
    it just passes on: with many small updates that is most of the browser's work. No "<" is left in it.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _view(kind: str, value: Any, element: str) -> gr.HTML:
    """A component that assets/page.js draws from a JSON value."""
    return gr.HTML(
        value=value if isinstance(value, str) else _sent(value),
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


class _Page:
    """Builds the components once; the handlers are its methods. Holds nothing of any visit."""

    def __init__(self, desk: Desk, default_length: str | None, default_kind: str) -> None:
        self.desk = desk
        self.lengths = dict(desk.engine.lengths())
        self.kinds = dict(desk.engine.kinds())
        self.models: dict[str, ModelSpec] = dict(desk.engine.models())
        self.default_length = default_length
        self.default_kind = default_kind

    # ---- layout --------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        with gr.Blocks(title=words.TITLE, analytics_enabled=False, fill_width=True) as page:
            self.header = _view("header", self._loading_header(self.desk.default_model, "starting"), "sd-header")
            with gr.Row(elem_id="sd-controls", equal_height=False):
                self.kind = gr.Dropdown(
                    [(label, name) for name, label in self.kinds.items()] + [("Your own text", OWN_TEXT)],
                    value=self.default_kind,
                    label="Question",
                    elem_id="sd-kind",
                    min_width=180,
                    scale=3,
                )
                self.length = gr.Dropdown(
                    [(self._length_label(name), name) for name in self.lengths],
                    value=self.default_length or next(iter(self.lengths)),
                    label="Prompt length",
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
                    for label, chosen in words.EXAMPLES.items()
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
            self.panel = _view("prompt", {"state": "loading"}, "sd-prompt")
            self._settings()
            first = kept.opening()
            self.stage = _view("stage", self._opening(), "sd-stage")
            self.replay = _view("replay", self._replay(first), "sd-replay")
            with gr.Row(elem_id="sd-charts", equal_height=False):
                with gr.Column(scale=3, min_width=320, elem_classes="sd-card"):
                    gr.HTML("<h2>Time per step</h2>", apply_default_css=False)
                    self.timeline = _view("chart", looks.timeline(first) or _nothing(NO_TIMELINE), "sd-timeline")
                with gr.Column(scale=2, min_width=320, elem_classes="sd-card"):
                    gr.HTML("<h2>Blocks kept by one head</h2>", apply_default_css=False)
                    layers, heads = (1, 1) if first is None else (max(1, first.layers - 1), max(1, first.heads - 1))
                    with gr.Row(elem_id="sd-head-choice"):
                        self.layer = gr.Slider(
                            0, layers, value=min(1, layers), step=1, label="Layer (from 0)",
                            interactive=first is not None, elem_id="sd-layer", min_width=120,
                        )  # fmt: skip
                        self.head = gr.Slider(
                            0, heads, value=0, step=1, label="Head (from 0)", interactive=first is not None,
                            elem_id="sd-head", min_width=120,
                        )  # fmt: skip
                    self.heatmap = _view("chart", looks.head(first, 1, 0) or _nothing(NO_PATTERN), "sd-heatmap")
                    gr.HTML(words.MASK_LEGEND, apply_default_css=False)
            self._explorer(first)
            self._comparison()
            with gr.Accordion("How it works", open=False, elem_id="sd-how"):
                gr.HTML(words.HOW, apply_default_css=False)
                self.picture = _view("chart", looks.picture(first) or _nothing(NO_PATTERN), "sd-picture")
            gr.HTML(words.FOOTER, apply_default_css=False)
            self.touched = gr.State([])
            self._wire(page)
        return page

    def _explorer(self, first: Kept | None) -> None:
        """What the heads keep, beside each other."""
        with gr.Column(elem_id="sd-explorer", elem_classes="sd-card"):
            gr.HTML("<h2>Look inside</h2>", apply_default_css=False)
            with gr.Row(elem_id="sd-observations"):
                self.observations = []
                for name, (claim, button) in words.OBSERVATIONS.items():
                    with gr.Column(min_width=220, elem_classes="sd-observation"):
                        gr.HTML(f"<p>{claim}</p>", apply_default_css=False)
                        self.observations.append(gr.Button(button, size="sm", elem_id=f"sd-observe-{name}"))
            with gr.Tabs(elem_id="sd-tabs") as self.tabs:
                with gr.Tab("Heads of one layer", id="layer") as self.layer_tab:
                    self.overview = _view("chart", _nothing(NO_PATTERN), "sd-overview")
                    with gr.Row(equal_height=False):
                        with gr.Column(min_width=320):
                            self.overlap = _view("chart", _nothing(NO_PATTERN), "sd-overlap")
                        with gr.Column(min_width=320):
                            self.mass = _view("chart", _nothing(NO_PATTERN), "sd-mass")
                with gr.Tab("Whole model", id="model"):
                    self.atlas = _view("chart", looks.model(first) or _nothing(NO_PATTERN), "sd-atlas")
                with gr.Tab("Later steps", id="later"):
                    self.tracking = _view("chart", looks.later(first) or _nothing(NOT_TRACKED), "sd-tracking")
                with gr.Tab("Take it away", id="takeaway"):
                    self.takeaway = _view("takeaway", self._offer_files(first), "sd-takeaway")
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
            self.comparison = _view("comparison", compare.with_pins(None, ()), "sd-comparison")
            self.comparison_chart = _view(
                "chart", {"figure": compare.chart(()), "label": compare.chart_label(())}, "sd-comparison-chart"
            )

    def _settings(self) -> None:
        """The settings start as the default model's; `prepare` moves them with the model and the prompt length."""
        usual = self.models[self.desk.default_model].defaults
        usual = usual.resolve(usual)
        number: dict[str, Any] = {"precision": 0, "minimum": 0, "maximum": 2**31 - 1, "min_width": 200}
        slim: dict[str, Any] = {"min_width": 200}
        with gr.Accordion("Settings", open=False, elem_id="sd-settings"):
            with gr.Row():
                self.model = gr.Dropdown(
                    [(self._model_label(name), name) for name in self.models],
                    value=self.desk.default_model, label="Model", elem_id="sd-model", min_width=320, scale=4,
                    info="Choosing one downloads nothing: that begins when you press Run.",
                )  # fmt: skip
                self.question = gr.Number(
                    value=0, label="Question number", elem_id="sd-question", info="Each number makes another prompt.",
                    scale=1, **number,
                )  # fmt: skip
            gr.HTML("<h2>Sampler</h2>", apply_default_css=False)
            with gr.Row():
                self.algorithm = gr.Dropdown(
                    [(label, name) for name, label in words.ALGORITHMS.items()], value=usual.algorithm,
                    label="Algorithm", elem_id="sd-algorithm", info="Which tokens each step commits.",
                    min_width=320, scale=2,
                )  # fmt: skip
                self.steps = gr.Slider(
                    LEAST_STEPS, MOST_STEPS, value=usual.steps, step=8, label="Denoising steps", elem_id="sd-steps",
                    info=STEPS_INFO, scale=1, **slim,
                )  # fmt: skip
                self.gen_length = gr.Dropdown(
                    _numbers(usual.gen_length), value=usual.gen_length, label="Generation length",
                    elem_id="sd-gen-length", info="Tokens the answer may have.", scale=1, **slim,
                )  # fmt: skip
            with gr.Row():
                self.block_length = gr.Dropdown(
                    _numbers(usual.block_length), value=usual.block_length, label="Semi-autoregressive block length",
                    elem_id="sd-block-length", info=INFO["block_length"], **slim,
                )  # fmt: skip
                self.temperature = gr.Slider(
                    0.0, 2.0, value=usual.temperature, step=0.05, label="Temperature", elem_id="sd-temperature",
                    info="0 takes the likeliest token.", **slim,
                )  # fmt: skip
                self.top_p = gr.Slider(
                    0.05, 1.0, value=usual.top_p, step=0.05, label="Top-p", elem_id="sd-top-p", info=INFO["top_p"],
                    **slim,
                )  # fmt: skip
            with gr.Row():
                self.threshold = gr.Dropdown(
                    [("off", OFF), *((f"{value:.2f}", value) for value in THRESHOLDS)],
                    value=usual.threshold or OFF, label="Confidence threshold", elem_id="sd-threshold",
                    info=INFO["threshold"], **slim,
                )  # fmt: skip
                self.cfg_scale = gr.Slider(
                    0.0, 4.0, value=usual.cfg_scale, step=0.25, label="Guidance (CFG scale)", elem_id="sd-cfg-scale",
                    info="0 is off; above, each step costs twice.", **slim,
                )  # fmt: skip
                self.seed = gr.Number(
                    value=0, label="Sampler seed", elem_id="sd-seed", info="Both lanes use the same.", **number,
                )  # fmt: skip
            gr.HTML("<h2>SparseD</h2>", apply_default_css=False)
            with gr.Row():
                self.skip = gr.Slider(
                    0.0, 1.0, value=0.2, step=0.05, label="Skip", elem_id="sd-skip",
                    info="Share of steps before the switch.", **slim,
                )  # fmt: skip
                self.select = gr.Slider(
                    0.05, 1.0, value=0.5, step=0.05, label="Select", elem_id="sd-select",
                    info="Share of key blocks a head keeps.", **slim,
                )  # fmt: skip
                self.block_size = gr.Dropdown(
                    [32, 64, 128], value=32, label="Attention block size", elem_id="sd-block-size",
                    info="Tokens per block of queries and keys.", **slim,
                )  # fmt: skip
            with gr.Row():
                self.selection = gr.Dropdown(
                    [(label, name) for name, label in words.SELECTIONS.items()], value="paper", label="Selection",
                    elem_id="sd-selection", info="How the blocks to keep are ranked.", **slim,
                )  # fmt: skip
                self.backend = gr.Dropdown(
                    self._backends(), value="auto", label="Sparse attention backend", elem_id="sd-backend",
                    info="auto: the fastest on this machine.", **slim,
                )  # fmt: skip
                self.track = gr.Checkbox(
                    value=False, label="Track the pattern", elem_id="sd-track", min_width=200,
                    info="Selects afresh at four later steps, outside the clock.",
                )  # fmt: skip
        # In the order of `request.FOLLOWING`.
        self.following: list[Any] = [
            self.steps, self.gen_length, self.block_length, self.algorithm, self.temperature, self.threshold,
            self.cfg_scale, self.top_p, self.select, self.block_size,
        ]  # fmt: skip

    def _wire(self, page: gr.Blocks) -> None:
        inputs = [
            self.model, self.kind, self.length, self.question, self.text, self.skip, self.selection, self.seed,
            self.backend, self.track, *self.following, self.touched,
        ]  # fmt: skip
        prepared = [
            self.header, self.panel, self.length, self.another, self.text, self.model, *self.following,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # A preparation may wait for a model; nobody else's may wait for it.
        prepare: dict[str, Any] = {**quiet, "concurrency_limit": None}
        page.load(self.follow_link, None, inputs, **prepare).then(self.open, inputs, prepared, **prepare)
        # A value the visitor has set himself is not moved when the model or the prompt length changes.
        for component, name in zip(self.following, FOLLOWING, strict=True):
            component.input(
                self._touch(name), self.touched, self.touched, queue=False, trigger_mode="always_last", **quiet
            ).then(self.prepare, inputs, prepared, **prepare)
        gr.on(
            [
                self.kind.input, self.length.input, self.question.input,
                self.text.change,  # its input event misses what is pasted or deleted
                self.skip.input, self.selection.input, self.backend.input,
            ],
            self.prepare, inputs, prepared, trigger_mode="always_last", **prepare,
        )  # fmt: skip
        # Another choice ends the waiting for the model chosen before.
        self.model.input(self.prepare, inputs, prepared, trigger_mode="multiple", **prepare)
        self.another.click(
            lambda n: int(n or 0) + 1, self.question, self.question, queue=False, **quiet
        ).then(self.prepare, inputs, prepared, **prepare)
        looked = [self.overview, self.overlap, self.mass]
        after = [self.replay, *looked, self.atlas, self.tracking, self.takeaway, self.picture]
        running = [self.stage, self.timeline, self.heatmap, self.layer, self.head]
        for button, (kind, length, question) in self.examples:
            button.click(
                _constant(kind, length, question), None, [self.kind, self.length, self.question], queue=False, **quiet
            ).then(self.prepare, inputs, prepared, **prepare)
        shown = [*running, self.run_button, self.stop_button, *after]
        run: dict[str, Any] = {"concurrency_limit": None, **quiet}
        self.run_button.click(self.run, inputs, shown + prepared, **run)
        self.stop_button.click(self.stop, None, self.stop_button, queue=False, **quiet)
        chosen = [self.layer, self.head]
        look: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **quiet}
        gr.on([self.layer.input, self.head.input], self.show_head, chosen, self.heatmap, **look)
        self.layer.input(self.show_layer, self.layer, looked, **look)
        gr.on([page.load, self.layer_tab.select], self.show_layer, self.layer, looked, **look)
        gr.on(
            [self.overview.click, self.atlas.click], self.show_clicked, None, [*chosen, self.heatmap, *looked], **look
        )
        differ, stay, early = self.observations
        differ.click(lambda: gr.update(selected="layer"), None, self.tabs, queue=False, **quiet)
        stay.click(self.observe_later, None, [self.tabs, self.tracking, self.track], queue=False, **quiet)
        early.click(lambda: 0.0, None, self.skip, queue=False, **quiet).then(
            self.prepare, inputs, prepared, **prepare
        ).then(self.run, inputs, shown + prepared, **run)
        self.upload.upload(self.open_file, self.upload, [*running, *after, self.upload_said], **run)
        compared = [self.comparison, self.comparison_chart]
        buttons = [self.compare_button, self.compare_stop, self.run_button]
        self.compare_button.click(self.compare, [self.compared, *inputs], [*compared, *buttons], **run)
        self.compare_stop.click(self.stop, None, self.compare_stop, queue=False, **quiet)
        self.pin_button.click(self.pin, None, compared, queue=False, **quiet)
        self.unpin_button.click(self.unpin, None, compared, queue=False, **quiet)
        self.compared.input(self.foresee, [self.compared, *inputs], self.compare_said, **look)
        page.unload(self.leave)

    @staticmethod
    def _backends() -> list[str]:
        """Those that may run here; torch, which would know exactly, is not loaded yet."""
        return list(request.BACKENDS if shutil.which("nvidia-smi") else request.CPU_BACKENDS)

    # ---- small values --------------------------------------------------------------------------------------

    @staticmethod
    def _touch(name: str) -> Any:
        return lambda touched: sorted({*touched, name})

    def _length_label(self, name: str, remark: str = "") -> str:
        shown = name.replace("_", " ")
        return f"{shown} · {remark}" if remark else f"{shown} · {self.lengths[name]:,} tokens"

    def _model_label(self, name: str, remark: str = "") -> str:
        spec = self.models[name]
        size = "" if spec.bundled else f"{spec.download_gb:.1f} GB download"
        return " · ".join(filter(None, (spec.label, remark or size)))

    def _model_choices(self) -> list[tuple[str, str]]:
        """Every model, with what it takes to have it here, or the reason why it is too large for this machine."""
        choices = []
        for name in self.models:
            reason = self.desk.too_large(name)
            remark = f"too large here: {reason}" if reason else ""
            if self.desk.loaded(name) and not self.models[name].bundled:
                remark = "in memory"
            choices.append((self._model_label(name, remark), name))
        return choices

    def _header(self, *chips: str, busy: bool = False) -> str:
        return _sent({"title": words.TITLE, "tagline": words.TAGLINE, "chips": chips, "busy": busy})

    def _loading_header(self, name: str, message: str) -> str:
        return self._header(f"loading {self.models[name].name}", message, busy=True)

    def _model_header(self, name: str) -> str:
        loaded = self.desk.loaded(name)
        if loaded is None:
            return self._header(self.models[name].name, "not in memory")
        return self._header(loaded.model.name, loaded.place, self.desk.engine.backend(loaded.model))

    def _opening(self) -> dict[str, Any]:
        return stage.opening(64, 64, total=64, switch_step=14, message=words.START)

    @staticmethod
    def _given(values: Outputs) -> dict[str, Any]:
        """What the inputs hold, by name."""
        return dict(zip((*INPUTS, *FOLLOWING), values[:-1], strict=True))

    def _parse(self, *values: Any) -> Request:
        given = self._given(values)
        for name in FOLLOWING:
            if name not in (values[-1] or []):
                given[name] = None
        # A model that does not exist is refused by `parse`.
        chosen = given["model"]
        known = chosen if isinstance(chosen, str) and chosen in self.models else self.desk.default_model
        return request.parse(
            **given, defaults=self.desk.defaults(known), models=self.models, kinds=self.kinds, lengths=self.lengths
        )

    # ---- handlers ------------------------------------------------------------------------------------------

    async def open(self, http: gr.Request, *values: Any) -> AsyncGenerator[Outputs, None]:
        """A fresh page: like `prepare`, with the prompt length that suits this machine."""
        linked = "length" in (values[-1] or ())
        async for outputs in self._prepare(http, values, fresh=self.default_length is None and not linked):
            yield outputs

    async def prepare(self, http: gr.Request, *values: Any) -> AsyncGenerator[Outputs, None]:
        """Shows the prompt, its length, what the run will cost, and moves what the visitor has not set. A model that
        is here already is loaded meanwhile, which is shown too.
        """
        async for outputs in self._prepare(http, values):
            yield outputs

    async def _prepare(
        self, http: gr.Request, values: Outputs, *, fresh: bool = False
    ) -> AsyncGenerator[Outputs, None]:
        visit = self.desk.visit(http.session_hash)
        visit.latest = mine = object()
        name, job = str(values[0]), None
        if name in self.models:
            job = self.desk.loading(name) if self.desk.at_once(name) else self.desk.under_way(name)
        if job is not None:
            async for message, new in follow(job):
                if visit.latest is not mine:
                    break
                if new:
                    panel = {"state": "loading", "message": f"{job.label} · {message}"}
                    yield (self._loading_header(name, message), _sent(panel), *self._skip(2))
        outputs = self._skip(0)
        if visit.latest is mine:
            outputs = await asyncio.to_thread(self._prepared, values, job, fresh)
        # Who did something else meanwhile gets to see that. Something must be yielded: from a generator that
        # yields nothing gradio makes an empty value for every output.
        yield outputs if visit.latest is mine else self._skip(0)

    def _skip(self, given: int) -> Outputs:
        """Nothing new for the outputs of a preparation after the first `given`."""
        return tuple(gr.skip() for _ in range(6 + len(FOLLOWING) - given))

    def _prepared(self, values: Outputs, job: Loading | None = None, fresh: bool = False) -> Outputs:
        """Every output of a preparation, for the model as it is now: in memory, on offer, or failed.

        job: its loading, which is over. fresh: choose the prompt length for this machine.
        """
        own = values[1] == OWN_TEXT
        empty = own and not str(values[4] or "").strip()
        header, length, model = gr.skip(), gr.update(visible=not own), gr.skip()
        following: Outputs = tuple(gr.skip() for _ in FOLLOWING)
        try:
            asked = self._parse(*([values[0], self.default_kind, *values[2:]] if empty else values))
            spec = self.models[asked.model]
            model = gr.update(choices=self._model_choices())
            following = self._following(asked.resolve(self.lengths[asked.length], spec), values)
            header = self._model_header(asked.model)
            loaded = job.result() if job is not None and job.over else self.desk.loaded(asked.model)
            if loaded is None:
                # How long a model takes that is not here, nobody knows.
                length = gr.update(choices=[(self._length_label(n), n) for n in self.lengths], visible=not own)
                panel = {"state": "empty"} if empty else self._offer(asked)
            else:
                if fresh:
                    asked = replace(asked, length=self.desk.longest(loaded, asked, FIRST_RUN_SECONDS))
                length = gr.update(choices=self._length_choices(asked, loaded), visible=not own)
                if fresh:
                    length["value"] = asked.length
                if empty:
                    panel = {"state": "empty"}
                else:
                    material = gather(self.desk, asked, loaded)
                    following = self._following(material.asked, values)
                    panel = self._ready(material, loaded)
        except EXPECTED as error:
            if not isinstance(error, ValueError):
                log_error(error)
            panel = {"state": "problem", "problem": error_sentence(error)}
        shown = (gr.update(visible=not own), gr.update(visible=own))
        return (header, _sent(panel), length, *shown, model, *following)

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
            "refused": material.refused or "",
            "notes": []
            if material.refused
            else [*notes(self.desk, material, loaded), *self._where_it_pays(material, loaded)],
        }

    def _where_it_pays(self, material: Material, loaded: Loaded) -> list[str]:
        """At a length without gain: from which on there is one, by this machine's estimates. Built prompts only."""
        asked, here = material.asked, material.estimated
        if here is None or asked.kind == OWN_TEXT or asked.switch_step is None or here.gain >= WORTH_IT:
            return []
        for name, tokens in self.lengths.items():
            there = self.desk.estimate(loaded, asked.resolve(tokens, loaded.model), tokens)
            if tokens > material.tokens and there is not None and there.gain >= WORTH_IT:
                return [
                    f"At this length attention is a small part of the work, and SparseD gains little on this machine; "
                    f"from {name} on ({_time(there, asked)}) it does."
                ]
        return []

    def _offer(self, asked: Request) -> dict[str, Any]:
        """What Run will do first for a model that is not in memory."""
        spec, reason = self.models[asked.model], self.desk.too_large(asked.model)
        first = (
            f"{spec.label} is not in memory: Run downloads it first ({spec.download_gb:.1f} GB, if it is not here "
            "already). The prompt is made with its own tokenizer then."
        )
        return {
            "state": "offer",
            "offer": "" if reason else first,
            "refused": f"{spec.label} is too large for this machine: {reason}." if reason else "",
        }

    def _following(self, asked: Request, values: Outputs) -> Outputs:
        """What the visitor has not set moves to what the run will use; what the algorithm does not have is switched
        off, with the reason.
        """
        touched = values[-1] or []
        given = dict(zip(FOLLOWING, values[-1 - len(FOLLOWING) : -1], strict=True))
        sampler = asked.sampler
        unused = request.unused(sampler, sampler)
        outputs = []
        for name in FOLLOWING:
            value = getattr(sampler if name in SAMPLER_FIELDS else asked.attention, name)
            update: dict[str, Any] = {}
            if name == "threshold":
                value = value or OFF
            if name not in touched and value != given[name]:
                update["value"] = value
                if name in ("gen_length", "block_length"):
                    update["choices"] = _numbers(value)
                if name == "steps":
                    update |= {"minimum": min(LEAST_STEPS, value), "maximum": max(MOST_STEPS, value)}
            if name in INFO:
                update |= {"interactive": name not in unused, "info": unused.get(name, INFO[name])}
            if name == "steps":
                update["info"] = STEPS_AT_MOST_INFO if asked.at_most else STEPS_INFO
            outputs.append(gr.update(**update) if update else gr.skip())
        return tuple(outputs)

    def _length_choices(self, asked: Request, loaded: Loaded) -> list[tuple[str, str]]:
        """Every prompt length, with the time it takes here, or the reason why it is too long for this
        machine.
        """
        room = self.desk.room(loaded)
        choices = []
        for name, tokens in self.lengths.items():
            estimated = self.desk.estimate(loaded, asked.resolve(tokens, loaded.model), tokens)
            reason = limits.reason(estimated, room, length=tokens + asked.gen_length)
            remark = _time(estimated, asked) if estimated else ""
            choices.append((self._length_label(name, f"too long here: {reason}" if reason else remark), name))
        return choices

    async def run(self, http: gr.Request, *values: Any) -> AsyncIterator[Outputs]:
        """One race, streamed: the first value says that it is being prepared, the last how it ended."""
        nothing = tuple(gr.skip() for _ in range(AFTER))
        busy = (gr.update(value="Running …", interactive=False), gr.update(value="Stop", interactive=True))
        free = (gr.update(value="Run", interactive=True), gr.update(value="Stop", interactive=False))
        try:
            asked = self._parse(*values)
        except ValueError as error:
            value = stage.opening(64, 64, total=64, switch_step=None, state="refused", message=str(error))
            yield (_sent(value), *[gr.skip()] * 4, *free, *nothing, *self._skip(0))
            return
        visit = self.desk.visit(http.session_hash)
        started, waiting, next_timeline = False, False, 0.0
        async with contextlib.aclosing(perform(self.desk, visit, asked)) as stream:
            async for shown in stream:
                timeline, heatmap, sliders = gr.skip(), gr.skip(), (gr.skip(), gr.skip())
                if shown.timeline is not None and (shown.over or time.monotonic() >= next_timeline):
                    timeline = _sent({"figure": shown.timeline, "label": _timeline_label(shown.stage)})
                    next_timeline = time.monotonic() + TIMELINE_SECONDS
                elif not started:
                    timeline, heatmap = _sent(_nothing(NO_TIMELINE)), _sent(_nothing(NO_PATTERN))
                after = nothing
                if shown.kept is not None:
                    # The head that is looked at now stays; its view gets what only a whole run has.
                    layer, head = visit.looked_at
                    link = request.link(self._given(values), values[-1] or ())
                    after = await asyncio.to_thread(self._after, shown.kept, layer, link)
                    heatmap = _sent(looks.head(shown.kept, layer, head) or _nothing(NO_SELECTION))
                elif shown.over and shown.timeline is not None and visit.selected is None:
                    heatmap = _sent(_nothing(NO_SELECTION))
                if shown.selected is not None:
                    layer, head = visit.looked_at = (min(visit.looked_at[0], shown.selected.layers - 1), 0)
                    heatmap = _sent(looks.live_head(shown.selected, layer, head))
                    sliders = self._sliders(shown.selected.layers, shown.selected.heads, layer, head)
                buttons = free if shown.over else (gr.skip(), gr.skip()) if started else busy
                started = True
                prepared = self._skip(0)
                if shown.loading:
                    waiting = True
                    prepared = (self._loading_header(asked.model, shown.loading), *self._skip(1))
                elif shown.loaded is not None:
                    waiting = False
                    prepared = await asyncio.to_thread(self._prepared, values)
                elif shown.over and waiting:
                    prepared = (self._model_header(asked.model), *self._skip(1))
                yield (_sent(shown.stage), timeline, heatmap, *sliders, *buttons, *after, *prepared)

    def stop(self, http: gr.Request) -> Any:
        """Stop pressed: the running step is the last."""
        self.desk.stop(http.session_hash)
        return gr.update(value="Stopping …", interactive=False)

    def leave(self, http: gr.Request) -> None:
        """The tab was closed."""
        self.desk.leave(http.session_hash)

    # ---- comparing prompt lengths ------------------------------------------------------------------------------

    def foresee(self, lengths: Any, *values: Any) -> str:
        """How long the comparison of these lengths will take here."""
        try:
            said = compare.outlook(self.desk, self._parse(*values), lengths or ())
        except ValueError as error:
            said = str(error)
        return f"<p>{html.escape(said)}</p>"

    async def compare(self, http: gr.Request, lengths: Any, *values: Any) -> AsyncIterator[Outputs]:
        """A race for each length, streamed row by row."""
        visit = self.desk.visit(http.session_hash)
        busy = (gr.update(interactive=False), gr.update(value="Stop", interactive=True), gr.update(interactive=False))
        free = (gr.update(interactive=True), gr.update(value="Stop", interactive=False), gr.update(interactive=True))
        try:
            asked = self._parse(*values)
        except ValueError as error:
            gr.Warning(str(error))
            yield (gr.skip(), gr.skip(), *free)
            return
        started, rows_done = False, -1
        async with contextlib.aclosing(compare.compare(self.desk, visit, asked, lengths or ())) as stream:
            async for value in stream:
                if value["rows"]:
                    visit.comparison = value
                over = value["state"] != "running"
                drawn = len(compare.done(value["rows"]))
                chart = gr.skip() if drawn == rows_done else _compared(value, visit.pins)
                buttons = free if over else (gr.skip(),) * 3 if started else busy
                if over and not started:
                    # Refused: perhaps beside a run, whose buttons these are.
                    buttons = (*free[:2], gr.skip())
                started, rows_done = True, drawn
                yield (_sent(compare.with_pins(value, visit.pins)), chart, *buttons)

    def pin(self, http: gr.Request) -> Outputs:
        """Keeps the last comparison in the chart, beside those to come."""
        visit = self.desk.visit(http.session_hash)
        visit.pins = compare.pin(visit.pins, visit.comparison)
        return self._pinned(visit)

    def unpin(self, http: gr.Request) -> Outputs:
        """Lets go of all pinned comparisons."""
        visit = self.desk.visit(http.session_hash)
        visit.pins = ()
        return self._pinned(visit)

    def _pinned(self, visit: Visit) -> Outputs:
        return _sent(compare.with_pins(visit.comparison, visit.pins)), _compared(visit.comparison, visit.pins)

    # ---- looking at a run that is over --------------------------------------------------------------------------

    def _kept(self, visit: Visit) -> Kept | None:
        """What the page looks at: the visit's last run, or the recorded one before the first."""
        return visit.kept or kept.opening()

    def show_head(self, http: gr.Request, layer: Any, head: Any) -> Any:
        """The key blocks that one head keeps."""
        visit = self.desk.visit(http.session_hash)
        selected, run = visit.selected, self._kept(visit)
        look = selected or (None if run is None else run.look)
        if look is None:
            return gr.skip()
        layer = max(0, min(int(layer or 0), look.layers - 1))
        head = max(0, min(int(head or 0), look.heads - 1))
        visit.looked_at = (layer, head)
        return _sent(looks.live_head(selected, layer, head) if selected else looks.head(run, layer, head))

    def show_layer(self, http: gr.Request, layer: Any) -> Outputs:
        """All heads of a layer, how much they share, and how much attention each keeps."""
        run = self._kept(self.desk.visit(http.session_hash))
        views = None if run is None else looks.layer(run, int(layer or 0))
        return (gr.skip(),) * 3 if views is None else tuple(_sent(view) for view in views)

    def observe_later(self, http: gr.Request) -> Outputs:
        """The tab of the later steps; where the last run was not tracked, the next one will be."""
        view = looks.later(self._kept(self.desk.visit(http.session_hash)))
        tabs = gr.update(selected="later")
        return tabs, _sent(view or _nothing(TRACK_NEXT)), gr.skip() if view else True

    def show_clicked(self, http: gr.Request, clicked: gr.EventData) -> Outputs:
        """A thumbnail was clicked: its layer and its head."""
        run = self._kept(self.desk.visit(http.session_hash))
        place = looks.clicked(clicked._data or {})
        if run is None or place is None or place[0] >= run.layers or place[1] >= run.heads:
            return (gr.skip(),) * 6
        return (*place, self.show_head(http, *place), *self.show_layer(http, place[0]))

    def _sliders(self, layers: int, heads: int, layer: int, head: int) -> Outputs:
        return (
            gr.update(maximum=max(1, layers - 1), value=layer, interactive=True),
            gr.update(maximum=max(1, heads - 1), value=head, interactive=True),
        )

    def _replay(self, run: Kept | None) -> Any:
        """The replay of a run that is over; a recorded one begins by itself."""
        if run is None:
            return None
        judge, old = self.desk.engine.verdict, not run.live
        way: Literal["step", "clock"] = "clock" if old else "step"
        return replay.replay_value(run.trace, recorded=old, autoplay=old, way=way, judge=judge)

    def _offer_files(self, run: Kept | None, link: str = "") -> Any:
        return None if run is None else takeaway.offer(run, RUNS, link)

    def _after(self, run: Kept, layer: int, link: str = "") -> Outputs:
        """The outputs that show a run that is over."""
        views = looks.layer(run, layer) or (_nothing(NO_SELECTION),) * 3
        return (
            _sent(self._replay(run)),
            *(_sent(view) for view in views),
            _sent(looks.model(run) or _nothing(NO_SELECTION)),
            _sent(looks.later(run) or _nothing(NOT_TRACKED)),
            _sent(self._offer_files(run, link)),
            _sent(looks.picture(run) or _nothing(NO_SELECTION)),
        )

    async def open_file(self, http: gr.Request, path: Any) -> AsyncIterator[Outputs]:
        """A record that the visitor brings back; it takes the place of the last run."""
        visit = self.desk.visit(http.session_hash)
        nothing = (gr.skip(),) * (5 + AFTER)
        if visit.running:
            yield (*nothing, "<p>A run goes on: stop it, or wait for its end, and open the file then.</p>")
            return
        try:
            run = await asyncio.to_thread(kept.opened, str(path))
            after = await asyncio.to_thread(self._after, run, 0)
        except EXPECTED as error:
            yield (*nothing, f"<p>{html.escape(error_sentence(error))}</p>")
            return
        visit.kept, visit.selected, visit.looked_at = run, None, (0, 0)
        sliders = self._sliders(run.layers, run.heads, 0, 0) if run.layers else (gr.skip(), gr.skip())
        yield (
            gr.skip(),  # the replay draws the stage
            _sent(looks.timeline(run) or _nothing(NO_TIMELINE)),
            _sent(looks.head(run, 0, 0) or _nothing(NO_SELECTION)),
            *sliders,
            *after,
            "",
        )

    def follow_link(self, http: gr.Request) -> Outputs:
        """What a link's query sets; the rest stays as it is."""
        names = (*INPUTS, *FOLLOWING)
        values, problems = request.from_link(dict(http.query_params))
        touched = sorted({*values} & {*FOLLOWING, "length"})
        if values:
            usual = {
                "model": self.desk.default_model, "kind": self.default_kind, "length": next(iter(self.lengths)),
                "question": 0, "text": "", "skip": 0.2, "selection": "paper", "seed": 0, "backend": "auto",
            }  # fmt: skip
            given = {**usual, **values}
            try:
                self._parse(*[given.get(name) for name in names], touched)
            except ValueError as error:
                values, touched = {}, []
                problems = [f"This link cannot be followed. {error}"]
        for problem in problems:
            gr.Warning(problem)
        updates = [gr.update(value=values[name]) if name in values else gr.skip() for name in names]
        return (*updates, touched if values else gr.skip())


def _compared(comparison: dict[str, Any] | None, pins: Any) -> str:
    """The chart of a comparison and of the pinned ones."""
    rows = comparison["rows"] if comparison else ()
    return _sent({"figure": compare.chart(rows, pins), "label": compare.chart_label(rows, pins)})


def _constant(*values: Any) -> Any:
    """A handler that gives these values, whatever the page holds."""
    return lambda: values


def _nothing(sentence: str) -> dict[str, Any]:
    """A chart that says why there is nothing to draw yet."""
    return {"figure": charts.empty(sentence), "label": sentence}


def _time(estimated: limits.Estimate, asked: Request) -> str:
    """How long the race takes, in words; with a threshold it may be over earlier."""
    return limits.about(estimated.seconds) + (" at most" if asked.at_most else "")


def _numbers(*more: int | None) -> list[int]:
    """Lengths to choose from, with those that a model brings along."""
    return sorted({*GENERATIONS, *(number for number in more if number)})


def _timeline_label(snapshot: dict[str, Any]) -> str:
    parts = [
        f"{lane['label']}: {lane['step']} of {lane['total']} steps, {lane['ms_per_step']} milliseconds per step"
        for lane in snapshot["lanes"]
        if lane["ms_per_step"] is not None
    ]
    return "Line chart of the time per step. " + "; ".join(parts)
