"""After a run: replay, heads, files and links, comparison of lengths; the bundled model, a browser."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
from visitor import choose, choose_length, come_near, link, open_record, race, scrub, set_steps, take

from sparsed import trace as traces
from sparsed.models.catalogue import find

STEPS = 16


def prepare(page: Any) -> None:
    """A short race of few steps."""
    choose_length(page, "short context")
    set_steps(page, STEPS)


def canvases(page: Any) -> list[list[str]]:
    """Every cell's text and state, both lanes."""
    return page.evaluate(
        "() => [...document.querySelectorAll('.sd-lane:not([hidden]) .sd-canvas')].map((canvas) =>"
        " [...canvas.querySelectorAll('.sd-cell')].map((cell) => `${cell.dataset.step ?? ''}:${cell.textContent}`))"
    )


@pytest.fixture(scope="module")
def first_race(visit_once, real, tmp_path_factory):
    """A page whose first run is over, tracked; and the record of that run."""
    real.idle()
    page = visit_once(real)
    page.evaluate("window.told = []; document.addEventListener('sparsed:stage', (e) => window.told.push(e.detail))")
    prepare(page)
    page.click("#sd-settings button")
    page.check("#sd-track input")
    page.click(".sd-close")
    race(page)
    return page, traces.load(take(page, "run.json.gz", tmp_path_factory.mktemp("file")))


@pytest.fixture
def raced(visit_once, first_race):
    first_race[0].bring_to_front()
    yield first_race
    visit_once.check()


def test_the_slider_shows_exactly_each_state(raced) -> None:
    page, record = raced
    end = canvases(page)
    for k in (0, 1, 5, STEPS - 1, STEPS):
        scrub(page, k)
        drawn = canvases(page)
        given = page.evaluate("window.told.at(-1).lanes.map((lane) => lane.cells)")
        for lane, name in enumerate(("dense", "sparse")):
            commits = {c.position: (step.index + 1, c) for step in record.lanes[name].steps[:k] for c in step.committed}
            for position, (cell, (text, at, confidence, ends)) in enumerate(zip(drawn[lane], given[lane], strict=True)):
                step, commit = commits.get(position, (0, None))
                assert at == step and cell.split(":")[0] == (str(step) if step else "")
                if commit is None:
                    assert cell == ":"
                    continue
                assert bool(ends) == (commit.token in record.end_ids)
                assert confidence == pytest.approx(commit.confidence, abs=6e-4)
                if not ends:
                    assert cell == f"{step}:{text}" and text == record.vocabulary[commit.token]
    assert canvases(page) == end


def test_playing_reaches_the_end(raced) -> None:
    page, _ = raced
    end = canvases(page)
    scrub(page, 0)
    page.evaluate("window.told.length = 0")
    page.get_by_role("button", name=re.compile("Play")).click()
    page.wait_for_function(
        "n => document.querySelector('.sd-lane .sd-figures dd').textContent.startsWith(`${n} of`)", arg=STEPS
    )
    steps = page.evaluate("window.told.map((one) => one.lanes[0].step)")
    assert steps == sorted(steps) and len(set(steps)) >= 5
    assert canvases(page) == end


def test_the_tabs_show_the_record_s_own_pattern(raced) -> None:
    page, record = raced
    pattern = record.lanes["sparse"].pattern
    assert pattern is not None
    page.get_by_role("tab", name="Heads of one layer").click()
    for layer in (0, 3):
        page.fill("#sd-layer input[type=number]", str(layer))
        page.keyboard.press("Tab")
        come_near(page, "#sd-overview")
        page.wait_for_function(
            "title => document.querySelector('#sd-overview .sd-plot').layout?.title.text.startsWith(title)",
            arg=f"Layer {layer},",
        )
        drawn = page.evaluate(
            "document.querySelector('#sd-overview .sd-plot').data.filter((d) => d.meta).map((d) => [d.meta, d.z])"
        )
        assert [meta["head"] for meta, _ in drawn] == list(range(pattern.heads))
        for meta, z in drawn:
            cells = np.frombuffer(base64.b64decode(z["bdata"]), np.uint8).reshape(
                [int(n) for n in z["shape"].split(",")]
            )
            assert np.array_equal(cells == 100, pattern.mask(layer)[0, meta["head"]]) and set(cells.flat) <= {0, 100}
    page.get_by_role("tab", name="Later steps").click()
    come_near(page, "#sd-tracking")
    page.wait_for_function("() => document.querySelector('#sd-tracking .sd-plot').data?.length > 1")
    probes = record.lanes["sparse"].probes
    x = page.evaluate("document.querySelector('#sd-tracking .sd-plot').data.at(-1).x")
    assert x == [probe.step + 1 for probe in probes] and len(probes) == 4


def test_the_head_that_is_looked_at_has_a_frame(raced) -> None:
    page, record = raced
    page.get_by_role("tab", name="Heads of one layer").click()
    frame = (
        "() => { const { layout } = document.querySelector('#sd-overview .sd-plot');"
        " const found = layout.shapes.filter((shape) => shape.name === 'looked at');"
        " return found.length === 1 ? [layout.meta.layer, found[0].xref, found[0].yref] : null; }"
    )
    for layer, head in ((2, 0), (2, 3), (5, 1)):
        page.fill("#sd-layer input[type=number]", str(layer))
        page.fill("#sd-head input[type=number]", str(head))
        page.keyboard.press("Tab")
        axis = str(head + 1) if head else ""
        wanted = f"{layer},x{axis},y{axis}"
        come_near(page, "#sd-overview")
        page.wait_for_function(f"wanted => String(({frame})()) === wanted", arg=wanted)


def test_shades_show_the_choice_or_the_importance(raced) -> None:
    page, record = raced
    pattern = record.lanes["sparse"].pattern
    page.fill("#sd-layer input[type=number]", "3")
    page.fill("#sd-head input[type=number]", "2")
    page.keyboard.press("Tab")
    both = "blocks kept, over how important they are"
    for label, top in (("blocks kept alone", 2), ("importance alone", 255), (both, 255)):
        choose(page, "sd-shades", f"^{label}$")
        page.wait_for_function(
            """([title, top]) => {
                const { layout, data } = document.querySelector('#sd-heatmap .sd-plot');
                return layout.title.text === title && data[0].zmax === top;
            }""",
            arg=["Layer 3, head 2", top],
        )
        drawn = page.evaluate(
            """() => {
                const [{ z, meta }] = document.querySelector('#sd-heatmap .sd-plot')._fullData;
                return Array.from(z, (row) => Array.from(row, (cell) => cell >= meta.kept_from));
            }"""
        )
        assert np.array_equal(drawn, pattern.mask(3)[0, 2])


def test_a_click_on_a_head_of_the_model_chooses_it(raced) -> None:
    page, _ = raced
    page.get_by_role("tab", name="Whole model").click()
    come_near(page, "#sd-atlas")
    place = page.evaluate(
        """() => {
            const plot = document.querySelector('#sd-atlas .sd-plot'), full = plot._fullLayout;
            plot.scrollIntoView();
            const box = plot.getBoundingClientRect(), { xaxis, yaxis } = full;
            return [box.left + xaxis._offset + xaxis.c2p(2), box.top + yaxis._offset + yaxis.c2p(4)];
        }"""
    )
    page.mouse.move(*place)
    page.mouse.click(*place)
    come_near(page, "#sd-heatmap")
    page.wait_for_function(
        "() => document.querySelector('#sd-heatmap .sd-plot').layout.title.text.startsWith('Layer 4, head 2')"
    )
    assert page.input_value("#sd-layer input[type=number]") == "4"


def test_the_files_are_the_run_s(raced, tmp_path) -> None:
    page, record = raced
    text = take(page, "replay.html", tmp_path).read_text(encoding="utf-8")
    assert record.prompt.question is not None and json.dumps(record.prompt.question)[1:-1] in text
    assert "http://" not in text.replace("http://www.w3.org/", "") and "src=" not in text
    from PIL import Image

    with Image.open(take(page, "race.gif", tmp_path)) as picture:
        assert picture.format == "GIF" and picture.n_frames > 5
    with Image.open(take(page, "race.webp", tmp_path)) as picture:
        assert picture.format == "WEBP" and picture.n_frames > 5


def test_a_record_loads_back_into_the_same_page(raced, visit, real, tmp_path) -> None:
    page, record = raced
    path = tmp_path / "run.json.gz"
    traces.save(record, path)
    other = visit(real)
    open_record(other, path)
    other.wait_for_selector("#sd-replay input[type=range]:visible")
    other.wait_for_function("() => document.querySelector('.sd-recorded')?.textContent.startsWith('Recorded')")
    # A recorded run plays by its lanes' own clocks; the slider counts steps when both lanes go in step.
    other.get_by_label("in step").check()
    # The page began with another recorded run, of more steps.
    other.wait_for_function("n => Number(document.querySelector('#sd-replay input[type=range]').max) === n", arg=STEPS)
    scrub(other, STEPS)
    scrub(page, STEPS)
    assert canvases(other) == canvases(page)
    picked = "() => document.querySelector('#sd-timeline .sd-plot').data?.map((d) => d.y)"
    other.wait_for_function(f"n => ({picked})()?.[0]?.length === n", arg=STEPS)
    drawn = other.evaluate(picked)
    assert drawn[0] == pytest.approx([1000 * step.seconds for step in record.lanes["dense"].steps], abs=0.01)
    # What is no record is refused in a sentence, and what was there stays.
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"a": "<b>1</b>"}')
    open_record(other, wrong)
    other.wait_for_function("() => document.querySelector('#sd-upload-said').textContent.includes('is no trace')")
    assert canvases(other) == canvases(page)


def test_a_link_brings_the_settings_back(raced, visit, real) -> None:
    page, record = raced
    given = link(page)
    assert given.startswith(real.url) and f"steps={STEPS}" in given and "track=1" in given
    other = visit(real, given.removeprefix(real.url))
    other.wait_for_function(
        "question => document.querySelector('.sd-question')?.textContent === question", arg=record.prompt.question
    )
    other.click("#sd-settings button")
    assert other.input_value("#sd-steps input[type=number]") == str(STEPS)
    assert other.is_checked("#sd-track input")
    other = visit(real, "?length=nowhere&steps=12")
    other.wait_for_selector("text=This link cannot be followed")
    other.click("#sd-settings button")
    assert other.input_value("#sd-steps input[type=number]") == str(find("mini").defaults.steps)


def test_a_link_s_values_are_those_of_the_run(visit, real) -> None:
    """What the page prepares beside the link, for the settings it began with, moves none of them back."""
    real.idle()
    for _ in range(2):  # a page that is served again begins with what it knows by then
        page = visit(real, "?length=short_context&threshold=0.9&gen_length=50&block_length=32")
        page.wait_for_function("() => document.querySelector('.sd-facts').textContent.includes('at most')")
        page.wait_for_selector("text=64 tokens are generated, not 50: whole semi-autoregressive blocks of 32.")
        page.wait_for_timeout(500)
        race(page)
        assert "of ≤ 64" in page.inner_text('[data-lane="sparse"] .sd-figures')
        assert page.locator('[data-lane="sparse"] .sd-cell').count() == 64
        page.click("#sd-settings button")
        assert page.input_value("#sd-threshold input") == "0.90"


def test_two_lengths_end_with_two_rows(visit, real) -> None:
    real.idle()
    page = visit(real)
    prepare(page)
    page.click("#sd-compare-run")
    done = '#sd-comparison tbody:not([data-pin]) > tr[data-state="done"]'
    page.wait_for_function(f"() => document.querySelectorAll('{done}').length === 2", timeout=180_000)
    page.wait_for_selector("#sd-compare-run:not([disabled])")
    assert [row.get_attribute("data-length") for row in page.locator(done).all()] == ["short_context", "1k"]
    page.click("#sd-compare-pin")
    page.wait_for_selector("#sd-comparison tbody[data-pin]")
    assert real.state()["overlaps"] == 0 and page.is_enabled("#sd-run")


def test_a_run_that_ended_before_its_select_step_says_so(visit, real) -> None:
    real.idle()
    page = visit(real, "?length=1k&steps=64")
    # However late a busy browser comes with its Stop, the thirteenth step, which selects, is not made before it.
    with real.held(8):
        page.click("#sd-run")
        page.wait_for_function("() => window.seen.some((one) => one.steps.every((step) => step >= 1))")
        real.stop(page)
    page.wait_for_selector('.sd-stage[data-state="stopped"]')
    label = "document.querySelector('#sd-heatmap .sd-plot').ariaLabel"
    page.wait_for_function(f"() => {label}.startsWith('The last run ended before')")
    said = page.locator("#sd-looking").inner_text().strip()
    assert said.startswith("Your last run: 1,0") and "blocks" not in said


def test_a_tab_that_was_hidden_while_a_run_ended_is_laid_out_when_it_is_opened(raced, visit, real) -> None:
    page, _ = raced
    page.get_by_role("tab", name="Take it away").click()
    drawn = int(page.get_attribute("#sd-overview .sd-plot", "data-drawn"))
    race(page)
    page.wait_for_timeout(600)
    assert int(page.get_attribute("#sd-overview .sd-plot", "data-drawn")) == drawn  # not where nobody looks
    page.get_by_role("tab", name="Heads of one layer").click()
    page.wait_for_function(f"() => Number(document.querySelector('#sd-overview .sd-plot').dataset.drawn) > {drawn}")
    title = page.locator("#sd-overview .gtitle").bounding_box()
    subtitle = page.locator("#sd-overview .gtitle-subtitle").bounding_box()
    assert subtitle["y"] >= title["y"] + 0.7 * title["height"]


def test_a_stopped_run_keeps_what_was_there(visit, real) -> None:
    real.idle()
    page = visit(real)
    prepare(page)
    # The fifth step of whichever lane comes to it first waits until the stop is there, however fast the machine is. The
    # other lane waits with it, wherever it is: one that had a slow step has made fewer.
    with real.held(4) as hold:
        page.click("#sd-run")
        page.wait_for_function("() => window.seen.some((one) => one.steps.some((step) => step === 4))")
        real.stop(page)
        hold(5)
        page.wait_for_selector('.sd-stage[data-state="stopped"]')
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    shown = canvases(page)
    made = int(page.get_attribute("#sd-replay input[type=range]", "max"))
    assert 4 <= made <= STEPS
    scrub(page, 1)
    slider = page.locator("#sd-replay input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_function("state => document.querySelector('.sd-stage').dataset.state === state", arg="stopped")
    assert canvases(page) == shown
