"""What the page accepts: every value is checked once, and a wrong one is answered with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from app.request import MAX_CHARACTERS, OWN_TEXT, notes, parse

GOOD: dict[str, Any] = {
    "model": "mini", "kind": "about", "length": "4k", "question": 3, "text": "", "steps": 64, "gen_length": 64,
    "block_length": 32, "skip": 0.2, "select": None, "block_size": None, "seed": 0, "backend": "auto",
    "models": ["mini"], "kinds": ["about", "fact"], "lengths": ["short_context", "4k"],
}  # fmt: skip


def test_what_was_not_set_follows_the_length() -> None:
    asked = parse(**GOOD)
    short, long = asked.resolve(300, None).attention, asked.resolve(4000 - 64, None).attention
    assert (short.select, short.block_size) == (0.5, 32)
    assert (long.select, long.block_size) == (0.3, 128)


def test_what_was_set_stays() -> None:
    asked = parse(**{**GOOD, "select": 0.30000000000000004, "block_size": 64.0}).resolve(300, None)
    assert (asked.attention.select, asked.attention.block_size) == (0.3, 64)


def test_the_switch_is_the_engines() -> None:
    assert parse(**GOOD).switch_step == 14
    assert parse(**{**GOOD, "skip": 1.0}).switch_step is None


def test_a_run_that_never_becomes_sparse_is_announced() -> None:
    assert notes(parse(**GOOD)) == []
    (note,) = notes(parse(**{**GOOD, "skip": 1.0}))
    assert "never becomes sparse" in note


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
        ({"steps": 63}, "multiple of 2"),
        ({"gen_length": 0}, "generation length"),
        ({"block_length": 48}, "multiple of the semi-autoregressive block length"),
        ({"skip": -0.1}, "skip"),
        ({"skip": "a"}, "skip"),
        ({"skip": float("inf")}, "skip"),
        ({"select": 0}, "select"),
        ({"select": 1.01}, "select"),
        ({"block_size": 48}, "block_size must be one of 32, 64, 128"),
        ({"block_size": 256}, "attention block size"),
        ({"seed": 2**40}, "seed"),
        ({"seed": None}, "seed"),
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


def test_a_model_may_have_its_own_select_for_short_prompts() -> None:
    class Mini:
        short_select = 0.6

    asked = parse(**GOOD)
    assert asked.resolve(300, Mini()).attention.select == 0.6
    assert asked.resolve(4000, Mini()).attention.select == 0.3
