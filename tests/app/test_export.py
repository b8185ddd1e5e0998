"""What is taken away: the HTML file replays every state in a real browser, the animation shows the race."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from races import ENDS, judge, make_race, make_run, read, slow_cells
from visitor import listen

from app.finished.animation import FRAME_MS, WIDTHS, _Film, to_animation
from app.finished.drawing import Typesetter, theme_colours
from app.finished.html import to_html
from app.finished.replay import lane_view, replay_value
from app.finished.run import recorded
from app.race.canvas import Canvas
from app.race.race import LaneStep, Update
from app.race.snapshot import Stage, mode
from sparsed import trace as traces
from sparsed.config import ResolvedCache

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\ud800\u202e"


@pytest.fixture(scope="module")
def race() -> tuple[dict[str, Any], traces.Trace]:
    """Twelve steps of both lanes over forty cells, pieces of characters among them."""
    runs, trace = make_race(18, 40, 12, (12, 12), 0.2, None)
    for lane in replay_value(trace)["lanes"]:
        # Cells whose text changes after they were committed.
        assert sum(len(changes) for changes in lane["changes"]) > 40
    return runs, trace


class Reader(HTMLParser):
    """Every tag with its attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


# ---------------------------------------------------------------- the file


def test_the_file_needs_nothing_beside_itself(race) -> None:
    _, trace = race
    page = to_html(trace)
    read = Reader(page)
    asked = {name for _, attributes in read.tags for name in attributes} & {"src", "href", "srcset", "action", "data"}
    assert asked == set() and "@import" not in page and "url(" not in page
    value, script = read.scripts
    assert json.loads(value)["replay"] == json.loads(json.dumps(replay_value(trace, run=1)))
    policy = next(one["content"] for _, one in read.tags if one.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_no_text_of_the_run_can_leave_its_place(race) -> None:
    _, trace = race
    hostile = replace(
        trace,
        prompt=replace(trace.prompt, question=HOSTILE),
        model=replace(trace.model, label=HOSTILE),
        vocabulary={token: HOSTILE for token in trace.vocabulary},
    )
    page = to_html(hostile)
    assert "owned" in page and "<img" not in page and page.count("<script") == 2 == page.count("</script")
    page.encode("utf-8")
    assert json.loads(Reader(page).scripts[0])["record"]["title"] == HOSTILE


# ---------------------------------------------------------------- the file in a browser


@pytest.fixture(scope="module")
def files(chromium: Any) -> Iterator[Any]:
    """A browser context for the files."""
    context = chromium.new_context()
    context.add_init_script(
        "window.seen = []; document.addEventListener('sparsed:stage', (e) => window.seen.push(e.detail));"
    )
    yield context
    context.close()


@pytest.fixture
def open_file(files: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a file's text from file:// ; at the end the page must not have complained or asked for anything."""
    opened, problems = [], []

    def open_page(text: str, viewport: Any = None, **shown: str) -> Any:
        path = tmp_path / f"replay-{len(opened)}.html"
        path.write_text(text, encoding="utf-8")
        page = files.new_page()
        opened.append(page)
        page.set_viewport_size(viewport or {"width": 1280, "height": 900})
        page.emulate_media(**shown)
        page.on("request", lambda sent: sent.url == path.as_uri() or problems.append(sent.url))
        listen(page, problems)
        page.goto(path.as_uri())
        page.wait_for_selector(".sd-stage[data-sequence]")
        return page

    yield open_page
    for page in opened:
        page.close()
    assert problems == []


def go(page: Any, place: int) -> None:
    """Moves the slider to a place, as a visitor's hand does."""
    page.eval_on_selector(
        ".sd-seek",
        "(node, place) => { node.value = place; node.dispatchEvent(new Event('input', { bubbles: true })); }",
        place,
    )


def drawn(page: Any, lane: str) -> list[list[Any]]:
    """[text, step] of every cell as it stands on the page; masked cells have step 0."""
    return page.eval_on_selector_all(
        f'[data-lane="{lane}"] .sd-canvas .sd-cell',
        "cells => cells.map((cell) => [cell.textContent, Number(cell.dataset.step ?? 0), cell.dataset.state])",
    )


def expected(cells: list[list[Any]], step: int, running: bool) -> list[list[Any]]:
    """What `drawn` must give for the cells of a canvas after `step` steps."""
    end = next((index for index, cell in enumerate(cells) if cell[3]), len(cells))
    shown = []
    for index, (text, at, _, is_end) in enumerate(cells):
        if not at:
            shown.append(["", 0, "masked"])
            continue
        written = (" ∎" if index == end else "·") if is_end else text.replace("\n", "↵\n")
        state = "end" if is_end or index > end else "fresh" if running and at == step else "settled"
        shown.append([written, at, state])
    return shown


def stage_after(trace: traces.Trace, steps: dict[str, int], judge: Any = None) -> dict[str, Any]:
    """The snapshot of a live race after so many steps of each lane."""
    names = {lane.key: name for lane, name in recorded(trace).items()}
    stage = Stage(
        [lane_view(trace, lane, name) for lane, name in recorded(trace).items()],
        run_id=1,
        end_ids=trace.end_ids,
        gold=trace.prompt.gold,
        judge=judge,
        question=trace.prompt.question or "",
        mode=mode(len(names), 1),
    )
    over = True
    for key, name in names.items():
        lane = trace.lanes[name]
        for step in list(traces.replay(trace, name))[: steps[key]]:
            stage.apply(Update((LaneStep(key, step),), "running", ()))
        if steps[key] == len(lane.steps) and lane.finished:
            stage.read = lambda _, text=lane.text[0]: text
            stage.apply(Update((), "running", (key,)))
        over = over and steps[key] == len(lane.steps)
    if over:
        stage.state = "done" if stage.finished else "stopped"
        stage.message = "" if stage.finished else "Stopped. What was written so far stays here."
    snapshot = stage.snapshot()
    return {name: value for name, value in snapshot.items() if name not in ("sequence", "steps")}


def last_seen(page: Any) -> dict[str, Any]:
    """The snapshot that the stage drew last, without what only a replay has."""
    seen = page.evaluate("window.seen.at(-1)")
    for lane in seen["lanes"]:
        del lane["since"]
    return {name: value for name, value in seen.items() if name not in ("sequence", "steps", "replay", "recorded")}


def test_step_k_of_the_slider_shows_exactly_state_k(open_file, race) -> None:
    runs, trace = race
    page = open_file(to_html(trace, judge=judge))
    assert page.get_attribute(".sd-seek", "max") == "12"
    canvases = {key: Canvas(40, read, ENDS) for key in runs}
    for step in range(13):
        if step:
            for key, run in runs.items():
                canvases[key].apply(run.steps[step - 1])
        go(page, step)
        for key in runs:
            assert drawn(page, key) == expected(canvases[key].cells(), step, step < 12), (key, step)
        assert last_seen(page) == stage_after(trace, {"dense": step, "sparse": step}, judge)
    # Backwards too: nothing depends on what was shown before.
    for step in (7, 12, 3, 0):
        go(page, step)
        assert last_seen(page) == stage_after(trace, {"dense": step, "sparse": step}, judge)
        assert drawn(page, "sparse") == expected(slow_cells(runs["sparse"], step), step, step < 12)


LENGTHS = [((9, 5), None), ((9, 5), 0.9), ((9, 5, 7), None), ((5, 6, 9), 0.9), ((12, 12, 12), None),
           ((9, 5, 7, 6), None), ((12, 12, 12, 12, 12), None)]  # fmt: skip


@pytest.mark.parametrize(("steps", "threshold"), LENGTHS)
def test_lanes_of_different_length(open_file, steps, threshold) -> None:
    """Stopped in the middle, or ended by a threshold: the shorter lane waits at its end."""
    runs, trace = make_race(21, 24, 12, steps, 0.1, threshold)
    page = open_file(to_html(trace, judge=judge))
    for step in (0, 1, 4, 5, 6, 7, max(steps)):
        go(page, step)
        at = {key: min(step, most) for key, most in zip(runs, steps, strict=True)}
        assert last_seen(page) == stage_after(trace, at, judge)


def test_six_lanes_with_a_cache_play_as_they_ran_and_fit_into_the_widest_picture(open_file, tmp_path) -> None:
    _, trace = make_race(21, 24, 12, (12, 12, 12, 12, 12), 0.1, None)
    dense = trace.lanes["dense"]
    # Every fourth step computes all rows, as in a record of Fast-dLLM with three blocks.
    steps = tuple(replace(step, rows=8) if step.index % 4 else step for step in dense.steps)
    cached = replace(dense, steps=steps, cache=ResolvedCache("dual"))
    six = replace(trace, lanes={**trace.lanes, "dense+dual": cached})
    page = open_file(to_html(six, judge=judge))
    for step in (0, 1, 2, 5, 12):
        go(page, step)
        at = dict.fromkeys([*trace.lanes, "dense+dual"], step)
        assert last_seen(page) == stage_after(six, at, judge)
        shown = page.locator('[data-lane="dense+dual"]')
        rows = "–" if not step else "8 of 31" if (step - 1) % 4 else "all 31"
        assert shown.locator(".sd-figures dd").last.inner_text() == rows
        kind = shown.locator(".sd-phases li[aria-current] b")
        assert not step or kind.inner_text() == ("few rows" if (step - 1) % 4 else "dense")
    # Each token says how many rows the step computed that committed it.
    cell = page.locator('[data-lane="dense+dual"] .sd-cell').first
    cell.hover()
    committed = int(cell.get_attribute("data-step"))
    said = page.inner_text('[data-lane="dense+dual"] .sd-tip')
    assert (", which computed 8 of 31 rows" in said) == ((committed - 1) % 4 > 0), said
    to_animation(six, tmp_path / "six.gif", seconds=3)
    assert frames_of(tmp_path / "six.gif")[0][-1].width == WIDTHS[-1]


@pytest.mark.parametrize("factor", [0.01, 15, 30, 1500])
def test_short_and_long_runs(open_file, race, factor) -> None:
    """Milliseconds, minutes and hours; "auto" brings each under a quarter of a minute."""
    _, trace = race
    slow = {
        name: replace(lane, steps=tuple(replace(step, seconds=factor * step.seconds) for step in lane.steps))
        for name, lane in trace.lanes.items()
    }
    trace = replace(trace, lanes=slow)
    page = open_file(to_html(trace, judge=judge))
    for step in (3, 4, 9, 10, 11, 12):
        go(page, step)
        assert last_seen(page) == stage_after(trace, {"dense": step, "sparse": step}, judge)
    steps = zip(*([step.seconds for step in lane.steps] for lane in slow.values()), strict=True)
    whole = sum(max(both) for both in steps)
    label = page.text_content(".sd-replay option[value=auto]")
    said = re.fullmatch(r"auto \((.+)×\)", label)
    assert said is not None and float(said.group(1)) == pytest.approx(max(1, whole / 15), abs=0.051)


def test_as_it_happened_each_lane_has_its_own_clock(open_file, race) -> None:
    runs, trace = race
    page = open_file(to_html(trace, judge=judge))
    page.check('input[value="clock"]')
    ticks = int(page.get_attribute(".sd-seek", "max"))
    longest = max(sum(step.seconds for step in run.steps) for run in runs.values())
    apart = 0
    for tick in (0, 1, 100, 171, 250, 333, 420, ticks):
        go(page, tick)
        at, now = {}, longest * tick / ticks
        for key, run in runs.items():
            at[key] = sum(sum(s.seconds for s in run.steps[: made_ + 1]) <= now + 1e-9 for made_ in range(12))
        apart += at["dense"] != at["sparse"]
        assert last_seen(page) == stage_after(trace, at, judge)
    assert apart >= 2
    assert page.inner_text(".sd-replay-time").split(" of ")[0] == page.inner_text(".sd-replay-time").split(" of ")[1]


def test_the_bar_by_keyboard(open_file, race) -> None:
    _, trace = race
    page = open_file(to_html(trace))
    page.focus(".sd-seek")
    said = []
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "End"):
        page.keyboard.press(key)
        said.append(page.get_attribute(".sd-seek", "aria-valuetext"))
    assert said == [
        "step 0 of 12: not begun", "step 1 of 12: dense", "step 2 of 12: dense", "step 3 of 12: dense",
        "step 2 of 12: dense", "step 12 of 12: sparse",
    ]  # fmt: skip
    page.select_option(".sd-replay select", "0.5")
    page.keyboard.press(" ")
    page.wait_for_selector('.sd-replay[data-playing="true"]')
    assert page.inner_text(".sd-play").endswith("Pause")
    page.keyboard.press(" ")
    page.wait_for_selector('.sd-replay[data-playing="false"]')
    assert int(page.input_value(".sd-seek")) < 12
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "step"
    page.keyboard.press("ArrowRight")
    assert page.is_checked('input[value="clock"]') and page.get_attribute(".sd-seek", "aria-label") == "Time"


@pytest.mark.parametrize("way", ["step", "clock"])
def test_play_goes_through_the_run_and_reaches_its_end(open_file, race, way) -> None:
    _, trace = race
    page = open_file(to_html(trace, judge=judge))
    before = last_seen(page)
    page.check(f'input[value="{way}"]')
    page.select_option(".sd-replay select", "4")
    page.evaluate("window.seen.length = 0")
    page.click(".sd-play")
    page.wait_for_selector('.sd-stage[data-state="running"]')
    page.wait_for_selector('.sd-stage[data-state="done"]')
    steps = page.evaluate("window.seen.map((value) => value.lanes.map((lane) => lane.step))")
    assert len({tuple(one) for one in steps}) >= 5
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in zip(steps, steps[1:], strict=False))
    assert way == "clock" or all(one[0] == one[1] for one in steps)
    assert last_seen(page) == before == stage_after(trace, {"dense": 12, "sparse": 12}, judge)
    assert page.get_attribute(".sd-replay", "data-playing") == "false"
    assert page.inner_text(".sd-play").endswith("Play")


def test_touching_the_slider_ends_the_playing(open_file, race) -> None:
    _, trace = race
    page = open_file(to_html(trace))
    page.select_option(".sd-replay select", "0.5")
    page.click(".sd-play")
    page.wait_for_selector('.sd-replay[data-playing="true"]')
    go(page, 6)
    assert page.get_attribute(".sd-replay", "data-playing") == "false"
    assert page.get_attribute(".sd-seek", "aria-valuetext") == "step 6 of 12: sparse"


MOUNT = """(value) => {
  const element = document.createElement("div");
  element.id = "second";
  element.innerHTML = '<div class="sd-view"></div>';
  document.querySelector("main").append(element);
  const props = { value: JSON.stringify(value) };
  window.sparsed.mount("replay", element, props, (name, update) => {
    window.give = (next) => { props.value = JSON.stringify(next); update(); };
  });
}"""


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_recorded_run_says_so_and_plays_by_itself_unless_motion_is_unwanted(open_file, race, motion) -> None:
    _, trace = race
    page = open_file(to_html(trace), reduced_motion=motion)
    page.evaluate("window.seen.length = 0")
    page.evaluate(MOUNT, replay_value(trace, run=0, of_record=True, autoplay=True, judge=judge))
    page.wait_for_selector(".sd-stage[data-run='0']")
    badge = page.inner_text(".sd-stage .sd-recorded")
    assert re.fullmatch(r"Recorded · .+ · \d{4}-\d\d-\d\d · Fake", badge)
    first = page.evaluate("window.seen[0].lanes.map((lane) => lane.step)")
    assert first == ([0, 0] if motion == "no-preference" else [12, 12])
    page.wait_for_selector(
        f'#second .sd-replay[data-playing="{"true" if motion == "no-preference" else "false"}"]'
    )
    # A live run takes its place; when that is over, its own record comes.
    show = "(value) => document.dispatchEvent(new CustomEvent('sparsed:show', { detail: value }))"
    live = stage_after(trace, {"dense": 2, "sparse": 3})
    page.evaluate(show, {**live, "run": 5, "sequence": 1, "steps": []})
    assert page.is_hidden("#second .sd-replay") and page.is_hidden(".sd-stage .sd-recorded")
    assert page.get_attribute("#second .sd-replay", "data-playing") == "false"
    failed = stage_after(trace, {"dense": 12, "sparse": 12}) | {"state": "failed", "message": "The run ended early."}
    page.evaluate(show, {**failed, "run": 5, "sequence": 2, "steps": []})
    page.evaluate("(value) => window.give(value)", replay_value(trace))
    page.wait_for_selector("#second .sd-replay:not([hidden])")
    assert page.is_hidden(".sd-stage .sd-recorded")
    # At its end stands what the live run left, whatever that was.
    page.focus("#second .sd-seek")
    page.keyboard.press("Home")
    seen = page.evaluate("window.seen.at(-1)")
    assert (seen["run"], seen["message"], seen["lanes"][0]["step"]) == (5, "", 0)
    page.keyboard.press("End")
    assert page.evaluate("window.seen.at(-1).message") == "The run ended early."
    # The way to play is as asked for, until the visitor chooses one.
    page.evaluate("(value) => window.give(value)", replay_value(trace, way="clock"))
    assert page.is_checked('#second input[value="clock"]')
    assert page.get_attribute("#second .sd-seek", "aria-label") == "Time"
    page.check('#second input[value="step"]')
    page.evaluate("(value) => window.give(value)", replay_value(trace, way="clock"))
    assert page.is_checked('#second input[value="step"]')
    # A run that was refused leaves the record of the one before to be played.
    nothing = {**stage_after(trace, {"dense": 0, "sparse": 0}), "run": 0, "sequence": 3, "steps": []}
    page.evaluate(show, {**nothing, "state": "preparing"})
    assert page.is_hidden("#second .sd-replay")
    page.evaluate(show, {**nothing, "state": "refused"})
    assert page.is_visible("#second .sd-replay")
    page.evaluate("window.give(null)")
    assert page.is_hidden("#second .sd-replay")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_file_follows_the_colour_scheme_and_fits_a_phone(open_file, race, scheme) -> None:
    _, trace = race
    page = open_file(to_html(trace), color_scheme=scheme, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click(".sd-theme")
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "light")


def test_hostile_text_is_only_text(open_file, race) -> None:
    _, trace = race
    hostile = HOSTILE.replace("\ud800", "")
    told = replace(
        trace,
        prompt=replace(trace.prompt, question=hostile),
        model=replace(trace.model, label=hostile),
        vocabulary={token: hostile for token in trace.vocabulary},
    )
    page = open_file(to_html(told))
    assert page.title() == "SparseD replay"
    assert page.text_content(".sd-title") == hostile and page.locator("img").count() == 0
    assert hostile in page.text_content('[data-lane="dense"] .sd-canvas')


# ---------------------------------------------------------------- the animation


def frames_of(path: Path) -> tuple[list[Image.Image], list[int]]:
    """Every frame in colours, and the milliseconds that each is shown."""
    frames, durations = [], []
    with Image.open(path) as picture:
        for number in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(number)
            picture.load()
            frames.append(picture.convert("RGB"))
            durations.append(picture.info["duration"])
        assert picture.info["loop"] == 0
    return frames, durations


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("lanes", [2, 3])
def test_an_animation_lasts_as_long_as_asked_and_holds_its_end(tmp_path, suffix, dark, lanes) -> None:
    _, trace = make_race(18, 40, 12, (12,) * lanes, 0.2, None)
    path = tmp_path / f"race{suffix}"
    to_animation(trace, path, width=640, seconds=8, dark=dark)
    frames, durations = frames_of(path)
    assert sum(durations) == 8000 and durations[-1] >= 2000
    assert {frame.width for frame in frames} == {640} and len({frame.size for frame in frames}) == 1
    colours = theme_colours(dark)
    assert frames[0].getpixel((2, 2)) == frames[-1].getpixel((2, 2)) == colours["page"]
    film = _Film(trace, 640, dark, None)
    y = film.top + film.px(68) + film.px(3)
    for number in range(lanes):
        left = film.margin + number * (film.card + film.gap) + film.inner
        right = left + film.card - 2 * film.inner - 2
        assert frames[0].getpixel((right, y)) == colours["raised"]
        assert frames[-1].getpixel((right, y)) == colours[f"lane-{number + 1}"] == frames[-1].getpixel((left, y))


def test_the_frames_follow_each_lanes_own_clock(race) -> None:
    runs, trace = race
    film = _Film(trace, 640, False, None)
    plan = film.plan(10)
    longest = max(sum(step.seconds for step in run.steps) for run in runs.values())
    now = 0
    for steps, shown in plan[:-1]:
        for key, run in runs.items():
            clock = [sum(step.seconds for step in run.steps[: count + 1]) for count in range(12)]
            assert steps[key] == sum(end <= longest * now / 7500 for end in clock)
        now += shown
    assert plan[-1][0] == {"dense": 12, "sparse": 12} and sum(shown for _, shown in plan) == 10_000
    assert all(shown % FRAME_MS == 0 for _, shown in plan[:-1])
    assert film.states["sparse"][12] == film.views["sparse"].canvas.cells()


def test_what_is_taken_away_says_how_the_lanes_shared_the_machine(race, monkeypatch: pytest.MonkeyPatch) -> None:
    _, turns = race
    together = replace(
        turns, lanes={key: replace(lane, device=number) for number, (key, lane) in enumerate(turns.lanes.items())}
    )
    written: list[str] = []
    fit = Typesetter.fit
    monkeypatch.setattr(Typesetter, "fit", lambda own, text, room: (written.append(text), fit(own, text, room))[1])
    for trace, name in ((turns, "turns"), (together, "together")):
        written.clear()
        film = _Film(trace, 960, False, None)
        steps, _ = film.plan(4)[-1]
        film.frame(steps, {})
        assert any(text.endswith(" · lanes at the same time") for text in written) is (name == "together")
        assert f'"mode":{{"name":"{name}"' in to_html(trace)


def test_an_animation_says_of_a_factor_that_a_slow_step_made_what_the_page_says(race, monkeypatch) -> None:
    _, trace = race
    dense = trace.lanes["dense"]
    steady = tuple(replace(step, seconds=1.0) for step in dense.steps)
    slow = (*steady[:-1], replace(steady[-1], seconds=60.0))
    written: list[str] = []
    draw = Typesetter.draw
    monkeypatch.setattr(Typesetter, "draw", lambda own, *given: (written.append(given[3]), draw(own, *given))[1])
    for steps, about in ((steady, False), (slow, True)):
        written.clear()
        film = _Film(replace(trace, lanes={**trace.lanes, "dense": replace(dense, steps=steps)}), 960, False, None)
        film.frame(film.plan(4)[-1][0], {})
        factor = next(text for text in written if text.endswith("×"))
        assert factor.startswith("≈ ") is about and factor.endswith(film.final["speedup"]["text"])


def test_three_lanes_get_a_wider_picture_that_tells_what_the_third_has_in_common(tmp_path) -> None:
    _, trace = make_race(18, 40, 12, (12, 12, 12), 0.2, None)
    to_animation(trace, tmp_path / "three.gif", seconds=4)
    to_animation(replace(trace, lanes=dict(list(trace.lanes.items())[:2])), tmp_path / "two.gif", seconds=4)
    three, two = (frames_of(tmp_path / name)[0][-1] for name in ("three.gif", "two.gif"))
    assert (two.width, three.width) == (960, 1280) and three.height > 0
    # The line stands in the third lane alone, above where a verdict stands.
    film = _Film(trace, 1280, False, None)
    film.plan(4)
    colours = theme_colours(False)
    rows = range(three.height - film.margin - film.px(50), three.height - film.margin - film.px(34))
    inked = []
    for number in range(3):
        left = film.margin + number * (film.card + film.gap) + film.inner
        pixels = (three.getpixel((x, y)) for x in range(left, left + film.card - 2 * film.inner) for y in rows)
        inked.append(colours["ink"] in set(pixels))
    assert inked == [False, False, True]
    with Image.open(tmp_path / "three.gif") as picture:
        assert len(picture.getpalette() or ()) <= 3 * 256


def test_the_same_run_gives_the_same_bytes(race, tmp_path) -> None:
    _, trace = race
    for name in ("a.gif", "b.gif", "c.webp", "d.webp"):
        to_animation(trace, tmp_path / name, width=480, seconds=4)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in ("a.gif", "b.gif", "c.webp", "d.webp"))
    assert a == b and c == d


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_whole_run_stays_small(tmp_path, suffix) -> None:
    _, trace = make_race(4, 64, 64, (64, 64), 0.2, None)
    to_animation(trace, tmp_path / f"race{suffix}")
    assert (tmp_path / f"race{suffix}").stat().st_size < 5_000_000


def test_any_text_can_be_drawn(race, tmp_path) -> None:
    """Scripts that no font here may have, control and half characters, a long word, one lane, steps without time."""
    _, trace = race
    odd = ["日本語", "\ud800", "\x00\x07\t", "ا\u202eب", "🦊", "\n\n", "x" * 300, "", "\U0010ffff", "e\u0301"]
    vocabulary = {token: odd[number % len(odd)] for number, token in enumerate(trace.vocabulary)}
    told = replace(trace, vocabulary=vocabulary, prompt=replace(trace.prompt, question="🦊 日本 " * 60 + "\ud800"))
    to_animation(told, tmp_path / "odd.gif", width=480, seconds=3)
    alone = traces.record(make_run(3, True, 200, 3, 2, 0.2))
    still = replace(alone.lanes["dense"], steps=tuple(replace(s, seconds=0.0) for s in alone.lanes["dense"].steps))
    to_animation(replace(alone, lanes={"dense": still}), tmp_path / "one.webp", width=480, seconds=3)
    assert sum(frames_of(tmp_path / "odd.gif")[1]) == 3000
    with Image.open(tmp_path / "one.webp") as picture:
        assert picture.n_frames == 1  # type: ignore[attr-defined]


def test_what_no_font_has_is_drawn_as_a_box() -> None:
    body = Typesetter(20)
    assert [font is None for font, _ in body.runs("a\U0010fffdb")] == [False, True, False]
    assert body.width("\U0010fffd\U0010fffd") == pytest.approx(28)
    assert body.runs("96.0\u00a0%") == body.runs("96.0 %")
    assert body.fit("word " * 100, 120).endswith(" …") and body.width(body.fit("word " * 100, 120)) <= 120


def test_what_cannot_be_made_is_refused_in_one_sentence(race, tmp_path) -> None:
    _, trace = race
    with pytest.raises(ValueError, match=r"ends in \.gif or \.webp, not in '\.mp4'"):
        to_animation(trace, tmp_path / "race.mp4")
    with pytest.raises(ValueError, match="width must lie between 480 and 1920 pixels, not 100"):
        to_animation(trace, tmp_path / "race.gif", width=100)
    with pytest.raises(ValueError, match="seconds must lie between 3 and 120, not 0"):
        to_animation(trace, tmp_path / "race.gif", seconds=0)
    assert list(tmp_path.iterdir()) == [] and (WIDTHS[0], WIDTHS[-1]) == (480, 1920)
