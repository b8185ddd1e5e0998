"""Who listens to what: the page is put together here.

Inputs → a `Request` (once) → a race → snapshots and figures → the components. Those that change while a run goes on are
`gr.HTML` with a JSON value that assets/page/ draws with textContent: text from a visitor or a model never becomes HTML.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from app import texts
from app.api import endpoints
from app.lanes import PRESETS
from app.page import layout
from app.page.accuracy import Accuracy, Weighing
from app.page.asking import Asking
from app.page.comparing import Comparing
from app.page.inputs import NAMES, Server
from app.page.labels import OTHER_LANES
from app.page.layout import Components
from app.page.links import Links
from app.page.looking import Looking
from app.page.preparing import Preparing
from app.page.running import Running
from app.page.talking import Talking
from app.race.fields import FOLLOWING
from app.server.desk import Desk
from app.server.gradio_internals import SHOW_API, forget_session, look_for_work_every

# How often gradio looks whether there is something to do.
QUEUE_SECONDS = 0.02
# What visitors uploaded is deleted after so long.
UPLOADS_SECONDS = 3600
# Runs in the browser: adds a name to those of the settings that the visitor has set himself.
# A list that is opened and left says that it was set as well: what it held when it was opened is not.
_TOUCH = """(names, value) => {
    const name = "%s", held = window.sparsedHeld?.[name], now = JSON.stringify(value);
    return held === now ? names : [...new Set([...(names ?? "").split(","), name])].filter(Boolean).sort().join(",");
}"""
_HOLD = """(value) => { (window.sparsedHeld ??= {})["%s"] = JSON.stringify(value); }"""
# In the browser too: the further lanes of a preset, and the preset that has these lanes.
_LANES_OF = f"(preset, lanes) => [({json.dumps(PRESETS)})[preset] ?? lanes]"
_PRESET_OF = (
    f"(lanes) => Object.entries({json.dumps(PRESETS)}).find(([, own]) => own.length === (lanes ?? []).length"
    f" && own.every((name) => lanes.includes(name)))?.[0] ?? {json.dumps(OTHER_LANES)}"
)
# How the visitor came to the page, his own text of before in this tab, and what was said before it.
_ARRIVED = """() => [
    performance.getEntriesByType("navigation")[0]?.type ?? "",
    ...["text", "history"].map((name) => sessionStorage.getItem(`sparsed-${name}`) ?? "")]"""
# What this tab keeps until it is loaded anew; a browser may have no room for a long text.
_REMEMBER = """(value) => { try { sessionStorage.setItem("sparsed-%s", value ?? ""); } catch {} }"""
_TO_EXPLORER = """() => { document.getElementById("sd-explorer").scrollIntoView(); return []; }"""
_LAST = """() => [sessionStorage.getItem("sparsed-last") ?? ""]"""
# Puts the settings into the page's address, beside what else stands there.
_ADDRESS = f"""(query) => {{
    const url = new URL(location.href);
    for (const name of {json.dumps([*NAMES, "third"])}) url.searchParams.delete(name);
    for (const [name, value] of new URLSearchParams(query ?? "")) url.searchParams.set(name, value);
    history.replaceState(history.state, "", url);
}}"""
# What comes from the browser may be anything. `request.parse` and the handlers check it, in sentences of ours;
# gradio's own checks would refuse what a link has set, and every event after it.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
# At once, past the line of events that wait; gradio shows no sentence that such an event raises or warns of.
_AT_ONCE: dict[str, Any] = {"queue": False, **_QUIET}
_LOOK: dict[str, Any] = {"trigger_mode": "always_last", **_AT_ONCE}
# A preparation may wait for a model, and a run for the device; nobody else's may wait for it.
_LONG: dict[str, Any] = {"concurrency_limit": None, **_QUIET}


def build_page(desk: Desk, *, default_kind: str, default_length: str | None = None) -> gr.Blocks:
    """The whole page around `desk`. Call `launch(**serving.launch_options(desk))` on what it returns.

    default_length: the prompt length of a fresh page; None takes the longest whose race is done within
    `preparing.FIRST_RUN_SECONDS` on this machine.
    """
    server = Server(desk, default_kind, default_length)
    with gr.Blocks(
        title=texts.TITLE, analytics_enabled=False, fill_width=True, delete_cache=(UPLOADS_SECONDS, UPLOADS_SECONDS)
    ) as page:
        components = layout.build(server)
        endpoints.add(desk)
        preparing, looking = Preparing(server, components), Looking(server, components)
        asking = Asking(server, len(components.starters))
        talking = Talking(server, components)
        running = Running(server, components, looking, asking, talking)
        _before_a_run(page, components, preparing, running, Links(server))
        _a_run(components, preparing, running, looking)
        page.load(None, None, None, js=SHOW_API)
        shown = [*_shows_a_run(components), components.timeline]
        again = page.load(looking.again, components.last, shown, js=_LAST, **_LONG)
        again.then(talking.offer, None, components.talk, **_AT_ONCE)
        _talking(components, preparing, running, talking)
        components.last.change(None, components.last, None, js=_REMEMBER % "last", **_AT_ONCE)
        _looking(components, preparing, running, looking)
        _asking(components, preparing, running, asking)
        _comparing(components, running, Comparing(server, len(components.starters)), asking)
        _weighing(components.accuracy, Weighing(server))

        def leave(http: gr.Request) -> None:
            """The tab was closed."""
            desk.visits.leave(http.session_hash)
            forget_session(http.session_hash, page)

        page.unload(leave)
    # No event is run past the queue.
    page.queue(api_open=False)
    look_for_work_every(QUEUE_SECONDS, page)
    return page


def _before_a_run(
    page: gr.Blocks, at: Components, preparing: Preparing, running: Running, links: Links
) -> None:
    listed, prepared = at.inputs, _shows_the_next_run(at)
    arrived, sets = [at.last, listed["text"], listed["history"]], [*at.all_inputs, at.linked]
    followed = page.load(links.follow_link, arrived, sets, js=_ARRIVED, **_LONG)
    followed.then(preparing.open, at.all_inputs, prepared, **_LONG)
    at.address.change(None, at.address, None, js=_ADDRESS, **_AT_ONCE)
    for name in ("text", "history"):
        listed[name].change(None, listed[name], None, js=_REMEMBER % name, **_AT_ONCE)
    # The preset of lanes is named after the lanes, whoever chose them.
    named = (None, listed["lanes"], at.preset)
    followed.then(*named, js=_PRESET_OF, **_AT_ONCE)
    prepare = (preparing.prepare, at.all_inputs, prepared)
    # A value the visitor has set himself is not moved when the model or the prompt length changes.
    for name in FOLLOWING:
        listed[name].input(
            None, [at.touched, listed[name]], at.touched, js=_TOUCH % name, trigger_mode="multiple", **_AT_ONCE
        ).then(*prepare, **_LONG)
        if isinstance(component := listed[name], gr.Dropdown):
            component.focus(None, component, None, js=_HOLD % name, **_AT_ONCE)
    changes = [listed[name].input for name in ("kind", "length", "question")]
    # Their input event misses what is pasted or deleted.
    changes += [listed[name].change for name in ("text", "system")]
    chosen = ("prompt_format", "skip", "selection", "backend", "lanes", "generation_rows", "seed", "track")
    changes += [listed[name].input for name in chosen]
    gr.on(changes, *prepare, trigger_mode="always_last", **_LONG)
    # Another choice ends the waiting for the model chosen before.
    listed["model"].input(*prepare, trigger_mode="multiple", **_LONG)
    default = json.dumps(preparing.server.desk.models.default)
    at.trouble.select(None, None, listed["model"], js=f"() => {default}", **_AT_ONCE).then(*prepare, **_LONG)
    number = listed["question"]
    at.another.click(None, number, number, js="(number) => (number ?? 0) + 1", **_AT_ONCE).then(*prepare, **_LONG)
    text = listed["text"]
    at.insert.click(preparing.insert, [listed["model"], text], text, **_AT_ONCE)
    for button, example in at.examples:
        values = links.values_of(example)
        sets = [*(listed[name] for name in values), at.touched]
        pressed = button.click(None, None, sets, js=f"() => {json.dumps([*values.values(), ''])}", **_AT_ONCE)
        pressed.then(*prepare, **_LONG)
        pressed.then(*named, js=_PRESET_OF, **_AT_ONCE)
        _race(pressed.then, at, preparing, running)
    at.preset.input(None, [at.preset, listed["lanes"]], listed["lanes"], js=_LANES_OF, **_AT_ONCE).then(
        *prepare, **_LONG
    )
    gr.on([listed["lanes"].input, listed["lanes"].change], *named, js=_PRESET_OF, **_AT_ONCE)


def _shows_the_next_run(at: Components) -> list[Any]:
    moved = [at.inputs[name] for name in ("text", "system", "model", *FOLLOWING)]
    return [at.header, at.trouble, at.address, at.panel, at.inputs["length"], at.another, at.insert, *moved]


def _race(after: Callable[..., Any], at: Components, preparing: Preparing, running: Running) -> None:
    """Runs when `after`, a listener's method, says so. Only what changes with every step is an output of the stream:
    gradio makes each output's component anew for each value, which takes the engine's time.
    """
    buttons = [*at.starters, at.stop, at.trouble, at.talk]
    after(running.begin, None, buttons, **_AT_ONCE).then(
        running.run, at.all_inputs, [at.stage, at.timeline, at.header], **_LONG
    ).then(running.over, at.all_inputs, [*_shows_a_run(at), *buttons], **_LONG).then(
        preparing.reckon, at.all_inputs, [at.panel, at.inputs["length"]], **_LONG
    )


def _talking(at: Components, preparing: Preparing, running: Running, talking: Talking) -> None:
    asks = [at.inputs[name] for name in ("kind", "text", "system", "history", "prompt_format")]
    asked = at.talk.select(talking.ask, None, asks, **_LONG)
    asked.success(preparing.prepare, at.all_inputs, _shows_the_next_run(at), **_LONG)
    _race(asked.success, at, preparing, running)
    for button in (at.talk.clear, at.panel.clear):
        button(talking.anew, None, [*asks[:-1], at.talk], **_AT_ONCE).then(
            preparing.prepare, at.all_inputs, _shows_the_next_run(at), **_LONG
        )


def _shows_a_head(at: Components) -> list[Any]:
    return [at.head.blocks, at.head.own, at.head.what_if_said]


def _shows_a_pattern(at: Components) -> list[Any]:
    see, head = at.explorer, at.head
    place = [head.layer, head.head, head.lane]
    return [*_shows_a_head(at), head.what_if, *place, see.overview, see.overlap, see.mass, see.which]


def _shows_a_run(at: Components) -> list[Any]:
    see = at.explorer
    weighed = [at.accuracy.length, at.accuracy.said, at.accuracy.chart]
    more = [*weighed, at.spent, at.story, at.last, at.lengths.gains]
    return [*_shows_a_pattern(at), at.replay, see.atlas, see.tracking, see.files, *more]


def _a_run(at: Components, preparing: Preparing, running: Running, looking: Looking) -> None:
    _race(at.run.click, at, preparing, running)
    # The stage's view tells these three: the first step was made, the pattern is there, a model was loaded.
    at.stage.play(looking.started, None, [*_shows_a_head(at), at.head.what_if, at.explorer.which], **_AT_ONCE)
    at.stage.select(looking.select_step, None, _shows_a_pattern(at), **_AT_ONCE)
    at.stage.load(preparing.prepare, at.all_inputs, _shows_the_next_run(at), **_LONG)
    at.stop.click(running.stop, None, at.stop, **_AT_ONCE)


def _looking(at: Components, preparing: Preparing, running: Running, looking: Looking) -> None:
    see, head = at.explorer, at.head
    place, layers = [head.layer, head.head], [see.overview, see.overlap, see.mass]
    blocks = _shows_a_head(at)
    gr.on([head.layer.input, head.head.input], looking.show_head, place, blocks, **_LOOK)
    head.shades.input(looking.show_shades, head.shades, blocks, **_LOOK)
    head.what_if.input(looking.show_what_if, head.what_if, blocks, **_LOOK)
    head.own.click(looking.show_own, None, [*blocks, head.what_if], **_AT_ONCE)
    head.lane.input(looking.show_lane, head.lane, [*blocks, head.what_if, *layers, see.atlas], **_LOOK)
    head.layer.input(looking.show_layer, head.layer, layers, **_LOOK)
    see.layer_tab.select(looking.show_layer, head.layer, layers, **_LOOK)
    gr.on(
        [see.overview.click, see.atlas.click], looking.show_clicked, None, [*place, *blocks, *layers], **_LOOK
    )
    at.take.click(lambda: gr.update(selected="takeaway"), None, see.tabs, js=_TO_EXPLORER, **_AT_ONCE)
    differ, stay, early = see.observations
    differ.click(lambda: gr.update(selected="layer"), None, see.tabs, **_AT_ONCE)
    stay.click(looking.observe_later, None, [see.tabs, see.tracking, at.inputs["track"]], **_AT_ONCE)
    skipped = early.click(None, None, at.inputs["skip"], js="() => 0", **_AT_ONCE)
    ready = skipped.then(preparing.prepare, at.all_inputs, _shows_the_next_run(at), **_LONG)
    _race(ready.then, at, preparing, running)
    # But for a file: gradio sees to it that it is one that was uploaded.
    sent = {**_LONG, "preprocess": True}
    see.upload.upload(looking.open_file, see.upload, [*_shows_a_run(at), at.timeline, see.upload_said], **sent).then(
        running.asking.offer, None, at.series.ask, **_AT_ONCE
    )


def _weighing(at: Accuracy, weighing: Weighing) -> None:
    gr.on([at.length.input, at.speed.input], weighing.show, [at.length, at.speed], [at.said, at.chart], **_LOOK)


def _asking(at: Components, preparing: Preparing, running: Running, asking: Asking) -> None:
    of = at.series
    of.ask.click(asking.ask, None, [of.count, at.stop, of.stop, *at.starters], **_LONG).then(
        asking.offer, None, of.ask, **_AT_ONCE
    ).then(preparing.reckon, at.all_inputs, [at.panel, at.inputs["length"]], **_LONG)
    of.stop.click(running.stop, None, of.stop, **_AT_ONCE)


def _comparing(at: Components, running: Running, comparing: Comparing, asking: Asking) -> None:
    of = at.lengths
    shown, asked = [of.table, of.gains, of.chart], [of.chosen, *at.all_inputs]
    of.compare.click(comparing.compare, asked, [*shown, of.compare, of.stop, *at.starters], **_LONG).then(
        asking.offer, None, at.series.ask, **_AT_ONCE
    )
    of.stop.click(running.stop, None, of.stop, **_AT_ONCE)
    of.pin.click(comparing.pin, None, shown, **_LONG)
    of.unpin.click(comparing.unpin, None, shown, **_AT_ONCE)
    of.chosen.input(comparing.foresee, asked, of.said, **_LOOK)
