"""Speed-up against prompt length, on the page: drawn before any run, and the visitor's runs on it."""

from __future__ import annotations

from typing import Any

import pytest
from visitor import come_near, race, serious

from app.lengths.recorded import RECORDED

# Of its shortest prompt, as the stand-in's run counts them.
TOKENS = 246
TRACES = """() => document.querySelector("#sd-gains-chart .sd-plot").data.map(
  ({ name, x, y, showlegend }) => ({ name, x, y, here: showlegend }))"""
DRAWN = """(count) =>
  document.querySelector("#sd-gains-chart .sd-plot").data?.filter((one) => one.showlegend).length === count"""
ABOVE = """() => [...document.querySelectorAll("#sd-race, #sd-series, #sd-explorer, #sd-gains-chart")].map(
  (node) => { const { x, y, width } = node.getBoundingClientRect(); return [x, y + window.scrollY, width]; })"""


def opened(visit: Any, server: Any, **window: Any) -> Any:
    server.idle()
    page = visit(server, "?steps=8", **window)
    come_near(page, "#sd-gains-chart")
    return page


def test_recorded_lines_are_there_and_runs_drop_points_on_them(visit, fake) -> None:
    page = opened(visit, fake)
    known = {f"{name} · {one.machine}" for one in RECORDED for name in one.lines}
    before = page.evaluate(TRACES)
    assert {trace["name"] for trace in before} == known and not any(trace["here"] for trace in before)
    place = page.evaluate(ABOVE)
    race(page)
    come_near(page, "#sd-gains-chart")
    page.wait_for_function(DRAWN, arg=1)
    (point,) = [trace for trace in page.evaluate(TRACES) if trace["here"]]
    assert point["name"] == "SparseD, single runs" and point["x"] == [TOKENS]
    factor, words = page.inner_text(".sd-ratio"), page.inner_text(".sd-score-speed .sd-words")
    ratio = point["y"][0]
    assert factor == f"{1 / ratio if words == 'slower' else ratio:.2f}×"
    assert page.evaluate(ABOVE) == place
    # In words too.
    said = page.get_attribute("#sd-gains-chart .sd-plot", "aria-label")
    assert f"Here: {TOKENS} tokens: SparseD {factor} {words}." in said
    assert "SparseD, One H200 GPU: 1.08× at 4k to 1.66× at 64k" in said
    # A comparison draws its lines over them, and the point stays.
    page.click("#sd-compare-run")
    page.wait_for_selector('.sd-compare[data-state="done"]')
    page.wait_for_function(DRAWN, arg=2)
    line, *_ = [trace for trace in page.evaluate(TRACES) if trace["here"]]
    assert line["name"] == "SparseD" and line["x"] == [256, 1024]
    assert len(page.evaluate(TRACES)) == len(known) + 2
    page.wait_for_selector("#sd-run:not([disabled])")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_its_legend_can_be_read_at_every_width(visit, fake, scheme, width) -> None:
    page = opened(visit, fake, color_scheme=scheme, viewport={"width": width, "height": 844})
    legend = page.locator(".sd-known")
    for one in RECORDED:
        assert legend.get_by_text(one.machine, exact=True).first.is_visible()
    inside = """() => [...document.querySelectorAll(".sd-known li, .sd-known p")].every((node) => {
      const { left, right } = node.getBoundingClientRect();
      return left >= 0 && right <= window.innerWidth && node.scrollWidth <= node.clientWidth + 1; })"""
    assert page.evaluate(inside)
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('.sd-known li')).fontSize)") >= 12
    # How it was measured is one key away.
    page.focus(".sd-known summary")
    page.keyboard.press("Enter")
    command = RECORDED[0].commands[0]
    assert legend.get_by_text(command, exact=True).is_visible()
    scrolled, window = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert scrolled <= window and serious(page, "#sd-gains-chart") == []
