"""Times whole runs, full attention against SparseD, fairly."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor

from sparsed.attention.backends.registry import executed_density
from sparsed.bench.attention import layer_times
from sparsed.bench.cached import Bench, Uncached, cached_lanes, check, settle
from sparsed.bench.numbers import Composed, Measurement, Spread, dense_agreement
from sparsed.config import AttentionConfig, CacheConfig, Phase, SamplerConfig, phases_of
from sparsed.denoising import denoise
from sparsed.denoising.run import Run
from sparsed.denoising.step import Step
from sparsed.models.model import Model
from sparsed.questions.build import build_prompt
from sparsed.questions.lengths import token_budget
from sparsed.runs import RunRecord, dense_again
from sparsed.turns import take_turns


def measure(
    model: Model,
    prompt: str | Tensor,
    length: str,
    sampler: SamplerConfig,
    attention: AttentionConfig,
    *,
    backend: str = "auto",
    dense_backend: str = "auto",
    repeats: int = 1,
    compose: Sequence[int] = (),
    caches: Sequence[CacheConfig] = (),
    say: Callable[[str], None] = lambda _: None,
    look: Callable[[Run], None] = lambda _: None,
) -> tuple[Measurement, Tensor]:
    """Whole runs of both lanes on one prompt, `repeats` times, taking turns at the first step; and the tokens of full
    attention, int64 [batch, gen_length] on the CPU.

    compose: numbers of steps of longer runs to put together from the measured steps. caches: each makes two more lanes,
    with full attention and with SparseD, in runs of each of these numbers of steps; without any, of the sampler's
    (`sparsed.bench.cached`). look: told of the run with full attention after each of its steps, outside the clock.

    Raises ValueError for settings that `denoise` refuses.
    """
    bench = Bench(model, prompt, sampler, attention, backend, dense_backend, say)
    own = sampler.resolve(model.defaults).steps
    if compose and sampler.resolve(model.defaults).grows:
        raise ValueError("With a canvas that grows every step has its own length: put no longer runs together.")
    totals = list(dict.fromkeys(compose)) or [own]
    check(bench, caches, totals, own)
    dense_runs: list[float] = []
    sparsed_runs: list[float] = []
    steps: dict[str, list[float]] = {"dense lane": [], "dense": [], "select": [], "sparse": []}
    same = 1.0
    told: set[tuple[str, str]] = set()
    runs: dict[str, list[RunRecord]] = {"dense": [], "SparseD": []}

    def tell(label: str, run: Run) -> None:
        for note in run.notes:
            if (label, note) not in told:
                told.add((label, note))
                say(f"note ({label}): {note}")

    for repeat in range(repeats):
        dense = denoise(model, prompt, sampler=sampler, attention="dense", dense_backend=dense_backend)
        sparsed = denoise(
            model, prompt, sampler=sampler, attention=attention, backend=backend, dense_backend=dense_backend
        )
        lanes = {"dense": dense, "SparseD": sparsed}
        start = perf_counter()
        for label, run in lanes.items():
            tell(label, run)
            run.warm_up()
        if model.device.type != "cpu" and repeat == 0:
            say(f"warm-up (kernels compiled and chosen, one forward for each phase): {perf_counter() - start:.1f} s")
        settle(model)
        model.peak_bytes(reset=True)
        seconds = take_turns([_watched(dense, look), sparsed], first=repeat % 2)
        dense_runs.append(seconds[0])
        sparsed_runs.append(seconds[1])
        steps["dense lane"] += [step.seconds for step in dense.steps]
        for step in sparsed.steps:
            steps[step.phase].append(step.seconds)
        same = dense_agreement(dense.steps[-1].tokens, sparsed.steps[-1].tokens, model.end_ids)
        if repeat == 0:
            used = sparsed.attention
            say(f"skip {used.skip}, select {used.select}, block {used.block_size}; {sparsed.total} steps")
        say(f"run {repeat + 1} of {repeats}: dense {seconds[0]:.2f} s, SparseD {seconds[1]:.2f} s")
        for label, run in lanes.items():
            tell(label, run)
            runs[label].append(run.info.record())
    settings = sparsed.attention
    pattern = sparsed.pattern
    dense_step = Spread.of(steps["dense lane"])
    select_step = Spread.of(steps["select"]) if steps["select"] else None
    sparse_step = Spread.of(steps["sparse"]) if steps["sparse"] else None
    peaks = model.peak_bytes()
    layer, experts = layer_times(model, prompt, sampler, attention, backend, dense_backend)
    layers = model.network.config.num_hidden_layers
    full = layer.dense.median * layers
    other = dense_step.median - full
    density = None if pattern is None else pattern.requested_density
    limit_step = None if density is None else other + density * full
    composed = []
    # A run that went back to full attention would not be sparse to its end, however long.
    stays = not any(dense_again(run) for run in runs["SparseD"])
    if stays and select_step is not None and sparse_step is not None and limit_step is not None:
        for total in compose:
            planned = Counter(
                phases_of(total, settings.skip, settings.selection, settings.refresh, sparsed.sampler.blocks)
            )
            if not planned["sparse"]:
                continue
            whole = total * dense_step.median / 1000
            before = planned["dense"] * dense_step.median + planned["select"] * select_step.median
            ours = (before + planned["sparse"] * sparse_step.median) / 1000
            full_steps = planned["dense"] + planned["select"]
            best = (full_steps * dense_step.median + planned["sparse"] * limit_step) / 1000
            composed.append(
                Composed(total, round(whole, 2), round(ours, 2), round(whole / ours, 3), round(whole / best, 3))
            )
    assert dense.dense is not None, "a finished run has chosen"
    known: dict[Phase, float] = {"dense": statistics.median(steps["dense lane"])}
    for phase in ("select", "sparse"):
        if steps[phase]:
            known[phase] = statistics.median(steps[phase])
    tokens = dense.steps[-1].tokens
    uncached = Uncached(own, dense_runs, known, tokens)
    measured = Measurement(
        length=length,
        prompt_tokens=sparsed.prompt_length,
        dtype=model.numbers,
        steps=sparsed.total,
        switch_step=sparsed.switch_step,
        select=settings.select,
        block_size=settings.block_size,
        requested_density=None if pattern is None else pattern.requested_density,
        executed_density=None if pattern is None else executed_density(sparsed.backend, pattern),
        dense_step=dense_step,
        select_step=select_step,
        sparse_step=sparse_step,
        dense_run=tuple(round(x, 4) for x in dense_runs),
        sparsed_run=tuple(round(x, 4) for x in sparsed_runs),
        speedup=round(statistics.median(a / b for a, b in zip(dense_runs, sparsed_runs)), 3),
        attention=layer,
        same_tokens=round(same, 4),
        peak_memory=max(peaks, default=None),
        dense_backend=dense.dense.name,
        backend=sparsed.backend,
        other=round(other, 3),
        limit_step=None if limit_step is None else round(limit_step, 3),
        share=None if limit_step is None or sparse_step is None else round(limit_step / sparse_step.median, 3),
        composed=tuple(composed),
        processes=model.processes,
        peak_memory_each=tuple(peaks),
        dense=tuple(runs["dense"]),
        sparsed=tuple(runs["SparseD"]),
        cached=tuple(cached_lanes(bench, caches, totals, uncached, repeats)),
        layers=layers,
        experts=experts,
    )
    return measured, tokens


def _watched(run: Run, look: Callable[[Run], None]) -> Iterator[Step]:
    for step in run:
        look(run)
        yield step


def random_prompt(model: Model, length: str, options: argparse.Namespace) -> str | Tensor:
    size = int(length) if length.isdigit() else length
    if not options.random_tokens and options.shape is None:
        return build_prompt(model, size, options.kind, options.prompt_seed).text
    generator = torch.Generator().manual_seed(options.prompt_seed)
    # Any id but 0 and the mask's.
    ids = torch.randint(1, model.network.config.vocab_size - 1, (1, token_budget(size)), generator=generator)
    return ids + (ids >= model.mask_id)
