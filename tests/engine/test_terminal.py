"""The canvas and the bar in a terminal: what is drawn, that nothing a token says is obeyed, and how often."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparsed.generation import terminal
from sparsed.generation.terminal import Canvas, LiveView, PlainView, loading_bar, loading_lines, safe
from sparsed.models.hub import LoadProgress

END, MASK = 0, 999
TEXTS = {
    END: "<|end|>",
    1: "[red]",
    2: "\x1b[31m",
    3: "\x07\r\x9b2J",
    4: "\u202edrow",
    5: "[/] [link=file:///etc]x[/link]",
    6: ":smile:",
    7: "漢字",
    8: "two\nlines",
    9: "\t|",
    10: "word ",
}


def decode(ids: Any) -> str:
    return {(11,): "\ufffd", (12,): "\ufffd", (11, 12): "é"}.get(tuple(ids)) or "".join(TEXTS[i] for i in ids)


def step(tokens: list[int], fresh: list[int], index: int = 0, total: int = 4, phase: str = "dense") -> Any:
    committed = np.isin(np.arange(len(tokens)), fresh)[None]
    return SimpleNamespace(
        index=index, total=total, phase=phase, tokens=np.array([tokens]), committed=committed, seconds=0.5
    )


def canvas_of(*states: tuple[list[int], list[int]], block_length: int | None = None) -> Canvas:
    canvas = Canvas(len(states[0][0]), block_length or len(states[0][0]), (END,), decode)
    for number, (tokens, fresh) in enumerate(states):
        canvas.settle()
        canvas.apply(step(tokens, fresh, number))
    return canvas


def drawn(canvas: Canvas, width: int = 40, height: int = 10, **options: Any) -> str:
    """What the terminal is sent."""
    file = io.StringIO()
    console = Console(file=file, width=width, record=True, **options)
    for line in canvas.lines(console, width, height):
        console.print(line)
    return file.getvalue()


def test_masked_fresh_and_settled_cells_differ_without_colour() -> None:
    canvas = canvas_of(([10, MASK, MASK, MASK], [0]), ([10, 10, MASK, END], [1, 3]))
    assert drawn(canvas) == "word word ░·\n"
    coded = drawn(canvas, force_terminal=True, no_color=True, color_system="standard")
    assert coded == "word \x1b[1;4mword \x1b[0m\x1b[2m░\x1b[0m\x1b[1;4m·\x1b[0m\n"


@pytest.mark.parametrize("token", sorted(TEXTS))
def test_hostile_text_stays_text(token: int) -> None:
    plain = drawn(canvas_of(([token, 10], [0, 1]), ([token, 10], [])))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", plain)
    coded = drawn(canvas_of(([token, 10], [0, 1])), force_terminal=True, color_system="truecolor")
    # Nothing but the style of a fresh cell, which we asked for ourselves.
    assert set(re.findall(r"\x1b[^m]*m|\x1b", coded)) == {"\x1b[1;4;32m", "\x1b[0m"}
    assert re.sub(r"\x1b\[[\d;]*m", "", coded) == plain


def test_what_hostile_text_looks_like() -> None:
    assert safe("[red]") == "[red]" and safe("\x1b[31m") == "\\x1b[31m" and safe("\x07\r\x9b") == "\\x07\\r\\x9b"
    assert (
        safe("\u202ex\u2028") == "\\u202ex\\u2028" and safe("a\r\nb\tc") == "a\nb    c" and safe("\udcff") == "\\udcff"
    )
    assert safe("né 漢字 👩\u200d🚀 a\u00a0b\u3000c") == "né 漢字 👩\u200d🚀 a\u00a0b\u3000c"
    assert drawn(canvas_of(([1, 5, 6], [0, 1, 2])), width=60) == "[red][/] [link=file:///etc]x[/link]:smile:\n"


def test_pieces_of_a_character_are_joined() -> None:
    assert drawn(canvas_of(([11, 12, MASK], [0, 1]))) == "é░\n"
    assert drawn(canvas_of(([11, MASK, 12], [0, 2]))) == "\ufffd░\ufffd\n"


def test_wide_and_long_text_is_wrapped() -> None:
    lines = drawn(canvas_of(([7] * 15, list(range(15)))), width=20).splitlines()
    assert lines == ["漢字" * 5] * 3
    assert drawn(canvas_of(([8, 8], [0, 1]))) == "two\nlinestwo\nlines\n"


def test_of_a_long_generation_the_last_lines_are_shown() -> None:
    lines = drawn(canvas_of(([10] * 32, [])), width=20, height=4).splitlines()
    assert lines == ["░░░░░░░░░░░░░░░░░░░░", "░░░░░░░░░░░░"]
    written = canvas_of(([10] * 40, list(range(40))))
    shown = drawn(written, width=20, height=4).splitlines()
    assert [line.rstrip() for line in shown] == ["(7 lines above)", *["word word word word"] * 3]
    # The blocks still to come do not push the one at work out of sight.
    tokens = [10] * 16 + [MASK] * 240
    early = canvas_of((tokens, list(range(16))), block_length=32)
    shown = drawn(early, width=20, height=4).splitlines()
    assert [line.rstrip() for line in shown] == [
        "(3 lines above)",
        "word word word word",
        "░░░░░░░░░░░░░░░░",
        "(224 cells below)",
    ]


@pytest.mark.parametrize("width", [1, 3, 20, 80])
@pytest.mark.parametrize("height", [1, 2, 5])
def test_no_line_is_too_wide_and_no_canvas_too_high(width: int, height: int) -> None:
    rng = np.random.default_rng(width * height)
    for cells in (1, 8, 64, 300):
        tokens = rng.integers(0, 11, cells)
        fresh = np.nonzero(rng.random(cells) < 0.5)[0].tolist()
        canvas = canvas_of((tokens.tolist(), fresh), block_length=8)
        console = Console(file=io.StringIO(), width=width)
        lines = canvas.lines(console, width, height)
        assert 1 <= len(lines) <= height
        # A character of two columns does not fit into one.
        assert all(line.cell_len <= max(width, 2) for line in lines)


def test_a_terminal_without_utf8_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    console = Console(file=file, width=40, force_terminal=True)
    canvas = canvas_of(([10, MASK, END], [0, 2]))
    view = LiveView(fake_run(), canvas, console)
    view.apply(step([10, MASK, END], []))
    assert canvas.text(ascii_only=True).plain == "word _."
    assert view.bar(8, ascii_only=True).plain == "##--|---" and view.status().plain.isascii()


def fake_run(total: int = 4, switch: int | None = 2, at_most: bool = False) -> Any:
    return SimpleNamespace(total=total, switch_step=switch, sampler=SimpleNamespace(at_most=at_most))


def test_bar_marks_the_switch_and_status_says_where_the_run_is() -> None:
    view = LiveView(fake_run(), canvas_of(([10] * 4, [])), Console(file=io.StringIO(), width=60))
    assert view.bar(8).plain == "────┃───" and view.status().plain == "step 0 of 4 · sparse from step 3"
    view.apply(step([10] * 4, [0], 0))
    view.apply(step([10] * 4, [1], 1, phase="select"))
    assert view.bar(8).plain == "━━━━┃───"
    assert view.status().plain == "step 2 of 4 · select · sparse from step 3 · 1.0 s · 500 ms/step"
    view.apply(step([10] * 4, [2], 2, phase="sparse"))
    assert view.bar(8).plain == "━━━━┃━──"
    view = LiveView(fake_run(switch=None, at_most=True), canvas_of(([10], [])), Console(file=io.StringIO()))
    assert view.status().plain == "step 0 of at most 4 · never sparse"


def test_at_most_eight_redraws_a_second_and_only_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    file = io.StringIO()
    total = 500
    canvas = Canvas(total, total, (END,), decode)
    view = LiveView(fake_run(total, 100), canvas, Console(file=file, width=60, force_terminal=True))
    with view:
        assert view._live._refresh_thread is None
        drawings = []
        for index in range(total):
            before = len(file.getvalue())
            now[0] += 0.01  # the step; nothing is drawn meanwhile
            assert len(file.getvalue()) == before
            view.apply(step([10] * total, [index], index, total))
            if len(file.getvalue()) > before:
                drawings.append(now[0])
    assert 30 <= len(drawings) <= 8 * 0.01 * total + 2
    assert all(b - a >= 0.125 - 1e-9 for a, b in zip(drawings, drawings[1:-1]))


def test_lines_for_what_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    file = io.StringIO()
    view = PlainView(file)
    with loading_lines(file) as show:
        for index in range(4):
            now[0] += 6
            view.apply(step([10], [], index))
            show(LoadProgress("weights", 10**9 * index, 4 * 10**9, 0, 2))
    assert file.getvalue().splitlines() == [
        "step 2 of 4: dense, 1.0 s so far",
        str(LoadProgress("weights", 10**9, 4 * 10**9, 0, 2)),
        "step 4 of 4: dense, 2.0 s so far",
        str(LoadProgress("weights", 3 * 10**9, 4 * 10**9, 0, 2)),
    ]


def test_the_loading_bar_shows_bytes_and_files() -> None:
    file = io.StringIO()
    with loading_bar(Console(file=file, width=100, force_terminal=True)) as show:
        show(LoadProgress("download", 2**30, 4 * 2**30, 1, 6))
    assert "Downloading" in file.getvalue() and "1.0/4.0 GiB" in file.getvalue() and "1 of 6 files" in file.getvalue()
