"""Do two answers say the same? Counted token by token, for the page, the bench and the evaluation alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence


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

    Positions are compared up to and including the end token of the longer answer, so what comes after the end
    (padding) never counts; two different end tokens are equal. None while a compared cell is still masked.
    """
    if len(first) != len(second):
        raise ValueError(
            f"The answers have {len(first)} and {len(second)} cells; they must have equally many."
        )
    ids = _ids(ends)
    compared = max(answer_length(first, ids), answer_length(second, ids))
    pairs = list(zip(first[:compared], second[:compared], strict=True))
    if any(a is None or b is None for a, b in pairs):
        return None
    return sum(a == b or (a in ids and b in ids) for a, b in pairs), compared


def _ids(ends: int | Collection[int]) -> frozenset[int]:
    return frozenset((ends,) if isinstance(ends, int) else ends)
