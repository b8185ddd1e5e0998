"""What a visitor does on a page, what he sees of it, and what the page complains of meanwhile.

The page notes its stages in `window.seen` (conftest.py, or a fixture of its own).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

# The browser's own metric, of everything that moves from now on.
WATCH = """() => {
  window.moved = [];
  window.watching?.disconnect();
  window.watching = new PerformanceObserver((list) => window.moved.push(...list.getEntries()));
  window.watching.observe({ type: "layout-shift" });
}"""
MOVED = """() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => {
  window.moved.push(...window.watching.takeRecords());
  resolve(window.moved.reduce((sum, entry) => sum + entry.value, 0));
})))"""

# Pages that are being left.
_leaving: set[Any] = set()


# ---------------------------------------------------------------- what the page complains of


def listen(page: Any, problems: list[str]) -> None:
    """Notes what the page complains of."""

    def note(said: str) -> None:
        if page not in _leaving:
            problems.append(said)

    page.on("console", lambda message: note(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: note(f"error: {error}"))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))


def reload(page: Any) -> None:
    """Loads the page anew, until it has shown its prompt. What it says while it is being left is not noted: gradio's
    client cuts off what it still asks for, and complains of that.
    """

    def left(frame: Any) -> None:
        if frame == page.main_frame:
            _leaving.discard(page)

    page.evaluate("0")  # What it said before has come when it answers.
    page.on("framenavigated", left)
    _leaving.add(page)
    page.reload()
    page.remove_listener("framenavigated", left)
    page.wait_for_selector(".sd-facts:not([hidden])")


def serious(page: Any, part: str | None = None) -> list[str]:
    """axe-core's findings on the page, or this part of it, as it is now, but for the minor and moderate ones."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page, context=part).response["violations"]
    return [
        f"{one['impact']}: {one['id']}: {one['help']}: {[node['target'] for node in one['nodes'][:4]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


# ---------------------------------------------------------------- settings


def choose(page: Any, control: str, option: str) -> None:
    """Picks an entry, by an expression that its name matches, of one of gradio's dropdowns."""
    page.click(f"#{control} input")
    page.get_by_role("option", name=re.compile(option)).first.click()


def facts(page: Any, begin: str) -> None:
    """Waits until what is said of the prompt begins so."""
    page.wait_for_function("text => document.querySelector('.sd-facts').textContent.startsWith(text)", arg=begin)


def choose_length(page: Any, length: str) -> None:
    """Picks a prompt length, and waits until its tokens are counted."""
    choose(page, "sd-length", f"^{length}")
    facts(page, "4," if length == "4k" else "2")


def own_text(page: Any, text: str) -> None:
    """Writes a text of one's own, and waits until its words, which are the stand-in's tokens, are counted."""
    if not page.is_visible("#sd-text textarea"):
        choose(page, "sd-kind", "Your own text")
        page.wait_for_selector("#sd-text textarea")
    page.fill("#sd-text textarea", text)
    facts(page, f"{len(text.split()):,} prompt tokens")


def set_steps(page: Any, steps: int) -> None:
    """Sets the number of denoising steps, in the drawer that is opened and closed for it."""
    page.click("#sd-settings button")
    page.fill("#sd-steps input[type=number]", str(steps))
    page.keyboard.press("Tab")
    page.click(".sd-close")


# ---------------------------------------------------------------- a run


def state(page: Any) -> str:
    return page.get_attribute(".sd-stage", "data-state")


def wait_for(page: Any, *states: str) -> None:
    page.wait_for_selector(", ".join(f'.sd-stage[data-state="{name}"]' for name in states))


def run(page: Any, press: str = "#sd-run") -> None:
    """Starts a run, and returns when it goes on; a recorded one that plays is no such run."""
    page.evaluate("window.seen.length = 0")
    page.click(press)
    page.wait_for_function("() => window.seen.some((one) => !one.replay && one.state === 'running')")


def is_free(page: Any) -> None:
    """Another run can be started, and there is none to stop."""
    page.wait_for_selector("#sd-run:not([disabled])")
    assert page.is_disabled("#sd-stop")


def run_to_end(page: Any) -> str:
    """Starts a run, and returns how it ended."""
    page.evaluate("window.seen.length = 0")
    page.click("#sd-run")
    ended = page.wait_for_function(
        """() => {
            const last = window.seen.findLast((one) => !one.replay)?.state;
            return ["done", "stopped", "failed", "refused"].includes(last) && last;
        }"""
    )
    return ended.json_value()


def race(page: Any) -> None:
    """Starts a run that is done at its end, and returns when it can be played again and another one be started."""
    assert run_to_end(page) == "done"
    page.wait_for_selector("#sd-run:not([disabled])")
    page.wait_for_selector("#sd-replay input[type=range]:visible")


# ---------------------------------------------------------------- what a run leaves


def cells(page: Any, lane: str) -> list[str | None]:
    """The text of each cell of a lane as it stands on the page; None where it is masked. The end has marks."""
    return page.eval_on_selector_all(
        f'[data-lane="{lane}"] .sd-canvas .sd-cell',
        "cells => cells.map((cell) => (cell.dataset.state === 'masked' ? null : cell.textContent))",
    )


def come_near(page: Any, chart: str) -> None:
    """Scrolls to a chart, which is drawn while it is near the window, and waits until it has been."""
    page.locator(chart).scroll_into_view_if_needed()
    page.wait_for_selector(f"{chart} .sd-plot[data-drawn]")


def scrub(page: Any, step: int) -> None:
    """Moves the replay to a step, where every lane has made it."""
    slider = page.locator("#sd-replay input[type=range]")
    slider.evaluate("(node, step) => { node.value = step; node.dispatchEvent(new Event('input')); }", step)
    page.wait_for_function(
        "n => [...document.querySelectorAll('.sd-lane:not([hidden])')].every((lane) =>"
        " lane.querySelector('dd').textContent.startsWith(n ? `${n} of` : '– of'))",
        arg=step,
    )


def take(page: Any, name: str, folder: Path) -> Path:
    """Takes away one of the last run's files, into this folder."""
    page.get_by_role("tab", name="Take it away").click()
    with page.expect_download() as found:
        page.click(f'#sd-takeaway a[href$="{name}"]')
    found.value.save_as(folder / name)
    return folder / name


def link(page: Any) -> str:
    """The link to the last run's settings, which comes a moment after the run."""
    page.get_by_role("tab", name="Take it away").click()
    page.wait_for_function("() => document.querySelector('#sd-link').value")
    return page.input_value("#sd-link")


def open_record(page: Any, path: Path) -> None:
    page.get_by_role("tab", name="Take it away").click()
    with page.expect_file_chooser() as chooser:
        page.click("#sd-upload")
    chooser.value.set_files(path)
