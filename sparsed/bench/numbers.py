"""The figures of a measurement."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsed.answer_text import agreement


@dataclass(frozen=True)
class Spread:
    """Durations in milliseconds: how many, their median, and the quartiles around it."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """From durations in seconds; at least one."""
        ordered = sorted(1000 * x for x in seconds)
        low, median, high = ordered[0], statistics.median(ordered), ordered[-1]
        if len(ordered) > 3:
            low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(len(ordered), round(median, 3), round(low, 3), round(high, 3))

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f}–{self.high:.1f})"


@dataclass(frozen=True)
class FewRows:
    """One layer's attention of the last `rows` query rows to all `keys`.

    milliseconds: the median of each implementation, the fastest first. limit: milliseconds that reading the keys and
    values once takes at `copy_speed`, 10⁹ bytes a second that a copy in the device's memory reads and writes.
    """

    rows: int
    keys: int
    milliseconds: Mapping[str, float]
    limit: float
    copy_speed: float

    @property
    def over_limit(self) -> float | None:
        """The fastest in limits; None if none ran."""
        return min(self.milliseconds.values()) / self.limit if self.milliseconds else None

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time:.3g}" for name, time in self.milliseconds.items()) or "none ran"
        over = "" if self.over_limit is None else f": {self.over_limit:.2f}×"
        return f"{times} (limit {self.limit:.3g}{over})"


@dataclass(frozen=True)
class AttentionTimes:
    """One layer's attention on the model's own queries, keys and values, milliseconds.

    speedup: dense / sparse. selection_in_dense: importance and selection, in dense attentions.
    """

    dense: Spread
    sparse: Spread
    selection: Spread
    speedup: float
    selection_in_dense: float
    few_rows: tuple[FewRows, ...] = ()


@dataclass(frozen=True)
class Composed:
    """A whole run of `steps` steps put together from the medians of this measurement's steps, seconds.

    limit: the speed-up if sparse attention cost its density's share of the best dense attention, and selection nothing.
    """

    steps: int
    dense: float
    sparsed: float
    speedup: float
    limit: float


@dataclass(frozen=True)
class FewRowSteps:
    """The steps of a run that computed so many `rows`, which see so many `keys` (the mean).

    limit: milliseconds that reading the weights, and the keys and values that are seen, once takes at the speed of a
    copy in the device's memory.
    """

    rows: int
    keys: float
    step: Spread
    limit: float

    @property
    def over_limit(self) -> float:
        return self.step.median / self.limit


@dataclass(frozen=True)
class CachedLane:
    """Runs of one attention with a cache.

    method, label: as text ("sparsed+dual") and in words. steps: of a run, at most. whole: every step was made; else
    those over every row count with the median of such steps in the two lanes without a cache
    (`sparsed.bench.rehearsal`). seconds: of a run, one a repeat. speedup: over full attention without a cache in as
    many steps, of the same call. phases: steps over every row, by phase. few: the other steps, by rows. rows: computed,
    as a share of all rows in all steps. kept: bytes of the keys and values that a run keeps in one process.
    peak_memory: as in `Measurement`, of this lane alone. same_tokens: likewise; None where tokens were not the model's.
    run: what the last run was (`sparsed.runs.RunRecord`).
    """

    method: str
    label: str
    steps: int
    whole: bool
    seconds: tuple[float, ...]
    speedup: float
    phases: Mapping[str, int]
    few: tuple[FewRowSteps, ...]
    rows: float
    kept: int
    peak_memory: int | None
    same_tokens: float | None
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One whole comparison. Steps in milliseconds, runs in seconds, memory in bytes.

    dense_step: the steps of the dense lane. select_step, sparse_step: of the SparseD lane; None if the run
    has no such step. dense_run, sparsed_run: the sum of a run's steps, one a repeat. speedup: the median over
    the repeats of dense / SparseD. same_tokens: share of the generated tokens, up to the longer answer's end,
    on which the lanes agree. peak_memory: largest resident size of the process so far, on CUDA what torch held at
    most. dense_backend, backend: what ran. other: milliseconds of a dense step outside attention (the step less
    the layers' attention). limit_step: `other` and requested density · dense attention of all layers; share: of the
    limit that is reached, limit_step / sparse_step. processes: that hold the model together; attention is one's share
    of the heads, peak_memory the largest of peak_memory_each. dense, sparsed: what each run of the two lanes was
    (`sparsed.runs.RunRecord`), one a repeat. beside: processes that measured on the same device at the same time.
    cached: the lanes with a cache that were asked for. layers: of the model. experts: one layer's router and experts on
    every row, as they ran; None for a model without. load_seconds, load_memory: what reading (or drawing) the weights
    took, kernels that the load compiles included, and the most memory meanwhile. weights: bytes that they take in this
    process. same_unquantised: of weights in fewer bits, the share of the tokens of full attention, as above, that the
    same weights in `dtype` gave in the same call; None where they were not asked for.
    """

    length: str
    prompt_tokens: int
    dtype: str
    steps: int
    switch_step: int | None
    select: float
    block_size: int
    requested_density: float | None
    executed_density: float | None
    dense_step: Spread
    select_step: Spread | None
    sparse_step: Spread | None
    dense_run: tuple[float, ...]
    sparsed_run: tuple[float, ...]
    speedup: float
    attention: AttentionTimes
    same_tokens: float
    peak_memory: int | None
    dense_backend: str
    backend: str
    other: float
    limit_step: float | None
    share: float | None
    composed: tuple[Composed, ...]
    processes: int = 1
    peak_memory_each: tuple[int, ...] = ()
    dense: tuple[Mapping[str, Any], ...] = ()
    sparsed: tuple[Mapping[str, Any], ...] = ()
    beside: int = 1
    cached: tuple[CachedLane, ...] = ()
    layers: int = 0
    experts: Spread | None = None
    load_seconds: float | None = None
    load_memory: int | None = None
    weights: int | None = None
    same_unquantised: float | None = None

    def split(self, step: Spread, attention: Spread) -> tuple[float, float, float] | None:
        """What attention, experts and the rest take of a step over every row, milliseconds, by one layer's attention;
        None for a model without experts. The last layer's experts work on the wanted rows alone.
        """
        if self.experts is None:
            return None
        seen, written = self.layers * attention.median, (self.layers - 1) * self.experts.median
        return seen, written, step.median - seen - written


def dense_agreement(first: Tensor, second: Tensor, end: int | tuple[int, ...]) -> float:
    """Share of equal tokens [batch, gen_length], up to and with the end token of the longer answer."""
    rows = [agreement(a, b, end) for a, b in zip(first.tolist(), second.tolist())]
    counted = [row for row in rows if row is not None]
    return sum(equal for equal, _ in counted) / sum(compared for _, compared in counted)
