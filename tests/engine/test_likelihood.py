"""Monte-Carlo likelihoods against plain float64 loops, and against the sum over all maskings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

import sparsed
from sparsed import METHODS, AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.batches import Fitting
from sparsed.denoising.forward import LocalForward
from sparsed.harness.likelihood import _groups, _seed, draw_masks, log_likelihoods

FAMILIES = ("llada", "dream", "qwen3")
SPARSE = SparseDConfig(skip=0.2, select=0.3, block_size=32)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def found(model: Any, pairs: Sequence[tuple[list[int], list[int]]], **options: Any) -> list[Any]:
    by_index = dict(log_likelihoods(model, pairs, **options))
    assert sorted(by_index) == list(range(len(pairs)))
    return [by_index[index] for index in range(len(pairs))]


class Oracle:
    """log p of masked tokens from the published network in float64, one forward a canvas."""

    def __init__(self, checkpoints: Any, folder: Any, model: Any, cfg_scale: float = 0.0) -> None:
        self.network = checkpoints.PlainNetwork(folder, torch.float64)
        self.mask, self.shift, self.cfg_scale = model.mask_id, model.shift, cfg_scale

    def logits(self, canvas: list[int], context: int) -> torch.Tensor:
        made = self.network.logits(torch.tensor(canvas))
        if self.cfg_scale:
            without = self.network.logits(torch.tensor([self.mask] * context + canvas[context:]))
            made = without + (self.cfg_scale + 1) * (made - without)
        return made

    def term(self, context: list[int], answer: list[int], masked: Sequence[int]) -> float:
        """L / l · Σ log p over the masked places of the answer."""
        canvas = context + [self.mask if place in masked else token for place, token in enumerate(answer)]
        logits, total = self.logits(canvas, len(context)), 0.0
        for place in masked:
            row = logits[len(context) + place - self.shift].tolist()
            top = max(row)
            total += row[answer[place]] - top - math.log(sum(math.exp(x - top) for x in row))
        return len(answer) / len(masked) * total

    def greedy(self, context: list[int], length: int) -> list[int]:
        """The surest masked position is given its most likely token, one a step."""
        canvas = context + [self.mask] * length
        for _ in range(length):
            chance = self.logits(canvas, len(context)).softmax(-1)
            open_ = [place for place in range(len(context), len(canvas)) if canvas[place] == self.mask]
            place = max(open_, key=lambda place: float(chance[place - self.shift].max()))
            canvas[place] = int(chance[place - self.shift].argmax())
        return canvas[len(context) :]


def expected(oracle: Oracle, context: list[int], answer: list[int]) -> tuple[float, float]:
    """Mean and variance of one draw, over every masking there is."""
    length = len(answer)
    mean = square = 0.0
    for count in range(1, length + 1):
        ways = list(combinations(range(length), count))
        for way in ways:
            term = oracle.term(context, answer, way)
            mean += term / len(ways) / length
            square += term**2 / len(ways) / length
    return mean, square - mean**2


@pytest.mark.parametrize(("length", "draws"), [(1, 5), (3, 7), (4, 8), (5, 3), (40, 128)])
def test_draws_mask_every_number_of_tokens_equally_often(length: int, draws: int) -> None:
    seen: Counter[int] = Counter()
    for seed in range(60):
        masks = draw_masks(length, draws, seed)
        assert masks.shape == (draws, length) and masks.dtype == torch.bool
        counts = masks.sum(-1).tolist()
        assert counts == sorted(counts, reverse=True) and 1 <= counts[-1] <= counts[0] <= length
        # Spread evenly: no number of masked tokens comes up two times more often than another.
        times = [counts.count(count) for count in range(1, length + 1)]
        assert max(times) - min(times) <= 1
        assert torch.equal(masks, draw_masks(length, draws, seed))
        seen.update(counts)
    # Of 60 · draws counts the standard deviation is below that of independent ones.
    share = 60 * draws / length
    assert all(abs(seen[count] - share) < 5 * share**0.5 + 1 for count in range(1, length + 1))


def test_draws_mask_every_token_equally_often() -> None:
    """Which tokens are masked is a fair draw: all C(4, 2) pairs, each close to a sixth of the draws."""
    masks = torch.cat([draw_masks(4, 8, seed) for seed in range(600)])
    pairs = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in masks[masks.sum(-1) == 2])
    assert sum(pairs.values()) == 1200 and set(pairs) == set(combinations(range(4), 2))
    assert all(abs(count - 200) < 5 * (1200 * 5 / 36) ** 0.5 for count in pairs.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_the_estimate_is_the_mean_over_its_draws(
    checkpoints, folder_of, model_of, family: str, cfg_scale: float
) -> None:
    """The masks are the module's; everything that follows from them is computed again in float64."""
    model, oracle = model_of(family), Oracle(checkpoints, folder_of(family), model_of(family), cfg_scale)
    context, answer = tokens(9, 1), tokens(5, 2)
    [[question]] = list(_groups([(context, answer)], 1))
    masks = draw_masks(5, 12, _seed(3, question))
    terms = [oracle.term(context, answer, row.nonzero()[:, 0].tolist()) for row in masks]
    [likelihood] = found(
        model, [(context, answer)], draws=12, seed=3, attention="dense", cfg_scale=cfg_scale, batch_size=4
    )
    assert likelihood.value == pytest.approx(sum(terms) / 12, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expected_value_is_the_sum_over_all_maskings(checkpoints, folder_of, model_of, family: str) -> None:
    model, oracle = model_of(family), Oracle(checkpoints, folder_of(family), model_of(family))
    for length in (1, 2, 3):
        context, answer = tokens(7, 10 + length), tokens(length, 20 + length)
        mean, variance = expected(oracle, context, answer)
        [likelihood] = found(model, [(context, answer)], draws=20_000, seed=1, attention="dense", batch_size=8)
        assert abs(likelihood.value - mean) < 5 * (variance / 20_000) ** 0.5 + 1e-4, (likelihood.value, mean)


@pytest.mark.parametrize("attention", METHODS)
def test_other_pairs_and_batches_change_nothing(model_of, attention: str) -> None:
    model = model_of("qwen3")
    config = "dense" if attention == "dense" else AttentionConfig(attention, 0.2, 0.3, 32)
    long = tokens(150, 1)
    pairs = [
        (long, [5]), (long, [6]), (tokens(150, 2), [5]), (long, tokens(4, 3)), (tokens(20, 4), tokens(4, 3)),
        (tokens(150, 5), tokens(4, 3)), (tokens(150, 6), tokens(4, 7)), (long, [6]), (long, []),
    ]  # fmt: skip
    options: dict[str, Any] = {"draws": 10, "seed": 4, "attention": config}
    alone = [found(model, [pair], **options)[0] for pair in pairs]
    for batch_size in (1, 3, 16):
        together = found(model, pairs, batch_size=batch_size, **options)
        assert [x.value for x in together] == pytest.approx([x.value for x in alone], abs=1e-4)
        assert [x.greedy for x in together] == [x.greedy for x in alone]
    assert alone[1] == alone[7] and alone[8].value == 0 and alone[8].greedy
    other = found(model, pairs, draws=10, seed=5, attention=config)
    assert abs(other[3].value - alone[3].value) > 1e-4


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_where_memory_does_not_suffice_half_of_a_batch_is_tried(model_of, monkeypatch, cfg_scale: float) -> None:
    model, fitting, counted = model_of("qwen3"), Fitting(), Counter[bool]()
    pairs = [(tokens(150, number), tokens(4, number % 3)) for number in range(7)] + [(tokens(150, 1), [5])]
    options: dict[str, Any] = {"draws": 10, "attention": SPARSE, "cfg_scale": cfg_scale, "batch_size": 8}
    whole, most = found(model, pairs, **options), 6 if cfg_scale else 3
    real = LocalForward.logits

    def small(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, ids, pass_)

    def seen(info: Any, requests: int, greedy: bool) -> None:
        counted[greedy] += requests

    monkeypatch.setattr(LocalForward, "logits", small)
    again = found(model, pairs, fitting=fitting, seen=seen, **options)
    assert [one.value for one in again] == pytest.approx([one.value for one in whole], abs=1e-4)
    assert [one.greedy for one in again] == [one.greedy for one in whole] and counted == {False: 8, True: 7}
    assert fitting.note is not None and " sequences of 154 tokens were too much" in fitting.note
    most = 0
    with pytest.raises(MemoryError, match="too little memory for one sequence of 154 tokens"):
        found(model, pairs, **options)


@pytest.mark.parametrize("rows", ["pattern", "full"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_sparse_draws_reuse_the_pattern_of_the_select_draw(
    checkpoints, folder_of, model_of, family: str, cfg_scale: float, rows: str
) -> None:
    """Dense for ⌈10 · 0.2⌉ draws, then the draw that selects, then seven with its pattern, all in float64.

    With guidance, the canvas without its context has a pattern of its own. With full rows, the query blocks that hold a
    token of the answer, block 5 of 160 … 191 and block 6, see everything.
    """
    model, oracle = model_of(family), Oracle(checkpoints, folder_of(family), model_of(family), cfg_scale)
    context, answer = tokens(170, 1), tokens(40, 2)
    [[question]] = list(_groups([(context, answer)], 1))
    masks = [row.nonzero()[:, 0].tolist() for row in draw_masks(40, 10, _seed(0, question))]
    dense = [oracle.term(context, answer, masked) for masked in masks]
    mask, network = model.mask_id, oracle.network
    selecting = [mask if place in masks[2] else token for place, token in enumerate(answer)]

    def pattern(canvas: list[int]) -> list[torch.Tensor]:
        """For each layer which keys each query sees, bool [heads, 210, 210]."""
        layers = []
        for q, k in network.run(torch.tensor(canvas))[1]:
            blocks = torch.zeros(q.shape[0], 7, 7, dtype=torch.bool)
            for head, choices in enumerate(checkpoints.paper_selection(q, k, 40, 32, 0.3)):
                for row, (kept, _lead) in enumerate(choices):
                    blocks[head, row, range(7) if rows == "full" and row * 32 + 31 >= 170 else list(kept)] = True
            layers.append(checkpoints.positions(blocks, 32, 210))
        return layers

    seen = {True: pattern(context + selecting), False: pattern([mask] * 170 + selecting)}
    assert not any(bool(layer.all()) for layer in seen[True])
    assert any(not torch.equal(one, two) for one, two in zip(seen[True], seen[False]))
    network.logits = lambda ids: network.run(ids, seen[ids[:170].tolist() == context])[0]
    sparse = [oracle.term(context, answer, masked) for masked in masks]
    want = (sum(dense[:3]) + sum(sparse[3:])) / 10
    other = (tokens(170, 3), tokens(40, 4))
    for batch_size in (1, 4):
        pairs = [other, (context, answer)]
        likelihood = found(
            model, pairs, draws=10, attention=replace(SPARSE, generation_rows=rows), cfg_scale=cfg_scale,
            batch_size=batch_size,
        )[1]  # fmt: skip
        assert likelihood.value == pytest.approx(want, rel=1e-5)
    assert abs(sum(dense) / 10 - want) > 1e-2


def test_refresh_changes_no_likelihood_and_says_so(model_of) -> None:
    """The decoding that tells what is greedy is a run of steps: there it has its effect, and nothing is said."""
    model, pairs = model_of("llada"), [(tokens(100, 1), tokens(12, 2)), (tokens(100, 3), [9])]
    made = []
    for refresh in (0, 2):
        said: dict[bool, list[int]] = {False: [], True: []}

        def seen(info: Any, requests: int, greedy: bool, said: dict[bool, list[int]] = said) -> None:
            said[greedy].append(sum("refresh is without effect on likelihoods" in note for note in info.notes))

        values = found(model, pairs, draws=10, attention=replace(SPARSE, refresh=refresh), seen=seen)
        made.append([one.value for one in values])
        assert said == {False: [int(refresh > 0)] * 2, True: [0]}
    assert made[0] == made[1]


def test_with_everything_kept_sparse_is_dense(model_of) -> None:
    model = model_of("llada")
    pairs = [(tokens(100, 1), tokens(6, 2)), (tokens(100, 3), [9])]
    whole = SparseDConfig(skip=0.2, select=1.0, block_size=32)
    for cfg_scale in (0.0, 0.5):
        options: dict[str, Any] = {"draws": 9, "cfg_scale": cfg_scale, "batch_size": 2}
        one, two = found(model, pairs, attention="dense", **options), found(model, pairs, attention=whole, **options)
        assert [x.value for x in one] == pytest.approx([x.value for x in two], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_greedy_is_what_decoding_gives(checkpoints, folder_of, model_of, family: str, cfg_scale: float) -> None:
    model = model_of(family, mask_predicted=False) if family == "llada" else model_of(family)
    folder = folder_of(family, mask_predicted=False) if family == "llada" else folder_of(family)
    oracle = Oracle(checkpoints, folder, model, cfg_scale)
    pairs, want = [], []
    for length in (1, 2, 6):
        context = tokens(11, length)
        decoded = oracle.greedy(context, length)
        if model.mask_id in decoded:
            continue  # a canvas that keeps its masks is no answer
        pairs += [(context, decoded), (context, [*decoded[:-1], (decoded[-1] + 1) % 250])]
        want += [True, False]
    assert len(pairs) >= 4
    got = found(model, pairs, draws=2, attention="dense", cfg_scale=cfg_scale, batch_size=4)
    assert [x.greedy for x in got] == want


def test_greedy_decoding_goes_on_behind_an_end_token(model_of) -> None:
    """Also of a family whose runs end with their answers where nobody says."""
    model, context = model_of("illada", mask_predicted=False), tokens(40, 1)
    sampler = SamplerConfig(6, 6, 6, canvas="fixed", early_stop=False)
    answer = sparsed.generate(model, torch.tensor(context), sampler=sampler, attention="dense").tokens[0, 40:].tolist()
    ending = replace(model, eos_id=answer[0], end_ids=())
    assert found(ending, [(context, answer)], draws=3, attention="dense")[0].greedy


def test_an_answer_that_decoding_leaves_masked_is_not_greedy(checkpoints, tmp_path) -> None:
    """The published sampler may give a position the mask token: then it has not said what stands there."""
    folder = checkpoints.write_llada(tmp_path / "masks")
    tensors = checkpoints.read_tensors(folder)
    mask = checkpoints.special_id("<|mdm_mask|>", checkpoints.LLADA_SPECIAL)
    tensors["model.transformer.ff_out.weight"][mask] *= 4  # the likeliest token in about half of all places
    checkpoints.write_tensors(folder, tensors)
    model = sparsed.load(folder, device="cpu", dtype="float32")
    oracle, left = Oracle(checkpoints, folder, model), 0
    for seed in range(12):
        context = tokens(5, seed)
        decoded = oracle.greedy(context, 3)
        answer = [65 if token == mask else token for token in decoded]
        [likelihood] = found(model, [(context, answer)], draws=1, attention="dense")
        assert likelihood.greedy == (mask not in decoded)
        left += 0 < decoded.count(mask) < 3
    assert left


def test_greedy_under_sparsed_is_a_run_of_as_many_steps(model_of) -> None:
    model = model_of("qwen3")
    context = tokens(170, 8)
    sampler = SamplerConfig(12, 12, 12, "low_confidence", 0.0, 0)
    ids = torch.tensor(context)
    sparse = sparsed.generate(model, ids, sampler=sampler, attention=SPARSE).tokens[0, 170:].tolist()
    dense = sparsed.generate(model, ids, sampler=sampler, attention="dense").tokens[0, 170:].tolist()
    assert sparse != dense and model.mask_id not in sparse
    got = found(model, [(context, sparse), (context, dense)], draws=3, attention=SPARSE, batch_size=2)
    assert [x.greedy for x in got] == [True, False]


def test_one_token_answers_share_their_forwards(model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four choices after one context: one dense forward; with SparseD one that selects (dense) and one sparse."""
    model, rows = model_of("llada"), []
    real = LocalForward.logits

    def counted(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        rows.append((pass_.attention.phase, len(ids)))
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", counted)
    pairs = [(tokens(90, 1), [choice]) for choice in (65, 66, 67, 68)]
    found(model, pairs, draws=128, attention="dense")
    assert rows == [("dense", 1)]
    rows.clear()
    found(model, pairs, draws=128, attention=SPARSE)
    assert rows == [("select", 1), ("sparse", 1)]


def test_wrong_values(model_of) -> None:
    model = model_of("llada")
    pair = (tokens(5, 1), tokens(2, 2))
    for options, words in (
        ({"draws": 0}, "at least 1, not 0"),
        ({"draws": True}, "not True"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"cfg_scale": -1.0}, "cfg_scale must be 0, or lie"),
        ({"backend": "fast"}, "backend must be 'auto' or one of"),
        ({"attention": "dense", "dense_backend": "fast"}, "dense_backend must be 'auto' or one of"),
    ):
        with pytest.raises(ValueError, match=words):
            found(model, [pair], **options)
    for wrong in (([], [1]), ([1, 400], [1]), ([1], [400])):
        with pytest.raises(ValueError, match="empty|Token ids must lie between"):
            found(model, [wrong])


def test_weights_that_give_no_numbers_are_said(checkpoints, folder_of, tmp_path) -> None:
    folder = checkpoints.write_qwen3(tmp_path / "broken")
    tensors = checkpoints.read_tensors(folder)
    tensors["model.norm.weight"][:] = torch.nan
    checkpoints.write_tensors(folder, tensors)
    model = sparsed.load(folder, device="cpu", dtype="float32")
    with pytest.raises(RuntimeError, match="not finite"):
        found(model, [([1, 2, 3], [4])])
