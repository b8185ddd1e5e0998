"""The table of settings, and everything that is made from it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from app.page.inputs import NAMES, read
from app.page.settings import drawer, follow, within
from app.race.fields import BY_NAME, FIELDS, FOLLOWING, ON_PAGE, OWN_TEXT, usual
from app.race.links import address, from_link, link, said_by_link
from app.race.request import OF_OWN_TEXT, Request, parse
from sparsed.config import AttentionConfig, SamplerConfig
from sparsed.models.catalogue import DREAM_DEFAULTS, GENERIC_DEFAULTS, LLADA_DEFAULTS, MINI_DEFAULTS

# What the engine has and neither page nor programs can ask for here: Dream's finer settings, iLLaDA's push towards the
# end of its thinking, what a lane stands for, what a study sets.
NOT_ASKED_FOR = {
    "sampler": {"top_k", "alg_temp", "eps", "end_think_boost", "end_think_power"},
    "attention": {"method", "keep_importance", "on_no_gain", "isolated", "reuse"},
}
KNOWN: dict[str, Any] = {
    "defaults": GENERIC_DEFAULTS, "models": ["mini"], "kinds": ["about"], "lengths": ["4k"],
}  # fmt: skip


@pytest.mark.parametrize(("home", "config"), [("sampler", SamplerConfig), ("attention", AttentionConfig)])
def test_the_table_and_the_engine_name_the_same_settings(home: str, config: type) -> None:
    ours = {field.name for field in FIELDS if field.home == home}
    theirs = {field.name for field in fields(config)}
    assert NOT_ASKED_FOR[home] <= theirs and ours == theirs - NOT_ASKED_FOR[home]


def test_programs_alone_can_give_stop_strings() -> None:
    assert [field.name for field in FIELDS if not field.on_page] == ["third", "stop"]
    assert [field.name for field in FIELDS if not field.in_api] == ["track"]
    assert BY_NAME["stop"].check(["\n\n", "Q:"]) == ("\n\n", "Q:") and BY_NAME["stop"].check(None) is None
    for wrong in ("Q:", [""], [1], ["x" * 201], ["x"] * 17):
        with pytest.raises(ValueError, match="The value of stop strings must"):
            BY_NAME["stop"].check(wrong)


def test_every_example_can_be_run() -> None:
    from app.texts import EXAMPLES
    from sparsed.questions.lengths import LENGTHS
    from sparsed.questions.world import KINDS

    known = {"defaults": MINI_DEFAULTS, "models": ["mini"], "kinds": KINDS, "lengths": LENGTHS}
    for one in EXAMPLES.values():
        given = usual("mini", one.kind, one.length) | {"question": one.question, "lanes": one.lanes}
        assert len(parse(**given, **known).lanes) == 2 + len(one.lanes)


def test_sentences_of_the_engine_come_to_the_page_with_its_labels() -> None:
    from app.page.trouble import in_page_words
    from app.server.models import load_error

    asked: list[dict[str, Any]] = [
        {"threshold": 0.9, "steps": 16}, {"block_length": 16, "gen_length": 64, "steps": 2}, {"cfg_scale": -1.0},
        {"algorithm": "origin", "confidence_eos_eot_inf": True}, {"top_p": 0.5},
        {"algorithm": "entropy", "threshold": 0.5},
    ]  # fmt: skip
    said = []
    for given in asked:
        with pytest.raises(ValueError) as refused:
            SamplerConfig(**given).resolve(GENERIC_DEFAULTS)
        said.append(in_page_words(str(refused.value)))
    with pytest.raises(ValueError) as refused:
        AttentionConfig(selection="reference", select=1.0)
    said.append(in_page_words(str(refused.value)))
    assert said[0].startswith("With a threshold, “Denoising steps” is an upper bound and must be at least “Gener")
    assert said[-1].startswith("“Select” must be below 1 with selection “as the public code does it”")
    names = [field.name for field in FIELDS if "_" in field.name]
    assert not [(name, one) for one in said for name in names if name in one]
    error = load_error(OSError("no such host"), "LLaDA-8B")
    assert in_page_words(str(error)) == "LLaDA-8B could not be loaded: no such host."
    assert in_page_words("There is no connection (DryRunError).") == "There is no connection."
    # What is no name stays, a visitor's words too.
    assert in_page_words("Your own text has 7 steps.") == "Your own text has 7 steps."


def test_a_switch_is_what_its_word_says() -> None:
    for field in [field for field in FIELDS if field.kind == "switch"]:
        off = None if field.off is False else False
        for no in (False, 0, "false", "No"):
            assert field.check(no) is off
        for yes in (True, 1, "true", " Yes "):
            assert field.check(yes) is True
        for wrong in ("", "off", "maybe", 2, 0.5, [True], {}):
            with pytest.raises(ValueError, match=f"The value of {field.said} must be true or false, not "):
                field.check(wrong)


def test_a_link_says_yes_or_no_by_a_digit() -> None:
    assert from_link({"early_stop": "1", "track": "0"}) == ({"early_stop": True, "track": False}, [])
    assert from_link({"early_stop": "true"}) == (
        {}, ["The link's “Stop at the answer's end” 'true' is neither 1 nor 0: it is left out."],
    )  # fmt: skip


def test_the_table_and_the_request_name_the_same_settings() -> None:
    ours = {field.name for field in FIELDS if field.home == "race"}
    # What a third lane is, is one of the lanes; the format of a prompt is with the chat template or without.
    made = {"sampler", "lanes", "chat", "caches", "left_out"}
    assert ours - {"third", "prompt_format"} | made == {field.name for field in fields(Request)}


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
    following = {field.name for field in FIELDS if field.follows}
    assert set(start) == set(BY_NAME) and {name for name, value in start.items() if value is None} == following
    assert following - set(FOLLOWING) == {"stop"}  # not on the page
    asked = parse(**start, **KNOWN)
    assert asked.sampler == GENERIC_DEFAULTS.resolve(GENERIC_DEFAULTS)
    assert (len(asked.lanes), asked.track, asked.backend, asked.attention.selection) == (2, False, "auto", "paper")


def test_a_setting_that_is_not_in_the_table_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="has no cfg_scal"):
        parse(**usual("mini", "about", "4k"), cfg_scal=1.0, **KNOWN)


def test_every_value_of_a_setting_with_choices_is_taken() -> None:
    for field in FIELDS:
        for value in field.choices or {}:
            held = (value,) if field.kind == "names" else value
            assert field.check(value) == (None if value == field.off else held)
        for number in field.offers:
            assert field.check(number) == number


def test_the_inputs_are_read_by_name() -> None:
    sent = [f"the {name}" for name in NAMES]
    given = read([*sent, "steps,top_p"])
    assert set(BY_NAME) - set(NAMES) == {"stop", "third"}
    assert all(given[name] == f"the {name}" for name in NAMES) and given.touched == {"steps", "top_p"}
    with pytest.raises(ValueError):
        read([*sent[:-1], ""])


def test_every_setting_has_a_component_of_its_name() -> None:
    with gr.Blocks():
        made = drawer([("Mini", "mini")], "mini", GENERIC_DEFAULTS, any_model=False)
    # These stand above the drawer.
    assert set(made) == {field.name for field in ON_PAGE} - {"kind", "length", *OF_OWN_TEXT}
    for name, component in made.items():
        assert (component.label, component.elem_id) == (BY_NAME[name].label, f"sd-{name.replace('_', '-')}")


def test_what_is_typed_into_a_slider_counts_as_far_as_it_may_be() -> None:
    moved = within({"steps": 5000, "top_p": 7, "skip": -1.0, "select": "much", "seed": 2**40})
    assert moved == {"steps": 1024, "top_p": 1.0, "skip": 0.0, "select": "much", "seed": 2**40}
    assert within({"steps": 1000, "temperature": 9}) == {"steps": 1000, "temperature": 9}


@pytest.mark.parametrize("defaults", [GENERIC_DEFAULTS, MINI_DEFAULTS, LLADA_DEFAULTS, DREAM_DEFAULTS])
def test_of_what_stands_as_it_was_made_no_value_is_said(defaults: SamplerConfig) -> None:
    """A page prepares what it was made with while a link's values are on their way to it."""
    with gr.Blocks():
        made = drawer([("Mini", "mini")], "mini", defaults, any_model=False)
    held = {name: component.value for name, component in made.items()}
    asked = parse(**usual("mini", "about", "4k"), **{**KNOWN, "defaults": defaults})
    updates = follow(made, asked.resolve(0), held, ())
    assert updates and not [update for update in updates.values() if {"value", "choices"} & set(update)]


def test_a_slider_reaches_as_far_as_what_it_holds() -> None:
    with gr.Blocks():
        made = drawer([("Mini", "mini")], "mini", GENERIC_DEFAULTS, any_model=False)
    held = {name: component.value for name, component in made.items()} | {"steps": 512, "gen_length": 512}
    touched = {"steps", "gen_length"}
    asked = parse(**{**usual("mini", "about", "4k"), **{name: held[name] for name in touched}}, **KNOWN).resolve(300)
    updates = {name: update for name in made if (update := follow(made, asked, held, touched).get(made[name]))}
    assert (updates["steps"]["maximum"], updates["steps"]["value"]) == (512, 512)
    assert 512 in updates["gen_length"]["choices"] and updates["gen_length"]["value"] == 512


def test_an_address_says_what_differs_and_a_link_what_it_sets() -> None:
    start = usual("mini", "about", None)
    held = usual("mini", "about", "4k") | {"lanes": [], "steps": 64, "threshold": 0.9}
    assert address(held, (), start) == "length=4k" and address(held, (), start | {"length": "4k"}) == ""
    changed = held | {"skip": 0.4, "track": True, "lanes": ["random", "sparsed+dual"]}
    query = dict(parse_qsl(address(changed, ["threshold"], start)))
    assert list(query) == ["length", "skip", "track", "lanes", "threshold"]
    values, problems = from_link(query)
    assert problems == [] and values == {name: changed[name] for name in values}
    said = said_by_link(values | {"kind": "about"}, {"about": "Tell me about …"})
    assert said == (
        "This link sets: question Tell me about …, prompt length 4k, skip 0.4, track the pattern on, further lanes "
        "Random blocks, SparseD + Fast-dLLM, dual · our combination, confidence threshold 0.9."
    )
    assert said_by_link({}, {}) == ""


def test_every_setting_can_be_linked() -> None:
    kinds = {"choice": "mini", "whole": 7, "number": 0.25, "text": "a & b", "switch": True, "turns": "[\"&\"]"}
    given = {field.name: [*(field.choices or [kinds[field.kind]])][-1] for field in ON_PAGE} | {"kind": OWN_TEXT}
    given["lanes"] = [given["lanes"], "random"]
    query = dict(parse_qsl(link(given, FOLLOWING).removeprefix("?")))
    assert from_link(query) == (given, [])


def test_our_two_settings_come_last_and_are_off_until_somebody_wants_them() -> None:
    assert [field.name for field in FIELDS][-7:-5] == ["generation_rows", "refresh"]
    start = usual("mini", "about", "4k")
    assert (start["generation_rows"], start["refresh"]) == ("pattern", None)
    for given, expected in (
        ({}, ("pattern", 0)), ({"generation_rows": "full"}, ("full", 0)), ({"refresh": 6}, ("pattern", 6)),
        ({"refresh": 0, "generation_rows": "pattern"}, ("pattern", 0)),
    ):  # fmt: skip
        found = parse(**{**start, **given}, **KNOWN).resolve(300).attention
        assert (found.generation_rows, found.refresh) == expected
    # A link to the paper's settings says nothing of them, and an old one brings the paper's.
    assert "generation_rows" not in link({**start, "refresh": 0}, ())
    query = dict(parse_qsl(link({**start, "generation_rows": "full", "refresh": 6}, {"refresh"})[1:]))
    values, problems = from_link(query)
    assert (values["generation_rows"], values["refresh"], problems) == ("full", 6, [])


def test_what_no_lane_has_a_cache_for_is_switched_off_with_the_reason() -> None:
    with gr.Blocks():
        made = drawer([("Mini", "mini")], "mini", GENERIC_DEFAULTS, any_model=False)
    assert (made["cache_refresh"].value, made["cache_keys"].value) == (8, "all")
    held = {name: component.value for name, component in made.items()}
    for lanes, on in (
        ((), ()), (("random",), ()), (("dense+dual",), ()), (("dense+refresh",), ("cache_refresh",)),
        (("sparsed+dual",), ("cache_keys",)), (("sparsed+delayed", "dense+dual"), ("cache_refresh", "cache_keys")),
    ):  # fmt: skip
        asked = parse(**{**usual("mini", "about", "4k"), "lanes": lanes}, **KNOWN).resolve(300)
        updates = follow(made, asked, held, ())
        for name in ("cache_refresh", "cache_keys"):
            update = updates[made[name]]
            assert update["interactive"] == (name in on)
            assert (update["info"] == BY_NAME[name].help) == (name in on) and update["info"].endswith(".")
    # One that is typed, or comes with a link, can be shown.
    asked = parse(**{**usual("mini", "about", "4k"), "lanes": ["dense+refresh"], "cache_refresh": 6}, **KNOWN)
    update = follow(made, asked.resolve(300), held | {"cache_refresh": 6}, {"cache_refresh"})[made["cache_refresh"]]
    assert update["choices"] == [2, 4, 6, 8, 16] and update["value"] == 6


def test_a_refresh_of_any_length_can_be_shown() -> None:
    with gr.Blocks():
        made = drawer([("Mini", "mini")], "mini", GENERIC_DEFAULTS, any_model=False)
    assert made["refresh"].choices == [("off", 0), ("4", 4), ("8", 8), ("16", 16)] and made["refresh"].value == 0
    assert made["generation_rows"].choices == [
        ("Follow the pattern (the paper)", "pattern"), ("See all keys (ours)", "full"),
    ]  # fmt: skip
    held = {name: component.value for name, component in made.items()} | {"refresh": 6}
    asked = parse(**{**usual("mini", "about", "4k"), "refresh": 6}, **KNOWN).resolve(300)
    update = follow(made, asked, held, {"refresh"})[made["refresh"]]
    assert update["value"] == 6 and update["choices"] == [("off", 0), ("4", 4), ("6", 6), ("8", 8), ("16", 16)]
