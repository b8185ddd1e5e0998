"""The page explains why: another select tried on a head, and how it works in scenes that lead into the race."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from app import texts
from app.finished.run import opening
from app.finished.story import story
from app.finished.what_if import own, said, what_if

QUERY = "?length=short_context&steps=16&gen_length=32&block_length=32&skip=0.2"
# The cells that the block map draws as kept.
KEPT = """() => {
    const plot = document.querySelector("#sd-heatmap .sd-plot"), { z, meta } = plot._fullData[0];
    return [...z].map((row) => [...row].map((value) => value >= meta.kept_from));
}"""
TITLE = "title => document.querySelector('#sd-heatmap .sd-plot').layout?.title?.text === title"
BELOW = "() => document.querySelector('.sd-mask-legend').getBoundingClientRect().top + window.scrollY"
SLIDER = "#sd-what-if-select input[type=range]"


def drawn(page: Any, title: str) -> np.ndarray:
    page.wait_for_function(TITLE, arg=title)
    page.wait_for_timeout(300)  # plotly draws a quarter of a second after the value at the latest
    return np.array(page.evaluate(KEPT))


def shows(page: Any, sentence: str) -> None:
    page.wait_for_function(
        "said => document.querySelector('#sd-what-if-said').innerText.trim() === said", arg=html.unescape(sentence)
    )


@pytest.fixture(scope="module", params=[1280, 390])
def fresh_page(request, visit_once, fake) -> Any:
    fake.idle()
    return visit_once(fake, viewport={"width": request.param, "height": 900})


@pytest.fixture
def fresh(visit_once, fresh_page) -> Iterator[Any]:
    """A page that has not run, with the recorded run."""
    fresh_page.bring_to_front()
    yield fresh_page
    visit_once.check()


def test_another_select_is_tried_by_keyboard_and_taken_back(fresh) -> None:
    page, run = fresh, opening()
    assert run is not None
    page.wait_for_selector("#sd-heatmap .sd-plot[data-drawn]")
    assert np.array_equal(drawn(page, "Layer 1, head 0"), own(run, 1, 0).mask)
    shows(page, said(run, 1, 0, None))
    assert page.is_disabled("#sd-own")
    # At a step of full attention, where the map shows all blocks: what is tried is shown all the same.
    page.check('.sd-replay input[value="step"]')
    page.locator(".sd-seek").evaluate("(node) => { node.value = 3; node.dispatchEvent(new Event('input')); }")
    page.wait_for_selector('.sd-map-over[data-phase="dense"]')
    below = page.evaluate(BELOW)
    page.focus(SLIDER)
    for presses, select in ((1, 0.29), (19, 0.1), (8, 0.02)):
        for _ in range(presses):
            page.keyboard.press("ArrowLeft")
        tried = what_if(run, 1, 0, select)
        assert np.array_equal(drawn(page, f"Layer 1, head 0, if select were {select:g}"), tried.mask)
        shows(page, said(run, 1, 0, tried))
    page.wait_for_selector('.sd-map-over[data-phase="sparse"]')
    assert page.inner_text(".sd-map-step").startswith("Not what the run did: at select 0.02, ")
    # What a word of the answer would see.
    page.focus('[data-lane="sparse"] .sd-canvas')
    page.keyboard.press("Home")
    row = run.trace.prompt.tokens // 128
    assert page.inner_text(".sd-strip-said").startswith(
        f"At select 0.02 query block {row} would see {tried.mask[row].sum()} of 33 key blocks in layer 1, head 0"
    )
    page.keyboard.press("Escape")
    # Another head at the same select.
    page.fill("#sd-head input[type=number]", "3")
    page.keyboard.press("Tab")
    other = what_if(run, 1, 3, 0.02)
    assert np.array_equal(drawn(page, "Layer 1, head 3, if select were 0.02"), other.mask)
    shows(page, said(run, 1, 3, other))
    assert page.evaluate(BELOW) == below  # nothing has moved
    # And back.
    page.focus("#sd-own")
    page.keyboard.press("Enter")
    assert np.array_equal(drawn(page, "Layer 1, head 3"), own(run, 1, 3).mask)
    shows(page, said(run, 1, 3, None))
    page.wait_for_selector("#sd-own:disabled")
    assert page.input_value(SLIDER) == "0.3"
    page.wait_for_selector('.sd-map-over[data-phase="dense"]')


def test_each_scene_leads_to_its_step_of_the_race(fresh) -> None:
    page, run, width = fresh, opening(), fresh.viewport_size["width"]
    page.wait_for_selector(".sd-scene-show:enabled >> nth=4")
    assert page.locator("#sd-how h2").inner_text() == "How it works"
    page.evaluate("window.at = () => window.sparsed.playhead?.steps.map(({ lane, step }) => [lane, step])")
    for told in story(run, 1, 0)["scenes"]:
        section = page.get_by_role("region", name=told["title"])
        assert section.get_by_role("heading", name=told["title"]).evaluate("node => node.tagName") == "H3"
        assert section.locator(".sd-scene-said").inner_text() == told["said"]
        kind = told["drawing"]["kind"]
        cells = {"canvas": ".sd-cell", "map": "path:not(.sd-scene-edge)", "rows": "i"}[kind]
        count = section.locator(f".sd-scene-drawing {cells}").count()
        levels = len(set("".join(told["drawing"].get("rows", []))) - {"0"})
        assert count == {"canvas": 96, "map": levels, "rows": 48}[kind]
        button = section.get_by_role("button", name=f"Show step {told['step']} in the race")
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "([lane, step]) => window.at()?.some((one) => one[0] === lane && one[1] === step)",
            arg=[told["lane"], told["step"]],
        )
        assert page.evaluate("document.activeElement.matches('.sd-seek')")
        top = page.locator(".sd-stage").bounding_box()
        assert -1 <= top["y"] < 900 and page.get_attribute(".sd-replay", "data-playing") == "false"
    # Beside each other, or one below the other.
    boxes = [section.bounding_box() for section in page.locator(".sd-scene").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert len({box["x"] for box in boxes}) == (5 if width == 1280 else 1)


def test_where_nothing_can_be_tried_the_page_says_why(visit, fake) -> None:
    fake.idle()
    page = visit(fake, QUERY)
    page.wait_for_selector(f"{SLIDER}:enabled")
    page.focus(SLIDER)
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(TITLE, arg="Layer 1, head 0, if select were 0.29")
    with fake.held(10):
        page.click("#sd-run")
        shows(page, texts.WHAT_IF_LATER)
        page.wait_for_selector(f"{SLIDER}:disabled")
        # The blocks of the run that goes on are its own.
        page.wait_for_function("() => document.querySelector('#sd-heatmap .sd-plot').layout.meta?.map.blocks === 9")
        page.wait_for_function(TITLE, arg="Layer 1, head 0")
        assert page.locator(".sd-scene-show:enabled").count() == 0
    page.wait_for_selector('.sd-stage[data-state="done"]')
    shows(page, texts.WHAT_IF_UNKNOWN)  # the stand-in keeps no importances
    assert page.is_disabled(SLIDER)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_scenes_and_where_a_step_s_time_goes_become_those_of_the_visitor_s_own_run(visit, fake, width) -> None:
    fake.idle()
    page = visit(fake, QUERY, viewport={"width": width, "height": 900})
    page.wait_for_selector(".sd-scene-show:enabled >> nth=4")
    assert page.inner_text(".sd-story-of") == texts.RECORDED_STORY
    heights = [section.bounding_box()["height"] for section in page.locator(".sd-scene").all()]
    page.wait_for_selector(".sd-spent-said li")
    height = page.locator("#sd-where").bounding_box()["height"]
    page.click("#sd-run")
    # The recorded race has four lanes.
    page.wait_for_function("() => document.querySelectorAll('.sd-spent-lane').length === 2")
    kinds = page.eval_on_selector_all(
        ".sd-spent-lane",
        "lanes => lanes.map((lane) => [...lane.querySelectorAll('li')].map((kind) => kind.dataset.kind))",
    )
    assert kinds == [["dense"], ["dense", "select", "sparse"]]
    # A quarter of each of the stand-in's steps is attention; the longest bar is as wide as its lane.
    shares = page.eval_on_selector_all(
        ".sd-spent-bar",
        """bars => bars.map((bar) => [...bar.children].map((part) => part.getBoundingClientRect().width
            / bar.getBoundingClientRect().width))""",
    )
    assert all(attention == pytest.approx((attention + rest) / 4, abs=0.01) for attention, rest in shares)
    assert max(attention + rest for attention, rest in shares) == pytest.approx(1, abs=0.01)
    said = page.inner_text(".sd-spent-said")
    assert said.startswith("Even with attention for free a step would take ") and "at most 1.33× as fast" in said
    words = page.locator(".sd-spent-words").all_inner_texts()
    assert len(words) == 4 and all(" attention, " in one and one.endswith(" the rest") for one in words)
    assert page.locator("#sd-where").bounding_box()["height"] == height
    page.wait_for_function("said => document.querySelector('.sd-story-of').textContent === said", arg=texts.OWN_STORY)
    scenes = page.locator(".sd-scene").all()
    assert [scene.locator("button").inner_text() for scene in scenes] == [
        *(f"Show step {step} in the race" for step in (8, 4, 5, 6)), "Not in this run",
    ]  # fmt: skip
    assert scenes[0].locator(".sd-scene-said").inner_text().startswith("After step 8 of 16: ")
    assert scenes[4].locator("button").is_disabled()
    assert scenes[4].locator(".sd-scene-said").inner_text() == texts.NO_CACHE
    assert [scene.bounding_box()["height"] for scene in scenes] == heights
    page.wait_for_selector("#sd-run:not([disabled])")
    scenes[2].locator("button").click()
    page.wait_for_function("() => document.querySelector('.sd-map-over').dataset.step === '5'")
    assert page.get_attribute(".sd-map-over", "data-phase") == "select"
