"""The page: layout and wiring. What is computed is computed elsewhere; here it is only connected.

Inputs → `request.parse` (once) → `race` → `stage` and `charts` → the components. The components that change
while a run goes on are `gr.HTML` with a JSON value that assets/page.js draws with textContent: text from a
visitor or a model never becomes HTML.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from app import charts, limits, request, stage, words
from app.desk import Desk, Loaded, SelectedPattern, error_sentence, log_error
from app.request import OWN_TEXT, Request
from app.session import EXPECTED, gather, perform
from app.theme import theme

ASSETS = Path(__file__).resolve().parent.parent / "assets"
STYLE, SCRIPT = "page.css", "page.js"
# Below the root of the page: its own style and script, and the plotly.js that the plotly package brings.
STATIC = "sparsed-static"

# Drawing a chart costs the browser more than drawing the lanes: it follows at a slower pace.
TIMELINE_SECONDS = 0.4

# A visitor presses Run to see what this is; the first run should not keep him waiting.
FIRST_RUN_SECONDS = 30.0

NO_TIMELINE = "Each step's time appears here when a run starts."
NO_PATTERN = "The blocks a head keeps appear here at the select step."

Outputs = tuple[Any, ...]


def build_page(desk: Desk, *, default_kind: str, default_length: str | None = None) -> gr.Blocks:
    """The whole page around `desk`. Call `launch(**launch_options())` on what it returns.

    default_length: the prompt length of a fresh page; None takes the longest whose race is done within
    FIRST_RUN_SECONDS on this machine.
    """
    return _Page(desk, default_length, default_kind).build()


def launch_options() -> dict[str, Any]:
    """Arguments for `Blocks.launch` that the page needs: theme, style, script and its static files."""
    return {
        "theme": theme(),
        "head": _head(),
        "app_kwargs": {"routes": _routes()},
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

    class Ours(StaticFiles):
        """assets/page.css and assets/page.js, and nothing else of assets/."""

        async def get_response(self, path: str, scope: Any) -> Any:
            return await super().get_response(path if path in (STYLE, SCRIPT) else "nothing-here", scope)

    return [Route(f"/{STATIC}/plotly.js", plotly_js), Mount(f"/{STATIC}", Ours(directory=ASSETS))]


def _head() -> str:
    def address(name: str, path: Path) -> str:
        return f"{STATIC}/{name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"

    style, script = address(STYLE, ASSETS / STYLE), address(SCRIPT, ASSETS / SCRIPT)
    plotly = _plotly_script()
    version = f"{STATIC}/plotly.js?v={plotly.stat().st_size}"
    return (
        f'<meta name="description" content="{words.TAGLINE}">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="stylesheet" href="{style}">'
        f'<script src="{script}" data-plotly="{version}"></script>'
    )


def _sent(value: Any) -> str:
    """A view's value as text. Gradio's front end walks through every object it is given several times, a string
    it just passes on: with many small updates that is most of the browser's work. No "<" is left in it.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _view(kind: str, value: Any, element: str) -> gr.HTML:
    """A component that assets/page.js draws from a JSON value."""
    return gr.HTML(
        value=_sent(value),
        html_template='<div class="sd-view"></div>',
        # Gradio may run this before the script in the page's head has arrived; then it waits in a list for
        # it.
        js_on_load=(
            f"const go = () => window.sparsed.mount('{kind}', element, props, watch);"
            "window.sparsed ? go() : (window.sparsedWaiting ??= []).push(go);"
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
        self.models = dict(desk.engine.models())
        self.default_length = default_length
        self.default_kind = default_kind

    # ---- layout --------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        with gr.Blocks(title=words.TITLE, analytics_enabled=False, fill_width=True) as page:
            self.header = _view("header", self._header(None), "sd-header")
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
            self.stage = _view("stage", self._opening(), "sd-stage")
            with gr.Row(elem_id="sd-charts", equal_height=False):
                with gr.Column(scale=3, min_width=320, elem_classes="sd-card"):
                    gr.HTML("<h2>Time per step</h2>", apply_default_css=False)
                    self.timeline = _view(
                        "chart", {"figure": charts.empty(NO_TIMELINE), "label": NO_TIMELINE}, "sd-timeline"
                    )
                with gr.Column(scale=2, min_width=320, elem_classes="sd-card"):
                    gr.HTML("<h2>Blocks kept by one head</h2>", apply_default_css=False)
                    with gr.Row(elem_id="sd-head-choice"):
                        self.layer = gr.Slider(
                            0, 1, value=0, step=1, label="Layer (from 0)", interactive=False, elem_id="sd-layer",
                            min_width=120,
                        )  # fmt: skip
                        self.head = gr.Slider(
                            0, 1, value=0, step=1, label="Head (from 0)", interactive=False, elem_id="sd-head",
                            min_width=120,
                        )  # fmt: skip
                    self.heatmap = _view(
                        "chart", {"figure": charts.empty(NO_PATTERN), "label": NO_PATTERN}, "sd-heatmap"
                    )
            with gr.Accordion("How it works", open=False, elem_id="sd-how"):
                gr.HTML(words.HOW, apply_default_css=False)
            gr.HTML(words.FOOTER, apply_default_css=False)
            self.touched = gr.State([])
            self._wire(page)
        return page

    def _settings(self) -> None:
        with gr.Accordion("Settings", open=False, elem_id="sd-settings"):
            with gr.Row():
                self.model = gr.Dropdown(
                    [(label, name) for name, label in self.models.items()],
                    value=self.desk.default_model,
                    label="Model",
                    elem_id="sd-model",
                    min_width=220,
                )
                self.steps = gr.Slider(
                    8, 256, value=64, step=8, label="Denoising steps", elem_id="sd-steps",
                    info="More steps commit fewer tokens at a time.", min_width=220,
                )  # fmt: skip
                self.gen_length = gr.Dropdown(
                    [16, 32, 64, 128, 256], value=64, label="Generation length", elem_id="sd-gen-length",
                    info="Tokens the answer may have.", min_width=220,
                )  # fmt: skip
                self.block_length = gr.Dropdown(
                    [16, 32, 64, 128, 256], value=64, label="Semi-autoregressive block length",
                    elem_id="sd-block-length",
                    info="Blocks of the answer are finished from left to right.", min_width=220,
                )  # fmt: skip
            with gr.Row():
                self.skip = gr.Slider(
                    0.0, 1.0, value=0.2, step=0.05, label="Skip", elem_id="sd-skip",
                    info="Share of the steps before SparseD turns sparse.", min_width=220,
                )  # fmt: skip
                self.select = gr.Slider(
                    0.05, 1.0, value=0.5, step=0.05, label="Select", elem_id="sd-select",
                    info="Share of the key blocks each head keeps.", min_width=220,
                )  # fmt: skip
                self.block_size = gr.Dropdown(
                    [32, 64, 128], value=32, label="Attention block size", elem_id="sd-block-size",
                    info="Tokens per block of queries and keys.", min_width=220,
                )  # fmt: skip
                self.backend = gr.Dropdown(
                    list(request.BACKENDS), value="auto", label="Sparse attention backend", elem_id="sd-backend",
                    info="auto: the fastest on this machine.", min_width=220,
                )  # fmt: skip
            with gr.Row():
                self.question = gr.Number(
                    value=0, precision=0, minimum=0, maximum=2**31 - 1, label="Question number", elem_id="sd-question",
                    info="Each number makes another prompt.", min_width=220,
                )  # fmt: skip
                self.seed = gr.Number(
                    value=0, precision=0, minimum=0, maximum=2**31 - 1, label="Sampler seed", elem_id="sd-seed",
                    info="Both lanes use the same.", min_width=220,
                )  # fmt: skip

    def _wire(self, page: gr.Blocks) -> None:
        inputs = [
            self.model, self.kind, self.length, self.question, self.text, self.steps, self.gen_length,
            self.block_length, self.skip, self.select, self.block_size, self.seed, self.backend, self.touched,
        ]  # fmt: skip
        prepared = [
            self.header, self.panel, self.length, self.another, self.text, self.select, self.block_size,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(self.open, inputs, prepared, **quiet)
        # A value the visitor has set himself is not moved when the prompt length changes.
        for component, name in ((self.select, "select"), (self.block_size, "block_size")):
            component.input(self._touch(name), self.touched, self.touched, queue=False, **quiet).then(
                self.prepare, inputs, prepared, **quiet
            )
        gr.on(
            [
                self.model.input, self.kind.input, self.length.input, self.question.input,
                self.text.change,  # its input event misses what is pasted or deleted
                self.steps.input, self.gen_length.input, self.block_length.input, self.skip.input, self.backend.input,
            ],
            self.prepare, inputs, prepared, trigger_mode="always_last", **quiet,
        )  # fmt: skip
        self.another.click(
            lambda n: int(n or 0) + 1, self.question, self.question, queue=False, **quiet
        ).then(self.prepare, inputs, prepared, **quiet)
        shown = [
            self.stage, self.timeline, self.heatmap, self.layer, self.head, self.run_button, self.stop_button,
        ]  # fmt: skip
        self.run_button.click(self.run, inputs, shown, concurrency_limit=None, **quiet)
        self.stop_button.click(self.stop, None, self.stop_button, queue=False, **quiet)
        gr.on(
            [self.layer.input, self.head.input], self.show_pattern, [self.layer, self.head], self.heatmap,
            queue=False, trigger_mode="always_last", **quiet,
        )  # fmt: skip
        page.unload(self.leave)

    # ---- small values --------------------------------------------------------------------------------------

    @staticmethod
    def _touch(name: str) -> Any:
        return lambda touched: sorted({*touched, name})

    def _length_label(self, name: str, remark: str = "") -> str:
        shown = name.replace("_", " ")
        return f"{shown} · {remark}" if remark else f"{shown} · {self.lengths[name]:,} tokens"

    def _header(self, loaded: Loaded | None, problem: str = "") -> dict[str, Any]:
        if loaded is None:
            chips = [problem or f"loading {self.desk.default_model} …"]
        else:
            chips = [loaded.name, loaded.place, self.desk.engine.backend(loaded.model)]
        return {
            "title": words.TITLE,
            "tagline": words.TAGLINE,
            "chips": chips,
            "busy": loaded is None and not problem,
        }

    def _opening(self) -> dict[str, Any]:
        return stage.opening(64, 64, total=64, switch_step=14, message=words.START)

    def _parse(self, *values: Any) -> Request:
        names = (
            "model", "kind", "length", "question", "text", "steps", "gen_length", "block_length", "skip", "select",
            "block_size", "seed", "backend",
        )  # fmt: skip
        given = dict(zip(names, values[:-1], strict=True))
        for name in ("select", "block_size"):
            if name not in (values[-1] or []):
                given[name] = None
        return request.parse(**given, models=self.models, kinds=self.kinds, lengths=self.lengths)

    # ---- handlers ------------------------------------------------------------------------------------------

    async def open(self, *values: Any) -> Outputs:
        """A fresh page: like `prepare`, with the prompt length that suits this machine."""
        given = list(values)
        if self.default_length is None:
            with contextlib.suppress(*EXPECTED):  # what is wrong with the model is said by `prepare`
                asked = self._parse(*values)
                loaded = await asyncio.to_thread(self.desk.load, asked.model)
                given[2] = self.desk.longest(loaded, asked, FIRST_RUN_SECONDS)
        header, panel, length, *rest = await self.prepare(*given)
        return (header, panel, {**length, "value": given[2]}, *rest)

    async def prepare(self, *values: Any) -> Outputs:
        """Shows the prompt, its length, what the run will cost, and moves what the visitor has not set."""
        own = values[1] == OWN_TEXT
        shown = (gr.update(visible=not own), gr.update(visible=not own), gr.update(visible=own))
        rest = (gr.skip(), gr.skip())
        if own and not str(values[4] or "").strip():
            return (gr.skip(), _sent({"state": "empty"}), *shown, *rest)
        try:
            asked = self._parse(*values)
        except ValueError as error:
            return (gr.skip(), _sent({"state": "problem", "problem": str(error)}), *shown, *rest)
        try:
            loaded = await asyncio.to_thread(self.desk.load, asked.model)
            return await asyncio.to_thread(self._prepared, asked, loaded)
        except EXPECTED as error:
            log_error(error)
            loaded_before = self.desk.loaded(asked.model)
            header = gr.skip() if loaded_before else _sent(self._header(None, "no model"))
            return (header, _sent({"state": "problem", "problem": error_sentence(error)}), *shown, *rest)

    def _prepared(self, asked: Request, loaded: Loaded) -> Outputs:
        own = asked.kind == OWN_TEXT
        material = gather(self.desk, asked, loaded)
        asked, total = material.asked, material.tokens + asked.gen_length
        remarks = request.notes(asked)
        trained = getattr(loaded.model, "max_positions", None)
        if trained is not None and total > trained:
            remarks.append(
                f"{total:,} tokens are more than the {trained:,} that {loaded.name} was trained on: expect "
                "worse answers."
            )
        estimated = material.estimated
        panel = {
            "state": "ready",
            "question": material.question,
            "text": material.text,
            "tokens": material.tokens,
            "gold": material.gold is not None,
            "estimate": f"{limits.about(estimated.seconds)} on this machine" if estimated else "",
            "refused": material.refused or "",
            "notes": remarks,
        }
        return (
            _sent(self._header(loaded)),
            _sent(panel),
            gr.update(choices=self._length_choices(asked, loaded), visible=not own),
            gr.update(visible=not own),
            gr.update(visible=own),
            gr.update(value=asked.attention.select),
            gr.update(value=asked.attention.block_size),
        )

    def _length_choices(self, asked: Request, loaded: Loaded) -> list[tuple[str, str]]:
        """Every prompt length, with the time it takes here, or the reason why it is too long for this
        machine.
        """
        here = replace(self.desk.limits, memory=limits.available_memory())
        choices = []
        for name, tokens in self.lengths.items():
            estimated = self.desk.estimate(loaded, asked.resolve(tokens, loaded.model), tokens)
            reason = limits.reason(estimated, here, length=tokens + asked.gen_length)
            remark = limits.about(estimated.seconds) if estimated else ""
            choices.append((self._length_label(name, f"too long here: {reason}" if reason else remark), name))
        return choices

    async def run(self, http: gr.Request, *values: Any) -> AsyncIterator[Outputs]:
        """One race, streamed: the first value says that it is being prepared, the last how it ended."""
        busy = (gr.update(value="Running …", interactive=False), gr.update(value="Stop", interactive=True))
        free = (gr.update(value="Run", interactive=True), gr.update(value="Stop", interactive=False))
        try:
            asked = self._parse(*values)
        except ValueError as error:
            value = stage.opening(64, 64, total=64, switch_step=None, state="refused", message=str(error))
            yield (_sent(value), *[gr.skip()] * 4, *free)
            return
        visit = self.desk.visit(http.session_hash)
        started, next_timeline = False, 0.0
        async with contextlib.aclosing(perform(self.desk, visit, asked)) as stream:
            async for shown in stream:
                timeline, heatmap, sliders = gr.skip(), gr.skip(), (gr.skip(), gr.skip())
                if shown.timeline is not None and (shown.over or time.monotonic() >= next_timeline):
                    timeline = _sent({"figure": shown.timeline, "label": _timeline_label(shown.stage)})
                    next_timeline = time.monotonic() + TIMELINE_SECONDS
                elif not started:
                    timeline = _sent({"figure": charts.empty(NO_TIMELINE), "label": NO_TIMELINE})
                    heatmap = _sent({"figure": charts.empty(NO_PATTERN), "label": NO_PATTERN})
                if shown.selected is not None:
                    layer, head = min(1, shown.selected.layers - 1), 0
                    heatmap = _heatmap(shown.selected, layer, head)
                    sliders = (
                        gr.update(maximum=max(1, shown.selected.layers - 1), value=layer, interactive=True),
                        gr.update(maximum=max(1, shown.selected.heads - 1), value=head, interactive=True),
                    )
                buttons = free if shown.over else (gr.skip(), gr.skip()) if started else busy
                started = True
                yield (_sent(shown.stage), timeline, heatmap, *sliders, *buttons)

    def stop(self, http: gr.Request) -> Any:
        """Stop pressed: the running step is the last."""
        self.desk.stop(http.session_hash)
        return gr.update(value="Stopping …", interactive=False)

    def leave(self, http: gr.Request) -> None:
        """The tab was closed."""
        self.desk.leave(http.session_hash)

    def show_pattern(self, http: gr.Request, layer: Any, head: Any) -> Any:
        """The block mask of one head of the visit's last run."""
        selected = self.desk.visit(http.session_hash).selected
        return gr.skip() if selected is None else _heatmap(selected, layer, head)


def _heatmap(selected: SelectedPattern, layer: Any, head: Any) -> str:
    layer = max(0, min(int(layer or 0), selected.layers - 1))
    head = max(0, min(int(head or 0), selected.heads - 1))
    pattern, layout = selected.pattern, selected.pattern.layout
    figure = charts.heatmap(
        pattern.mask(layer, head).tolist(),
        layer=layer,
        head=head,
        length=layout.length,
        prompt_length=layout.prompt_length,
        block_size=layout.block_size,
        prompt_blocks=layout.prompt_blocks,
    )
    return _sent({"figure": figure, "label": figure["layout"]["title"]["text"]})


def _timeline_label(snapshot: dict[str, Any]) -> str:
    parts = [
        f"{lane['label']}: {lane['step']} of {lane['total']} steps, {lane['ms_per_step']} milliseconds per step"
        for lane in snapshot["lanes"]
        if lane["ms_per_step"] is not None
    ]
    return "Line chart of the time per step. " + "; ".join(parts)
