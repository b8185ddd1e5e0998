"""The page over an engine with two devices: lanes with long steps run at the same time, and the page says so."""

from __future__ import annotations

from typing import Any

from gradio_client import Client
from visitor import choose_length, race, set_steps, take

from sparsed import trace as traces

TOGETHER = "Each lane has a GPU of its own; both run at the same time."
TURNS = "The lanes take turns on one device."
STEPS = 16
# A lane that is done is asked once more.
ASKED = 2 * (STEPS + 1)


def raced(page: Any, server: Any, length: str) -> tuple[int, int]:
    """Runs the question at this prompt length; returns the steps asked for, and how many began within another."""
    server.idle()
    # Before the length: what follows that leaves alone what a visitor has set.
    set_steps(page, STEPS)
    choose_length(page, length)
    before = server.state()
    race(page)
    after = server.state()
    return after["steps"] - before["steps"], after["overlaps"] - before["overlaps"]


def mode(page: Any) -> tuple[str, str]:
    line = page.locator("#sd-stage .sd-mode")
    return line.get_attribute("data-mode"), line.inner_text()


def test_lanes_with_long_steps_run_at_the_same_time(visit, double, tmp_path) -> None:
    page = visit(double)
    steps, overlaps = raced(page, double, "4k")
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
    record = traces.load(take(page, "run.json.gz", tmp_path))
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
    steps, overlaps = raced(page, double, "short")
    assert steps == ASKED and overlaps == 0
    assert mode(page) == ("turns", "The lanes take turns on one GPU: steps this short would hold each other up.")


def test_with_one_device_lanes_take_turns(visit, keeping) -> None:
    page = visit(keeping)
    for length in ("short", "4k"):
        steps, overlaps = raced(page, keeping, length)
        assert steps == ASKED and overlaps == 0 and mode(page) == ("turns", TURNS)
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
