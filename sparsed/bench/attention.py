"""What one layer's attention costs, dense and sparse, at the shapes of a run; and its experts, where it has some."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sparsed.attention.kernels import Kernels
from sparsed.attention.pattern import LayerPattern
from sparsed.attention.selection.isolated import select_blocks
from sparsed.bench.few_rows import few_rows_times
from sparsed.bench.numbers import AttentionTimes, Spread
from sparsed.cache.rows import ALL
from sparsed.config import AttentionConfig, SamplerConfig
from sparsed.denoising.forward import Pass, synchronize
from sparsed.denoising.predictor import Predictor
from sparsed.models.fuse import compiled
from sparsed.models.layer import feed_forward
from sparsed.models.model import Model


@torch.inference_mode()
def layer_times(
    model: Model,
    prompt: str | Tensor,
    sampler: SamplerConfig,
    attention: AttentionConfig,
    backend: str,
    dense_backend: str,
) -> tuple[AttentionTimes, Spread | None]:
    """The middle layer's attention, with the strides the model gives its queries, keys and values; and its router and
    experts on every row that attention gives them, fused where the model is, None for a model without experts.

    All take turns, so that noise meets all of them.
    """
    ids = model.encode(prompt)
    settings = sampler.resolve(model.defaults)
    length = ids.shape[1] + settings.gen_length
    predictor = Predictor(model, ids.shape[1], settings, attention.resolve(length), backend, dense_backend)
    predictor.choose_kernels(len(ids))
    kernels, policy = predictor.kernels, predictor.policy
    assert kernels is not None and kernels.sparse is not None, "this lane is not dense"
    full, sparse, layout, block_size = kernels.dense, kernels.sparse, policy.layout, policy.layout.block_size
    canvas = torch.cat([ids, ids.new_full((len(ids), settings.gen_length), model.mask_id)], dim=1)
    layer = _middle(model)
    q, k, v, scale, hidden = _given(predictor, canvas, layer)

    # The select step's own attention gives the log-sum-exp, where its kernel does.
    lse = kernels.dense_with_lse(q, k, v, scale)[1]

    def choose() -> LayerPattern:
        return select_blocks(kernels.importance(q, k, lse, scale, block_size), layout, policy.config.select)

    pattern = choose()
    timed: dict[str, Callable[[], object]] = {
        "dense": lambda: full.attend(q, k, v, scale),
        "sparse": lambda: sparse.attend(q, k, v, pattern.lists(None, layout), scale),
        "selection": choose,
    }
    if hasattr(layer.mlp, "experts"):
        seen = full.attend(q, k, v, scale).transpose(1, 2).flatten(2)
        normed = layer.post_attention_layernorm(hidden + layer.self_attn.o_proj(seen))
        through = feed_forward if layer.fused is None else compiled(feed_forward)
        # One compilation for every length.
        torch._dynamo.maybe_mark_dynamic(normed, 1)
        timed["experts"] = lambda: through(layer, normed)
        del seen
    del hidden
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
    times = AttentionTimes(
        dense=Spread.of(seconds["dense"]),
        sparse=Spread.of(seconds["sparse"]),
        selection=Spread.of(seconds["selection"]),
        speedup=round(middle["dense"] / middle["sparse"], 3),
        selection_in_dense=round(middle["selection"] / middle["dense"], 3),
        few_rows=tuple(few_rows_times(q, k, v, scale)),
    )
    return times, Spread.of(seconds["experts"]) if "experts" in seconds else None


def _middle(model: Model) -> Any:
    """The layer that is measured, a `sparsed.models.layer.Layer`."""
    network: Any = model.network
    return network.model.layers[network.config.num_hidden_layers // 2]


def _given(predictor: Predictor, canvas: Tensor, layer: Any) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """The queries, keys, values and scale that a layer's attention is given in a dense forward, and the layer's own
    input [batch, length, width].
    """
    attention = predictor.attention()
    full, inputs = attention.kernels.dense, list[Tensor]()
    found: list[tuple[Tensor, Tensor, Tensor, float]] = []

    def attend(*given: Any) -> Tensor:
        if len(inputs) > len(found):
            found.append(given)
        return full.attend(*given)

    def listen(_module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs.append(positional[0] if positional else named["hidden_states"])

    attention.kernels = Kernels(replace(full, attend=attend))
    nobody = torch.empty(0, dtype=torch.int64, device=canvas.device)
    listener = layer.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        predictor.forward.hidden(canvas, Pass(ALL, nobody, attention))
    finally:
        listener.remove()
    [hidden], [given] = inputs, found
    return *given, hidden
