"""An answer's tokens and its text: where it ends, how much of it two answers share, and the text of each cell.

Tokens that are pieces of one character read "\\ufffd" alone; side by side they are text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence

REPLACEMENT = "\ufffd"


def answer_length(tokens: Sequence[int | None], ends: int | Collection[int]) -> int:
    """Number of tokens up to and including the first end token; all of them when there is none.

    ends: the id, or every id, that ends an answer.
    """
    ids = _ids(ends)
    return next((position + 1 for position, token in enumerate(tokens) if token in ids), len(tokens))


def agreement(
    first: Sequence[int | None], second: Sequence[int | None], ends: int | Collection[int]
) -> tuple[int, int] | None:
    """(equal positions, compared positions) of two answers of the same length.

    Positions are compared up to and including the end token of the longer answer. What stands after the end token of
    the shorter one is no part of it, whatever it is: there it has ended. Two different end tokens are equal. None while
    a cell of either answer is still masked.
    """
    if len(first) != len(second):
        raise ValueError(
            f"The answers have {len(first)} and {len(second)} cells; they must have equally many."
        )
    ids = _ids(ends)
    answers = [list(row[: answer_length(row, ids)]) for row in (first, second)]
    if any(None in answer for answer in answers):
        return None
    compared = max(map(len, answers))
    one, two = (answer + answer[-1:] * (compared - len(answer)) for answer in answers)
    return sum(a == b or (a in ids and b in ids) for a, b in zip(one, two, strict=True)), compared


def groups(row: Sequence[int | None], pieces: Container[int | None]) -> Iterator[tuple[int, int]]:
    """(start, end) of every longest group of two or more neighbours in `row` that are pieces."""
    start = 0
    for end in range(len(row) + 1):
        if end == len(row) or row[end] not in pieces:
            if end - start > 1:
                yield start, end
            start = end + 1


def cell_texts(row: Sequence[int | None], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each cell of a canvas; empty where it is masked (None).

    Where neighbouring pieces make up characters, the first of their cells has the text and the others are empty.
    """
    single = {token: decode([token]) for token in set(row) if token is not None}
    texts = ["" if token is None else single[token] for token in row]
    for start, end in groups(row, {token for token, text in single.items() if REPLACEMENT in text}):
        whole = decode([token for token in row[start:end] if token is not None])
        if REPLACEMENT not in whole:
            texts[start:end] = [whole] + [""] * (end - start - 1)
    return texts


def _ids(ends: int | Collection[int]) -> frozenset[int]:
    return frozenset((ends,) if isinstance(ends, int) else ends)
