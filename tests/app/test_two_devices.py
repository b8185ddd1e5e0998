"""The page over an engine with two devices: lanes with long steps run at the same time, and the page says so."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gradio_client import Client

from sparsed import trace as traces

TOGETHER = "Each lane has a GPU of its own; both run at the same time."
TURNS = "The lanes take turns on one device."
STEPS = 16
# A lane that is done is asked once more.
ASKED = 2 * (STEPS + 1)


def run_to_end(page: Any, server: Any, length: str) -> tuple[int, int]:
    """Runs the question at this prompt length; returns the steps asked for, and how many began within another."""
    server.idle()
    page.click("#sd-settings button")
    # Before the length: what follows that leaves alone what a visitor has set.
    page.fill("#sd-steps input[type=number]", str(STEPS))
    page.keyboard.press("Tab")
    page.click("#sd-settings button")
    choose_length(page, length)
    before = server.state()
    page.evaluate("window.seen.length = 0")
    page.click("#sd-run")
    page.wait_for_function("() => window.seen.length && window.seen.at(-1).state === 'done'", timeout=60_000)
    after = server.state()
    return after["steps"] - before["steps"], after["overlaps"] - before["overlaps"]


def choose_length(page: Any, length: str) -> None:
    page.click("#sd-length input")
    page.get_by_role("option", name=re.compile(f"^{length}")).first.click()
    tokens = "4," if length == "4k" else "2"
    page.wait_for_function("text => document.querySelector('.sd-facts').textContent.startsWith(text)", arg=tokens)


def mode(page: Any) -> tuple[str, str]:
    line = page.locator("#sd-stage .sd-mode")
    return line.get_attribute("data-mode"), line.inner_text()


def test_lanes_with_long_steps_run_at_the_same_time(visit, double, tmp_path) -> None:
    page = visit(double)
    steps, overlaps = run_to_end(page, double, "4k")
    # A step of full attention takes as long as one to two sparse ones: nearly every step begins within another.
    assert steps == ASKED and overlaps >= STEPS // 2
    assert mode(page) == ("together", TOGETHER)
    for lane in ("dense", "sparse"):
        card = page.locator(f'[data-lane="{lane}"]')
        assert card.locator(".sd-figures dd").first.inner_text() == f"{STEPS} of {STEPS}"
        assert card.locator(".sd-verdict").inner_text() == "✓ as expected"
    assert page.inner_text(".sd-score-speed .sd-words") == "faster"
    # The replay says it too, and so does the file.
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    page.get_by_label("as it happened").check()
    assert page.inner_text("#sd-replay .sd-replay-hint").endswith("live they ran at the same time.")
    page.locator("#sd-replay input[type=range]").fill("100")
    assert mode(page) == ("together", TOGETHER)
    page.get_by_role("tab", name="Take it away").click()
    with page.expect_download() as found:
        page.click('#sd-takeaway a[href$="run.json.gz"]')
    found.value.save_as(tmp_path / "run.json.gz")
    record = traces.load(tmp_path / "run.json.gz")
    assert {name: lane.device for name, lane in record.lanes.items()} == {"dense": 0, "sparse": 1}


def test_a_stop_ends_both_lanes_within_their_steps(visit, double) -> None:
    double.idle()
    page = visit(double)
    choose_length(page, "4k")
    with double.held(4):
        page.click("#sd-run")
        page.wait_for_function("() => window.seen.some((one) => one.steps.every((step) => step >= 2))")
        double.stop(page)
    page.wait_for_selector('.sd-stage[data-state="stopped"]')
    # The steps that run when Stop arrives had begun before it.
    assert double.state()["after_stop"] <= 2
    double.idle()


def test_short_steps_take_turns_there_too_and_the_page_says_why(visit, double) -> None:
    page = visit(double)
    steps, overlaps = run_to_end(page, double, "short")
    assert steps == ASKED and overlaps == 0
    assert mode(page) == ("turns", "The lanes take turns on one GPU: steps this short would hold each other up.")


@pytest.mark.parametrize("length", ["short", "4k"])
def test_with_one_device_lanes_take_turns(visit, keeping, length: str) -> None:
    page = visit(keeping)
    steps, overlaps = run_to_end(page, keeping, length)
    assert steps == ASKED and overlaps == 0 and mode(page) == ("turns", TURNS)
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    page.get_by_label("as it happened").check()
    assert page.inner_text("#sd-replay .sd-replay-hint").endswith("live they took turns.")


def test_a_comparison_says_at_which_lengths_lanes_ran_at_the_same_time(visit, double) -> None:
    double.idle()
    page = visit(double)
    page.click("#sd-compare-run")
    done = '#sd-comparison tbody > tr[data-state="done"]'
    page.wait_for_function(f"() => document.querySelectorAll('{done}').length === 2", timeout=60_000)
    notes = page.locator(".sd-compare-notes li").all_inner_texts()
    assert f"{TOGETHER[:-1]} at 1k; at the other lengths they take turns." in notes
    double.idle()


def test_a_program_hears_of_it_too(double) -> None:
    double.idle()
    client = Client(double.url, verbose=False)
    for length, expected in (("short_context", "turns"), ("1k", "together")):
        last = client.predict(api_name="/compare", length=length, steps=8)
        assert last["state"] == "done" and last["mode"] == expected
