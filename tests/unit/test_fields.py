"""The table of settings, and everything that is made from it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from app.page.inputs import NAMES, read
from app.page.settings import accordion, within
from app.race.fields import BY_NAME, FIELDS, FOLLOWING, OWN_TEXT, usual
from app.race.links import from_link, link
from app.race.request import Request, parse
from sparsed.config import AttentionConfig, SamplerConfig
from sparsed.models.catalogue import GENERIC_DEFAULTS

# What the engine has and the page does not offer: Dream's finer settings, what a lane stands for, what a study sets.
NOT_ON_THE_PAGE = {
    "sampler": {"top_k", "alg_temp", "eps", "logits_eos_inf", "confidence_eos_eot_inf", "early_stop", "stop"},
    "attention": {"method", "keep_importance", "on_no_gain", "isolated", "reuse"},
}
KNOWN: dict[str, Any] = {
    "defaults": GENERIC_DEFAULTS, "models": ["mini"], "kinds": ["about"], "lengths": ["4k"],
}  # fmt: skip


@pytest.mark.parametrize(("home", "config"), [("sampler", SamplerConfig), ("attention", AttentionConfig)])
def test_the_table_and_the_engine_name_the_same_settings(home: str, config: type) -> None:
    ours = {field.name for field in FIELDS if field.home == home}
    theirs = {field.name for field in fields(config)}
    assert NOT_ON_THE_PAGE[home] <= theirs and ours == theirs - NOT_ON_THE_PAGE[home]


def test_the_table_and_the_request_name_the_same_settings() -> None:
    ours = {field.name for field in FIELDS if field.home == "race"}
    # What a third lane is, is one of the lanes.
    assert ours - {"third"} | {"sampler", "lanes"} == {field.name for field in fields(Request)}


def test_every_setting_is_named_once_and_said_in_words() -> None:
    assert len(BY_NAME) == len(FIELDS)
    for field in FIELDS:
        assert field.label and field.help.endswith("."), field.name
        assert field.doc.endswith(".") == field.in_api, field.name
        assert (field.trial is None) == (not field.lacking), field.name
        if field.slider is not None:
            low, high, step = field.slider
            assert field.low <= low < high <= field.high and 0 < step < high - low, field.name
        assert all(field.low <= number <= field.high for number in field.offers), field.name


def test_what_is_usual_can_be_run_and_is_what_a_fresh_page_asks_for() -> None:
    start = usual("mini", "about", "4k")
    assert set(start) == set(BY_NAME) and {name for name, value in start.items() if value is None} == set(FOLLOWING)
    asked = parse(**start, **KNOWN)
    assert asked.sampler == GENERIC_DEFAULTS.resolve(GENERIC_DEFAULTS)
    assert (len(asked.lanes), asked.track, asked.backend, asked.attention.selection) == (2, False, "auto", "paper")


def test_a_setting_that_is_not_in_the_table_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="has no cfg_scal"):
        parse(**usual("mini", "about", "4k"), cfg_scal=1.0, **KNOWN)


def test_every_value_of_a_setting_with_choices_is_taken() -> None:
    for field in FIELDS:
        for value in field.choices or {}:
            assert field.check(value) == (None if value == field.off else value)
        for number in field.offers:
            assert field.check(number) == number


def test_the_inputs_are_read_by_name() -> None:
    sent = [f"the {name}" for name in NAMES]
    given = read([*sent, "steps,top_p"])
    assert all(given[name] == f"the {name}" for name in BY_NAME) and given.touched == {"steps", "top_p"}
    with pytest.raises(ValueError):
        read([*sent[:-1], ""])


def test_every_setting_has_a_component_of_its_name() -> None:
    with gr.Blocks():
        made = accordion([("Mini", "mini")], "mini", GENERIC_DEFAULTS, any_model=False)
    assert set(made) == set(BY_NAME) - {"kind", "length", "text"}  # these stand above the accordion
    for name, component in made.items():
        assert (component.label, component.elem_id) == (BY_NAME[name].label, f"sd-{name.replace('_', '-')}")


def test_sliders_take_what_lies_beyond_them_at_their_ends() -> None:
    moved = within({"steps": 1000, "top_p": 7, "skip": -1.0, "select": "much", "seed": 2**40}, GENERIC_DEFAULTS)
    assert moved == {"steps": 256, "top_p": 1.0, "skip": 0.0, "select": "much", "seed": 2**40}
    assert within({"steps": 1000}, SamplerConfig(steps=512)) == {"steps": 512}


def test_every_setting_can_be_linked() -> None:
    kinds = {"choice": "mini", "whole": 7, "number": 0.25, "text": "a & b", "switch": True}
    given = {field.name: [*(field.choices or [kinds[field.kind]])][-1] for field in FIELDS} | {"kind": OWN_TEXT}
    query = dict(parse_qsl(link(given, FOLLOWING).removeprefix("?")))
    assert from_link(query) == (given, [])
