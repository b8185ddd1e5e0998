"""Do two answers say the same? Counted token by token, for the page, the bench and the evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence


def answer_length(tokens: Sequence[int | None], end_id: int) -> int:
    """Number of tokens up to and including the first end token; all of them when there is none."""
    for position, token in enumerate(tokens):
        if token == end_id:
            return position + 1
    return len(tokens)


def agreement(
    first: Sequence[int | None], second: Sequence[int | None], end_id: int
) -> tuple[int, int] | None:
    """(equal positions, compared positions) of two answers of the same length.

    Positions are compared up to and including the end token of the longer answer, so what comes after the end
    (padding) never counts. None while a compared cell is still masked.
    """
    if len(first) != len(second):
        raise ValueError(
            f"The answers have {len(first)} and {len(second)} cells; they must have equally many."
        )
    compared = max(answer_length(first, end_id), answer_length(second, end_id))
    pairs = list(zip(first[:compared], second[:compared], strict=True))
    if any(a is None or b is None for a, b in pairs):
        return None
    return sum(a == b for a, b in pairs), compared
