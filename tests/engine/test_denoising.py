"""Runs of a tiny random model, against oracles that share no code with the engine."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparsed
from sparsed import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.attention.backends import gather
from sparsed.attention.pattern import BlockLayout
from sparsed.attention.selection.importance import block_importance
from sparsed.attention.selection.isolated import select_blocks
from sparsed.config import ResolvedAttention
from sparsed.denoising.predictor import Predictor
from sparsed.denoising.run import Run

TEXT = "The old library of Orlin stands by the river, and nobody knows who built it. " * 2


def prompt_ids(tiny, length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random bytes, never a special token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, length), generator=generator)


@pytest.fixture(scope="module")
def eager(tiny_folder):
    """The same weights in transformers' own layers and eager attention, with every attention weight to be had."""
    config = LlamaConfig.from_pretrained(tiny_folder)
    config.is_causal = False
    return LlamaForCausalLM.from_pretrained(
        tiny_folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Grows by the slots of the pattern's lists each time the sparse backend runs."""
    counted: list[int] = []
    real = gather.gather_attention

    def counting(q, k, v, lists, scale):
        counted.append(lists.indices.shape[-1])
        return real(q, k, v, lists, scale)

    monkeypatch.setattr(gather, "gather_attention", counting)
    return counted


@pytest.fixture
def no_mask_predicted(tiny):
    """The tiny model, its logits for the mask token so low that it is never predicted."""

    def lower(_module, _arguments, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., tiny.mask_id] = -1e4
        return logits

    hook = tiny.network.lm_head.register_forward_hook(lower)
    yield tiny
    hook.remove()


def oracle_tokens(network, mask_id: int, prompt: torch.Tensor, config: SamplerConfig) -> list[int]:
    """Full attention, temperature 0: the whole published loop for one row, one position at a time."""
    row = prompt.tolist() + [mask_id] * config.gen_length
    blocks = config.gen_length // config.block_length
    share = config.steps // blocks
    for block, step in itertools.product(range(blocks), range(share)):
        with torch.no_grad():
            logits = network(torch.tensor([row]), use_cache=False).logits[0]
        probabilities = logits.softmax(-1)
        end = len(prompt) + (block + 1) * config.block_length
        surest = sorted(
            (-float(probabilities[i].max()), i) for i in range(len(prompt), end) if row[i] == mask_id
        )
        count = config.block_length // share + (step < config.block_length % share)
        for _, i in surest[:count]:
            row[i] = int(logits[i].argmax())
    return row


@pytest.mark.parametrize(
    ("length", "steps", "gen_length", "block_length"),
    [(5, 8, 8, 8), (40, 6, 12, 4), (40, 7, 24, 24), (90, 20, 40, 8), (1, 3, 9, 3)],
)
def test_dense_equals_the_published_loop_on_eager_attention(
    tiny, eager, length, steps, gen_length, block_length
) -> None:
    config = SamplerConfig(steps, gen_length, block_length, "low_confidence", 0.0, 0)
    ids = prompt_ids(tiny, length)
    result = sparsed.generate(tiny, ids, sampler=config, attention="dense")
    assert result.tokens[0].tolist() == oracle_tokens(eager, tiny.mask_id, ids[0], config)
    assert result.backend == "sdpa" and result.pattern is None and result.switch_step is None
    assert {step.phase for step in result.steps} == {"dense"}


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("percent", [0, 1, 20, 35, 50, 55, 80, 99, 100])
def test_phases_and_switch(tiny, calls, steps: int, percent: int) -> None:
    sampler = SamplerConfig(steps=steps, gen_length=10, block_length=10)
    run = sparsed.denoise(
        tiny, prompt_ids(tiny, 50), sampler=sampler, attention=SparseDConfig(skip=percent / 100)
    )
    select = -(-steps * percent // 100)
    switch = select + 1 if select < steps - 1 else None
    assert run.switch_step == switch and run.total == steps
    assert any("never becomes sparse" in note for note in run.notes) == (switch is None)
    phases = []
    for step in run:
        phases.append(step.phase)
        assert (run.pattern is not None) == (step.index >= select)
        assert len(calls) == 3 * phases.count("sparse")
    expected = ["dense"] * min(select, steps) + ["select"] * (select < steps)
    assert phases == expected + ["sparse"] * (steps - len(expected))
    assert run.result().switch_step == switch and run.result().pattern is run.pattern


@pytest.mark.parametrize("length", [7, 31, 64, 97])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("block_size", [32, 64])
def test_selecting_everything_gives_the_dense_tokens(tiny, calls, length, batch, block_size) -> None:
    sampler = SamplerConfig(steps=12, gen_length=24, block_length=12)
    ids = prompt_ids(tiny, length, batch)
    dense = sparsed.generate(tiny, ids, sampler=sampler, attention="dense")
    assert calls == []
    everything = SparseDConfig(skip=0.0, select=1.0, block_size=block_size)
    sparse = sparsed.generate(tiny, ids, sampler=sampler, attention=everything)
    assert calls == [-(-(length + 24) // block_size)] * (11 * 3)
    assert torch.equal(sparse.tokens, dense.tokens)
    assert sparse.backend == "gather" and sparse.pattern.requested_density == 1.0


def test_selecting_little_changes_the_confidence(tiny) -> None:
    # Otherwise the test above would pass with a sparse phase that is dense in truth.
    sampler = SamplerConfig(steps=12, gen_length=24)
    ids = prompt_ids(tiny, 300)
    dense = sparsed.generate(tiny, ids, sampler=sampler, attention="dense").steps
    sparse = sparsed.generate(tiny, ids, sampler=sampler, attention=SparseDConfig(skip=0, select=0.1)).steps
    assert torch.equal(sparse[0].tokens, dense[0].tokens)
    got, want = sparse[1].confidence, dense[1].confidence
    assert not torch.allclose(got.nan_to_num(-1), want.nan_to_num(-1), atol=1e-3)


def oracle_pattern(network, row: torch.Tensor, prompt_length: int, select: float, size: int) -> list:
    """Layer, head and query block → kept key blocks, from transformers' own attention weights."""
    with torch.no_grad():
        weights = network(row[None], use_cache=False, output_attentions=True).attentions
    length = len(row)
    cuts = [range(start, min(start + size, length)) for start in range(0, length, size)]
    generation = [j for j, cut in enumerate(cuts) if cut[0] >= prompt_length] or [len(cuts) - 1]
    prompt = [j for j in range(len(cuts)) if j not in generation]
    layers = []
    for layer in weights:
        heads = []
        for head in layer[0].double():
            rows = []
            for query in cuts:
                value = [float(head[list(query)][:, list(cut)].mean()) for cut in cuts]
                kept = []
                for side in (prompt, generation):
                    # select is given in tenths, so that this is a product of whole numbers.
                    count = max(1, -(-round(select * 10) * len(side) // 10)) if side else 0
                    kept += sorted(side, key=lambda j: (-value[j], j))[:count]
                rows.append(sorted(kept))
            heads.append(rows)
        layers.append(heads)
    return layers


@pytest.mark.parametrize(
    ("length", "gen_length", "skip", "select"),
    [(200, 40, 0.0, 0.3), (200, 40, 0.2, 0.5), (150, 100, 0.5, 0.4), (20, 10, 0.2, 0.3), (257, 64, 0.9, 0.7)],
)
def test_the_pattern_is_that_of_the_select_steps_own_canvas(
    tiny, eager, length, gen_length, skip, select
) -> None:
    sampler = SamplerConfig(steps=10, gen_length=gen_length)
    ids = prompt_ids(tiny, length)
    attention = SparseDConfig(skip=skip, select=select, block_size=32)
    result = sparsed.generate(tiny, ids, sampler=sampler, attention=attention)
    step = math.ceil(10 * skip)
    assert result.steps[step].phase == "select"
    before = result.steps[step - 1].tokens[0] if step else torch.full((gen_length,), tiny.mask_id)
    expected = oracle_pattern(eager, torch.cat([ids[0], before]), length, select, 32)
    pattern = result.pattern
    assert [layer.indices[0].tolist() for layer in pattern.layers] == expected
    assert (pattern.layout.length, pattern.layout.prompt_length) == (length + gen_length, length)


def test_the_select_step_itself_is_dense(tiny) -> None:
    sampler = SamplerConfig(steps=6, gen_length=12)
    ids = prompt_ids(tiny, 200)
    dense = sparsed.generate(tiny, ids, sampler=sampler, attention="dense").steps
    sparse = sparsed.generate(tiny, ids, sampler=sampler, attention=SparseDConfig(skip=0.5, select=0.1)).steps
    assert sparse[3].phase == "select"
    for a, b in zip(dense[:4], sparse[:4], strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.confidence.nan_to_num(-1), b.confidence.nan_to_num(-1))


@pytest.mark.parametrize("attention", ["dense", SparseDConfig(skip=0.2, select=0.4, block_size=32)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("steps", "gen_length", "block_length"), [(10, 30, 15), (9, 33, 11), (40, 20, 20)])
def test_the_steps_partition_the_canvas(
    no_mask_predicted, attention, temperature, steps, gen_length, block_length
) -> None:
    tiny = no_mask_predicted
    sampler = SamplerConfig(steps, gen_length, block_length, temperature=temperature, seed=2)
    ids = prompt_ids(tiny, 70, batch=2)
    run = sparsed.denoise(tiny, ids, sampler=sampler, attention=attention)
    times = torch.zeros(2, gen_length, dtype=torch.int64)
    previous = torch.full((2, gen_length), tiny.mask_id)
    share = steps // (gen_length // block_length)
    for expected_index, step in enumerate(run):
        assert (step.index, step.total) == (expected_index, steps)
        assert step.tokens.device.type == step.committed.device.type == step.confidence.device.type == "cpu"
        assert step.tokens.dtype == torch.int64 and step.committed.dtype == torch.bool
        assert step.confidence.dtype == torch.float32
        # What was committed is new; everything else is as it was.
        assert (previous[step.committed] == tiny.mask_id).all()
        assert (step.tokens[step.committed] != tiny.mask_id).all()
        assert torch.equal(step.tokens[~step.committed], previous[~step.committed])
        assert torch.equal(step.confidence.isnan(), ~step.committed)
        value = step.confidence[step.committed]
        assert ((value > 0) & (value <= 1)).all()
        block = step.index // share
        outside = torch.ones(gen_length, dtype=torch.bool)
        outside[block * block_length : (block + 1) * block_length] = False
        assert not step.committed[:, outside].any()
        count = block_length // share + (step.index % share < block_length % share)
        assert step.committed.sum(-1).tolist() == [count, count]
        times += step.committed
        previous = step.tokens
    assert (times == 1).all()
    assert torch.equal(run.result().tokens, torch.cat([ids, previous], dim=1))


def test_a_position_given_the_mask_token_stays_masked(tiny) -> None:
    # The published sampler does not forbid the mask token. Here it is made the likely one at every position.
    model = copy.deepcopy(tiny)
    head = torch.nn.Linear(32, 260, bias=True)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    head.bias.data[tiny.mask_id] = 5.0
    model.network.lm_head = head
    result = sparsed.generate(model, prompt_ids(tiny, 9), sampler=SamplerConfig(steps=4, gen_length=8))
    assert (result.tokens[0, 9:] == tiny.mask_id).all()
    for step in result.steps:
        assert not step.committed.any() and step.confidence.isnan().all()
    assert result.text == [""]


def test_mask_tokens_in_the_prompt_are_refused(tiny) -> None:
    ids = prompt_ids(tiny, 60)
    ids[0, [17, 59]] = tiny.mask_id
    for attention in ("dense", SparseDConfig()):
        with pytest.raises(ValueError, match="hold the mask token 257 at position 17: masks inside a prompt are not"):
            sparsed.denoise(tiny, ids, attention=attention)
    # As text a mask is spelled, and stands in the prompt.
    run = sparsed.denoise(tiny, "one <|mask|> two", sampler=SamplerConfig(steps=2, gen_length=4, block_length=4))
    assert "one <|mask|> two" in tiny.tokenizer.decode(run.result().tokens[0, : run.prompt_length])


def test_the_head_runs_on_masked_positions_of_the_block_alone(no_mask_predicted) -> None:
    tiny = no_mask_predicted
    rows: list[int] = []
    hook = tiny.network.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    try:
        sampler = SamplerConfig(steps=8, gen_length=16, block_length=8)
        sparsed.generate(tiny, prompt_ids(tiny, 40, batch=2), sampler=sampler)
    finally:
        hook.remove()
    assert rows == [16, 12, 8, 4, 16, 12, 8, 4]


def settings(tiny):
    """Runs that differ in everything a run can own."""
    return [
        (prompt_ids(tiny, 120), SamplerConfig(steps=12, gen_length=24), SparseDConfig(select=0.3)),
        (prompt_ids(tiny, 120), SamplerConfig(steps=12, gen_length=24), "dense"),
        (
            prompt_ids(tiny, 77, batch=2, seed=1),
            SamplerConfig(steps=9, gen_length=18, block_length=6, temperature=0.9, seed=5),
            SparseDConfig(skip=0.5, select=0.2, block_size=32),
        ),
        (
            prompt_ids(tiny, 120),
            SamplerConfig(steps=10, gen_length=24, algorithm="random", seed=6),
            AttentionConfig("sliding_window", block_size=64, select=0.4),
        ),
    ]


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations_with_replacement(range(4), 2)))
def test_interleaved_runs_equal_the_same_runs_alone(tiny, one: int, two: int) -> None:
    def start(which: int) -> Run:
        ids, sampler, attention = settings(tiny)[which]
        return sparsed.denoise(tiny, ids, sampler=sampler, attention=attention)

    alone = [start(which).result() for which in (one, two)]
    runs = [start(one), start(two)]
    for _ in itertools.zip_longest(*runs):
        pass
    for run, expected in zip(runs, alone, strict=True):
        got = run.result()
        assert torch.equal(got.tokens, expected.tokens)
        assert len(got.steps) == len(expected.steps)
        for a, b in zip(got.steps, expected.steps, strict=True):
            assert a.phase == b.phase and torch.equal(a.tokens, b.tokens)
        assert (got.pattern is None) == (expected.pattern is None)
        if got.pattern is not None:
            for a, b in zip(got.pattern.layers, expected.pattern.layers, strict=True):
                assert torch.equal(a.indices, b.indices)


def test_rows_of_a_batch_equal_the_rows_alone(tiny) -> None:
    sampler = SamplerConfig(steps=8, gen_length=24, block_length=12)
    ids = prompt_ids(tiny, 100, batch=3)
    attention = SparseDConfig(select=0.3, block_size=32)
    together = sparsed.generate(tiny, ids, sampler=sampler, attention=attention)
    for row in range(3):
        alone = sparsed.generate(tiny, ids[row], sampler=sampler, attention=attention)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        for a, b in zip(together.pattern.layers, alone.pattern.layers, strict=True):
            assert torch.equal(a.indices[row], b.indices[0])
    # The rows really differ in where they are masked on the way.
    assert not torch.equal(together.steps[0].committed[0], together.steps[0].committed[1])
    assert len(together.text) == 3


def test_the_seed_decides_and_the_worlds_generator_is_left_alone(tiny) -> None:
    def tokens(seed: int) -> list[int]:
        sampler = SamplerConfig(steps=6, gen_length=24, temperature=1.0, seed=seed)
        return sparsed.generate(tiny, TEXT, sampler=sampler).tokens[0].tolist()

    before = torch.get_rng_state()
    assert tokens(1) == tokens(1) != tokens(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_runs(tiny_folder) -> None:
    model = sparsed.load(tiny_folder, device="cpu", dtype="bfloat16")
    result = sparsed.generate(model, TEXT, attention=SparseDConfig(select=0.3))
    assert {step.phase for step in result.steps} == {"dense", "select", "sparse"}
    assert (result.tokens != model.mask_id).all()


def test_defaults_come_from_the_model_and_the_length(tiny) -> None:
    run = sparsed.denoise(tiny, TEXT)
    assert run.sampler == tiny.defaults
    assert run.attention == ResolvedAttention("sparsed", 0.2, 0.5, 32, "paper", False, "sparse", True, True)
    assert run.length == run.prompt_length + 32
    assert run.prompt_length == len(TEXT) + 3
    assert run.total == 16 and run.switch_step == 5 and run.notes == []
    assert run.pattern is None and run.steps == []
    assert sparsed.denoise(tiny, prompt_ids(tiny, 3968)).attention.block_size == 128
    assert sparsed.denoise(tiny, prompt_ids(tiny, 3967)).attention.block_size == 32


def test_notes_warn_before_the_run(tiny) -> None:
    said = sparsed.denoise(tiny, TEXT, attention=SparseDConfig(skip=1.0)).notes
    assert len(said) == 1 and "never becomes sparse: with 16 steps and skip 1.0" in said[0]
    # What cannot be lowered is not asked for.
    said = sparsed.denoise(tiny, TEXT, sampler=SamplerConfig(steps=1), attention=SparseDConfig(skip=0)).notes
    assert len(said) == 1 and said[0].endswith("skip 0, full attention lasts to the end. Take more steps.")
    said = sparsed.denoise(tiny, prompt_ids(tiny, 369)).notes
    assert len(said) == 1 and said[0].startswith("Speed only: trained to 400 positions") and "has 401." in said[0]
    assert sparsed.denoise(tiny, prompt_ids(tiny, 368)).notes == []
    said = sparsed.denoise(tiny, TEXT, sampler=SamplerConfig(steps=33)).notes
    assert said == ["33 steps for 32 tokens: some steps commit nothing."]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backend": "cuda"}, "backend must be 'auto' or one of 'gather', 'triton'.*, not 'cuda'"),
        ({"backend": "cuda", "attention": "dense"}, "backend must be 'auto' or one of 'gather'"),
        ({"attention": "sparse"}, "attention must be a SparseDConfig or 'dense', not 'sparse'"),
        ({"probe_steps": [16]}, "probe_steps must lie between 0 and 15, not 16"),
        ({"probe_steps": [-1]}, "probe_steps must lie between 0 and 15, not -1"),
        ({"probe_steps": [0], "attention": "dense"}, "a dense run selects no pattern"),
        ({"sampler": SamplerConfig(block_length=7, steps=4)}, "gen_length / block_length = 5: 4 is less"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(tiny, values, said) -> None:
    with pytest.raises(ValueError, match=said):
        sparsed.denoise(tiny, TEXT, **values)


def test_a_probe_selects_what_the_next_step_would(tiny) -> None:
    sampler = SamplerConfig(steps=10, gen_length=20)
    attention = SparseDConfig(skip=0.4, select=0.3, block_size=32)
    ids = prompt_ids(tiny, 200)
    plain = sparsed.generate(tiny, ids, sampler=sampler, attention=attention)
    run = sparsed.denoise(tiny, ids, sampler=sampler, attention=attention, probe_steps=(3, 9, 0))
    result = run.result()
    assert torch.equal(result.tokens, plain.tokens)
    assert sorted(run.probes) == [0, 3, 9]
    assert torch.equal(run.probes[3].overlap(run.pattern), torch.ones(3, 4))
    assert (run.probes[9].overlap(run.pattern) < 1).any()
    assert torch.equal(run.pattern.overlap(plain.pattern), torch.ones(3, 4))


def test_importance_is_kept_on_request(tiny, eager) -> None:
    ids = prompt_ids(tiny, 150)
    sampler = SamplerConfig(steps=4, gen_length=10)
    attention = SparseDConfig(skip=0, block_size=64, keep_importance=True)
    pattern = sparsed.generate(tiny, ids, sampler=sampler, attention=attention).pattern
    canvas = torch.cat([ids[0], torch.full((10,), tiny.mask_id)])
    with torch.no_grad():
        weights = eager(canvas[None], use_cache=False, output_attentions=True).attentions
    assert len(pattern.importance) == 3
    for kept, full in zip(pattern.importance, weights, strict=True):
        assert kept.dtype == torch.float16 and kept.device.type == "cpu" and kept.shape == (1, 4, 3, 3)
        for i, j in itertools.product(range(3), range(3)):
            block = full[0, :, 64 * i : 64 * (i + 1), 64 * j : 64 * (j + 1)]
            assert torch.allclose(kept[0, :, i, j].float(), block.mean((1, 2)), rtol=2e-3, atol=1e-6)
    without = SparseDConfig(skip=0, block_size=64)
    assert sparsed.generate(tiny, ids, sampler=sampler, attention=without).pattern.importance is None


@pytest.mark.parametrize("reuse", [True, False])
def test_without_reuse_every_sparse_step_selects_from_its_own_queries_and_keys(tiny, monkeypatch, reuse) -> None:
    fresh, used = [], []
    real = gather.gather_attention

    def watching(q, k, v, lists, scale):
        layout = BlockLayout(q.shape[2], 300, lists.tile)
        fresh.append(select_blocks(block_importance(q, k, scale, lists.tile), layout, 0.3).indices)
        used.append(lists.indices)
        return real(q, k, v, lists, scale)

    monkeypatch.setattr(gather, "gather_attention", watching)
    attention = SparseDConfig(skip=0.2, select=0.3, block_size=32, reuse=reuse)
    sampler = SamplerConfig(steps=6, gen_length=24)
    result = sparsed.generate(tiny, prompt_ids(tiny, 300), sampler=sampler, attention=attention)
    assert [step.phase for step in result.steps].count("sparse") == 3
    assert len(used) == 3 * len(result.pattern.layers)
    assert all(torch.equal(a, b) for a, b in zip(fresh, used)) == (not reuse)


@pytest.mark.parametrize("pattern", ["streaming_llm", "random", "shared"])
def test_every_baseline_runs_at_the_density_of_sparsed(tiny, calls, pattern) -> None:
    ids = prompt_ids(tiny, 300)
    sampler = SamplerConfig(steps=5, gen_length=20, seed=5)
    attention = AttentionConfig(pattern, select=0.3, block_size=32)
    run = sparsed.generate(tiny, ids, sampler=sampler, attention=attention)
    chosen = sparsed.generate(tiny, ids, sampler=sampler, attention=SparseDConfig(select=0.3, block_size=32))
    assert len(calls) == 2 * 3 * 3
    assert run.pattern.requested_density == chosen.pattern.requested_density
    if pattern == "random":  # by the run's seed, and each layer its own
        again = sparsed.generate(tiny, ids, sampler=replace(sampler, seed=6), attention=attention).pattern
        assert not torch.equal(run.pattern.layers[0].indices, again.layers[0].indices)
        assert not torch.equal(run.pattern.layers[0].indices, run.pattern.layers[1].indices)


def test_the_sliding_window_keeps_as_much_without_looking(tiny, calls) -> None:
    ids = prompt_ids(tiny, 300)
    sampler = SamplerConfig(steps=5, gen_length=20)
    patterns = {}
    for name in ("sparsed", "sliding_window"):
        attention = AttentionConfig(name, select=0.3, block_size=32)
        patterns[name] = sparsed.generate(tiny, ids, sampler=sampler, attention=attention).pattern
    assert len(calls) == 2 * 3 * 3
    window, chosen = patterns["sliding_window"], patterns["sparsed"]
    assert window.requested_density == chosen.requested_density
    for layer in window.layers:
        assert (layer.indices == layer.indices[:, :1]).all()
        assert all(i in layer.indices[0, 0, i] for i in range(10))
    assert (window.overlap(chosen) < 1).all()


def test_seconds_are_the_steps_own(tiny, monkeypatch) -> None:
    real = Predictor.select

    def slow_probe(self, canvas):
        time.sleep(0.05)
        return real(self, canvas)

    monkeypatch.setattr(Predictor, "select", slow_probe)
    start = time.perf_counter()
    run = sparsed.denoise(tiny, TEXT, sampler=SamplerConfig(steps=4, gen_length=8), probe_steps=range(4))
    for step in run:
        assert step.seconds > 0
        time.sleep(0.05)
    result = run.result()
    wall = time.perf_counter() - start
    assert result.seconds == pytest.approx(sum(step.seconds for step in result.steps))
    # The steps' clocks never overlap the sleeps, so both fit into the wall time.
    assert result.seconds + 8 * 0.05 <= wall


def test_a_slow_forward_is_in_the_clock(tiny, monkeypatch) -> None:
    real = gather.gather_attention

    def slow(*arguments, **keywords):
        time.sleep(0.03)
        return real(*arguments, **keywords)

    monkeypatch.setattr(gather, "gather_attention", slow)
    result = sparsed.generate(tiny, TEXT, sampler=SamplerConfig(steps=4, gen_length=8))
    for step in result.steps:
        if step.phase == "sparse":
            assert step.seconds >= 3 * 0.03


def test_warming_up_on_a_cpu_changes_nothing(tiny) -> None:
    sampler = SamplerConfig(steps=4, gen_length=8, temperature=1.0)
    warm = sparsed.denoise(tiny, TEXT, sampler=sampler)
    warm.warm_up()
    assert warm.steps == [] and warm.pattern is None
    assert torch.equal(warm.result().tokens, sparsed.generate(tiny, TEXT, sampler=sampler).tokens)


def test_nan_is_explained_and_the_next_run_works(tiny) -> None:
    expected = sparsed.generate(tiny, TEXT).tokens
    weight = tiny.network.model.layers[1].mlp.down_proj.weight
    saved = weight[0, 0].clone()
    run = sparsed.denoise(tiny, TEXT)
    next(run)
    try:
        with torch.no_grad():
            weight[0, 0] = math.nan
        with pytest.raises(
            RuntimeError, match="logits are not finite at step 2 of 16 .dense attention.*float32"
        ):
            next(run)
    finally:
        with torch.no_grad():
            weight[0, 0] = saved
    assert list(run) == [] and len(run.steps) == 1
    with pytest.raises(RuntimeError, match="stopped after 1 of 16 steps"):
        run.result()
    assert torch.equal(sparsed.generate(tiny, TEXT).tokens, expected)


def test_an_error_in_the_backend_ends_that_run_alone(tiny, monkeypatch) -> None:
    expected = sparsed.generate(tiny, TEXT).tokens
    other = sparsed.denoise(tiny, TEXT)
    steps = list(itertools.islice(other, 9))

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(gather, "gather_attention", broken)
        run = sparsed.denoise(tiny, TEXT)
        with pytest.raises(MemoryError, match="no room"):
            run.result()
    assert [step.phase for step in run.steps] == ["dense"] * 4 + ["select"]
    assert list(run) == []
    # The run that was under way, and a new one, are not touched.
    assert torch.equal(other.result().tokens, expected) and len(steps) == 9
    assert torch.equal(sparsed.generate(tiny, TEXT).tokens, expected)


def test_a_closed_run_is_over_and_frees_its_state(tiny) -> None:
    run = sparsed.denoise(tiny, TEXT)
    for _ in range(7):
        next(run)
    state, pattern = weakref.ref(run._parts[0].attention), run.pattern
    gc.disable()
    try:
        run.close()
        assert state() is None
        assert list(run) == [] and len(run.steps) == 7 and run.pattern is pattern
        with pytest.raises(RuntimeError, match="stopped after 7 of 16 steps: it has no result"):
            run.result()
        run.close()
        # Without close: the last reference frees it all, no cycle keeps it alive.
        run = sparsed.denoise(tiny, TEXT)
        next(run)
        state, alive = weakref.ref(run._parts[0].attention), weakref.ref(run)
        del run
        assert state() is None and alive() is None
    finally:
        gc.enable()


def test_closing_after_the_end_keeps_the_result(tiny) -> None:
    run = sparsed.denoise(tiny, TEXT)
    before = run.result()
    run.close()
    assert torch.equal(run.result().tokens, before.tokens)


def test_closing_while_a_step_is_made_lets_that_step_finish(tiny, monkeypatch) -> None:
    started, closed = threading.Event(), threading.Event()
    real = gather.gather_attention

    def waiting(*arguments, **keywords):
        started.set()
        assert closed.wait(30)
        return real(*arguments, **keywords)

    monkeypatch.setattr(gather, "gather_attention", waiting)
    run = sparsed.denoise(tiny, TEXT)
    taken: list[int] = []
    worker = threading.Thread(target=lambda: taken.extend(step.index for step in run))
    worker.start()
    assert started.wait(30)
    run.close()
    closed.set()
    worker.join(30)
    assert not worker.is_alive()
    # Step 5 is the first sparse one: it was under way, and it is the last.
    assert taken == [0, 1, 2, 3, 4, 5]


def test_a_run_does_not_change_the_callers_modes(tiny) -> None:
    with torch.enable_grad():
        run = sparsed.denoise(tiny, TEXT)
        step = next(run)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        # Ordinary tensors: a caller may change them.
        step.tokens.add_(1)
        step.confidence.mul_(2)
        run.result().tokens.add_(1)


def test_steps_do_not_share_memory(tiny) -> None:
    expected = sparsed.generate(tiny, TEXT).tokens
    run = sparsed.denoise(tiny, TEXT)
    for step in run:
        step.tokens.zero_()
        step.committed.zero_()
    result = run.result()
    assert torch.equal(result.tokens, expected)
    result.tokens.zero_()
    assert torch.equal(run.result().tokens, expected)


def test_a_forward_outside_a_run_is_dense_and_bidirectional(tiny, eager) -> None:
    ids = prompt_ids(tiny, 50, batch=2)
    with torch.no_grad():
        mine = tiny.network(ids, attention_mask=torch.ones_like(ids)).logits
        theirs = eager(ids).logits
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 256
        assert not torch.allclose(tiny.network(changed).logits[:, 0], mine[:, 0])
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_padding_is_refused(tiny) -> None:
    ids = prompt_ids(tiny, 10, batch=2)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="takes no padding"):
        tiny.network(ids, attention_mask=mask)


@pytest.mark.parametrize("on_no_gain", ["sparse", "dense"])
@pytest.mark.parametrize("sparse_seconds", [0.5, 1.0, 2.0])
def test_sparse_steps_without_gain_are_said(tiny, monkeypatch, calls, on_no_gain: str, sparse_seconds: float) -> None:
    """The clock is scripted: a dense step takes 1 s, the select step 5 s."""
    attention = SparseDConfig(skip=0.3, on_no_gain=on_no_gain)
    run = sparsed.denoise(tiny, TEXT, sampler=SamplerConfig(steps=10, gen_length=10), attention=attention)
    now = 0.0
    seconds = iter([1.0] * 3 + [5.0] + [sparse_seconds] * 6)
    begun = False

    def clock() -> float:
        nonlocal now, begun
        begun, now = not begun, now + (next(seconds) if begun else 0.0)
        return now

    monkeypatch.setattr("sparsed.denoising.run.perf_counter", clock)
    result = run.result()
    gain = sparse_seconds < 1
    phases = ["dense"] * 3 + ["select"] + ["sparse"] * 6
    if not gain and on_no_gain == "dense":
        phases[7:] = ["dense"] * 3
    assert [step.phase for step in result.steps] == phases
    assert len(calls) == 3 * phases.count("sparse")
    said = [note for note in result.notes if "no faster here" in note]
    assert len(said) == (not gain)
    if said:
        assert f"{1000 * sparse_seconds:.0f} ms at best, dense steps 1000 ms" in said[0]
        assert said[0].endswith("from step 8 on this run is dense again." if on_no_gain == "dense" else "stays sparse.")


def test_dense_backends_are_checked(tiny) -> None:
    with pytest.raises(ValueError, match="dense_backend must be 'auto' or one of 'sdpa', 'cudnn', .*, not 'best'"):
        sparsed.denoise(tiny, TEXT, dense_backend="best")
    with pytest.raises(ValueError, match="'cudnn' needs a CUDA GPU, not cpu"):
        sparsed.denoise(tiny, TEXT, dense_backend="cudnn")
    run = sparsed.denoise(tiny, TEXT, attention="dense", dense_backend="sdpa")
    assert run.backend == run.dense.name == "sdpa"
