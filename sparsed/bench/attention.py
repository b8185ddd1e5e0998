"""What one attention call costs, dense and sparse, at the shapes of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from sparsed.attention.backends.registry import load_backend
from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.selection.importance import block_importance, fused_importance
from sparsed.attention.selection.isolated import select_blocks
from sparsed.attention.state import AttentionState
from sparsed.bench.numbers import AttentionTimes, Spread
from sparsed.config import AttentionConfig, SamplerConfig
from sparsed.denoising import denoise
from sparsed.denoising.forward import look, synchronize
from sparsed.models.model import Model


class _Recorder(AttentionState):
    """Attention that stays dense and keeps what one layer was given."""

    def __init__(self, layer: int) -> None:
        super().__init__("dense")
        self.layer = layer
        self.given: tuple[Tensor, Tensor, Tensor, float] | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if layer == self.layer:
            self.given = (q, k, v, scale)
        return super().attend(layer, q, k, v, scale)


@torch.inference_mode()
def attention_times(
    model: Model,
    prompt: str | Tensor,
    sampler: SamplerConfig,
    attention: AttentionConfig,
    backend: str,
    dense_backend: str,
) -> AttentionTimes:
    """The middle layer's attention, with the strides the model gives its queries, keys and values.

    Dense, sparse and selection take turns, so that noise meets all three.
    """
    run = denoise(
        model, prompt, sampler=sampler, attention=attention, backend=backend, dense_backend=dense_backend
    )
    run.warm_up()
    settings, full = run.attention, run.dense
    assert full is not None, "the run has warmed up"
    select, block_size = settings.select, settings.block_size
    layout = BlockLayout(run.length, run.prompt_length, block_size)
    ids = model.encode(prompt)
    canvas = torch.cat([ids, ids.new_full((len(ids), run.length - run.prompt_length), model.mask_id)], dim=1)
    recorder = _Recorder(model.network.config.num_hidden_layers // 2)
    look(model, canvas, recorder)
    assert recorder.given is not None, "the model has this layer"
    q, k, v, scale = recorder.given
    sparse = load_backend(run.backend)

    # The select step's own attention gives the log-sum-exp, where its kernel does.
    lse = full.with_lse(q, k, v, scale)[1] if full.with_lse is not None and run.fused else None

    def choose() -> LayerPattern:
        if lse is None:
            return select_blocks(block_importance(q, k, scale, block_size), layout, select)
        return select_blocks(fused_importance(q, k, lse, scale, block_size), layout, select)

    pattern = choose()
    timed: dict[str, Callable[[], object]] = {
        "dense": lambda: full.attend(q, k, v, scale),
        "sparse": lambda: sparse(q, k, v, pattern.lists(None, layout), scale),
        "selection": choose,
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for work in timed.values():
        work()
    # About four seconds, and never fewer than five rounds.
    spent, rounds = 0.0, 0
    while rounds < 5 or (spent < 4 and rounds < 30):
        rounds += 1
        for name, work in timed.items():
            synchronize(model.device)
            start = perf_counter()
            work()
            synchronize(model.device)
            seconds[name].append(perf_counter() - start)
            spent += seconds[name][-1]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return AttentionTimes(
        dense=Spread.of(seconds["dense"]),
        sparse=Spread.of(seconds["sparse"]),
        selection=Spread.of(seconds["selection"]),
        speedup=round(middle["dense"] / middle["sparse"], 3),
        selection_in_dense=round(middle["selection"] / middle["dense"], 3),
    )
