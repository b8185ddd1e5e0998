"""Which sequences run together: those of one length, and of them as many as fit. The one home of grouping.

No mask hides padding here (a padded key would change attention), so nothing is ever filled up. No torch at the top:
what only reads kept answers is done without.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sparsed.config import AttentionConfig, ResolvedAttention, ResolvedCache, ResolvedSampler
from sparsed.machine import out_of_memory, release_memory

BATCH_TOKENS = 16_384
"""Tokens of a batch at most, generations included, where nobody says."""
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


def together(items: Iterable[T], key: Callable[[T], K], most: Callable[[K], int]) -> Iterator[list[T]]:
    """Items of equal keys in groups, each as soon as it is full, and at the end those that are not.

    most: how many items of a key are a full group; below 1 counts as 1. Within a group, and of the groups of a key, the
    order is that of `items`, which are read no further than the next full group needs.
    """
    waiting: dict[K, list[T]] = {}
    for item in items:
        kind = key(item)
        group = waiting.setdefault(kind, [])
        group.append(item)
        if len(group) >= most(kind):
            yield waiting.pop(kind)
    yield from waiting.values()


def apart(
    sampler: ResolvedSampler, attention: AttentionConfig | ResolvedAttention, cache: ResolvedCache
) -> str | None:
    """Why each sequence of a batch must be a run of its own, in a clause: with a threshold they come to their blocks at
    different steps. None where they need not.
    """
    if sampler.threshold is None:
        return None
    if sampler.grows:
        return "With a threshold, the canvases of a batch grow at different steps"
    if not cache.none and not attention.dense:
        return (
            "With a threshold, a cache and sparse attention, the sequences of a batch come to their pattern at "
            "different steps"
        )
    return None


def must_be_alone(
    sampler: ResolvedSampler, attention: AttentionConfig | ResolvedAttention, cache: ResolvedCache
) -> bool:
    """Would other sequences of its batch show in a sequence's tokens? So they would where the run, or its pattern,
    draws at random (each row has another draw), where rows come to their patterns or blocks at different steps, and
    where a row that begins a block refreshes the patterns of all.
    """
    refreshed = sampler.threshold is not None and bool(attention.refresh)
    drawn = sampler.draws or attention.method == "random"
    return drawn or refreshed or apart(sampler, attention, cache) is not None


@contextmanager
def naming(who: str) -> Iterator[None]:
    """What is too much for the memory within the block says whose it is."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{who}: {error}") from error


class Fitting:
    """Runs batches, in smaller ones once a device's memory does not suffice: half as many sequences, down to one.

    What was too much is remembered as a number of tokens, for the batches that follow. note: says so; None before.
    """

    def __init__(self) -> None:
        self.note: str | None = None
        self._most: int | None = None

    def pieces(
        self, batch: Sequence[T], length: int, work: Callable[[Sequence[T]], R]
    ) -> Iterator[tuple[Sequence[T], R]]:
        """(part of the batch, what `work` made of it), part by part in order; usually the batch is one part.

        length: tokens of each sequence. Raises MemoryError, in a sentence, where one sequence alone is too much; and
        what else `work` raises.
        """
        first = 0
        while first < len(batch):
            rows = len(batch) - first
            if self._most is not None:
                rows = min(rows, max(1, self._most // length))
            part, made = batch[first : first + rows], None
            try:
                made = (work(part),)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # What failed is let go of by now: while an error is handled, it holds what its calls had made.
            if made is None:
                self._smaller(rows, length)
                continue
            yield part, made[0]
            first += rows

    def _smaller(self, rows: int, length: int) -> None:
        release_memory()
        if rows == 1:
            raise MemoryError(
                f"There is too little memory for one sequence of {length:,} tokens, its generation included: take a "
                f"shorter prompt or generation, a smaller model, or a device with more memory."
            )
        self._most = rows // 2 * length
        self.note = (
            f"{rows} sequences of {length:,} tokens were too much for the memory here: batches have at most "
            f"{self._most:,} tokens since, generations included. Asking for smaller batches saves the attempt."
        )
