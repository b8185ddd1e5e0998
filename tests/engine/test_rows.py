"""Forwards that compute some rows: keys and values of the others come from the run's store."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import SamplerConfig, SparseDConfig
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows
from sparsed.cache.store import RowStore
from sparsed.config import Phase
from sparsed.denoising.forward import Pass, forward_of, hidden_rows
from sparsed.denoising.predictor import Predictor

LENGTH, PROMPT, LAYERS = 90, 60, 3
SHAPES: dict[str, dict[str, Any]] = {
    "llada": {"n_layers": LAYERS},
    "dream": {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS},
}


def predictor_of(model: Any, attention: Any = None, guidance: float = 0.0) -> Predictor:
    sampler = SamplerConfig(steps=6, gen_length=LENGTH - PROMPT, cfg_scale=guidance).resolve(model.defaults)
    config = SparseDConfig(skip=0.2, select=0.4, block_size=32) if attention is None else attention
    predictor = Predictor(model, PROMPT, sampler, config.resolve(LENGTH))
    predictor.choose_kernels(2)
    return predictor


def canvas_of(batch: int, seed: int = 1) -> Tensor:
    return torch.randint(2, 290, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def row_sets(batch: int) -> dict[str, Tensor]:
    """Sets of rows by name, int64 [1 or batch, n]."""
    generator = torch.Generator().manual_seed(3)
    scattered = [torch.randperm(LENGTH, generator=generator)[:11].sort().values for _ in range(batch)]
    return {
        "one": torch.tensor([[71]]),
        "a block": torch.arange(60, 68)[None],
        "to the end": torch.arange(40, LENGTH)[None],
        "scattered": scattered[0][None],
        "unlike sequences": torch.stack(scattered),
        "every": torch.arange(LENGTH)[None],
    }


def wanted_of(positions: Tensor, batch: int) -> Tensor:
    return (torch.arange(batch)[:, None] * LENGTH + positions).flatten()


def close(got: Tensor, wanted: Tensor, what: str = "") -> None:
    """Equal but for 1e-5 of the largest value."""
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(got.double() / scale, wanted.double() / scale, rtol=0, atol=1e-5, msg=what or None)


def forward(model: Any, ids: Tensor, attention: RunAttention, phase: Phase, *given: Any) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of a pass of (rows, wanted, store)."""
    rows, wanted, store = given
    attention.phase = phase
    with torch.inference_mode():
        hidden = hidden_rows(model.network, ids, Pass(rows, wanted, attention, store))
        return hidden, forward_of(model).logits(ids, Pass(rows, wanted, attention, store))


@pytest.mark.parametrize("phase", ["dense", "sparse"])
@pytest.mark.parametrize("family", SHAPES)
def test_rows_of_an_unchanged_canvas_are_those_of_the_whole_forward(model_of, family: str, phase: Phase) -> None:
    model, batch = model_of(family, **SHAPES[family]), 2
    attention, store, ids = predictor_of(model).attention(), RowStore(), canvas_of(batch)
    everything = torch.arange(batch * LENGTH)
    filled = forward(model, ids, attention, "select", ALL, everything, store)
    whole = forward(model, ids, attention, phase, ALL, everything, store)
    assert phase == "dense" or not torch.allclose(filled[0], whole[0], atol=1e-3)
    for name, positions in row_sets(batch).items():
        wanted = wanted_of(positions, batch)[::2]
        some = forward(model, ids, attention, phase, Rows(positions), wanted, store)
        for got, expected in zip(some, whole):
            close(got, expected[wanted], name)
    # Nobody's result is wanted: the keys and values are stored all the same.
    changed = (ids + 1) % 290
    for rows in (ALL, Rows(positions)):
        forward_of(model).hidden(changed, Pass(rows, torch.empty(0, dtype=torch.int64), attention, store))
    again = forward(model, changed, attention, phase, Rows(positions), wanted, store)
    other = forward(model, changed, attention, phase, ALL, wanted, None)
    close(again[0], other[0])


@pytest.mark.parametrize("family", SHAPES)
def test_guidance_computes_the_same_rows_of_both_halves(model_of, family: str) -> None:
    model = model_of(family, **SHAPES[family])
    predictor, ids = predictor_of(model, guidance=0.7), canvas_of(2)
    attention, store = predictor.attention(), RowStore()
    eligible = torch.zeros(2, LENGTH - PROMPT, dtype=torch.bool)
    eligible[:, 3:9] = True
    for phase in ("select", "dense", "sparse"):
        attention.phase = phase
        whole = predictor.logits(ids, eligible, attention, ALL, store)
        if phase != "select":
            # Dream predicts position i from i − 1.
            rows = Rows(torch.arange(PROMPT + 2, PROMPT + 12)[None])
            some = predictor.logits(ids, eligible, attention, rows, store)
            close(some, whole, phase)


class Oracle:
    """The published network in float64 on one sequence, with keys and values substituted by hand."""

    def __init__(self, checkpoints: ModuleType, folder: Path) -> None:
        self.plain = checkpoints.PlainNetwork(folder, torch.float64)

    def run(
        self, ids: Tensor, rows: list[int], old: list[tuple[Tensor, Tensor]] | None, seen: list[Tensor] | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits [rows, vocabulary], and every layer's keys and values [heads, length, head_dim] after this forward.

        old: keys and values of the positions that are not computed; None: all are. seen: for each layer bool [heads,
        length, length].
        """
        net = self.plain
        x = net.weights[net.names["embed"] + ".weight"][ids]
        made = []
        for layer in range(net.layers):
            h = net._rms(x, net._weight("attn_norm", layer))
            q, k, v = (net._heads(h, name, layer) for name in ("q", "k", "v"))
            q, k = net._rotate(q), net._rotate(k)
            k, v = (t.repeat_interleave(net.heads // net.kv_heads, 0) for t in (k, v))
            if old is not None:
                # Whatever stands at a position that is not computed is of an earlier forward.
                fresh = torch.zeros(len(ids), 1, dtype=torch.bool)
                fresh[rows] = True
                k, v = (torch.where(fresh, new, before) for new, before in zip((k, v), old[layer]))
            made.append((k, v))
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            if seen is not None:
                scores = scores.masked_fill(~seen[layer], -torch.inf)
            x = x + net._linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), "out", layer)
            h = net._rms(x, net._weight("ff_norm", layer))
            gate = torch.nn.functional.silu(net._linear(h, "gate", layer))
            x = x + net._linear(gate * net._linear(h, "up", layer), "down", layer)
        x = net._rms(x, net._weight("norm"))[rows]
        head = net.names["head"] + ".weight"
        return x @ net.weights[head if head in net.weights else net.names["embed"] + ".weight"].T, made


@pytest.mark.parametrize("phase", ["dense", "sparse"])
@pytest.mark.parametrize("family", SHAPES)
def test_changed_rows_see_the_stored_keys_and_values_of_the_others(
    model_of, folder_of, checkpoints: ModuleType, family: str, phase: Phase
) -> None:
    """Three forwards over changing canvases, each over other rows, against the oracle."""
    model = model_of(family, **SHAPES[family])
    oracle = Oracle(checkpoints, folder_of(family, **SHAPES[family]))
    attention, store, batch = predictor_of(model).attention(), RowStore(), 2
    canvas = canvas_of(batch)
    forward(model, canvas, attention, "select", ALL, torch.arange(batch * LENGTH), store)
    made = [oracle.run(row, list(range(LENGTH)), None, None)[1] for row in canvas]
    for seed, (name, positions) in enumerate(row_sets(batch).items()):
        canvas = canvas_of(batch, 10 + seed)  # other tokens everywhere; those of other rows are not looked at
        got = forward(model, canvas, attention, phase, Rows(positions), wanted_of(positions, batch), store)[1]
        for b, part in enumerate(got.chunk(batch)):
            rows = positions[b % len(positions)].tolist()
            seen = None
            if phase == "sparse":
                masks = [attention.layers[layer].mask()[b] for layer in range(LAYERS)]
                seen = [checkpoints.positions(mask, 32, LENGTH) for mask in masks]
            expected, made[b] = oracle.run(canvas[b], rows, made[b], seen)
            close(part, expected, f"{name} {b}")


def test_two_runs_on_one_set_of_weights_have_stores_of_their_own(model_of) -> None:
    model = model_of("qwen3", **SHAPES["qwen3"])
    rows, wanted = Rows(torch.arange(70, 80)[None]), torch.arange(70, 80)

    def steps(seed: int) -> Any:
        attention, store = predictor_of(model).attention(), RowStore()
        yield forward(model, canvas_of(1, seed), attention, "dense", ALL, wanted, store)[0]
        yield forward(model, canvas_of(1, seed + 1), attention, "dense", rows, wanted, store)[0]

    alone = [list(steps(seed)) for seed in (1, 5)]
    together = list(zip(*zip(steps(1), steps(5))))
    for one, other in zip(alone, together):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("attention", ["dense", None])
def test_a_run_computes_every_row(model_of, attention: Any) -> None:
    model = model_of("qwen3", **SHAPES["qwen3"])
    run = sparsed.denoise(model, torch.arange(2, 62), sampler=SamplerConfig(4, 8), attention=attention)
    assert [step.rows for step in run] == [68] * 4


def test_the_store_writes_rows_where_they_belong() -> None:
    store, generator = RowStore(), torch.Generator().manual_seed(0)

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        keys = torch.randn(2, 3, n, 4, generator=generator)
        return keys, torch.randn(2, n, 3, 4, generator=generator).transpose(1, 2)  # values are laid out otherwise

    with pytest.raises(ValueError, match="Only after a forward over all rows"):
        store.put(0, *drawn(2), Rows(torch.tensor([[1, 2]])))
    keys, values = drawn(6)
    wanted = [keys.clone(), values.clone()]
    assert all(a is b for a, b in zip(store.put(0, keys, values, ALL), (keys, values)))
    store.put(1, *drawn(6), ALL)
    for positions in (torch.tensor([[0, 3, 5]]), torch.tensor([[1, 2], [0, 4]])):
        new = drawn(positions.shape[1])
        for b in range(2):
            for n, position in enumerate(positions[b % len(positions)].tolist()):
                for whole, part in zip(wanted, new):
                    whole[b, :, position] = part[b, :, n]
        got = store.put(0, *new, Rows(positions))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted))


def test_where_wanted_positions_are_among_the_rows() -> None:
    rows = Rows(torch.tensor([[1, 4, 6], [0, 4, 7]]))
    assert rows.places(torch.tensor([4, 6, 8, 15]), 2, 8).tolist() == [1, 2, 3, 5]
    assert Rows(torch.tensor([[2, 5]])).places(torch.tensor([13, 2]), 2, 8).tolist() == [3, 0]
    assert rows.count(8) == 3 and ALL.count(8) == 8
    assert rows.of(torch.arange(16).view(2, 8)).tolist() == [[1, 4, 6], [8, 12, 15]]
    for missing in (0, 7, 9):
        with pytest.raises(ValueError, match="not among the rows"):
            rows.places(torch.tensor([missing]), 2, 8)


def test_a_select_step_computes_every_row(model_of) -> None:
    model = model_of("qwen3", **SHAPES["qwen3"])
    rows, wanted, store = Rows(torch.arange(70, 80)[None]), torch.arange(70, 80), RowStore()
    for attention, phase in ((None, "select"), (SparseDConfig(select=0.4, block_size=32, reuse=False), "sparse")):
        state = predictor_of(model, attention).attention()
        forward(model, canvas_of(1), state, "select", ALL, wanted, store)
        with pytest.raises(AssertionError, match="a select step computes every row"):
            forward(model, canvas_of(1), state, phase, rows, wanted, store)
