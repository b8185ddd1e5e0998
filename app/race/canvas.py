"""Step → token canvas: what each cell of a lane's answer shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from app.engine.interface import StepLike
from sparsed.answer_text import cell_texts

Decode = Callable[[Sequence[int]], str]
Cell = list[Any]


class Canvas:
    """The generated part of one lane's sequence, cell by cell.

    length: number of cells (gen_length).
    decode: token ids → text, leading spaces kept; called once per token id and remembered.
    end_ids: every token that ends an answer.

    `cells` lists, for every position, `[text, step, confidence, end]`: step is counted from 1 and 0 while the
    cell is masked; confidence is a number in 0…1 (three decimals) or None; end is 1 for an end token, else 0.
    Since a committed token never changes, the cells of the last step hold every earlier state too: state k is
    the cells with 0 < step ≤ k.
    """

    def __init__(self, length: int, decode: Decode, end_ids: Collection[int]) -> None:
        if length < 1:
            raise ValueError(f"The canvas has {length} cells; it needs at least 1.")
        self.length = length
        self.end_ids = frozenset(end_ids)
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

    def apply(self, step: StepLike, row: int = 0) -> None:
        """Take over the cells that `step` committed in batch row `row`."""
        tokens = step.tokens[row].tolist()
        confidences = step.confidence[row].tolist()
        for position, committed in enumerate(step.committed[row].tolist()):
            if committed:
                self._tokens[position] = tokens[position]
                self._steps[position] = step.index + 1
                confidence = confidences[position]
                self._confidences[position] = None if math.isnan(confidence) else round(confidence, 3)

    def _read(self, tokens: Sequence[int]) -> str:
        if len(tokens) > 1:
            return self._decode(tokens)
        (token,) = tokens
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._decode(tokens)
        return text

    def cells(self) -> list[Cell]:
        """The state to draw; a new list each time."""
        texts = cell_texts(self._tokens, self._read)
        return [
            [text, step, confidence, int(token in self.end_ids)]
            for text, step, confidence, token in zip(
                texts, self._steps, self._confidences, self._tokens, strict=True
            )
        ]
