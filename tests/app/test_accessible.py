"""The page for everybody: axe-core's rules, and a whole visit by keyboard alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from visitor import come_near, run, serious, wait_for

from sparsed.models.catalogue import find

TABS = ("Heads of one layer", "Whole model", "Later steps", "Take it away")

# What a visitor can do something with: visible, not switched off.
CONTROLS = """() => {
  const found = document.querySelectorAll(
    "button, input, textarea, select, summary, a[href], [role=slider], [role=listbox][tabindex]");
  window.controls = [...found].filter((node) =>
    !node.disabled && !node.closest("[aria-hidden=true]")
    && node.checkVisibility({ visibilityProperty: true, opacityProperty: true })
    && node.getBoundingClientRect().width > 1);
  return window.controls.map((node) => `${node.tagName} ${node.id || node.className} ${node.textContent.slice(0, 30)}`);
}"""
# Which of them have never had the focus. Of a group of radio buttons the chosen one has it; arrow keys choose another.
MISSED = """() => {
  window.reached.add(document.activeElement);
  const named = new Set([...window.reached].filter((one) => one.type === "radio").map((one) => one.name));
  const missed = (node) => !window.reached.has(node) && !(node.type === "radio" && named.has(node.name));
  return window.controls.flatMap((node, index) => (missed(node) ? [index] : []));
}"""


def open_tab(page: Any, name: str) -> None:
    """On a phone gradio puts the tabs that have no room into a menu."""
    tab = page.get_by_role("tab", name=name)
    if not tab.count():
        page.get_by_role("button", name="More tabs").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    elif tab.get_attribute("aria-selected") != "true":
        tab.click()
    page.wait_for_function(
        "name => document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim() === name", arg=name
    )


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_serious(visit, fake, scheme, width) -> None:
    """On the whole page at first and at last; in between on the part that has changed, which is much quicker."""
    fake.idle()
    page = visit(fake, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.wait_for_selector("#sd-heatmap .sd-plot[data-drawn]")
    assert serious(page) == []
    with fake.held(24):
        run(page)
        assert serious(page, "#sd-race") == []
    wait_for(page, "done")
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-seed input")
    # On a phone it covers the page.
    assert serious(page, "#sd-drawer") == []
    page.click(".sd-close")
    page.click("#sd-how summary >> nth=1")
    for name in TABS:
        open_tab(page, name)
        assert serious(page, "#sd-tabs") == []
    come_near(page, "#sd-tradeoff")
    assert serious(page) == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_in_three_lanes(visit, keeping, scheme, width) -> None:
    keeping.idle()
    size = {"width": width, "height": 900}
    page = visit(keeping, "?third=streaming_llm", color_scheme=scheme, viewport=size)
    with keeping.held(24):
        run(page)
        assert page.locator(".sd-lane:not([hidden])").count() == 3
        assert serious(page, "#sd-race") == []
    wait_for(page, "done")
    page.wait_for_selector("#sd-seen:visible")
    assert serious(page, "#sd-race, #sd-explorer") == []
    names = page.eval_on_selector_all(
        ".sd-lane:not([hidden])",
        "lanes => lanes.map((one) => document.getElementById(one.getAttribute('aria-labelledby')).innerText)",
    )
    assert names == ["Full attention", "SparseD", "StreamingLLM"]
    # What is said at the end names the third lane too.
    said = page.locator(".sd-stage > [role=status].sd-hidden").text_content()
    assert re.fullmatch(r"All lanes are done\. SparseD: .+ StreamingLLM: [\d.]+\s% same text as full attention\.", said)
    # Its canvas is reached and read like the others.
    page.locator('[data-lane="baseline"] .sd-canvas').focus()
    page.keyboard.press("Home")
    assert re.match(r"Token 1: “", page.locator('[data-lane="baseline"] .sd-tip').inner_text())


def press_until(page: Any, key: str, condition: str, most: int = 120) -> None:
    """Presses a key until a JavaScript condition on `node`, the element that has the focus, holds."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate(f"() => {{ const node = document.activeElement; return Boolean({condition}); }}"):
            return
    raise AssertionError(f"{condition} does not hold after {most} times {key}")


def test_the_tab_key_reaches_every_control(visit, fake) -> None:
    fake.idle()
    page = visit(fake)
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-seed input")
    page.wait_for_function(f"() => ({CONTROLS})().length > 50")
    controls = page.evaluate(CONTROLS)
    assert len(controls) > 50
    page.evaluate("() => { window.reached = new Set(); document.activeElement.blur(); window.scrollTo(0, 0); }")
    for _ in range(3 * len(controls)):
        page.keyboard.press("Tab")
        if not (missed := page.evaluate(MISSED)):
            break
    assert [controls[index] for index in missed] == []


def test_a_whole_visit_by_keyboard(visit, real) -> None:
    real.idle()
    page = visit(real)
    page.evaluate("window.seen.length = 0")
    # A longer prompt, from the list.
    press_until(page, "Tab", "node.closest('#sd-length')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#sd-length input').value.startsWith('1k')")
    page.wait_for_function("() => /^9\\d\\d|^1,0\\d\\d/.test(document.querySelector('.sd-facts').textContent)")
    press_until(page, "Tab", "node.id === 'sd-run'")
    with real.held(24):
        page.keyboard.press("Enter")
        page.wait_for_function("() => window.seen.some((one) => one.state === 'running' && one.steps[1] > 16)")
        press_until(page, "Tab", "node.id === 'sd-stop'")
        real.stop(page, lambda: page.keyboard.press("Space"))
    wait_for(page, "stopped")
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    # Back through the replay.
    step = "document.querySelector('.sd-lane .sd-figures dd').textContent"
    press_until(page, "Tab", "node.matches('#sd-replay input[type=range]')")
    page.keyboard.press("Home")
    page.wait_for_function(f"() => {step}.startsWith('–')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"() => {step}.startsWith('1 ')")
    # A token of the canvas, and what is known of it.
    press_until(page, "Shift+Tab", "node.matches('.sd-canvas')")
    page.keyboard.press("End")
    last = find("mini").defaults.gen_length
    assert re.match(rf"Token {last}: (masked|“|end of)", page.locator(".sd-tip:visible").inner_text())
    # Another head, another tab.
    press_until(page, "Tab", "node.matches('#sd-head input[type=range]')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#sd-heatmap .sd-plot').layout.title?.text.endsWith('head 1')")
    press_until(page, "Tab", "node.getAttribute('role') === 'tab'")
    press_until(page, "Tab", "node.textContent.includes('Whole model')", 4)
    page.keyboard.press("Enter")
    page.wait_for_selector("#sd-atlas .sd-plot:visible")
