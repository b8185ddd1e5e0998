"""Where the answers of a run end, and what they say."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.config import ResolvedSampler
    from sparsed.models.model import Model

END_OF_THINKING = "</think>"


class Answer(NamedTuple):
    """text: up to what ended it. ended: what that was, None where nothing did."""

    text: str
    ended: Literal["end token", "stop string"] | None


class Answers:
    """Reads the answers of a run's canvas.

    stop: an answer's text ends before the first of these; one that is a special token of the vocabulary ends it as the
    model's own end tokens do.
    """

    def __init__(self, model: Model, stop: Sequence[str] = ()) -> None:
        special = model.tokenizer.get_added_vocab() if stop else {}
        self._model, self._stop = model, tuple(stop)
        self._ends = {*model.end_ids, *(special[text] for text in stop if text in special)}
        self._settled: list[int] = []  # of each row, how many tokens stand before its first mask
        self._complete: list[bool] = []

    def read(self, tokens: Sequence[int]) -> Answer:
        """The answer in the generated tokens of one row; masks are left out."""
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        written = [token for token in tokens[:end] if token != self._model.mask_id]
        text = self._model.tokens_text(written, special=False)
        cut = min((place for place in map(text.find, self._stop) if place >= 0), default=None)
        if cut is not None:
            return Answer(text[:cut], "stop string")
        return Answer(text, None if end is None else "end token")

    def count(self, tokens: Sequence[int]) -> int:
        """Generated tokens of one row up to and with what ended its answer; masks are left out."""
        ids = list(tokens)
        end = next((place + 1 for place, token in enumerate(ids) if token in self._ends), len(ids))
        if self.read(ids).ended == "stop string":
            # The shortest beginning that holds one.
            end = 1 + bisect_left(range(1, end), True, key=lambda end: self.read(ids[:end]).ended is not None)
        return sum(token != self._model.mask_id for token in ids[:end])

    def complete(self, canvas: Tensor) -> bool:
        """Whether each row of canvas, int64 [batch, gen_length], holds an answer that has ended with nothing masked
        before its end. Asked of one run, step by step: what is settled stays.
        """
        rows = canvas.tolist()
        mask = self._model.mask_id
        settled = [row.index(mask) if mask in row else len(row) for row in rows]
        if settled != self._settled:
            self._settled = settled
            self._complete = [self.read(row[:length]).ended is not None for row, length in zip(rows, settled)]
        return all(self._complete)


def end_think_ids(model: Model, sampler: ResolvedSampler) -> list[int]:
    """The tokens of the text that ends thinking; none where the sampler does not push towards it. Raises ValueError for
    a model without a tokenizer.
    """
    if not sampler.end_think_boost:
        return []
    if model.tokenizer is None:
        raise ValueError(f"end_think_boost needs a tokenizer, which {model.label} has not: leave it out.")
    ids: list[int] = model.tokenizer(END_OF_THINKING, add_special_tokens=False)["input_ids"]
    return ids
