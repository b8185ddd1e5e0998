"""Runs with a cache, alone and with SparseD, against full attention of the same call."""

from __future__ import annotations

import gc
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sparsed.bench.few_rows import copy_speed
from sparsed.bench.numbers import CachedLane, FewRowSteps, Spread, dense_agreement
from sparsed.bench.rehearsal import Rehearsal
from sparsed.cache.size import store_bytes
from sparsed.config import (
    CACHE_LABELS,
    METHOD_LABELS,
    AttentionConfig,
    CacheConfig,
    Phase,
    ResolvedSampler,
    SamplerConfig,
    as_attention,
)
from sparsed.denoising import denoise
from sparsed.denoising.forward import synchronize
from sparsed.denoising.plan import plan_of
from sparsed.denoising.run import Run
from sparsed.denoising.step import Step
from sparsed.machine import Peak, device_memory
from sparsed.models.model import Model
from sparsed.models.quantise import stored_bytes


@dataclass(frozen=True, eq=False)
class Uncached:
    """What is known of the two lanes without a cache. steps: of their runs. dense: seconds of the runs with full
    attention. known: median seconds of their steps, by phase. tokens: of full attention, [batch, gen_length].
    """

    steps: int
    dense: Sequence[float]
    known: Mapping[Phase, float]
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class Bench:
    """What all lanes of a measurement have alike."""

    model: Model
    prompt: str | Tensor
    sampler: SamplerConfig
    attention: AttentionConfig
    backend: str
    dense_backend: str
    say: Callable[[str], None]

    def run(self, attention: AttentionConfig | Literal["dense"], cache: CacheConfig, steps: int) -> Run:
        """A run of so many steps. Raises ValueError for what `denoise` refuses."""
        return denoise(
            self.model,
            self.prompt,
            sampler=replace(self.sampler, steps=steps),
            attention=attention,
            cache=cache,
            backend=self.backend,
            dense_backend=self.dense_backend,
        )


def lanes_of(
    attention: AttentionConfig, caches: Sequence[CacheConfig]
) -> Iterator[tuple[AttentionConfig | Literal["dense"], CacheConfig]]:
    """Each cache with full attention, which has no pattern's keys, then each with SparseD."""
    for cache in caches:
        yield "dense", replace(cache, keys=None)
    for cache in caches:
        yield attention, cache


def check(bench: Bench, caches: Sequence[CacheConfig], totals: Sequence[int], steps: int) -> None:
    """Raises ValueError for a run that there is not, before anything is measured."""
    for total in totals:
        for attention, cache in lanes_of(bench.attention, caches):
            run = bench.run(attention, cache, total)
            if total != steps:
                Rehearsal(run, {}, bench.backend, bench.dense_backend)


def work_in_runs(
    sampler: ResolvedSampler,
    attention: AttentionConfig,
    caches: Sequence[CacheConfig],
    totals: Sequence[int],
    length: int,
) -> float:
    """What the lanes with a cache compute, each once, in runs of the sampler's steps that compute every row in each.

    length: prompt tokens. For an estimate: a row counts alike in every step.
    """
    every, rows = length + sampler.gen_length, 0
    for total in totals or [sampler.steps]:
        for given, cache in lanes_of(attention, caches):
            resolved = as_attention(given).resolve(every)
            steps = plan_of(replace(sampler, steps=total), resolved, cache.resolve(), length)
            if total == sampler.steps:
                rows += sum(step.rows for step in steps)
            else:
                made = {step.phase for step in steps if step.rows == step.length} - {"sparse"}
                rows += len(made) * every + sum(step.rows for step in steps if step.rows < step.length)
    return rows / (every * sampler.steps)


def cached_lanes(
    bench: Bench, caches: Sequence[CacheConfig], totals: Sequence[int], uncached: Uncached, repeats: int
) -> Iterator[CachedLane]:
    """Every cache with full attention and with SparseD, in runs of each number of steps: whole, `repeats` times, where
    the lanes without a cache made as many; else rehearsed. One after the other, for each keeps its keys and values. One
    that these have no room for, or that runs out of memory, is left out, and said so.
    """
    if not caches:
        return
    speed = copy_speed(bench.model.device)
    for total in totals:
        for attention, cache in lanes_of(bench.attention, caches):
            try:
                lane = _lane(bench, attention, cache, total, uncached, repeats, speed)
            except torch.OutOfMemoryError:
                if bench.model.team is not None:
                    raise  # the others wait for this process
                bench.say(f"{_label(attention, cache)}: left out, the memory of {bench.model.device} ran out")
                continue
            if lane is not None:
                yield lane


def _lane(
    bench: Bench,
    attention: AttentionConfig | Literal["dense"],
    cache: CacheConfig,
    total: int,
    uncached: Uncached,
    repeats: int,
    speed: float,
) -> CachedLane | None:
    model, whole = bench.model, total == uncached.steps
    run = bench.run(attention, cache, total)
    label = _label(attention, cache)
    kept, free = kept_bytes(run), device_memory(model.device.type, model.device.index)
    if free is not None and kept > free:
        bench.say(f"{label}: left out, it keeps {kept / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
        return None
    seconds, steps, peaks = list[float](), list[Step](), list[int]()
    for repeat in range(repeats if whole else 1):
        if not whole:
            run = Rehearsal(run, uncached.known, bench.backend, bench.dense_backend)
        elif repeat:
            run = bench.run(attention, cache, total)
        run.warm_up()
        settle(model)
        peaks += _peaks_of(model, partial(deque, run, maxlen=0))
        seconds.append(sum(step.seconds for step in run.steps))
        steps += run.steps
    if whole:
        speedup = statistics.median(slow / fast for slow, fast in zip(uncached.dense, seconds))
    else:
        speedup = total * uncached.known["dense"] / seconds[0]
    made = "run whole" if whole else "put together"
    bench.say(f"{label}, {total} steps, {made}: {statistics.median(seconds):.2f} s, {speedup:.2f}×")
    same = dense_agreement(uncached.tokens, run.steps[-1].tokens, model.end_ids) if whole else None
    return CachedLane(
        method=_as_text(run, cache),
        label=label,
        steps=total,
        whole=whole,
        seconds=tuple(round(x, 4) for x in seconds),
        speedup=round(speedup, 3),
        phases=dict(Counter(step.phase for step in run.steps if step.rows == step.length)),
        few=tuple(_few(run, steps, speed)),
        rows=round(sum(step.rows for step in steps) / sum(step.length for step in steps), 4),
        kept=kept,
        peak_memory=max(peaks, default=None),
        same_tokens=None if same is None else round(same, 4),
        run=run.info.record(),
    )


def _label(attention: AttentionConfig | Literal["dense"], cache: CacheConfig) -> str:
    return f"{METHOD_LABELS[as_attention(attention).method]} + {CACHE_LABELS[cache.method]}"


def _as_text(run: Run, cache: CacheConfig) -> str:
    """A method as it is written: "dense+dual", "sparsed+refresh:cache_refresh=4"."""
    given = {f"cache_{name}": value for name in ("refresh", "keys") if (value := getattr(cache, name)) is not None}
    settings = ",".join(f"{name}={value}" for name, value in given.items())
    return f"{run.attention.method}+{cache.method}" + (f":{settings}" if settings else "")


def kept_bytes(run: Run) -> int:
    """Bytes of the keys and values that a run with a cache keeps in this process."""
    problem = run.model.problem(len(run.prompt), run.length)
    return store_bytes(
        run.length,
        layers=run.model.network.config.num_hidden_layers,
        key_heads=problem.key_heads,
        head_dim=problem.head_dim,
        number_bytes=run.model.dtype.itemsize,
        rows=problem.batch * (2 if run.sampler.cfg_scale else 1),
    )


def weight_bytes(model: Model) -> int:
    """Bytes of the weights that a forward of few rows reads in this process: all but the input embeddings, of which it
    takes some rows; where the head has the same, it reads them there.
    """
    network: Any = model.network
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    return stored_bytes(*(weight for weight in network.parameters() if weight is not embedding or weight is head))


def _few(run: Run, steps: Sequence[Step], speed: float) -> Iterator[FewRowSteps]:
    """speed: bytes a second that the memory moves."""
    times: dict[tuple[int, Phase], list[float]] = {}
    for step in steps:
        if 0 < step.rows < step.length:
            times.setdefault((step.rows, step.phase), []).append(step.seconds)
    seen = next((plan.keys for plan in run.planned if plan.phase == "sparse" and plan.rows < plan.length), run.length)
    weights, kept = weight_bytes(run.model), kept_bytes(run)
    for (rows, phase), seconds in sorted(times.items()):
        keys = seen if phase == "sparse" else run.length
        read = weights + kept * keys / run.length
        yield FewRowSteps(rows, round(keys, 1), Spread.of(seconds), round(1000 * read / speed, 4))


def _peaks_of(model: Model, work: Callable[[], object]) -> list[int]:
    """The most bytes that each process held during this work; nothing where the system does not say."""
    if model.team is not None:
        model.peak_bytes(reset=True)
        work()
        return model.peak_bytes()
    peak = Peak(model)
    peak.begin()
    work()
    peak.note()
    return [] if peak.bytes is None else [peak.bytes]


def settle(model: Model) -> None:
    """Lets the last run's memory go before the next one is timed."""
    gc.collect()
    synchronize(model.device)
