"""A run in the terminal: the bar of its steps and the canvas while it denoises (rich).

Whatever a token says is drawn as text: control characters are escaped, and rich's markup is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TextIO
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from sparsed.answer_text import cell_texts

if TYPE_CHECKING:
    from sparsed.denoising.run import Run
    from sparsed.denoising.step import Step
    from sparsed.models.hub import LoadProgress

REDRAW_SECONDS = 1 / 8
SAY_SECONDS = 10.0
CANVAS_LINES = 16

# A style must not be told by its colour alone: fresh cells are bold and underlined, masked ones are dim blocks.
_FRESH, _MASKED, _PLAIN, _ASIDE = "bold underline green", "dim", "", "dim"
_PHASES = {"dense": "blue", "select": "yellow", "sparse": "green"}
_KEPT = "\n\u200c\u200d"  # not printable, but parts of a text: line break, (non-)joiner


def safe(text: str) -> str:
    """`text` with everything a terminal could obey escaped; only line breaks stay, and tabs as spaces."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in _KEPT or category(char) == "Zs"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _joined(pieces: Iterable[tuple[str, str]]) -> Text:
    """(text, style) pairs as one Text, neighbours of one style together: fewer codes for the terminal."""
    drawn = Text()
    for style, same in groupby(pieces, key=lambda piece: piece[1]):
        drawn.append("".join(text for text, _ in same), style or None)
    return drawn


def _aside(text: str, width: int) -> Text:
    drawn = Text(text, style=_ASIDE)
    drawn.truncate(width)
    return drawn


class Canvas:
    """The generated part of one row, cell by cell.

    decode: token ids → text. A masked cell is one block, an end token one dot; cells committed since the last
    drawing stand out.
    """

    def __init__(
        self,
        gen_length: int,
        block_length: int,
        end_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._tokens: list[int | None] = [None] * gen_length
        self._block_length = block_length
        self._end_ids = frozenset(end_ids)
        self._decode = decode
        self._fresh: set[int] = set()

    def apply(self, step: Step, row: int = 0) -> None:
        """Takes over what `step` committed in a batch row."""
        tokens = step.tokens[row].tolist()
        for position, committed in enumerate(step.committed[row].tolist()):
            if committed:
                self._tokens[position] = tokens[position]
                self._fresh.add(position)

    def settle(self) -> None:
        """From now on only what is committed later counts as fresh."""
        self._fresh.clear()

    def text(self, ascii_only: bool = False) -> Text:
        """The whole canvas, not wrapped."""
        return self._text(len(self._tokens), ascii_only)

    def lines(self, console: Console, width: int, height: int) -> list[Text]:
        """The canvas wrapped to `width`, at most `height` lines.

        Where it does not fit, the last lines of what is at work are shown: later semi-autoregressive blocks
        and earlier lines are counted instead.
        """
        ascii_only = console.options.ascii_only
        lines = list(self.text(ascii_only).wrap(console, width))
        if len(lines) <= height:
            return lines
        masked = (place for place, token in enumerate(self._tokens) if token is None)
        first = next(masked, len(self._tokens) - 1)
        shown = min(len(self._tokens), (first // self._block_length + 1) * self._block_length)
        lines = list(self._text(shown, ascii_only).wrap(console, width))
        waiting = len(self._tokens) - shown
        room = max(1, height - bool(waiting))
        if len(lines) > room:
            room = max(1, room - 1)
            lines = [_aside(f"({len(lines) - room:,} lines above)", width), *lines[-room:]]
        if waiting:
            lines.append(_aside(f"({waiting:,} cells below)", width))
        return lines[-height:]

    def _text(self, cells: int, ascii_only: bool) -> Text:
        block, dot = ("_", ".") if ascii_only else ("░", "·")
        row = self._tokens[:cells]
        drawn = []
        for place, (token, text) in enumerate(zip(row, cell_texts(row, self._decode))):
            style = _FRESH if place in self._fresh else _PLAIN
            if token is None:
                drawn.append((block, _MASKED))
            elif token in self._end_ids:
                drawn.append((dot, style or _ASIDE))
            else:
                drawn.append((safe(text), style))
        return _joined(drawn)


class View(Protocol):
    """Something that is told of every step of a run, and shows it or not."""

    def apply(self, step: Step) -> None:
        """The newest step. Called between two steps: nothing is drawn while one is timed."""


class LiveView:
    """Bar, clock and canvas of a run, as something rich can draw; drawn at most eight times a second."""

    def __init__(self, run: Run, canvas: Canvas, console: Console) -> None:
        self._run, self._canvas, self._console = run, canvas, console
        self._seconds: dict[str, list[float]] = {phase: [] for phase in _PHASES}
        self._last: Step | None = None
        # No refresh of its own: a thread that draws would take time from the step that is being measured.
        self._live = Live(self, console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> LiveView:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def apply(self, step: Step) -> None:
        self._last = step
        self._seconds[step.phase].append(step.seconds)
        self._canvas.apply(step)
        if monotonic() - self._drawn >= REDRAW_SECONDS or step.index + 1 == step.total:
            self._draw()

    def _draw(self) -> None:
        self._live.refresh()
        self._canvas.settle()
        self._drawn = monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield self.bar(width, options.ascii_only)
        yield self.status()
        yield Text()
        room = (options.height or console.size.height) - 6
        yield from self._canvas.lines(console, width, max(3, min(CANVAS_LINES, room)))

    def bar(self, width: int, ascii_only: bool = False) -> Text:
        """The steps as a bar of `width` characters; the place where dense becomes sparse is marked."""
        done_char, open_char, mark_char = "#-|" if ascii_only else "━─┃"
        total, switch = self._run.total, self._run.switch_step
        done = 0 if self._last is None else self._last.index + 1
        filled = width * done // total
        mark = None if switch is None else width * switch // total
        drawn = []
        for column in range(width):
            phase = "dense" if mark is None or column < mark else "sparse"
            if column == mark:
                drawn.append((mark_char, "bold"))
            else:
                drawn.append((done_char, _PHASES[phase]) if column < filled else (open_char, _ASIDE))
        return _joined(drawn)

    def status(self) -> Text:
        """Step, phase, switch, seconds so far and milliseconds a step of the phase, in one line."""
        run, last = self._run, self._last
        at_most = "at most " if run.sampler.at_most else ""
        parts = [Text(f"step {0 if last is None else last.index + 1} of {at_most}{run.total}")]
        if last is not None:
            parts.append(Text(last.phase, style=f"bold {_PHASES[last.phase]}"))
        switch = run.switch_step
        parts.append(Text("never sparse" if switch is None else f"sparse from step {switch + 1}"))
        if last is not None:
            times = self._seconds[last.phase]
            parts.append(Text(f"{sum(map(sum, self._seconds.values())):.1f} s"))
            parts.append(Text(f"{1000 * sum(times) / len(times):.0f} ms/step"))
        return Text(" - " if self._console.options.ascii_only else " · ").join(parts)


class PlainView:
    """A line every ten seconds, for what is no terminal. at_most: the number of steps is an upper bound."""

    def __init__(self, file: TextIO, at_most: bool = False) -> None:
        self._file, self._at_most = file, "at most " if at_most else ""
        self._seconds = 0.0
        self._said = monotonic()

    def apply(self, step: Step) -> None:
        self._seconds += step.seconds
        if monotonic() - self._said >= SAY_SECONDS:
            self._said = monotonic()
            total = f"{self._at_most}{step.total}"
            said = f"step {step.index + 1} of {total}: {step.phase}, {self._seconds:.1f} s so far"
            print(said, file=self._file, flush=True)


class SilentView:
    """Shows nothing."""

    def apply(self, step: Step) -> None:
        pass


@contextmanager
def loading_bar(console: Console) -> Iterator[Callable[[LoadProgress], None]]:
    """A bar of bytes and files for `sparsed.load(progress=…)`; gone once the model is loaded."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[files]}"),
    )
    titles = {"download": "Downloading", "weights": "Loading weights"}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, visible=False, files="")

        def show(now: LoadProgress) -> None:
            progress.update(
                task,
                visible=True,
                description=titles.get(now.stage, now.stage),
                completed=now.bytes,
                total=now.total_bytes or None,
                files=f"{now.files} of {now.total_files} files",
            )

        yield show


@contextmanager
def loading_lines(file: TextIO) -> Iterator[Callable[[LoadProgress], None]]:
    """The same as a line every ten seconds."""
    said = monotonic()

    def show(now: LoadProgress) -> None:
        nonlocal said
        if monotonic() - said >= SAY_SECONDS:
            said = monotonic()
            print(now, file=file, flush=True)

    yield show
