"""A run as an animation (GIF, WebP)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from app.finished.drawing import PAIRS, Palette, Typesetter, theme_colours
from app.finished.html import tokens_of
from app.finished.replay import Judge, final_snapshot, lane_view, origin
from app.finished.run import recorded
from app.lanes import headline, reference
from app.phrases import clock
from app.race.lane_view import FEW_ROWS, LaneView, Snapshot
from app.race.snapshot import speedup
from sparsed import trace as traces
from sparsed.files import draft

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
WIDTHS = range(480, 1921)
MOST_SECONDS = 120
FRAME_MS = 100
# The last picture stays for this share of the whole, at least so many milliseconds.
HELD, LEAST_HELD_MS = 0.25, 2000
# Pixels of a picture whose type has its plain size: of two lanes or one, and more for each further lane.
WIDTH, FURTHER_LANE = 960, 320


def to_animation(
    trace: traces.Trace,
    path: str | Path,
    *,
    width: int | None = None,
    seconds: float = 12,
    dark: bool = False,
    judge: Judge | None = None,
) -> None:
    """Writes the race as it happened, each lane by its own clock, as an animated picture that begins again for ever.

    path: ends in .gif or .webp. width: in pixels; None is 960, and 320 for each lane after the second, at most 1920.
    seconds: how long one round lasts, the last picture included, which is held for a quarter of it and at least 2 s.
    judge: (text, gold) → (right or not, in words). The same trace gives the same bytes on one machine.

    Raises ValueError for another suffix, a width outside 480 … 1920, seconds outside 3 … 120, and a trace that
    cannot be replayed.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"An animation's name ends in {' or '.join(FORMATS)}, not in {path.suffix!r}.")
    if width is None:
        width = min(_usual_width(trace), WIDTHS[-1])
    if width not in WIDTHS:
        raise ValueError(f"width must lie between {WIDTHS[0]} and {WIDTHS[-1]} pixels, not {width}.")
    if not 3 <= seconds <= MOST_SECONDS:
        raise ValueError(f"seconds must lie between 3 and {MOST_SECONDS}, not {seconds}.")
    film = _Film(trace, width, dark, judge)
    durations: list[int] = []
    frames: list[Image.Image] = []
    before: dict[str, int] = {}
    for steps, milliseconds in film.plan(seconds):
        frames.append(film.frame(steps, before))
        durations.append(milliseconds)
        before = steps
    more: dict[str, Any] = {"disposal": 1, "optimize": False}
    if path.suffix.lower() == ".webp":
        frames = [frame.convert("RGB") for frame in frames]
        more = {"lossless": True, "quality": 40, "method": 2}
    more |= {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    with draft(path) as place:
        frames[0].save(place, FORMATS[path.suffix.lower()], **more)


def _pairs(lanes: Iterable[str]) -> list[tuple[str, str]]:
    """Every text and its background, by name; lanes: the names of their colours."""
    of_lanes = (((lane, "page"), (lane, "panel"), (lane, "raised"), ("ink", f"{lane}-soft")) for lane in lanes)
    return [*PAIRS, *chain.from_iterable(of_lanes)]


class _Film:
    """Draws the frames. A state is the number of steps of each lane."""

    def __init__(self, trace: traces.Trace, width: int, dark: bool, judge: Judge | None) -> None:
        self.trace = trace
        lanes = recorded(trace)
        self.names = {lane.key: name for lane, name in lanes.items()}
        self.views = {lane.key: lane_view(trace, lane, name) for lane, name in lanes.items()}
        self.reference, self.headline = reference(list(lanes)), headline(lanes)
        self.states = {key: list(self._canvases(key)) for key in self.names}
        self.final = final_snapshot(trace, judge=judge)
        self.colours = theme_colours(dark)
        # The names of the lanes' colours.
        self.lanes = {lane.key: f"lane-{lane.style}" for lane in lanes}
        self.palette = Palette(self.colours, _pairs(self.lanes.values()))
        self.width = width
        self.unit = width / _usual_width(trace)
        small = trace.gen_length > 128
        self.body = Typesetter(self.px(13 if small else 16))
        self.title, self.label = Typesetter(self.px(20)), Typesetter(self.px(18))
        self.plain, self.little, self.large = Typesetter(self.px(15)), Typesetter(self.px(13)), Typesetter(self.px(34))
        self.margin, self.gap, self.inner = self.px(24), self.px(16), self.px(16)
        self.card = (width - 2 * self.margin - self.gap * (len(self.names) - 1)) // len(self.names)
        self.line = round(1.6 * self.body.size)
        self.top, self.head = self.px(128), self.px(108)
        # The verdict, and above it, of a lane that is not the headline's, how much of its text is the reference's.
        self.foot = self.px(68 if set(lanes) - {self.reference, self.headline} else 46)
        self.rows = 1

    def px(self, value: float) -> int:
        return max(1, round(value * self.unit))

    def _canvases(self, key: str) -> Iterator[list[Any]]:
        """The cells that are there after 0, 1, … steps; afterwards the lane's view is at its end."""
        view = self.views[key]
        yield view.canvas.cells()[: view.there]
        for step in traces.replay(self.trace, self.names[key]):
            view.apply(step)
            yield view.canvas.cells()[: view.there]

    def plan(self, seconds: float) -> list[tuple[dict[str, int], int]]:
        """(state, milliseconds it is shown) for every frame; also finds out how high they are."""
        held = max(LEAST_HELD_MS, HELD * 1000 * seconds)
        frames = round((1000 * seconds - held) / FRAME_MS)
        clocks = {key: _clock(view.times) for key, view in self.views.items()}
        longest = max(ends[-1] for ends in clocks.values())
        plan: list[tuple[dict[str, int], int]] = []
        for number in range(frames + 1):
            now = longest * number / frames
            steps = {key: sum(end <= now for end in ends) - 1 for key, ends in clocks.items()}
            if number == frames:
                steps = {key: len(view.times) for key, view in self.views.items()}
            if plan and plan[-1][0] == steps:
                plan[-1] = (steps, plan[-1][1] + FRAME_MS)
            else:
                plan.append((steps, FRAME_MS))
        plan[-1] = (plan[-1][0], plan[-1][1] + round(held) - FRAME_MS)
        places = [self._places(key, steps[key]) for steps, _ in plan for key in steps]
        self.rows = max(row for placed in places for _, row, _, _ in placed) + 1
        return plan

    def _places(self, key: str, step: int) -> list[tuple[int, int, float, str]]:
        """(cell, row, x within the canvas, text) of every piece of the canvas after `step` steps."""
        room = self.card - 2 * self.inner
        cells = self.states[key][step]
        mask, mark = 1.9 * self.body.size + 4 * self.unit, 0.6 * self.body.size
        ends = next((index for index, cell in enumerate(cells) if cell[3]), None)
        x, row = 0.0, 0
        placed: list[tuple[int, int, float, str]] = []
        for index, (text, committed, _, end) in enumerate(cells):
            if not committed or end:
                wide = mark if committed else mask
                if x + wide > room:
                    x, row = 0.0, row + 1
                placed.append((index, row, x, ""))
                x += wide
                continue
            if ends is not None and index > ends:
                text = text.replace("\n", " ")
            for number, piece in enumerate(text.split("\n")):
                if number:
                    x, row = 0.0, row + 1
                wide = self.body.width(piece)
                if x and x + wide > room:
                    x, row, piece = 0.0, row + 1, piece.lstrip(" ")
                    wide = self.body.width(piece)
                while wide > room:
                    most = max(1, next(n for n in range(1, len(piece) + 1) if self.body.width(piece[:n]) > room) - 1)
                    placed.append((index, row, x, piece[:most]))
                    row, piece = row + 1, piece[most:]
                    wide = self.body.width(piece)
                if piece:
                    placed.append((index, row, x, piece))
                x += wide
        return placed

    def frame(self, steps: dict[str, int], before: dict[str, int]) -> Image.Image:
        """One picture, in the palette's colours. What was committed after the state `before` is marked as new."""
        height = self.top + self.head + self.rows * self.line + self.foot + self.margin
        image = Image.new("RGB", (self.width, height), self.colours["page"])
        draw = ImageDraw.Draw(image)
        over = all(steps[key] == len(view.times) for key, view in self.views.items())
        self._heading(draw, steps, over)
        for number, key in enumerate(steps):
            left = self.margin + number * (self.card + self.gap)
            self._lane(draw, left, height, key, steps, min(before.get(key, 0), steps[key] - 1))
        return self.palette.apply(image)

    def _heading(self, draw: ImageDraw.ImageDraw, steps: dict[str, int], over: bool) -> None:
        ink, muted, x = self.colours["ink"], self.colours["muted"], float(self.margin)
        room = self.width - 2 * self.margin
        self.title.draw(draw, x, self.px(38), self.title.fit(self.final["question"], room), ink)
        about = origin(self.trace)
        facts = f"{about['model']} · {tokens_of(self.trace)} · {about['machine']} · {about['date']}"
        if (self.final["mode"] or {}).get("name") == "together":
            facts += " · lanes at the same time"
        self.little.draw(draw, x, self.px(62), self.little.fit(facts, room), muted)
        score = self.final["speedup"] if over else self._speedup(steps)
        y = self.px(108)
        if score is None:
            both = "All" if len(steps) > 2 else "Both"
            said = _never(self.final) if over else f"{both} lanes begin with full attention."
            self.plain.draw(draw, x, y, said, muted)
        else:
            slower = score["words"].startswith("slower")
            faster = self.final["reference" if slower else "headline"]
            # As on the page (assets/page/stage.css): a few slow steps made it.
            factor = f"≈ {score['text']}" if score.get("unsteady") else score["text"]
            x = self.large.draw(draw, x, y, factor, self.colours[self.lanes[faster]])
            x = self.plain.draw(draw, x + self.px(10), y, score["words"], ink)
        same = self.final["agreement"] if over else None
        if same is not None:
            x = self.large.draw(draw, x + self.px(48), y, same["text"], ink)
            self.plain.draw(draw, x + self.px(10), y, same["words"], ink)

    def _speedup(self, steps: dict[str, int]) -> dict[str, Any] | None:
        one, other = self.reference, self.headline
        if one is None or other is None or "sparse" not in self.views[other.key].phases[: steps[other.key]]:
            return None
        seconds = [self.views[lane.key].times[: steps[lane.key]] for lane in (one, other)]
        return speedup(*seconds, names=(one.name, other.name), finished=False)

    def _lane(
        self, draw: ImageDraw.ImageDraw, left: int, height: int, key: str, steps: dict[str, int], since: int
    ) -> None:
        colours, view, step = self.colours, self.views[key], steps[key]
        shown = next(lane for lane in self.final["lanes"] if lane["key"] == key)
        lane, ink, muted = colours[self.lanes[key]], colours["ink"], colours["muted"]
        top, right, bottom = self.top, left + self.card - 1, height - self.margin
        draw.rectangle((left, top, right, bottom), fill=colours["panel"], outline=colours["line"])
        draw.rectangle((left, top, right, top + self.px(4) - 1), fill=lane)
        x, end = left + self.inner, right - self.inner
        phase = view.kinds[step - 1] if step else ""
        if phase == FEW_ROWS:
            phase = f"{view.rows[step - 1]:,} of {view.positions:,} rows"
        if shown["ended_early"] and step == len(view.times):
            phase = "answer complete"
        clocked = clock(sum(view.times[:step])) if step else "–"
        at_most = "≤ " if view.at_most else ""
        room = end - x - self.label.width(clocked) - self.px(8)
        never = " · never sparse" if shown["never_sparse"] and step == len(view.times) else ""
        self.label.draw(draw, x, top + self.px(32), self.label.fit(f"{shown['label']}{never}", room), ink)
        self.label.draw(draw, end - self.label.width(clocked), top + self.px(32), clocked, ink)
        self.plain.draw(draw, x, top + self.px(56), f"step {step or '–'} of {at_most}{view.total}", muted)
        self.plain.draw(draw, end - self.plain.width(phase), top + self.px(56), phase, lane)
        self._progress(draw, x, end, top + self.px(68), view, step)
        ended = next((index for index, cell in enumerate(self.states[key][step]) if cell[3]), self.trace.gen_length)
        for index, row, place, text in self._places(key, step):
            baseline = top + self.head + row * self.line + round(1.1 * self.body.size)
            cell = self.states[key][step][index]
            new = since < cell[1] and step < len(view.times)
            self._cell(draw, x + place, baseline, key, cell, new, text, index > ended)
        if step == len(view.times) and shown["verdict"]:
            said = f"{'Right' if shown['right'] else 'Wrong'}: {shown['verdict']}"
            good = colours["good" if shown["right"] else "bad"]
            self.plain.draw(draw, x, bottom - self.px(14), self.plain.fit(said, self.card - 2 * self.inner), good)
        over = all(steps[name] == len(one.times) for name, one in self.views.items())
        if over and shown["same"] and key != self.final["headline"]:
            said = f"{shown['same']['text']} {shown['same']['words']}"
            self.plain.draw(draw, x, bottom - self.px(36), self.plain.fit(said, self.card - 2 * self.inner), ink)

    def _progress(self, draw: ImageDraw.ImageDraw, x: int, end: int, y: int, view: LaneView, step: int) -> None:
        """The steps as a bar, and a mark where the lane became sparse or will."""
        high, colours = self.px(6), self.colours
        lane = colours[self.lanes[view.key]]
        draw.rectangle((x, y, end, y + high), fill=colours["raised"])
        if step:
            draw.rectangle((x, y, x + (end - x) * step // view.total, y + high), fill=lane)
        sparse = next((number for number, phase in enumerate(view.phases) if phase == "sparse"), None)
        # With a cache most steps after it compute a few rows.
        if sparse is None or view.lane.cache is not None:
            return
        at = x + (end - x) * sparse // view.total
        draw.rectangle((at, y - self.px(4), at + self.px(2) - 1, y + high + self.px(4)), fill=colours["ink"])
        said = f"sparse from step {sparse + 1}"
        place = min(at, end - round(self.little.width(said)))
        self.little.draw(draw, place, y + high + self.px(20), said, colours["ink" if step > sparse else "muted"])

    def _cell(
        self,
        draw: ImageDraw.ImageDraw,
        x: float,
        y: int,
        key: str,
        cell: list[Any],
        new: bool,
        text: str,
        padding: bool,
    ) -> None:
        """A cell of the canvas, or its part on one row. padding: it comes after the end of the answer."""
        _, committed, _, end = cell
        size, colours = self.body.size, self.colours
        if not committed:
            box = (x + 1, y - 0.85 * size, x + 1.9 * size, y + 0.2 * size)
            draw.rectangle(box, outline=colours["hatch"])
            draw.line((x + 1, y + 0.2 * size, x + 1.9 * size, y - 0.85 * size), fill=colours["hatch"])
            return
        if end:
            draw.rectangle((x + 0.2 * size, y - 0.3 * size, x + 0.4 * size, y - 0.1 * size), fill=colours["muted"])
            return
        if new and not padding:
            wide = self.body.width(text)
            draw.rectangle((x, y - 0.95 * size, x + wide, y + 0.3 * size), fill=colours[f"{self.lanes[key]}-soft"])
            draw.rectangle((x, y + 0.3 * size, x + wide, y + 0.3 * size + self.px(1)), fill=colours[self.lanes[key]])
        self.body.draw(draw, x, y, text, colours["muted" if padding else "ink"])


def _never(final: Snapshot) -> str:
    """The caption of a race without a factor: why there is none, or nothing."""
    named = [lane["label"] for lane in final["lanes"] if lane["never_sparse"] and lane["key"] == final["headline"]]
    return f"{named[0]} was never sparse here: full attention to the end." if named else ""


def _usual_width(trace: traces.Trace) -> int:
    """In pixels."""
    return WIDTH + FURTHER_LANE * max(0, len(trace.lanes) - 2)


def _clock(times: list[float]) -> list[float]:
    """Seconds after 0, 1, … steps."""
    ends = [0.0]
    for seconds in times:
        ends.append(ends[-1] + seconds)
    return ends
