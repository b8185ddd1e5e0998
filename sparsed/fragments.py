"""Tokens that are pieces of one character: alone they read "\\ufffd", side by side they are text."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

REPLACEMENT = "\ufffd"


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
