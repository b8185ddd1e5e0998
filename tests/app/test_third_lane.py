"""A race of three lanes, with a baseline beside SparseD: on the page, in a file, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visitor import cells, choose, facts, link, open_record, own_text, race, scrub, take

from app.figures.palette import palette
from sparsed import trace as traces

LANES = {"dense": "dense", "sparse": "sparsed", "baseline": "sliding_window"}


def drawn(written: list[str | None]) -> list[str | None]:
    """What the page must show of what the engine wrote."""
    end = next((place for place, text in enumerate(written) if text == "<end>"), None)
    marks = {place: " ∎" if place == end else "·" for place, text in enumerate(written) if text == "<end>"}
    return [marks.get(place, text) for place, text in enumerate(written)]


@pytest.fixture(scope="module")
def first_race(visit_once: Any, keeping: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A page whose race of three lanes is over, what the engine wrote, and the file of it."""
    page = visit_once(keeping)
    page.evaluate(
        "window.told = []; document.addEventListener('sparsed:stage', (e) => e.detail.replay || told.push(e.detail))"
    )
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-lanes input")
    choose(page, "sd-lanes", "^Sliding window$")
    page.click(".sd-close")
    race(page)
    written = keeping.lanes()
    return page, written, take(page, "run.json.gz", tmp_path_factory.mktemp("file"))


@pytest.fixture
def raced(visit_once: Any, first_race: Any) -> Iterator[Any]:
    first_race[0].bring_to_front()
    yield first_race
    visit_once.check()


def test_three_lanes_end_on_the_page_as_in_the_engine(raced, keeping) -> None:
    page, written, _ = raced
    steps = len(written["dense"])
    assert {len(written[pattern]) for pattern in LANES.values()} == {steps} and keeping.state()["overlaps"] == 0
    for place, (lane, pattern) in enumerate(LANES.items(), start=1):
        assert cells(page, lane) == drawn(written[pattern][-1])
        card = page.locator(f'[data-lane="{lane}"]')
        # Its colour is that of its place.
        red, green, blue = (int(palette()[f"lane-{place}"][at : at + 2], 16) for at in (1, 3, 5))
        edge = card.evaluate("(node) => getComputedStyle(node).borderTopColor")
        assert edge == f"rgb({red}, {green}, {blue})"
        assert card.locator(".sd-figures dd").first.inner_text() == f"{steps} of {steps}"
        assert float(card.locator(".sd-figures dd").nth(1).inner_text().removesuffix(" s")) > 0
    titles = page.locator(".sd-lane:visible h2").all_inner_texts()
    assert titles == ["Full attention", "SparseD", "Sliding window"]
    phases = [page.locator(f'[data-lane="{lane}"] .sd-phases li').all_inner_texts() for lane in LANES]
    assert phases[0] == ["dense steps 1–64"]
    assert phases[1] == ["dense steps 1–13", "select step 14", "sparse steps 15–64"]
    # A window is a rule: there is nothing to select.
    assert phases[2] == ["dense steps 1–14", "sparse steps 15–64"]
    # The headline is SparseD's; the baseline gets it wrong, and says how much it has in common with full attention.
    assert page.inner_text(".sd-score-speed .sd-words") == "faster" and page.inner_text(".sd-same") == "100\u00a0%"
    assert page.inner_text('[data-lane="sparse"] .sd-verdict') == "✓ as expected"
    assert page.inner_text('[data-lane="baseline"] .sd-verdict') == "✗ not the expected answer"
    ends = [row[-1].index("<end>") + 1 for row in (written["dense"], written["sliding_window"])]
    assert ends[0] == ends[1]
    alike = sum(a == b for a, b in zip(written["dense"][-1][: ends[0]], written["sliding_window"][-1][: ends[0]]))
    said = page.inner_text('[data-lane="baseline"] .sd-lane-same')
    assert said == f"{100 * alike / ends[0]:.1f}\u00a0% same text as full attention"
    assert page.locator(".sd-lane-same:visible").count() == 1
    # Its differences from full attention are marked.
    wavy = page.locator('[data-lane="baseline"] .sd-cell[data-differs]').count()
    assert wavy == ends[0] - alike and page.locator('[data-lane="sparse"] .sd-cell[data-differs]').count() == 0
    page.wait_for_function("() => document.querySelector('#sd-timeline .sd-plot').data?.length === 6")
    lines = page.evaluate("document.querySelector('#sd-timeline .sd-plot').data.map((d) => [d.name, d.x.length])")
    assert lines == 2 * [[title, steps] for title in titles]


def test_the_stream_holds_each_step_of_the_three_lanes_once(raced) -> None:
    page, written, _ = raced
    seen = page.evaluate("window.told")
    sent = sorted((one["lane"], one["step"]) for value in seen for one in value["steps"])
    assert sent == sorted((lane, step) for lane in LANES for step in range(1, len(written["dense"]) + 1))
    # In turns: no clock is ever ahead of another by more than a step of either.
    longest = max(one["ms"] for value in seen for one in value["steps"]) / 1000
    for value in seen:
        clocks = [lane["seconds"] for lane in value["lanes"] if lane["step"] < lane["total"]]
        assert not clocks or max(clocks) - min(clocks) <= longest


def test_its_file_opens_again_and_replays_every_lane(raced, visit, keeping) -> None:
    _, written, path = raced
    record = traces.load(path)
    assert list(record.lanes) == ["dense", "sparse", "baseline"]
    for lane, pattern in LANES.items():
        canvas: list[str | None] = [None] * record.gen_length
        for step, state in zip(record.lanes[lane].steps, written[pattern], strict=True):
            for commit in step.committed:
                canvas[commit.position] = record.vocabulary[commit.token]
            assert canvas == state
    page = visit(keeping, reduced_motion="no-preference")
    open_record(page, path)
    page.wait_for_selector('[data-lane="baseline"] h2:has-text("Sliding window"):visible')
    # The recorded race of a fresh page has that lane too, with an answer of another length.
    page.wait_for_function(
        "count => document.querySelectorAll('[data-lane=baseline] .sd-canvas .sd-cell').length === count",
        arg=record.gen_length,
    )
    # It plays, and the bar stays where it is: what is about to be pressed does not slide away.
    page.get_by_label("in step").check()
    steps = len(written["dense"])
    places = set()
    for step in (0, 1, steps // 2, steps - 1, steps):
        scrub(page, step)
        places.add(page.evaluate("document.querySelector('.sd-replay-way').getBoundingClientRect().top + scrollY"))
        for lane, pattern in LANES.items():
            state = written[pattern][step - 1] if step else [None] * record.gen_length
            assert cells(page, lane) == drawn(state)
        # What was right and what the lanes have in common is told at the end alone.
        assert (page.locator(".sd-lane-same:visible").count(), page.is_visible(".sd-gold")) == (step == steps,) * 2
    assert len(places) == 1
    assert page.inner_text(".sd-replay-hint") == "All lanes show the same step."
    # A race of two lanes takes the third one away.
    race(page)
    assert page.locator(".sd-lane:visible").count() == 2
    page.wait_for_function("() => document.querySelector('#sd-timeline .sd-plot').data?.length === 4")


def test_the_baseline_s_blocks_can_be_looked_at(raced) -> None:
    page, _, path = raced
    lanes = traces.load(path).lanes
    shown = (
        "() => [...document.querySelector('#sd-heatmap .sd-plot')._fullData[0].z].map((row) =>"
        " [...row].map((cell) => cell >= document.querySelector('#sd-heatmap .sd-plot')._fullData[0].meta.kept_from))"
    )
    for option, lane in (("Sliding window", "baseline"), ("SparseD", "sparse")):
        before = page.get_attribute("#sd-heatmap .sd-plot", "data-drawn")
        choose(page, "sd-seen", f"^{option}$")
        page.wait_for_function(
            "before => document.querySelector('#sd-heatmap .sd-plot').dataset.drawn !== before", arg=before
        )
        assert np.array_equal(page.evaluate(shown), lanes[lane].pattern.mask(1)[0, 0])


def test_a_link_brings_the_third_lane_back(raced, visit, keeping) -> None:
    page, _, _ = raced
    given = link(page)
    assert "lanes=sliding_window" in given
    other = visit(keeping, given.removeprefix(keeping.url))
    other.click("#sd-settings button")
    other.wait_for_selector("#sd-lanes .token:has-text('Sliding window')")


def test_its_files_to_take_away_have_three_lanes(raced, chromium, tmp_path: Path) -> None:
    page, written, _ = raced
    files = {name: take(page, name, tmp_path) for name in ("replay.html", "race.webp")}
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    alone = context.new_page()
    alone.goto(files["replay.html"].as_uri())
    alone.wait_for_selector('[data-lane="baseline"]')
    for lane, pattern in LANES.items():
        assert cells(alone, lane) == drawn(written[pattern][-1])
    assert alone.inner_text('[data-lane="baseline"] .sd-lane-same').endswith("same text as full attention")
    context.close()
    from PIL import Image

    with Image.open(files["race.webp"]) as picture:
        assert picture.width == 1280 and picture.n_frames > 5  # type: ignore[attr-defined]


def test_three_lanes_stand_beside_each_other_where_there_is_room_and_in_two_columns_where_there_is_less(raced) -> None:
    page, _, _ = raced
    boxes = [page.locator(f'[data-lane="{lane}"]').bounding_box() for lane in LANES]
    assert len({box["y"] for box in boxes}) == 1 and boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    # Lines that belong together stand beside each other.
    for part in (".sd-phases", ".sd-figures", ".sd-progress", ".sd-canvas-box", ".sd-verdict"):
        assert len({page.locator(f'[data-lane="{lane}"] {part}').bounding_box()["y"] for lane in LANES}) == 1
    # Nothing sticks out of its lane.
    wide = "() => [...document.querySelectorAll('.sd-lane')].filter((one) => one.scrollWidth > one.clientWidth).length"
    for width in (1101, 900, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(wide) == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [page.locator(f'[data-lane="{lane}"]').bounding_box() for lane in LANES]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert boxes[2]["x"] == boxes[0]["x"] and boxes[0]["y"] + boxes[0]["height"] <= boxes[2]["y"]
    page.set_viewport_size({"width": 1280, "height": 900})


def test_stop_and_failure_end_three_lanes(visit, keeping) -> None:
    keeping.idle()
    page = visit(keeping, "?third=random&length=4k")
    facts(page, "4,")
    # Its cost is in what is said beforehand.
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-lanes .token")
    cost = "() => Number(/about (\\d+) s on this machine/.exec(document.querySelector('.sd-facts').textContent)[1])"
    dear = page.evaluate(cost)
    choose(page, "sd-presets", "^3 lanes · SparseD . cache$")
    page.wait_for_selector("#sd-lanes .token:has-text('SparseD + Refresh · ours')")
    page.wait_for_function("() => document.querySelector('.sd-facts').textContent.includes('3 lanes: also SparseD + ')")
    choose(page, "sd-presets", "^2 lanes · ")
    page.wait_for_function(f"dear => ({cost})() < dear", arg=dear)
    choose(page, "sd-lanes", "^Random blocks$")
    page.wait_for_function(f"dear => ({cost})() === dear", arg=dear)
    # Lanes that are no preset's are called so.
    page.wait_for_function("() => document.querySelector('#sd-presets input').value === 'as chosen in Settings'")
    page.evaluate("window.seen.length = 0")
    with keeping.held(8):
        page.click("#sd-run")
        page.wait_for_function(
            "() => window.seen.some((one) => one.steps.length === 3 && Math.min(...one.steps) >= 2)"
        )
        keeping.stop(page)
    page.wait_for_selector('.sd-stage[data-state="stopped"]')
    keeping.idle()
    made = keeping.lanes()
    for lane, pattern in (("dense", "dense"), ("sparse", "sparsed"), ("baseline", "random")):
        assert cells(page, lane) == drawn(made[pattern][-1])
    assert page.locator(".sd-lane-same:visible").count() == 0
    page.wait_for_selector("#sd-run:not([disabled])")
    own_text(page, "one two kablam three four")
    page.click("#sd-run")
    page.wait_for_selector('.sd-stage[data-state="failed"]')
    assert "in the lane “Random blocks”" in page.inner_text(".sd-message")
    keeping.idle()
    page.wait_for_selector("#sd-run:not([disabled])")


def test_the_paper_s_and_ours_say_whose_they_are_and_when_they_select(visit, keeping) -> None:
    keeping.idle()
    page = visit(keeping, "?third=full_rows&refresh=7&steps=32&gen_length=64&block_length=32&skip=0.25")
    page.wait_for_selector('[data-lane="sparse"]')
    page.evaluate("window.told = []")
    page.evaluate("document.addEventListener('sparsed:stage', (e) => e.detail.replay || told.push(e.detail.selected))")
    race(page)
    # Step 9 is the first, then every seventh, and step 17 begins the second block.
    selected = [9, 16, 17, 24, 31]
    named = "select steps " + ", ".join(map(str, selected))
    for lane, title in (("sparse", "SparseD, refresh 7"), ("baseline", "SparseD, full generation rows, refresh 7")):
        card = page.locator(f'[data-lane="{lane}"]')
        assert (card.locator("h2").inner_text(), card.locator(".sd-whose").inner_text()) == (title, "ours")
        said = card.locator(".sd-phases li").all_inner_texts()
        assert said == ["dense steps 1–8", named, "sparse the others from 10"]
    assert page.is_hidden('[data-lane="dense"] .sd-whose')
    # What could be looked at meanwhile, by its step; at last the record holds the last one.
    told = page.evaluate("[...new Set(window.told)]")
    assert told == sorted(told) and {*selected, 0} >= set(told) and max(told) > 0
    page.wait_for_function(
        "() => document.querySelector('#sd-looking').textContent.includes('these blocks are those of step 31')"
    )
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    page.get_by_label("in step").check()
    for step in (1, 9, 10, 16, 17, 24, 25):
        scrub(page, step)
        phase = "select" if step in selected else "dense" if step < 9 else "sparse"
        for lane in ("sparse", "baseline"):
            shown = page.locator(f'[data-lane="{lane}"] .sd-phases li[aria-current]')
            assert shown.get_attribute("data-phase") == phase
    # Where SparseD's own lane is ours already, the third is the paper's.
    other = visit(keeping, "?refresh=7&threshold=0.9&third=full_rows&generation_rows=full")
    race(other)
    assert other.locator(".sd-lane:visible .sd-whose:visible").all_inner_texts() == ["ours", "the paper’s"]
    assert other.locator('[data-lane="baseline"] h2').inner_text() == "SparseD"
