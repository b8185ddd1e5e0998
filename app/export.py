"""A run to take away: as one HTML file that plays by itself, and as an animated picture for a slide."""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.assets import together
from app.figures.palette import palette
from app.replay import Judge, final_snapshot, lane_names, lane_view, origin, replay_value
from app.stage import BASELINE, DENSE, SPARSE, LaneView, clock, speedup
from sparsed import trace as traces

# Those of the page (app/serving.py) that have something to draw here: the stage and the bar, below a heading.
STYLES = (
    "colours.css", "base.css", "header.css", "prompt.css", "lanes.css", "stage.css", "replay.css", "phone.css",
)  # fmt: skip
SCRIPTS = ("core.js", "format.js", "lane.js", "stage.js", "playback.js", "replay.js", "record.js")

# ---------------------------------------------------------------- HTML

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>SparseD replay</title>
<style>
{style}
{more_style}
</style>
</head>
<body>
<main class="gradio-container sd-export">
<div id="sd-record"><div class="sd-view"></div></div>
<div id="sd-stage"><div class="sd-view"></div></div>
<div id="sd-replay"><div class="sd-view"></div></div>
<noscript>This replay is drawn by the script inside this file; please allow it to run.</noscript>
</main>
<script type="application/json" id="sd-value">{value}</script>
<script>{script}</script>
</body>
</html>
"""

# What gradio brings on the page.
_STYLE = """
*, *::before, *::after { box-sizing: border-box; }
body {
  margin: 0;
  font: 16px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
}
.sd-export { display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px; }
.sd-export .sd-chips { margin-top: 10px; }
.sd-export .sd-chips li { white-space: normal; overflow-wrap: anywhere; }
.sd-export .sd-about { display: none; }
"""

_START = """
(() => {
  const value = JSON.parse(document.getElementById("sd-value").textContent);
  const mount = (kind, id, content) =>
    window.sparsed.mount(kind, document.getElementById(id), { value: JSON.stringify(content) }, () => {});
  mount("record", "sd-record", value.record);
  mount("stage", "sd-stage", null);
  mount("replay", "sd-replay", value.replay);
})();
"""


def to_html(trace: traces.Trace, *, judge: Judge | None = None) -> str:
    """A whole page that replays the run: no network, nothing beside the file.

    judge: (text, gold) → (right or not, in words). Texts of the trace stand in the file as JSON only, which the
    script shows as text. Raises ValueError for a trace that cannot be replayed (`app.replay.lane_names`).
    """
    about = origin(trace)
    value = {
        "record": {
            "title": trace.prompt.question or "A run of SparseD",
            "facts": ["Recorded", *(about[name] for name in ("model", "machine", "date")), _tokens(trace)],
        },
        "replay": replay_value(trace, run=1, judge=judge),
    }
    script = "\n".join([together(SCRIPTS), "window.sparsed.start();", _START]).replace("</script", "<\\/script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    style = together(STYLES).replace("</style", "<\\/style")
    return _PAGE.format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=style,
        more_style=_STYLE.strip(),
        # ASCII only: a lone surrogate, which no encoding can write, becomes an escape.
        value=json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        script=script,
    )


def _tokens(trace: traces.Trace) -> str:
    return f"{trace.prompt.tokens:,} prompt tokens"


# ---------------------------------------------------------------- animation

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
WIDTHS = range(480, 1921)
MOST_SECONDS = 120
FRAME_MS = 100
# The last picture stays for this share of the whole, at least so many milliseconds.
HELD, LEAST_HELD_MS = 0.25, 2000

# Looked for on the system, in this order, where Pillow's own font has no such character.
_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf",
    "segoeui.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf",
    "wqy-microhei.ttc", "seguisym.ttf",
)  # fmt: skip
# Text on its background: the picture's palette holds the steps between them.
_PAIRS = (
    ("ink", "page"), ("muted", "page"), ("line", "page"), ("ink", "panel"), ("muted", "panel"), ("good", "panel"),
    ("bad", "panel"), ("hatch", "panel"), ("ink", "raised"),
)  # fmt: skip
# A palette has so many colours.
_PALETTE = 256
# Pixels of a picture whose type has its plain size: three lanes need more room.
WIDTH, WIDTH_OF_THREE = 960, 1280

Colours = dict[str, tuple[int, int, int]]


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

    path: ends in .gif or .webp. width: in pixels; None is 960, or 1280 for three lanes. seconds: how long one round
    lasts, the last picture included, which is held for a quarter of it and at least 2 s. judge: (text, gold) → (right
    or not, in words). The same trace gives the same bytes on one machine.

    Raises ValueError for another suffix, a width outside 480 … 1920, seconds outside 3 … 120, and a trace that
    cannot be replayed.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"An animation's name ends in {' or '.join(FORMATS)}, not in {path.suffix!r}.")
    if width is None:
        width = _usual_width(trace)
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
    frames[0].save(
        path, FORMATS[path.suffix.lower()], save_all=True, append_images=frames[1:], duration=durations, loop=0, **more
    )


def _colours(dark: bool) -> Colours:
    """The page's colours by name, as red, green and blue."""
    return {name: (int(code[1:3], 16), int(code[3:5], 16), int(code[5:], 16)) for name, code in palette(dark).items()}


def _pairs(lanes: Iterable[str]) -> list[tuple[str, str]]:
    """Every text and its background, by name; lanes: the names of their colours."""
    of_lanes = (((lane, "page"), (lane, "panel"), (lane, "raised"), ("ink", f"{lane}-soft")) for lane in lanes)
    return [*_PAIRS, *chain.from_iterable(of_lanes)]


class _Palette:
    """One palette for all frames, with every pair's steps, so that what stays the same keeps its colour."""

    def __init__(self, colours: Colours, pairs_of_names: Sequence[tuple[str, str]]) -> None:
        pairs = ((np.array(colours[front]), np.array(colours[back])) for front, back in pairs_of_names)
        shares = np.linspace(0, 1, _PALETTE // len(pairs_of_names))[:, None]
        mixed = np.concatenate([np.rint(back + shares * (front - back)) for front, back in pairs])
        self._colours = np.unique(mixed.astype(np.int32), axis=0)
        # Colour as one number → its entry, found when it is first met. (Pillow's own search is not exact.)
        self._entries = np.full(1 << 24, -1, dtype=np.int16)

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture with each pixel's nearest entry."""
        pixels = np.asarray(image, dtype=np.int32)
        numbers = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
        for number in np.unique(numbers[self._entries[numbers] < 0]).tolist():
            colour = np.array([number >> 16, number >> 8 & 255, number & 255])
            self._entries[number] = np.square(self._colours - colour).sum(1).argmin()
        indexed = Image.fromarray(self._entries[numbers].astype(np.uint8))
        indexed.putpalette(self._colours.ravel().tolist())
        return indexed


class _Type:
    """Text of one size. What no font has is drawn as a box."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._own = ImageFont.load_default(size)
        self._chosen: dict[str, Any] = {}

    @staticmethod
    @lru_cache(maxsize=256)
    def _system(name: str, size: int) -> Any:
        try:
            return ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC)
        except OSError:
            return None

    @staticmethod
    def _covers(font: Any, character: str) -> bool:
        def drawn(text: str) -> tuple[Any, bytes]:
            mask = font.getmask(text)
            return mask.size, bytes(mask)

        # The picture of what is not there is that of a character that cannot be there.
        return drawn(character) != drawn("\U0010ffff")

    def _font(self, character: str) -> Any:
        if character not in self._chosen:
            fonts = [self._own, *(self._system(name, self.size) for name in _FONTS)] if character > "~" else [self._own]
            found = [font for font in fonts if font is not None and self._covers(font, character)]
            self._chosen[character] = found[0] if found else None if character > " " else self._own
        return self._chosen[character]

    def runs(self, text: str) -> list[tuple[Any, str]]:
        """The text in pieces of one font each; None for the font of what no font has."""
        pieces: list[tuple[Any, str]] = []
        for character in _clean(text):
            font = self._font(character)
            if pieces and pieces[-1][0] is font:
                pieces[-1] = (font, pieces[-1][1] + character)
            else:
                pieces.append((font, character))
        return pieces

    def _length(self, font: Any, text: str) -> float:
        return float(font.getlength(text)) if font is not None else 0.7 * self.size * len(text)

    def width(self, text: str) -> float:
        """In pixels."""
        return sum(self._length(font, piece) for font, piece in self.runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, text: str, fill: tuple[int, int, int]) -> float:
        """Writes the text with its baseline at y; returns where it ends."""
        for font, piece in self.runs(text):
            if font is None:
                for number in range(len(piece)):
                    left = x + 0.7 * self.size * number
                    draw.rectangle((left + 1, y - 0.7 * self.size, left + 0.6 * self.size, y), outline=fill)
            else:
                draw.text((x, y), piece, fill=fill, font=font, anchor="ls")
            x += self._length(font, piece)
        return x

    def fit(self, text: str, most: float) -> str:
        """The text, or as much of its beginning as is at most so wide, and " …"."""
        if self.width(text) <= most:
            return text
        text = text[:400]
        while text and self.width(text + " …") > most:
            text = text[:-1]
        return text.rstrip() + " …"


def _clean(text: str) -> str:
    """Without what has no picture: control characters become spaces, invisible ones go."""
    kinds = ((character, unicodedata.category(character)) for character in text)
    return "".join(
        " " if kind == "Cc" else "\ufffd" if kind == "Cs" else character for character, kind in kinds if kind != "Cf"
    )


class _Film:
    """Draws the frames. A state is the number of steps of each lane."""

    def __init__(self, trace: traces.Trace, width: int, dark: bool, judge: Judge | None) -> None:
        self.trace = trace
        self.names = lane_names(trace)
        self.views = {key: lane_view(trace, name) for key, name in self.names.items()}
        self.states = {key: list(self._canvases(key)) for key in self.names}
        self.final = final_snapshot(trace, judge=judge)
        self.colours = _colours(dark)
        # The names of the lanes' colours: those of their places.
        self.lanes = {key: f"lane-{place}" for place, key in enumerate(self.names, start=1)}
        self.palette = _Palette(self.colours, _pairs(self.lanes.values()))
        self.width = width
        self.unit = width / _usual_width(trace)
        small = trace.gen_length > 128
        self.body = _Type(self.px(13 if small else 16))
        self.title, self.label = _Type(self.px(20)), _Type(self.px(18))
        self.plain, self.little, self.large = _Type(self.px(15)), _Type(self.px(13)), _Type(self.px(34))
        self.margin, self.gap, self.inner = self.px(24), self.px(16), self.px(16)
        self.card = (width - 2 * self.margin - self.gap * (len(self.names) - 1)) // len(self.names)
        self.line = round(1.6 * self.body.size)
        self.top, self.head = self.px(128), self.px(108)
        # The verdict, and above it how much of a baseline's text is that of full attention.
        self.foot = self.px(68 if BASELINE in self.names else 46)
        self.rows = 1

    def px(self, value: float) -> int:
        return max(1, round(value * self.unit))

    def _canvases(self, key: str) -> Iterator[list[Any]]:
        """The cells after 0, 1, … steps; afterwards the lane's view is at its end."""
        view = self.views[key]
        yield view.canvas.cells()
        for step in traces.replay(self.trace, self.names[key]):
            view.apply(step)
            yield view.canvas.cells()

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
        facts = f"{about['model']} · {_tokens(self.trace)} · {about['machine']} · {about['date']}"
        if (self.final["mode"] or {}).get("name") == "together":
            facts += " · lanes at the same time"
        self.little.draw(draw, x, self.px(62), self.little.fit(facts, room), muted)
        score = self.final["speedup"] if over else self._speedup(steps)
        y = self.px(108)
        if score is None:
            both = "All" if len(steps) > 2 else "Both"
            self.plain.draw(draw, x, y, "" if over else f"{both} lanes begin with full attention.", muted)
        else:
            slower = score["words"].startswith("slower")
            x = self.large.draw(draw, x, y, score["text"], self.colours["lane-1" if slower else "lane-2"])
            x = self.plain.draw(draw, x + self.px(10), y, score["words"], ink)
        same = self.final["agreement"] if over else None
        if same is not None:
            x = self.large.draw(draw, x + self.px(48), y, same["text"], ink)
            self.plain.draw(draw, x + self.px(10), y, same["words"], ink)

    def _speedup(self, steps: dict[str, int]) -> dict[str, Any] | None:
        if not {DENSE, SPARSE} <= set(steps) or "sparse" not in self.views[SPARSE].phases[: steps[SPARSE]]:
            return None
        dense, sparse = (self.views[key].times[: steps[key]] for key in (DENSE, SPARSE))
        return speedup(dense, sparse, finished=False)

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
        phase = view.phases[step - 1] if step else ""
        clocked = clock(sum(view.times[:step])) if step else "–"
        at_most = "≤ " if view.at_most else ""
        room = end - x - self.label.width(clocked) - self.px(8)
        self.label.draw(draw, x, top + self.px(32), self.label.fit(shown["label"], room), ink)
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
        if over and shown["same"]:
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
        if sparse is None:
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


def _usual_width(trace: traces.Trace) -> int:
    """In pixels."""
    return WIDTH_OF_THREE if len(trace.lanes) > 2 else WIDTH


def _clock(times: list[float]) -> list[float]:
    """Seconds after 0, 1, … steps."""
    ends = [0.0]
    for seconds in times:
        ends.append(ends[-1] + seconds)
    return ends
