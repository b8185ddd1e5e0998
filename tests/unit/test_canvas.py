"""Step → token canvas, and the agreement of two answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from app.race.canvas import Canvas
from sparsed.answer_text import agreement, answer_length

END = 9
PIECES = {1: b"A", 2: b" river", 3: "é".encode()[:1], 4: "é".encode()[1:], 5: b"<b>", END: b"<end>"}


def decode(tokens: list[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


def step(index: int, tokens: list[int], committed: list[int], confidence: float = 0.5) -> SimpleNamespace:
    chosen = np.array([[position in committed for position in range(len(tokens))]])
    return SimpleNamespace(
        index=index,
        tokens=np.array([tokens]),
        committed=chosen,
        confidence=np.where(chosen, confidence, np.nan),
    )


def test_before_the_first_step_every_cell_is_masked() -> None:
    canvas = Canvas(3, decode, {END})
    assert canvas.cells() == [["", 0, None, 0]] * 3
    assert canvas.committed == 0 and canvas.tokens == [None] * 3


def test_cells_say_text_step_confidence_and_end() -> None:
    canvas = Canvas(4, decode, {END, 99})
    canvas.apply(step(0, [1, 0, 0, 0], [0], 0.98765))
    canvas.apply(step(1, [1, 2, 0, 9], [1, 3], 0.25))
    assert canvas.cells() == [
        ["A", 1, 0.988, 0],
        [" river", 2, 0.25, 0],
        ["", 0, None, 0],
        ["<end>", 2, 0.25, 1],
    ]
    assert canvas.committed == 3


def test_a_cell_keeps_the_step_in_which_it_was_committed() -> None:
    canvas = Canvas(2, decode, {END})
    canvas.apply(step(0, [1, 0], [0], 0.75))
    canvas.apply(step(1, [5, 2], [1], 0.25))
    assert canvas.cells()[0] == ["A", 1, 0.75, 0]


def test_earlier_states_can_be_read_off_the_last_cells() -> None:
    canvas, states = Canvas(3, decode, {END}), []
    for index, position in enumerate([2, 0, 1]):
        canvas.apply(step(index, [1, 2, 5], [position]))
        states.append(canvas.cells())
    for number, state in enumerate(states, start=1):
        masked = [cell if 0 < cell[1] <= number else ["", 0, None, 0] for cell in canvas.cells()]
        assert masked == state


def test_pieces_of_one_character_are_joined_once_both_are_there() -> None:
    canvas = Canvas(3, decode, {END})
    canvas.apply(step(0, [3, 0, 0], [0]))
    assert canvas.cells()[0][0] == "\ufffd"
    canvas.apply(step(1, [3, 4, 2], [1, 2]))
    assert [cell[0] for cell in canvas.cells()] == ["é", "", " river"]


def test_each_token_is_decoded_once() -> None:
    calls: list[int] = []

    def counting(tokens: list[int]) -> str:
        calls.extend(tokens)
        return decode(tokens)

    canvas = Canvas(3, counting, {END})
    for index in range(3):
        canvas.apply(step(index, [2, 2, 2], [index]))
        canvas.cells()
    assert calls == [2]


def test_nan_confidence_is_no_number_on_the_page() -> None:
    canvas = Canvas(1, decode, {END})
    canvas.apply(step(0, [1], [0], float("nan")))
    assert canvas.cells() == [["A", 1, None, 0]]


def test_a_canvas_needs_a_cell() -> None:
    with pytest.raises(ValueError, match="0 cells"):
        Canvas(0, decode, {END})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, END, END], [1, 2, END, END], (3, 3)),
        ([1, 2, END, 5], [1, 2, END, 2], (3, 3)),  # after the end of both: never counted
        ([1, END, END, END], [1, 2, 5, END], (2, 4)),  # counted to the end of the longer answer
        ([1, 2, 5, 5], [1, 2, END, 5], (2, 4)),  # no end token: the whole answer
        ([END], [END], (1, 1)),
        ([1, None, END], [1, 2, END], None),
        ([1, END, None], [1, END, None], (2, 2)),
        ([1, END, 5, 6], [1, 2, 5, END], (2, 4)),  # what the shorter answer has after its end is no part of it
        ([1, END, None], [1, 2, END], (2, 3)),
    ],
)
def test_agreement_counts_up_to_the_end_of_the_longer_answer(first, second, expected) -> None:
    assert agreement(first, second, END) == expected
    assert agreement(second, first, END) == expected


def test_answers_of_different_size_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="3 and 2 cells"):
        agreement([1, 1, 1], [1, 1], END)


def test_answer_length() -> None:
    assert answer_length([1, END, END], END) == 2
    assert answer_length([1, 7, END], (END, 7)) == 2
    assert answer_length([1, 2], END) == 2


def test_answers_may_end_in_different_tokens() -> None:
    assert agreement([1, END, 1], [1, 7, 2], {END, 7}) == (2, 2)
    assert agreement([1, END, 1], [1, 2, 7], {END, 7}) == (2, 3)


def test_every_end_token_is_marked() -> None:
    canvas = Canvas(3, decode, (END, 5))
    canvas.apply(step(0, [1, 5, END], [0, 1, 2]))
    assert [cell[3] for cell in canvas.cells()] == [0, 1, 1]
