"""What the page accepts: every value is checked once, and a wrong one is answered with a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl

import pytest

from app.lanes import FURTHER, PRESETS
from app.race import links
from app.race.fields import BY_NAME, FOLLOWING, MAX_CHARACTERS, MAX_STEPS, OWN_TEXT, usual
from app.race.request import parse, unused
from sparsed.config import ALGORITHMS, SamplerConfig
from sparsed.models.catalogue import DREAM_DEFAULTS, GENERIC_DEFAULTS, LLADA_DEFAULTS

GOOD: dict[str, Any] = {
    "model": "mini", "kind": "about", "length": "4k", "question": 3, "text": "", "steps": 64, "gen_length": 64,
    "block_length": 32, "skip": 0.2, "select": None, "block_size": None, "seed": 0, "backend": "auto",
    "defaults": GENERIC_DEFAULTS, "models": ["mini"], "kinds": ["about", "fact"], "lengths": ["short_context", "4k"],
}  # fmt: skip


def test_what_was_not_set_follows_the_length() -> None:
    asked = parse(**GOOD)
    short, long = asked.resolve(300).attention, asked.resolve(4000 - 64).attention
    assert (short.select, short.block_size) == (0.5, 32)
    assert (long.select, long.block_size) == (0.3, 128)


def test_what_was_set_stays() -> None:
    asked = parse(**{**GOOD, "select": 0.30000000000000004, "block_size": 64.0}).resolve(300)
    assert (asked.attention.select, asked.attention.block_size) == (0.3, 64)


def test_the_switch_is_the_engines() -> None:
    assert parse(**GOOD).switch_step == 14
    assert parse(**{**GOOD, "skip": 1.0}).switch_step is None


def test_own_text_is_kept_as_it_is() -> None:
    text = "  <img src=x onerror=alert(1)>\u202e ‍ 🦊\n"
    assert parse(**{**GOOD, "kind": OWN_TEXT, "text": text}).text == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": None}, "model"),
        ({"kind": "x" * 5000}, "question"),
        ({"length": "5k"}, "prompt length"),
        ({"length": ["4k"]}, "prompt length"),
        ({"backend": "triton'; drop"}, "backend"),
        ({"question": -1}, "question number"),
        ({"question": 1.5}, "question number"),
        ({"kind": OWN_TEXT, "text": " \n\t"}, "empty"),
        ({"kind": OWN_TEXT, "text": None}, "empty"),
        ({"kind": OWN_TEXT, "text": "x" * (MAX_CHARACTERS + 1)}, "characters"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": float("nan")}, "steps"),
        ({"steps": 1}, "gen_length / block_length = 2: 1 is less"),
        ({"gen_length": 0}, "generation length"),
        ({"block_length": -48}, "semi-autoregressive block length"),
        ({"algorithm": "greedy"}, "algorithm 'greedy' is not one of low_confidence"),
        ({"algorithm": ["random"]}, "algorithm"),
        ({"temperature": -1}, "temperature"),
        ({"threshold": 1}, "threshold must lie between 0 and 1"),
        ({"threshold": "high"}, "confidence threshold"),
        ({"threshold": 0.9, "steps": 32}, "steps is an upper bound"),
        ({"cfg_scale": float("inf")}, "CFG scale"),
        ({"algorithm": "entropy", "top_p": 0, "block_length": None}, "top-p"),
        ({"selection": "ours"}, "selection"),
        ({"selection": "reference", "select": 1.0}, "select must be below 1"),
        ({"skip": -0.1}, "skip"),
        ({"skip": "a"}, "skip"),
        ({"skip": float("inf")}, "skip"),
        ({"select": 0}, "select"),
        ({"select": 1.01}, "select"),
        ({"block_size": 48}, "block_size must be one of 32, 64, 128"),
        ({"block_size": 256}, "attention block size"),
        ({"seed": 2**40}, "seed"),
        ({"seed": None}, "seed"),
        ({"third": "sparsed"}, "is not one of none, recommended, full_rows, sliding_window, streaming_llm, "),
        ({"third": ["random"]}, "third lane"),
        ({"lanes": ["fast"]}, "The value 'fast' of further lanes is not one of recommended, full_rows, "),
        ({"lanes": 3}, "must be a list of some of recommended, full_rows, "),
        ({"lanes": [["random"]]}, "is not one of recommended, full_rows, "),
        ({"lanes": list(FURTHER)[:5]}, "must have 4 names at most, not 5"),
        ({"lanes": list(FURTHER)[1:5], "third": "dense+dual"}, "There may be 4 further lanes at most, not 5."),
        ({"generation_rows": "some"}, "generation rows 'some' is not one of pattern, full"),
        ({"refresh": 1}, "With refresh = 1 every step would have full attention: give 2 or more, or 0"),
        ({"refresh": -1}, "refresh must lie between 0 and 1024"),
        ({"refresh": 4.5}, "refresh"),
        ({"refresh": 1025}, "refresh must lie between 0 and 1024"),
        ({"third": "shared", "selection": "reference"}, "“One pattern for all heads” needs the selection of the paper"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="(?i)" + says) as caught:
        parse(**{**GOOD, **change})
    sentence = str(caught.value)
    assert len(sentence) < 300 and "\n" not in sentence


def test_numbers_may_come_as_the_page_sends_them() -> None:
    asked = parse(**{**GOOD, "steps": 64.0, "gen_length": "64", "question": 7.0})
    assert (asked.steps, asked.gen_length, asked.question) == (64, 64, 7)


NOTHING_SET: dict[str, Any] = {**GOOD, **dict.fromkeys(FOLLOWING)}


@pytest.mark.parametrize("defaults", [GENERIC_DEFAULTS, LLADA_DEFAULTS, DREAM_DEFAULTS])
def test_what_was_not_set_follows_the_model(defaults: SamplerConfig) -> None:
    assert parse(**{**NOTHING_SET, "defaults": defaults}).sampler == defaults.resolve(defaults)


def test_settings_that_were_not_set_give_way_to_those_that_were() -> None:
    shorter = parse(**{**NOTHING_SET, "gen_length": 16}).sampler
    assert (shorter.steps, shorter.block_length) == (16, 16)
    surely = parse(**{**NOTHING_SET, "threshold": 0.9, "gen_length": 128})
    assert surely.steps == 128 and surely.at_most and surely.sampler.threshold == 0.9


def test_off_is_off() -> None:
    asked = parse(**{**GOOD, "threshold": 0, "cfg_scale": 0})
    assert asked.sampler.threshold is None and not asked.at_most and asked.rows == 1
    assert parse(**{**GOOD, "cfg_scale": 1.5}).rows == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("defaults", [LLADA_DEFAULTS, DREAM_DEFAULTS])
def test_what_an_algorithm_does_not_have_is_never_sent(algorithm: str, defaults: SamplerConfig) -> None:
    given = {"algorithm": algorithm, "top_p": 0.5, "block_length": 32, "gen_length": 64, "steps": 64, "threshold": 0.9}
    asked = parse(**{**NOTHING_SET, "defaults": defaults, **given}, lenient=True)
    sampler = asked.sampler
    left_out = unused(SamplerConfig(algorithm=algorithm, threshold=0.9), defaults)
    dream = algorithm not in ("low_confidence", "random")
    expected = set() if dream else {"top_p"}
    if algorithm in ("origin", "entropy"):
        expected = {"threshold", "block_length"}
    more = {"origin": {"confidence_eos_eot_inf", "canvas"}, "entropy": {"canvas"}}
    assert set(left_out) == expected | more.get(algorithm, set())
    assert all(left_out.values())
    # The page says it, and programs are told.
    assert {name for name in given if any(BY_NAME[name].label in said for said in asked.left_out)} == expected
    assert len(asked.left_out) == len(expected)
    for name in expected:
        rest = {other: value for other, value in given.items() if other == name or other not in expected}
        with pytest.raises(ValueError, match=f"^The setting {name} would have no effect: leave it out. "):
            parse(**{**NOTHING_SET, "defaults": defaults, **rest})
    assert (sampler.top_p == 0.5) == dream
    assert (sampler.threshold is None) == ("threshold" in expected)
    assert sampler.block_length == (64 if "block_length" in expected else 32)


# A value of each setting that is not what it is anyway.
OTHER: dict[str, Any] = {
    "model": "other", "kind": "fact", "length": "4k", "question": 7, "text": "Hello", "system": "Be short.",
    "prompt_format": "raw", "steps": 16, "gen_length": 32, "block_length": 8, "algorithm": "random", "temperature": 0.7,
    "threshold": 0.8, "cfg_scale": 1.5, "top_p": 0.4, "early_stop": True, "logits_eos_inf": True,
    "confidence_eos_eot_inf": True, "stop": ["\n"], "skip": 0.45, "select": 0.15, "block_size": 64,
    "selection": "reference", "seed": 11, "backend": "gather", "third": "random", "track": True,
    "generation_rows": "full", "refresh": 8, "lanes": ["dense+dual"], "cache_refresh": 4, "cache_keys": "pattern",
    "history": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}],
    "canvas": "growing",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["about", OWN_TEXT])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, None])
@pytest.mark.parametrize("defaults", [GENERIC_DEFAULTS, LLADA_DEFAULTS, DREAM_DEFAULTS])
def test_no_setting_is_accepted_and_ignored(kind: str, algorithm: str | None, defaults: SamplerConfig) -> None:
    assert set(OTHER) == set(BY_NAME)
    own = {"text": "What?"} if kind == OWN_TEXT else {}
    base = {
        **usual("mini", kind, "short_context"), **own, "algorithm": algorithm, "defaults": defaults,
        "models": ["mini", "other"], "kinds": ["about", "fact"], "lengths": ["short_context", "4k"],
    }  # fmt: skip
    plain = parse(**base)
    for name, value in OTHER.items():
        if value == base[name]:
            continue
        try:
            changed = parse(**{**base, name: value})
        except ValueError as refused:
            # In a sentence, and about that.
            assert str(refused).endswith(".") and len(str(refused)) < 300
            assert name in str(refused) or BY_NAME[name].said in str(refused).lower(), (name, refused)
        else:
            assert changed != plain and not changed.left_out, name


def test_with_a_threshold_what_would_cancel_it_is_off_until_somebody_wants_it() -> None:
    dream = {**NOTHING_SET, "defaults": DREAM_DEFAULTS}
    off, on = parse(**dream).sampler, parse(**{**dream, "threshold": 0.9}).sampler
    assert (off.temperature, off.top_p, off.threshold) == (0.05, 0.95, None)
    assert (on.temperature, on.top_p, on.threshold) == (0.0, 1.0, 0.9)
    assert parse(**{**dream, "threshold": 0}).sampler == off
    wanted = parse(**{**dream, "threshold": 0.9, "temperature": 0.4, "top_p": 0.8}).sampler
    assert (wanted.temperature, wanted.top_p) == (0.4, 0.8)


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({"gen_length": 256}, (256, 256, 32), False),
        ({"gen_length": 500}, (512, 512, 32), True),
        ({"gen_length": 500, "block_length": 100, "steps": 50}, (500, 50, 100), False),
        ({"gen_length": 20}, (20, 20, 20), False),
    ],
)
def test_lengths_are_the_engines(given: dict[str, int], expected: tuple[int, int, int], said: bool) -> None:
    asked = parse(**{**NOTHING_SET, "defaults": LLADA_DEFAULTS, **given})
    theirs = SamplerConfig(**given).resolve(LLADA_DEFAULTS)
    assert asked.sampler == theirs and asked.sampler.changed == theirs.changed
    assert (asked.gen_length, asked.steps, asked.sampler.block_length) == expected
    assert bool(asked.sampler.changed) == said and asked.steps <= MAX_STEPS


def test_a_generation_that_is_too_long_once_it_is_rounded_up_is_refused() -> None:
    with pytest.raises(ValueError, match="The generation would have 1200 tokens, rounded up to whole semi-autoregr"):
        parse(**{**NOTHING_SET, "gen_length": 1000, "block_length": 600})


def test_a_system_prompt_stands_before_ones_own_text_and_raw_text_is_asked_for() -> None:
    asked = parse(**{**GOOD, "kind": OWN_TEXT, "text": "Hi", "system": "Be \ud800 short.", "prompt_format": "raw"})
    assert asked.chat is False and asked.system == "Be \ufffd short."
    assert asked.messages("Hi") == [
        {"role": "system", "content": "Be \ufffd short."}, {"role": "user", "content": "Hi"},
    ]  # fmt: skip
    plain = parse(**GOOD)
    assert (plain.chat, plain.system, plain.messages("Hi")) == (None, "", "Hi")
    assert parse(**{**GOOD, "prompt_format": "chat"}).chat is True
    for name in ("text", "system"):
        with pytest.raises(ValueError, match=f"The setting {name} would have no effect: leave it out. It belongs to"):
            parse(**{**GOOD, name: "Hi"})
    with pytest.raises(ValueError, match="Your system prompt has 600,001 characters"):
        parse(**{**GOOD, "kind": OWN_TEXT, "text": "Hi", "system": "x" * (MAX_CHARACTERS + 1)})


TURNS = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]


@pytest.mark.parametrize("history", [TURNS, json.dumps(TURNS)])
def test_earlier_turns_go_before_ones_own_text_by_the_chat_template(history: Any) -> None:
    asked = parse(**{**GOOD, "kind": OWN_TEXT, "text": "Three?", "history": history})
    assert asked.history == (("user", "One?"), ("assistant", "Two.")) and asked.chat is True
    assert asked.messages("Three?") == [*TURNS, {"role": "user", "content": "Three?"}]
    system = parse(**{**GOOD, "kind": OWN_TEXT, "text": "Three?", "history": history, "system": "Be short."})
    assert system.messages("Three?")[0] == {"role": "system", "content": "Be short."}
    assert parse(**{**GOOD, "kind": OWN_TEXT, "text": "Hi", "history": ""}).messages("Hi") == "Hi"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"history": "{"}, "The earlier turns must be a list of messages, as JSON: '{' is none."),
        ({"history": {"role": "user"}}, "The earlier turns must be a list of messages, not {'role': 'user'}."),
        ({"history": 5}, "The earlier turns must be a list of messages, not 5."),
        ({"history": [*TURNS, "x"]}, "Message 3 of the earlier turns must be an object with 'role' and 'content'"),
        ({"history": TURNS[:1]}, "The history ends with a message of the user's"),
        ({"history": TURNS[1:]}, "Message 1 of the history has the role 'assistant' where 'user' is due"),
        ({"history": TURNS, "prompt_format": "raw"}, "Earlier turns go by the model's chat template"),
        (
            {"history": [{"role": "system", "content": "a"}, *TURNS], "system": "b"},
            "There are two system prompts: one is given, and the history begins with another.",
        ),
        (
            {"history": [{"role": "user", "content": "x" * MAX_CHARACTERS}, TURNS[1]]},
            "Your earlier turns have 600,004 characters; this page takes up to 600,000. Begin anew.",
        ),
    ],
)
def test_what_are_no_turns_is_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(**{**GOOD, "kind": OWN_TEXT, "text": "Three?", **given})
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_a_link_has_the_turns_where_there_is_room_for_all_texts() -> None:
    held = {**usual("mini", OWN_TEXT, "4k"), "text": "Three?", "history": json.dumps(TURNS)}
    said = dict(parse_qsl(links.link(held, ())[1:]))
    assert json.loads(said["history"]) == TURNS and said["text"] == "Three?"
    assert links.from_link(said)[0]["history"] == held["history"]
    # Without what was said before it, a further question is another prompt.
    long = json.dumps([{"role": "user", "content": "x" * 1500}, TURNS[1]])
    assert not {"history", "text"} & dict(parse_qsl(links.link({**held, "history": long}, ())[1:])).keys()
    assert not {"history", "text"} & dict(parse_qsl(links.link({**held, "kind": "about"}, ())[1:])).keys()
    assert "history" not in dict(parse_qsl(links.link({**held, "history": ""}, ())[1:]))


def test_without_a_threshold_dream_has_one_block() -> None:
    assert set(unused(SamplerConfig(algorithm="maskgit_plus"), LLADA_DEFAULTS)) == {"block_length", "canvas"}
    assert set(unused(SamplerConfig(), LLADA_DEFAULTS)) == {"top_p"}


def test_the_public_codes_selection_has_its_own_switch() -> None:
    asked = parse(**{**GOOD, "steps": 10, "skip": 0.5, "selection": "reference", "block_length": 64})
    assert asked.switch_step == 7 and parse(**{**GOOD, "steps": 10, "skip": 0.5}).switch_step == 6


def test_a_link_brings_back_what_was_set() -> None:
    given: dict[str, Any] = {
        "model": "mini", "kind": "about", "length": "4k", "question": 7, "text": "", "skip": 0.25, "selection": "paper",
        "seed": 3, "backend": "auto", "track": True, "steps": 32, "gen_length": 64, "select": 0.35, "threshold": 0,
    }  # fmt: skip
    link = links.link(given, ["steps", "select"])
    values, problems = links.from_link(dict(parse_qsl(link.removeprefix("?"))))
    assert problems == []
    wanted = {name: value for name, value in given.items() if name not in ("text", "gen_length", "threshold")}
    assert values == wanted and type(values["skip"]) is float and type(values["steps"]) is int


def test_a_link_holds_a_short_text_of_one_s_own_and_no_long_one() -> None:
    text = "What & who = 100 %? ü 🦊\nnew line"
    link = links.link({"kind": "own", "text": text}, [])
    assert dict(parse_qsl(link[1:])) == {"kind": "own", "text": text}
    assert "text" not in links.link({"kind": "own", "text": "x" * 2000}, [])
    assert "text" not in links.link({"kind": "about", "text": "left over"}, [])


def test_a_link_that_says_nonsense_is_left_out_in_a_sentence() -> None:
    values, problems = links.from_link({"steps": "many", "skip": "nan", "unknown": "1", "seed": "4"})
    assert values == {"seed": 4}
    assert problems == [
        "The link's “Skip” 'nan' is no number: it is left out.",
        "The link's “Denoising steps” 'many' is no number: it is left out.",
    ]


@pytest.mark.parametrize("given", [{}, {"third": None}, {"third": "none"}, {"lanes": None}, {"lanes": []}])
def test_two_lanes_are_the_rule(given: dict[str, Any]) -> None:
    asked = parse(**{**GOOD, **given})
    assert [lane.key for lane in asked.lanes] == [lane.key for lane in asked.resolve(300).lanes] == ["dense", "sparse"]


@pytest.mark.parametrize("method", ["sliding_window", "streaming_llm", "random", "shared"])
def test_a_baseline_differs_from_sparsed_in_its_method_alone(method: str) -> None:
    asked = parse(**{**GOOD, "third": method, "skip": 0.25, "block_size": 64}).resolve(300)
    ours, theirs = asdict(asked.attention), asdict(asked.lanes[2].attention)  # type: ignore[call-overload]
    assert (ours.pop("method"), theirs.pop("method")) == ("sparsed", method)
    assert ours == theirs and None not in (ours["select"], ours["block_size"])


def test_further_lanes_are_a_list_or_names_with_commas_or_the_third_one_of_once() -> None:
    wanted = ["dense", "sparse", "baseline", "dense+dual", "sparsed+refresh"]
    for given in (
        {"lanes": ["sparsed+refresh", "random", "dense+dual", "random"]},
        {"lanes": "dense+dual, random,sparsed+refresh"},
        {"lanes": ("dense+dual", "sparsed+refresh"), "third": "random"},
    ):  # fmt: skip
        asked = parse(**{**GOOD, **given, "select": 0.4, "generation_rows": "full"})
        assert [lane.key for lane in asked.lanes] == [lane.key for lane in asked.resolve(300).lanes] == wanted
        # A cache is the only thing that a lane of SparseD with one has beside SparseD's own.
        assert asked.lanes[4].attention == asked.attention and asked.lanes[3].attention.dense
        assert [lane.cache and (lane.cache.method, lane.cache.refresh) for lane in asked.lanes[2:]] == [
            None, ("dual", 0), ("refresh", 8),
        ]  # fmt: skip


def test_the_settings_of_caches_are_those_of_the_lanes_that_have_them() -> None:
    lanes = ["dense+delayed", "sparsed+dual", "sparsed+refresh", "dense+dual"]
    asked = parse(**{**GOOD, "lanes": lanes, "cache_refresh": 4, "cache_keys": "pattern"})
    made = {lane.key: lane.cache for lane in asked.lanes[2:]}
    assert {key: cache and (cache.refresh, cache.keys) for key, cache in made.items()} == {
        "dense+delayed": (4, "all"), "dense+dual": (0, "all"), "sparsed+dual": (0, "pattern"),
        "sparsed+refresh": (4, "pattern"),
    }  # fmt: skip
    assert [lane.label for lane in asked.lanes[2:]] == [
        "Full attention + dKV-Cache, every 4", "Full attention + Fast-dLLM, dual",
        "SparseD + Fast-dLLM, dual, pattern’s keys", "SparseD + Refresh, every 4, pattern’s keys",
    ]  # fmt: skip
    # As it is anyway they may be said; else somebody who asks for them is told.
    assert parse(**{**GOOD, "cache_refresh": 8, "cache_keys": "all"}).lanes == parse(**GOOD).lanes
    for given, said in (
        ({"cache_refresh": 4, "lanes": ["sparsed+dual"]}, "cache_refresh would .* No lane has dKV-Cache or a refresh"),
        ({"cache_keys": "pattern", "lanes": ["dense+dual"]}, "cache_keys would .* No lane has SparseD and a cache."),
        ({"cache_refresh": 0}, "cache refresh must lie between 1 and 1024"),
        ({"cache_keys": "some"}, "cache keys 'some' is not one of all, pattern"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(**{**GOOD, **given})
    left = parse(**{**GOOD, "cache_refresh": 4}, lenient=True)
    assert left.lanes == parse(**GOOD).lanes
    assert left.left_out == (
        "The setting “Every row every … steps” is left out. No lane has dKV-Cache or a refresh of all rows.",
    )


@pytest.mark.parametrize("names", [*PRESETS.values(), ("dense+prefix",)])
def test_a_link_brings_further_lanes_back(names: tuple[str, ...]) -> None:
    link = links.link({"model": "mini", "lanes": list(names)}, [])
    brought = {"lanes": list(names)} if names else {}
    assert links.from_link(dict(parse_qsl(link[1:]))) == ({"model": "mini", **brought}, [])
    assert parse(**{**GOOD, **brought}).lanes == parse(**{**GOOD, "lanes": names}).lanes


def test_a_link_of_a_version_before_brings_its_third_lane_back() -> None:
    assert links.from_link({"model": "mini", "third": "streaming_llm"})[0]["lanes"] == ["streaming_llm"]
