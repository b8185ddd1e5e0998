"""The first screen: the whole race is on it at three sizes, nothing moves while it goes on, and what is old says so."""

from __future__ import annotations

from typing import Any

import pytest
from visitor import MOVED, WATCH, run, wait_for

from app.texts import TAGLINE

SIZES = {"large": (1440, 900), "small": (1280, 720), "phone": (390, 844)}
# What must be seen: its corners lie inside the window, and nothing lies over them.
HIDDEN = """() => {
  const shown = (node) => node.checkVisibility({ visibilityProperty: true });
  const all = ["#sd-run, #sd-stop", ".sd-about", ".sd-scores", ".sd-lane .sd-canvas", ".sd-lane .sd-switch"].map(
    (names) => [...document.querySelectorAll(names)].filter(shown));
  const seen = (node, x, y) => {
    const hit = document.elementFromPoint(x, y);
    return hit !== null && (node.contains(hit) || hit.contains(node));
  };
  const away = (node) => {
    const { left, right, top, bottom } = node.getBoundingClientRect();
    const corners = [[left + 1, top + 1], [right - 1, top + 1], [left + 1, bottom - 1], [right - 1, bottom - 1]];
    return corners.some(([x, y]) => !seen(node, x, y));
  };
  return [all.map((found) => found.length), all.flat().filter(away).map((node) => node.id || node.className)];
}"""
WIDE = "() => [document.documentElement.scrollWidth, window.innerWidth]"


def shown(page: Any, buttons: int, lanes: int, switches: int) -> None:
    """So many of them are there, and each can be seen."""
    counts, hidden = page.evaluate(HIDDEN)
    assert (counts, hidden) == ([buttons, 1, 1, lanes, switches], [])


def run_until_sparse(page: Any, press: str = "#sd-run") -> None:
    """Starts a run, and returns when it is sparse."""
    run(page, press)
    page.wait_for_function("() => window.seen.some((one) => one.state === 'running' && Math.min(...one.steps) >= 16)")


@pytest.mark.parametrize("size", SIZES)
def test_the_race_is_on_the_first_screen_and_nothing_moves(visit, fake, size) -> None:
    fake.idle()
    width, height = SIZES[size]
    page = visit(fake, viewport={"width": width, "height": height})
    page.wait_for_selector(".sd-recorded:not([hidden])")
    page.wait_for_selector("#sd-heatmap .sd-plot[data-drawn]")
    # What this is, in a whole sentence.
    assert TAGLINE[0] in page.inner_text(".sd-tagline")
    assert page.locator(".sd-tagline").evaluate("({ scrollHeight, clientHeight }) => scrollHeight <= clientHeight")
    lanes = page.locator(".sd-lane:not([hidden])").count()
    sparse = page.locator('.sd-lane:not([hidden]) .sd-phases li[data-phase="sparse"]').count()
    assert lanes >= 2 and sparse >= 1
    # On a phone there is one button, which is Run or Stop.
    buttons = 1 if size == "phone" else 2
    shown(page, buttons, lanes, sparse)
    page.evaluate(WATCH)
    with fake.held(24):
        run_until_sparse(page)
        assert page.is_visible("#sd-stop") and page.is_visible("#sd-run") == (size != "phone")
        shown(page, buttons, 2, 1)
    wait_for(page, "done")
    page.wait_for_selector("#sd-run:not([disabled])")
    page.wait_for_selector("#sd-replay .sd-play:visible")
    shown(page, buttons, 2, 1)
    assert page.evaluate(MOVED) < 0.02
    # The switch stands where the first sparse step begins.
    mark = page.locator('[data-lane="sparse"] .sd-switch')
    assert mark.get_attribute("title") == "sparse from step 15 of 64"
    assert mark.evaluate("node => parseFloat(node.style.left)") == pytest.approx(100 * 14 / 64, abs=0.01)
    page.evaluate(WATCH)
    page.click(".sd-play")
    page.wait_for_selector('.sd-replay[data-playing="true"]')
    page.wait_for_selector('.sd-replay[data-playing="false"]')
    assert page.evaluate(MOVED) < 0.02
    for other in (width, 768, 1024):
        page.set_viewport_size({"width": other, "height": height})
        scrolled, window = page.evaluate(WIDE)
        assert scrolled <= window


def test_a_lane_that_selects_again_has_a_mark_for_each_select(visit, fake) -> None:
    page = visit(fake)
    page.evaluate("document.addEventListener('sparsed:stage', (event) => { window.last = event.detail; })")
    page.click("#sd-replay .sd-play")
    page.wait_for_function("() => window.last")
    marks = page.evaluate(
        """() => {
            const phases = [["dense", 1, 4], ["select", 5, 5], ["sparse", 6, 8], ["select", 9, 9], ["sparse", 10, 48]];
            const again = (lane) => (lane.key === "sparse" ? { ...lane, phases, total: 48 } : lane);
            const lanes = window.last.lanes.map(again);
            document.dispatchEvent(new CustomEvent("sparsed:show", { detail: { ...window.last, lanes } }));
            const marks = document.querySelectorAll('[data-lane="sparse"] .sd-switch');
            return [...marks].map((mark) => [mark.title, mark.style.left]);
        }"""
    )
    assert marks == [["selects in step 5", "8.33%"], ["selects in step 9", "16.67%"]]


@pytest.mark.parametrize("size", ["small", "phone"])
def test_the_drawer_of_settings_moves_nothing_and_files_are_one_press_away(visit, fake, size) -> None:
    width, height = SIZES[size]
    page = visit(fake, viewport={"width": width, "height": height})
    page.wait_for_selector(".sd-recorded:not([hidden])")
    boxes = """() => {
      const boxes = document.querySelectorAll(".sd-lane, .sd-scores, #sd-replay, #sd-map, #sd-explorer");
      return [...boxes].map((node) => Object.values(node.getBoundingClientRect().toJSON()));
    }"""
    before = page.evaluate(boxes)
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-seed input")
    assert page.evaluate(boxes) == before
    # Beside it, what is to be seen is seen; on a phone it covers all but the bar with Run.
    counts, hidden = page.evaluate(HIDDEN)
    if size == "phone":
        drawer = page.locator("#sd-drawer").bounding_box()
        assert (drawer["x"], drawer["y"], drawer["width"]) == (0, 0, width) and "sd-run" not in hidden
    else:
        assert hidden == [] and counts[3] >= 2
    page.focus("#sd-seed input")
    page.keyboard.press("Escape")
    page.wait_for_selector(".sd-handle[aria-expanded=false]")
    assert page.evaluate("document.activeElement.matches('.sd-handle')")
    page.click(".sd-handle")
    page.click(".sd-close")
    page.wait_for_selector(".sd-handle[aria-expanded=false]")
    assert page.evaluate(boxes) == before
    # The recorded race's files, before any run; the tab itself may be in a menu on a phone.
    page.click("#sd-take")
    page.wait_for_selector(".sd-takeaway a[download]:visible")
    page.wait_for_function(
        "() => { const box = document.querySelector('#sd-tabs').getBoundingClientRect();"
        " return box.top >= 0 && box.top < window.innerHeight / 2; }"
    )
    assert page.locator(".sd-takeaway a").last.get_attribute("href") == "?view=api"


def test_old_numbers_are_said_to_be_old_and_a_run_is_seen_from_anywhere(visit, fake) -> None:
    fake.idle()
    page = visit(fake, viewport={"width": 1280, "height": 720})
    page.wait_for_selector(".sd-recorded:not([hidden])")
    assert page.get_attribute(".sd-stage", "data-old") is None
    # The longest words beside the factor reach no other number.
    free = page.evaluate(
        "() => { const [speed, same] = document.querySelectorAll('.sd-score');"
        " const words = speed.querySelector('.sd-words');"
        " words.textContent = 'about the same speed so far';"
        " return same.getBoundingClientRect().left - words.getBoundingClientRect().right; }"
    )
    assert free >= 16
    page.click("#sd-another")
    page.wait_for_selector(".sd-stage[data-old]")
    assert page.is_visible(".sd-recorded") and page.is_hidden(".sd-last")
    # From far below.
    page.locator("#sd-observe-early").scroll_into_view_if_needed()
    assert page.evaluate("window.scrollY") > 0
    with fake.held(24):
        run_until_sparse(page, "#sd-observe-early")
        page.wait_for_selector(".sd-stage:not([data-old])")
        counts, _ = page.evaluate(HIDDEN)
        assert counts[3] == 2
        assert page.evaluate(
            "() => { const { top } = document.querySelector('.sd-stage').getBoundingClientRect();"
            " const { bottom } = document.querySelector('.sd-lanes').getBoundingClientRect();"
            " return top >= 0 && bottom <= window.innerHeight; }"
        )
    page.wait_for_selector("#sd-run:not([disabled])")
    question = page.inner_text(".sd-about b")
    page.click("#sd-another")
    page.wait_for_selector(".sd-stage[data-old]")
    assert page.inner_text(".sd-last") == "last run"
    assert page.inner_text(".sd-about b") == question != page.inner_text(".sd-question")
    colours = "document.querySelector('.sd-ratio') && getComputedStyle(document.querySelector('.sd-ratio')).color"
    muted = "getComputedStyle(document.querySelector('.sd-facts')).color"
    assert page.evaluate(colours) == page.evaluate(muted)
