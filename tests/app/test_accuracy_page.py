"""The section "Accuracy against speed" in a browser: the shipped numbers, and the visitor's run on them."""

from __future__ import annotations

from visitor import choose, come_near, race, reload

from app.accuracy.shipped import shipped
from app.accuracy.words import evidence, findings

PLOT = "#sd-tradeoff .sd-plot"
POINTS = f"""() => document.querySelector('{PLOT}').data.filter((one) => one.error_y?.array)
  .reduce((count, one) => count + one.x.length, 0)"""
OWN = f"() => document.querySelector('{PLOT}').data.find((one) => one.name.startsWith('your run')) ?? null"


def points_at(length: str) -> int:
    return sum(row["length"] == length for row in shipped()["lengths"])


def test_the_figure_waits_for_who_comes_near_and_moves_nothing(visit, keeping) -> None:
    keeping.idle()
    page = visit(keeping)
    page.wait_for_selector("#sd-heatmap .sd-plot[data-drawn]")
    assert page.get_attribute(PLOT, "data-drawn") is None
    before = page.locator("#sd-accuracy").bounding_box()["height"]
    come_near(page, "#sd-tradeoff")
    assert page.evaluate(POINTS) == points_at("4k") and page.evaluate(OWN) is None
    assert abs(page.locator("#sd-accuracy").bounding_box()["height"] - before) < 2
    lines = page.locator("#sd-accuracy-said li").all_inner_texts()
    assert lines[:-1] == findings(shipped(), "4k")
    choose(page, "sd-accuracy-length", "16k")
    page.wait_for_selector("#sd-accuracy-said:has-text('at 16k')")
    page.wait_for_function(f"count => ({POINTS})() === count", arg=points_at("16k"))
    choose(page, "sd-accuracy-speed", "clock")
    page.wait_for_selector(f"{PLOT}[aria-label*='seconds of the steps']")
    choose(page, "sd-accuracy-speed", "operations")
    page.wait_for_selector(f"{PLOT}[aria-label*='operations executed']")
    label = page.get_attribute(PLOT, "aria-label")
    assert "at 16k, by operations executed" in label and "SparseD as published" in label
    assert page.locator("#sd-accuracy-paper td").count() == 8


def test_a_run_lies_on_the_figure_of_its_length(visit, keeping) -> None:
    keeping.idle()
    page = visit(keeping, "?length=1k&steps=16&gen_length=32&block_length=32&lanes=sliding_window")
    come_near(page, "#sd-tradeoff")
    page.evaluate(
        "document.addEventListener('sparsed:stage', (e) => { if (!e.detail.replay) window.told = e.detail.lanes; })"
    )
    race(page)
    page.wait_for_selector("#sd-accuracy-said p:has-text('Your last run (')")
    page.wait_for_function("() => document.querySelector('#sd-accuracy-length input').value === '1k'")
    come_near(page, "#sd-tradeoff")  # a figure out of sight is not drawn
    page.wait_for_function(f"() => ({OWN})() !== null")
    own, told = page.evaluate(OWN), page.evaluate("window.told")
    factors = [1.0 if lane["speedup"] is None else lane["speedup"]["ratio"] for lane in told]
    assert own["x"] == factors and len(factors) == 3
    assert own["marker"]["symbol"] == ["circle", "circle", "x"]
    named = [f"your run: {lane['label']}, {factor:.2f}×" for lane, factor in zip(told, factors, strict=True)]
    assert own["text"] == [f"{name}, {said}" for name, said in zip(named, ("right", "right", "wrong"), strict=True)]
    said = page.inner_text("#sd-accuracy-said p")
    assert said.startswith("Your last run (") and all(name.removeprefix("your run: ") in said for name in named)
    # Another length keeps the run for its own.
    choose(page, "sd-accuracy-length", "^4k")
    page.wait_for_selector("#sd-accuracy-said p:has-text('has another length')")
    page.wait_for_function(f"() => ({OWN})() === null")
    # The page loaded anew still has the run.
    reload(page)
    page.wait_for_selector("#sd-accuracy-said p:has-text('Your last run (')")
    assert page.inner_text("#sd-accuracy-said p") == said


def test_the_recommended_lane_says_so_where_it_is_chosen_and_where_it_runs(visit, keeping) -> None:
    keeping.idle()
    page = visit(keeping, "?length=1k&steps=16&gen_length=32&block_length=32")
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-recommended p")
    assert page.inner_text("#sd-recommended p") == evidence(shipped())
    page.click(".sd-close")
    choose(page, "sd-presets", "SparseD, published and recommended")
    page.wait_for_function("() => document.querySelector('.sd-facts').textContent.includes('3 lanes')")
    race(page)
    whose = page.locator(".sd-lane:visible .sd-whose:visible").all_inner_texts()
    assert whose == ["the paper’s", "ours"]


def test_on_a_phone_the_figure_scrolls_inside_itself(visit, keeping) -> None:
    keeping.idle()
    page = visit(keeping, viewport={"width": 390, "height": 844})
    come_near(page, "#sd-tradeoff")
    page.wait_for_function(f"() => document.querySelector('{PLOT}').clientWidth > 900")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#sd-tradeoff .sd-view").evaluate("(node) => node.scrollWidth > node.clientWidth")
    # Without a pointer it can be reached, and moved.
    assert page.locator("#sd-tradeoff .sd-view").evaluate("(node) => node.tabIndex") == 0
    words = page.locator("#sd-accuracy-said").bounding_box()
    assert words["x"] >= 0 and words["x"] + words["width"] <= 390
