"""Twenty questions like the last run's, on the page."""

from __future__ import annotations

import re
from typing import Any

import pytest
from visitor import MOVED, WATCH, own_text, race, serious

from app.assets import together
from app.page.serving import SCRIPTS, STYLES

BOXES = """() => [...document.querySelectorAll(
  ".sd-lane:not([hidden]), .sd-scores, #sd-replay, #sd-ask, #sd-time, #sd-map")].map((node) => {
    const { x, y, width, height } = node.getBoundingClientRect();
    return [node.id, x, Math.round(y + window.scrollY), width, height]; })"""
ROWS = """() => [...document.querySelectorAll(".sd-series-table tbody tr")].map(
  (row) => [...row.children].map((cell) => cell.innerText.replace(/\\s+/g, " ").trim()))"""
ASKED = "count => document.querySelector('.sd-series .sd-intro:not([hidden])')?.textContent.startsWith(count)"


def after_a_run(visit: Any, server: Any, **window: Any) -> Any:
    """A page whose first run, of eight steps, is over."""
    server.idle()
    page = visit(server, "?steps=8&lanes=sliding_window", **window)
    assert page.is_disabled("#sd-ask") and page.inner_text("#sd-ask") == "20 questions like this"
    assert "After a run" in page.inner_text("#sd-count")
    race(page)
    page.wait_for_selector("#sd-ask:not([disabled])")
    return page


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_twenty_questions_are_counted_in_their_place(visit, fake, size) -> None:
    width, height = size
    page = after_a_run(visit, fake, viewport={"width": width, "height": height})
    # How long it takes is said before it is pressed.
    assert re.fullmatch(r"20 questions like this · (about \d+ (s|min)|under 1 s)", page.inner_text("#sd-ask"))
    page.wait_for_selector("#sd-replay .sd-play:visible")
    before, question = page.evaluate(BOXES), page.inner_text(".sd-about b")
    page.evaluate(WATCH)
    page.focus("#sd-ask")
    with fake.held(4):
        page.keyboard.press("Enter")
        page.wait_for_selector(".sd-series-table tbody tr:nth-child(3)")
        # It is seen where it is, and no other run can be started meanwhile.
        page.wait_for_function(
            "height => { const { y } = document.querySelector('.sd-series-table').getBoundingClientRect();"
            " return 0 <= y && y < height; }",
            arg=height,
        )
        page.wait_for_selector("#sd-run[disabled]", state="attached")
        assert page.is_disabled("#sd-ask") and page.is_enabled("#sd-series-stop") and page.is_enabled("#sd-stop")
        assert [row[1] for row in page.evaluate(ROWS)] == ["–"] * 3
    page.wait_for_selector('.sd-series[data-state="done"]')
    page.wait_for_selector("#sd-run:not([disabled])")
    rows = page.evaluate(ROWS)
    assert [row[0] for row in rows] == ["Full attention", "SparseD", "Sliding window"]
    # The stand-in's window is always wrong.
    assert rows[0][1] == rows[1][1] == "20 of 20 84–100 %"
    assert rows[2][1] == "0 of 20 0–16 %"
    assert re.fullmatch(r"[\d.]+ s [\d.]+× (faster|slower|about the same speed)", rows[1][2])
    assert rows[0][3] == "–" and rows[1][3].startswith("0 points −")
    assert rows[2][3].startswith("−100 points −100 … −")
    assert "8 steps" in page.inner_text(".sd-series-table caption")
    assert page.get_attribute(".sd-series [role=progressbar]", "aria-valuenow") == "100"
    # The lanes show what they showed, where they showed it.
    assert page.inner_text(".sd-about b") == question
    assert page.evaluate(BOXES) == before
    assert page.evaluate(MOVED) < 0.02
    scrolled, window = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert scrolled <= window and page.is_enabled("#sd-ask")


@pytest.mark.parametrize(
    ("press", "scheme", "width"), [("#sd-series-stop", "light", 1280), ("#sd-stop", "dark", 390)]
)
def test_stop_keeps_what_is_counted_until_a_text_of_ones_own_has_run(visit, fake, press, scheme, width) -> None:
    page = after_a_run(visit, fake, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.click("#sd-ask")
    page.wait_for_function(ASKED, arg="2 of 20")
    with fake.held(4) as hold:
        assert serious(page, "#sd-series") == []
        fake.stop(page, lambda: page.click(press))
        hold(5)
        page.wait_for_selector('.sd-series[data-state="stopped"]')
    assert re.match(r"Stopped\. \d+ questions counted; they stay here\.", page.inner_text(".sd-series .sd-message"))
    counted = [" ".join(row[1].split()[:3]) for row in page.evaluate(ROWS)]
    count = int(counted[0].split(" of ")[1])
    assert 2 <= count < 20 and counted == [f"{count} of {count}", f"{count} of {count}", f"0 of {count}"]
    assert serious(page, "#sd-series") == []
    page.wait_for_selector("#sd-run:not([disabled])")
    fake.idle()
    # The next run leaves them there.
    race(page)
    assert [" ".join(row[1].split()[:3]) for row in page.evaluate(ROWS)] == counted
    # A text of one's own has no further questions; until it has run, the last run is that of the question.
    own_text(page, "Some words of my own to read.")
    assert page.is_enabled("#sd-ask")
    race(page)
    page.wait_for_selector("#sd-ask[disabled]")
    assert page.inner_text("#sd-ask") == "20 questions like this"


def test_the_count_is_drawn_as_text(chromium) -> None:
    hostile = "<img src=x onerror='document.title=1'>"
    full = {
        "key": "dense", "label": hostile, "style": 1, "full": True, "right": 4, "questions": 4, "interval": [0.51, 1.0],
        "range": "51–100\u00a0%", "seconds": "2.00 s", "gain": None, "difference": None, "never_sparse": 0,
        "shipped": "12 of 12, 76–100\u00a0%",
    }  # fmt: skip
    about = {"key": "sparse", "label": "SparseD", "style": 2, "full": False, "never_sparse": 3, "shipped": None}
    sparse = {**full, **about, "gain": {"text": "1.02×", "words": "about the same speed"}}
    value = {"state": "running", "message": hostile, "label": hostile, "progress": 0.2, "progress_text": hostile,
             "lanes": [full, sparse]}  # fmt: skip
    page = chromium.new_page(viewport={"width": 800, "height": 600})
    try:
        page.set_content('<body class="light"><div class="gradio-container"><div class="sd-view"></div></div>')
        page.add_style_tag(content=together(STYLES))
        page.add_script_tag(content=together(SCRIPTS))
        page.evaluate(
            """(value) => window.sparsed.mount(
              "series", document.querySelector(".gradio-container"), { value: JSON.stringify(value) }, () => {})""",
            value,
        )
        assert page.evaluate(ROWS) == [
            [hostile, "4 of 4 51–100 % evaluation: 12 of 12, 76–100 %", "2.00 s", "–"],
            [
                "SparseD", "4 of 4 51–100 %", "2.00 s 1.02× about the same speed, never sparse in 3",
                "– from 5 questions on",
            ],
        ]
        assert page.locator("img").count() == 0 and page.inner_text("caption") == hostile
        # The mark stands at the share, the bar over its interval.
        width = page.locator(".sd-share").first.evaluate("(node) => node.getBoundingClientRect().width")
        left, right = page.locator(".sd-share").first.evaluate(
            "(node) => ['left', 'right'].map((side) => parseFloat(getComputedStyle(node, '::before')[side]))"
        )
        assert (left, right) == (pytest.approx(0.51 * width, abs=1), pytest.approx(0, abs=1))
    finally:
        page.close()
