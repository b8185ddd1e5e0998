"""Step → token canvas: what each cell of a lane's answer shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]
Cell = list[Any]

REPLACEMENT = "\ufffd"


class Canvas:
    """The generated part of one lane's sequence, cell by cell.

    length: number of cells (gen_length).
    decode: token ids → text, leading spaces kept; called once per token id and remembered.
    end_id: the end-of-answer token.

    `cells` lists, for every position, `[text, step, confidence, end]`: step is counted from 1 and 0 while the
    cell is masked; confidence is a number in 0…1 (three decimals) or None; end is 1 for an end token, else 0.
    Since a committed token never changes, the cells of the last step hold every earlier state too: state k is
    the cells with 0 < step ≤ k.
    """

    def __init__(self, length: int, decode: Decode, end_id: int) -> None:
        if length < 1:
            raise ValueError(f"The canvas has {length} cells; it needs at least 1.")
        self.length = length
        self.end_id = end_id
        self._decode = decode
        self._texts: dict[int, str] = {}
        self._tokens: list[int | None] = [None] * length
        self._steps = [0] * length
        self._confidences: list[float | None] = [None] * length

    @property
    def committed(self) -> int:
        """Number of cells that are no longer masked."""
        return sum(step > 0 for step in self._steps)

    @property
    def tokens(self) -> list[int | None]:
        """Token ids by position; None where the cell is masked."""
        return list(self._tokens)

    def apply(self, step: Any, row: int = 0) -> None:
        """Take over the cells that `step` committed in batch row `row`."""
        tokens = step.tokens[row].tolist()
        confidences = step.confidence[row].tolist()
        for position, committed in enumerate(step.committed[row].tolist()):
            if committed:
                self._tokens[position] = tokens[position]
                self._steps[position] = step.index + 1
                confidence = confidences[position]
                self._confidences[position] = None if math.isnan(confidence) else round(confidence, 3)

    def _text(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._decode([token])
        return text

    def cells(self) -> list[Cell]:
        """The state to draw; a new list each time."""
        texts = ["" if token is None else self._text(token) for token in self._tokens]
        self._join_fragments(texts)
        return [
            [text, step, confidence, int(token == self.end_id)]
            for text, step, confidence, token in zip(
                texts, self._steps, self._confidences, self._tokens, strict=True
            )
        ]

    def _join_fragments(self, texts: list[str]) -> None:
        """Neighbouring tokens that are pieces of one character: the character stands in the first of them."""
        position = 0
        while position < self.length:
            end = position
            while end < self.length and REPLACEMENT in texts[end]:
                end += 1
            if end - position > 1:
                whole = self._decode([token for token in self._tokens[position:end] if token is not None])
                if REPLACEMENT not in whole:
                    texts[position:end] = [whole] + [""] * (end - position - 1)
            position = max(end, position + 1)
