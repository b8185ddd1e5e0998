"""Where everything stands on the page, and what it shows before anybody has done anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import texts
from app.finished import views
from app.finished.run import Kept, opening
from app.finished.spent import spent
from app.finished.story import story
from app.finished.talk import talk
from app.finished.what_if import LEAST, STEP
from app.lanes import PRESETS
from app.lengths.chart import chart, chart_label
from app.lengths.gains import gains, gains_label
from app.lengths.pins import with_pins
from app.lengths.recorded import legend
from app.page import accuracy
from app.page.inputs import NAMES, Server
from app.page.labels import lane_choices, length_choices, loading_header, model_label, preset_choices, stage_before
from app.page.settings import Component, component, drawer
from app.page.values import files_of, nothing, one_line, replay_of, view_of, what_if_view
from app.race.fields import BY_NAME, MAX_CHARACTERS, OWN_TEXT
from app.series.series import nothing as nothing_asked


@dataclass(frozen=True)
class HeadView:
    """The blocks that one head keeps, and which head that is."""

    layer: gr.Slider
    head: gr.Slider
    # Whose pattern, where a run had more lanes with a pattern than one.
    lane: gr.Dropdown
    shades: gr.Dropdown
    blocks: gr.HTML
    # Another select, tried on the importances that the run has kept; the run's own again; both in a sentence.
    what_if: gr.Slider
    own: gr.Button
    what_if_said: gr.HTML


@dataclass(frozen=True)
class Explorer:
    """What the heads keep, beside each other, and what can be taken away."""

    # Which run is looked at, in a sentence.
    which: gr.HTML
    # Buttons, one for each of the paper's observations.
    observations: list[gr.Button]
    tabs: gr.Tabs
    layer_tab: gr.Tab
    overview: gr.HTML
    overlap: gr.HTML
    mass: gr.HTML
    atlas: gr.HTML
    tracking: gr.HTML
    files: gr.HTML
    upload: gr.UploadButton
    upload_said: gr.HTML


@dataclass(frozen=True)
class Lengths:
    """The same race at several prompt lengths."""

    chosen: gr.Dropdown
    compare: gr.Button
    stop: gr.Button
    pin: gr.Button
    unpin: gr.Button
    said: gr.HTML
    table: gr.HTML
    gains: gr.HTML
    chart: gr.HTML


@dataclass(frozen=True)
class Series:
    """Twenty questions like the last run's."""

    ask: gr.Button
    stop: gr.Button
    count: gr.HTML


@dataclass(frozen=True)
class Components:
    """Everything on the page that a handler reads or changes."""

    header: gr.HTML
    # What can be set, by name, in the order of `app.page.inputs.NAMES`.
    inputs: Mapping[str, Component]
    # The names of those inputs that the visitor has set himself, with commas. It lives in the browser, so that a value
    # set just before Run is pressed counts, however slow the server.
    touched: gr.Textbox
    # Of the page's address, what the settings say; and the key of the last run that is over, which the browser keeps.
    address: gr.Textbox
    last: gr.Textbox
    another: gr.Button
    # Puts an example into the box for a text of one's own.
    insert: gr.Button
    run: gr.Button
    stop: gr.Button
    # What each sets and runs.
    examples: list[tuple[gr.Button, texts.Example]]
    # Sets the further lanes: its values are the keys of `app.lanes.PRESETS`, and OTHER_LANES.
    preset: gr.Dropdown
    # What keeps a run from being made, near Run; selecting it leads back to the model that is here.
    trouble: gr.HTML
    # What the link that led here has set.
    linked: gr.HTML
    panel: gr.HTML
    stage: gr.HTML
    replay: gr.HTML
    timeline: gr.HTML
    head: HeadView
    series: Series
    explorer: Explorer
    lengths: Lengths
    accuracy: accuracy.Accuracy
    # What a step of each kind spends on attention, and on the rest.
    spent: gr.HTML
    # The conversation so far, and where one asks further.
    talk: gr.HTML
    # The scenes of how it works, drawn from the last run.
    story: gr.HTML
    # Leads to the files of the last run, and to its link.
    take: gr.Button

    @property
    def all_inputs(self) -> list[Any]:
        """What a handler is sent, and `app.page.inputs.read` takes."""
        return [*self.inputs.values(), self.touched]

    @property
    def starters(self) -> list[gr.Button]:
        """The buttons that start a race, Run first; they wait while one goes on."""
        examples = (button for button, _ in self.examples)
        return [self.run, *examples, self.explorer.observations[-1], self.series.ask]


def build(server: Server) -> Components:
    """Makes the components, inside the `gr.Blocks` that is being built."""
    desk, first = server.desk, opening()
    header = view_of("header", loading_header(server, desk.models.default, "starting"), "sd-header")
    models = [(model_label(server, name), name) for name in server.models]
    usual = server.models[desk.models.default].defaults
    with gr.Row(elem_id="sd-controls", equal_height=False):
        questions = [(label, name) for name, label in server.kinds.items()] + [("Your own text", OWN_TEXT)]
        kind = component(BY_NAME["kind"], server.default_kind, choices=questions, min_width=120, scale=1)
        start = server.default_length or next(iter(server.lengths))
        length = component(BY_NAME["length"], start, choices=length_choices(server), min_width=120, scale=1)
        preset = gr.Dropdown(
            preset_choices(), value=next(iter(PRESETS)), label="Lanes", info="What is compared.", elem_id="sd-presets",
            min_width=120, scale=1,
        )  # fmt: skip
        run = gr.Button("Run", variant="primary", elem_id="sd-run", min_width=80, scale=0)
        stop = gr.Button("Stop", interactive=False, elem_id="sd-stop", min_width=70, scale=0)
        another = gr.Button("Another question", elem_id="sd-another", min_width=80, scale=0)
        made = drawer(models, desk.models.default, usual, any_model=desk.any_model)
    linked = gr.HTML("", apply_default_css=False, elem_id="sd-linked")
    trouble = view_of("trouble", {"sentence": ""}, "sd-trouble")
    with gr.Row(elem_id="sd-examples"):
        gr.HTML("<span>Try</span>", apply_default_css=False, elem_classes="sd-try")
        examples = [
            (gr.Button(label, size="sm", elem_id=texts.example_id(number), elem_classes="sd-example"), example)
            for number, (label, example) in enumerate(texts.EXAMPLES.items())
            if example.kind in server.kinds and example.length in server.lengths
        ]
        take = gr.Button("Take it away", size="sm", elem_id="sd-take")
    text = gr.Textbox(
        label=BY_NAME["text"].label, info=BY_NAME["text"].help, lines=2, max_lines=8, max_length=MAX_CHARACTERS,
        visible=False, elem_id="sd-text",
    )  # fmt: skip
    insert = gr.Button(texts.INSERT, size="sm", elem_id="sd-insert", visible=False)
    system = gr.Textbox(
        label=BY_NAME["system"].label, info=BY_NAME["system"].help, lines=1, max_lines=4, max_length=MAX_CHARACTERS,
        visible=False, elem_id="sd-system",
    )  # fmt: skip
    panel = view_of("prompt", {"state": "loading"}, "sd-prompt")
    history = gr.Textbox("", visible="hidden", elem_id="sd-history")
    made |= {"kind": kind, "length": length, "text": text, "system": system, "history": history}
    with gr.Column(elem_id="sd-race"):
        stage = view_of("stage", stage_before(server), "sd-stage")
        replay = view_of("replay", replay_of(first, desk.engine.verdict), "sd-replay")
        more = gr.Button(texts.ASK_MORE, size="sm", elem_id="sd-ask", interactive=False)
        with gr.Column(elem_id="sd-time", min_width=0):
            gr.HTML("<h2 class='sd-hidden'>Time per step</h2>", apply_default_css=False)
            timeline = view_of("chart", views.timeline(first) or nothing(texts.NO_TIMELINE), "sd-timeline")
        with gr.Column(elem_id="sd-map", min_width=0):
            head = _head_view(first)
    talking = view_of("talk", talk(None, ""), "sd-talk")
    with gr.Column(elem_id="sd-how", elem_classes="sd-card"):
        gr.HTML("<h2>How it works</h2>", apply_default_css=False)
        scenes = view_of("story", story(first, 1, 0), "sd-story")
        gr.HTML(texts.MORE, apply_default_css=False, elem_id="sd-more")
    with gr.Column(elem_id="sd-where", elem_classes="sd-card"):
        gr.HTML("<h2>Where a step’s time goes</h2>", apply_default_css=False)
        split = view_of("spent", spent(first), "sd-spent")
    with gr.Column(elem_id="sd-series", elem_classes="sd-card"):
        series = _series(more)
    with gr.Column(elem_id="sd-explorer", elem_classes="sd-card"):
        explorer = _explorer(first)
    with gr.Column(elem_id="sd-compare", elem_classes="sd-card"):
        lengths = _lengths(server)
    with gr.Column(elem_id="sd-accuracy", elem_classes="sd-card"):
        weighed = accuracy.build()
    gr.HTML(texts.FOOTER, apply_default_css=False)
    touched = gr.Textbox("", visible="hidden", elem_id="sd-touched")
    address, last = (gr.Textbox("", visible="hidden", elem_id=f"sd-{name}") for name in ("address", "last"))
    return Components(
        header=header, inputs={name: made[name] for name in NAMES}, touched=touched, address=address,
        last=last, another=another, insert=insert, run=run, stop=stop, examples=examples, preset=preset,
        trouble=trouble, linked=linked, panel=panel, stage=stage, replay=replay, timeline=timeline,
        head=head, series=series, explorer=explorer, lengths=lengths, accuracy=weighed, spent=split,
        story=scenes, take=take, talk=talking,
    )  # fmt: skip


def _head_view(first: Kept | None) -> HeadView:
    gr.HTML("<h2>Blocks kept by one head</h2>", apply_default_css=False)
    layers, heads = (1, 1) if first is None else (max(1, first.layers - 1), max(1, first.heads - 1))
    there, seen = first is not None, lane_choices(first)
    with gr.Row(elem_id="sd-head-choice"):
        layer = gr.Slider(
            0, layers, value=min(1, layers), step=1, label="Layer", info="Counted from 0.", interactive=there,
            elem_id="sd-layer", min_width=100,
        )  # fmt: skip
        head = gr.Slider(
            0, heads, value=0, step=1, label="Head", info="Counted from 0.", interactive=there, elem_id="sd-head",
            min_width=100,
        )  # fmt: skip
    with gr.Row(elem_id="sd-head-view"):
        shades = gr.Dropdown(
            [(label, name) for name, label in texts.SHADES.items()], value="both", label="Show",
            info="What the colours of the cells stand for.", elem_id="sd-shades", min_width=100,
        )  # fmt: skip
        lane = gr.Dropdown(
            seen, value=seen[0][1], label="Lane", info="Whose blocks are shown.", elem_id="sd-seen",
            visible=len(seen) > 1, min_width=100,
        )  # fmt: skip
    blocks = view_of("chart", views.head(first, 1, 0) or nothing(texts.NO_PATTERN), "sd-heatmap")
    tried = what_if_view(first, 1, 0, None)
    with gr.Row(elem_id="sd-what-if"):
        select = gr.Slider(
            LEAST, 1, step=STEP, label="What if select were", info="Share of key blocks a head keeps. Nothing is run.",
            elem_id="sd-what-if-select", min_width=100, **tried.slider,
        )  # fmt: skip
        own = gr.Button("Back to the run’s own", size="sm", interactive=False, elem_id="sd-own", min_width=80, scale=0)
    said = gr.HTML(one_line(tried.said), apply_default_css=False, elem_id="sd-what-if-said")
    gr.HTML(texts.MASK_LEGEND, apply_default_css=False)
    return HeadView(layer, head, lane, shades, blocks, select, own, said)


def _explorer(first: Kept | None) -> Explorer:
    gr.HTML("<h2>Look inside</h2>", apply_default_css=False)
    which = gr.HTML(one_line(views.which(first)), apply_default_css=False, elem_id="sd-looking")
    observations = []
    with gr.Row(elem_id="sd-observations"):
        for name, (claim, button) in texts.OBSERVATIONS.items():
            with gr.Column(min_width=220, elem_classes="sd-observation"):
                gr.HTML(f"<p>{claim}</p>", apply_default_css=False)
                observations.append(gr.Button(button, size="sm", elem_id=f"sd-observe-{name}"))
    with gr.Tabs(elem_id="sd-tabs") as tabs:
        with gr.Tab("Heads of one layer", id="layer") as layer_tab:
            heads, shared, kept = views.layer(first, 1) or (nothing(texts.NO_PATTERN),) * 3
            overview = view_of("chart", heads, "sd-overview")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=320):
                    overlap = view_of("chart", shared, "sd-overlap")
                with gr.Column(min_width=320):
                    mass = view_of("chart", kept, "sd-mass")
        with gr.Tab("Whole model", id="model"):
            atlas = view_of("chart", views.model(first) or nothing(texts.NO_PATTERN), "sd-atlas")
        with gr.Tab("Later steps", id="later"):
            tracking = view_of("chart", views.later(first) or nothing(texts.NOT_TRACKED), "sd-tracking")
        with gr.Tab("Take it away", id="takeaway"):
            files = view_of("takeaway", files_of(first), "sd-takeaway")
            upload = gr.UploadButton(
                "Open a record (run.json.gz)", file_types=[".gz", ".json"], elem_id="sd-upload", size="sm"
            )
            said = gr.HTML("", apply_default_css=False, elem_id="sd-upload-said")
    return Explorer(
        which, observations, tabs, layer_tab, overview, overlap, mass, atlas, tracking, files, upload, said
    )


def _series(more: gr.Button) -> Series:
    with gr.Row(elem_id="sd-series-head"):
        gr.HTML("<h2>How often it is right</h2>", apply_default_css=False)
        stop = gr.Button("Stop", interactive=False, size="sm", elem_id="sd-series-stop", min_width=90, scale=0)
    return Series(more, stop, view_of("series", nothing_asked(), "sd-count"))


def _lengths(server: Server) -> Lengths:
    gr.HTML("<h2>Compare prompt lengths</h2>", apply_default_css=False)
    with gr.Row(equal_height=False):
        chosen = gr.Dropdown(
            length_choices(server), value=list(server.lengths)[:2], multiselect=True, label="Prompt lengths",
            elem_id="sd-compare-lengths", min_width=260, scale=4,
            info="The question and the settings above, one race for each length.",
        )  # fmt: skip
        compare = gr.Button("Compare", variant="primary", elem_id="sd-compare-run", min_width=110, scale=1)
        stop = gr.Button("Stop", interactive=False, elem_id="sd-compare-stop", min_width=90, scale=1)
        pin = gr.Button("Pin", elem_id="sd-compare-pin", min_width=90, scale=1)
        unpin = gr.Button("Clear pins", elem_id="sd-compare-clear", min_width=110, scale=1)
    said = gr.HTML("", apply_default_css=False, elem_id="sd-compare-said")
    table = view_of("comparison", with_pins(None, ()), "sd-comparison")
    with gr.Row(elem_id="sd-comparison-charts", equal_height=False):
        with gr.Column(min_width=320, scale=3):
            gr.HTML("<h3>Speed-up against prompt length</h3>", apply_default_css=False)
            factors = view_of("chart", {"figure": gains(), "label": gains_label()}, "sd-gains-chart")
            gr.HTML(legend(), apply_default_css=False)
        with gr.Column(min_width=320, scale=2):
            gr.HTML("<h3>Seconds at each prompt length</h3>", apply_default_css=False)
            seconds = view_of("chart", {"figure": chart(()), "label": chart_label(())}, "sd-comparison-chart")
    return Lengths(chosen, compare, stop, pin, unpin, said, table, factors, seconds)
