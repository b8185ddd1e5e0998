"""The settings of a run: their components, made from the table, and how they follow the model and the prompt length."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeGuard

import gradio as gr

from app.accuracy.shipped import shipped
from app.accuracy.words import evidence
from app.lanes import USUAL_CACHES, CacheSettings, idle_caches
from app.page.values import one_line
from app.race import request
from app.race.fields import BY_NAME, CPU_BACKENDS, ON_PAGE, Field
from app.race.request import Request
from sparsed.config import AttentionConfig, SamplerConfig

Component = gr.Dropdown | gr.Slider | gr.Number | gr.Checkbox | gr.Textbox
# Heading → the rows below it. What is in the table and in no row comes after the last one of its own kind.
ROWS: dict[str, tuple[tuple[str, ...], ...]] = {
    "": (("model", "prompt_format", "question"),),
    "Sampler": (
        ("algorithm", "steps", "gen_length"), ("block_length", "temperature", "top_p"),
        ("threshold", "cfg_scale", "seed"), ("early_stop", "logits_eos_inf", "confidence_eos_eot_inf"),
    ),
    "SparseD": (
        ("skip", "select", "block_size"), ("selection", "backend"),
        ("generation_rows", "refresh"), ("track",),
    ),
    "Lanes": (("lanes",), ("cache_refresh", "cache_keys")),
}  # fmt: skip
_HOMES = {"sampler": "Sampler", "attention": "SparseD"}
# How much of its row a component takes, and how narrow it may become.
_SHARES = {"model": 4, "question": 1, "algorithm": 2, "steps": 1, "gen_length": 1}
_NARROW, _WIDE = 200, 320
ANY_MODEL_INFO = "Or type a Hub id (owner/name) or a folder. Nothing is downloaded before you press Run."
# assets/page/drawer.js listens to both buttons.
_HANDLE = '<button type="button" class="sd-handle" aria-expanded="false" aria-controls="sd-drawer">Settings</button>'
_DRAWER_HEAD = '<h2>Settings</h2><button type="button" class="sd-close">Close</button>'
STEPS_AT_MOST_INFO = "At most: the run may end before."


def drawer(
    models: list[tuple[str, str]], chosen: str, sampler: SamplerConfig, *, any_model: bool
) -> dict[str, Component]:
    """The components by name, made inside the page that is being built.

    models: (label, name) of each. chosen: the name of the first one; sampler: what it comes with, which the settings
    start with. any_model: others can be typed.
    """
    start = {**_values(sampler.resolve(sampler), AttentionConfig().resolve(0), USUAL_CACHES), "model": chosen}
    made: dict[str, Component] = {}

    def place(names: Iterable[str]) -> None:
        for name in names:
            field = BY_NAME[name]
            more: dict[str, Any] = {}
            if name == "model":
                more = {"choices": models, "allow_custom_value": any_model}
                more |= {"info": ANY_MODEL_INFO} if any_model else {}
            made[name] = component(field, start.get(name, field.usual), **more)

    # A drawer at the edge of the window (assets/page/drawer.css): it covers, and moves nothing. It is no gr.Accordion:
    # what is in one gradio makes when it is opened, and a frame later it fills that anew, over what was typed by then.
    gr.HTML(_HANDLE, apply_default_css=False, elem_id="sd-settings")
    with gr.Column(elem_id="sd-drawer", min_width=0):
        gr.HTML(_DRAWER_HEAD, apply_default_css=False, elem_classes="sd-drawer-head")
        for heading in ROWS:
            if heading:
                gr.HTML(f"<h2>{heading}</h2>", apply_default_css=False)
            for row in _rows(heading):
                # What stands alone takes the width.
                with gr.Row() if len(row) > 1 else contextlib.nullcontext():
                    place(row)
            if heading == "Lanes":
                gr.HTML(one_line(evidence(shipped())), apply_default_css=False, elem_id="sd-recommended")
    return made


def component(field: Field, value: Any, **more: Any) -> Component:
    """What a setting is set with, holding `value`. more: arguments that are not as the table says."""
    share = _SHARES.get(field.name)
    about: dict[str, Any] = {
        "value": value, "label": field.label, "info": field.help, "elem_id": f"sd-{field.name.replace('_', '-')}",
    }  # fmt: skip
    if field.kind == "switch":
        return gr.Checkbox(**{**about, **more})
    about |= {"min_width": _WIDE if (share or 0) > 1 else _NARROW, "scale": share}
    if field.slider is not None:
        low, high, step = field.slider
        return gr.Slider(**{**about, "minimum": low, "maximum": high, "step": step, **more})
    if field.kind == "names":
        named = {"choices": _choices(field, value), "multiselect": True, "max_choices": int(field.high)}
        return gr.Dropdown(**{**about, **named, "value": list(value or ()), **more})
    if field.kind == "choice" or field.choices or field.offers:
        return gr.Dropdown(**{**about, "choices": _choices(field, value), **more})
    return gr.Number(**{**about, "precision": 0, "minimum": field.low, "maximum": field.high, **more})


def within(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values, those of the sliders moved into what they may be: beyond, whatever is typed there means the end."""
    values = dict(given)
    for field in ON_PAGE:
        value = values.get(field.name)
        # What is no number is refused by `request.parse`, and so is one that is none.
        if field.slider is not None and _is_number(value) and value == value:
            values[field.name] = min(max(value, field.low), field.high)
    return values


def follow(
    components: Mapping[str, Component], asked: Request, given: Mapping[str, Any], touched: Collection[str]
) -> dict[Any, Any]:
    """Updates of the components: what the visitor has not set (`touched`) moves to what the run will use, and what the
    algorithm does not have is switched off, with the reason.

    asked: the request, resolved. given: what the components hold, by name.
    """
    unused = {**request.unused(asked.sampler, asked.sampler), **idle_caches(asked.lanes)}
    updates = {}
    for name, value in _values(asked.sampler, asked.attention, asked.caches).items():
        field = BY_NAME[name]
        update: dict[str, Any] = {}
        if name not in touched and value != given[name]:
            update["value"] = value
        # What neither moves nor was set stands there as it was made: a word about it could arrive after a link's value.
        if update or name in touched:
            held = update.get("value", given[name])
            if field.offers and _is_number(held) and held not in (*field.offers, field.off):
                update |= {"value": held, "choices": _choices(field, held)}
            if field.slider is not None and not field.slider[0] <= value <= field.slider[1]:
                # A slider reaches as far as what it holds; said again, because the browser may have moved it back.
                low, high, _ = field.slider
                update |= {"value": value, "minimum": min(low, value), "maximum": max(high, value)}
        if field.trial is not None or field.home == "cache":
            update |= {"interactive": name not in unused, "info": unused.get(name, field.help)}
        if name == "steps":
            update["info"] = STEPS_AT_MOST_INFO if asked.at_most else field.help
        if update:
            updates[components[name]] = gr.update(**update)
    return updates


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rows(heading: str) -> list[tuple[str, ...]]:
    """The rows below a heading, and one for what is in no row."""
    placed = {name for rows in ROWS.values() for row in rows for name in row}
    left = tuple(field.name for field in ON_PAGE if _HOMES.get(field.home) == heading and field.name not in placed)
    return [*ROWS[heading], *([left] if left else [])]


def _values(sampler: SamplerConfig, attention: AttentionConfig, caches: CacheSettings) -> dict[str, Any]:
    """What follows the model and the prompt length, by name, as the components hold it. All are resolved."""
    homes: dict[str, Any] = {"sampler": sampler, "attention": attention, "cache": caches}
    found = {}
    for field in ON_PAGE:
        if field.follows:
            value = getattr(homes[field.home], field.name)
            found[field.name] = field.off if value is None else value
    return found


def _choices(field: Field, value: Any) -> list[Any]:
    """What a dropdown offers; where it only offers some numbers, the one that it holds is among them."""
    if field.offers:
        numbers: list[Any] = sorted({*field.offers, *([value] if value else ())})
        named = [(str(one) if field.kind == "whole" else f"{one:.2f}", one) for one in numbers]
        return numbers if field.off is None else [("off", field.off), *named]
    if field.name == "backend" and not shutil.which("nvidia-smi"):
        # Those that may run here; torch, which would know exactly, is not loaded yet.
        return list(CPU_BACKENDS)
    return [(label, name) for name, label in (field.choices or {}).items()]
