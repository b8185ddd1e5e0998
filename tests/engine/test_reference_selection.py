"""selection="reference": SparseD as the public code does it, against a slow oracle written from its description.

The oracle computes in float64, from the queries and keys of a plain network that shares no code with the engine.
Where its own ranking is nearly tied, float32 may decide otherwise: such query blocks are left out, and counted.
"""

from __future__ import annotations

import math

import pytest
import torch

import sparsed
from sparsed import SamplerConfig, SparseDConfig
from sparsed.attention.backends.gather import gather_attention
from sparsed.config import select_step, switch_step

CLOSE = 1e-4


def prompt_of(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed))


def sampler_for(family: str, steps: int, gen_length: int) -> SamplerConfig:
    if family == "dream":
        return SamplerConfig(steps, gen_length, gen_length, "maskgit_plus", 0.0, 0, top_p=1.0)
    return SamplerConfig(steps, gen_length, gen_length, "low_confidence", 0.0, 0)


def canvas_before(model, prompt: torch.Tensor, steps: list, index: int, gen_length: int) -> torch.Tensor:
    masks = torch.full((gen_length,), model.mask_id)
    return torch.cat([prompt, steps[index - 1].tokens[0] if index else masks])


def assert_choices(pattern, layer: int, choices: list, batch: int = 0) -> int:
    """Every head's and query block's kept blocks are the oracle's. Returns how many were too close to call."""
    close = 0
    for head, rows in enumerate(choices):
        mask = pattern.mask(layer, head, batch)
        assert mask.shape == (len(rows), len(rows))
        for block, (kept, lead) in enumerate(rows):
            if lead < CLOSE:
                close += 1
                continue
            assert set(mask[block].nonzero()[:, 0].tolist()) == kept, f"layer {layer}, head {head}, block {block}"
    return close


CASES = [
    # prompt, generation, block size, select
    (160, 64, 32, 0.5),
    (150, 71, 32, 0.3),  # partial last block, a block straddles the boundary
    (129, 96, 32, 0.3),  # last block of one row
    (70, 20, 32, 0.5),  # the generation inside one block
    (75, 21, 32, 0.4),  # no block starts in the generation: the last one alone counts
    (20, 140, 32, 0.34),  # prompt shorter than a block
    (1, 95, 32, 0.7),
    (200, 120, 64, 0.3),
    (300, 33, 64, 0.99),
    (20, 10, 32, 0.5),  # one block
    (260, 130, 128, 0.5),
]


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize(("length", "gen_length", "size", "select"), CASES)
def test_kept_blocks(checkpoints, folder_of, model_of, family: str, length, gen_length, size, select) -> None:
    values = {"n_kv_heads": 2} if family == "llada" and length % 2 else {}
    model = model_of(family, **values)
    prompt, skip = prompt_of(length, seed=length), 0.4
    attention = SparseDConfig(skip=skip, select=select, block_size=size, selection="reference")
    run = sparsed.denoise(model, prompt, sampler=sampler_for(family, 5, gen_length), attention=attention)
    result = run.result()
    end = int(5 * skip) + 1
    assert [step.phase for step in result.steps] == ["dense"] * end + ["select"] + ["sparse"] * (4 - end)
    pattern = result.pattern
    assert len(pattern.layers) == 2
    canvas = canvas_before(model, prompt, result.steps, end, gen_length)
    _, seen = checkpoints.PlainNetwork(folder_of(family, **values), torch.float64).run(canvas)
    close = kept = total = 0
    for layer, (q, k) in enumerate(seen):
        choices = checkpoints.public_selection(q, k, gen_length, size, select, heads_scale=family == "llada")
        close += assert_choices(pattern, layer, choices)
        kept += sum(len(blocks) for rows in choices for blocks, _ in rows)
        total += sum(len(rows) ** 2 for rows in choices)
        # int(blocks · select) + 1 of a side at most, and never nothing.
        counts = pattern.layers[layer].counts
        assert counts.min() >= 1 and counts.dtype == pattern.layers[layer].indices.dtype == torch.int32
    assert close <= 0.02 * total + 1
    assert abs(pattern.requested_density - kept / total) <= close / total


def test_the_cases_tell_the_points_apart(checkpoints, folder_of, model_of) -> None:
    """Each departure of the public code changes what is kept, so that the test above could notice its absence."""
    q, k = checkpoints.PlainNetwork(folder_of("llada"), torch.float64).run(prompt_of(221))[1][0]
    kept = lambda choices: [blocks for rows in choices for blocks, _ in rows]  # noqa: E731
    public = kept(checkpoints.public_selection(q, k, 71, 32, 0.3, heads_scale=True))
    assert public != kept(checkpoints.public_selection(q, k, 71, 32, 0.3, heads_scale=False))
    assert public != kept(checkpoints.paper_selection(q, k, 71, 32, 0.3))
    assert len({len(blocks) for blocks in public}) > 1  # not rectangular


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_averages_are_not_rounded_to_bfloat16(checkpoints, folder_of, model_of, family: str) -> None:
    """A bfloat16 network's queries and keys are ranked in float32 all the same."""
    model = model_of(family, load_dtype="bfloat16", dtype=torch.bfloat16)
    plain = checkpoints.PlainNetwork(folder_of(family, dtype=torch.bfloat16), torch.bfloat16)
    told = 0
    for seed in range(3):
        prompt = prompt_of(350, seed)
        attention = SparseDConfig(skip=0.0, select=0.3, block_size=32, selection="reference")
        result = sparsed.generate(model, prompt, sampler=sampler_for(family, 4, 60), attention=attention)
        q, k = plain.run(canvas_before(model, prompt, result.steps, 1, 60))[1][0]
        choices = checkpoints.public_selection(q, k, 60, 32, 0.3, heads_scale=family == "llada")
        assert assert_choices(result.pattern, 0, choices) <= 2
        rounded = checkpoints.public_selection(q, k, 60, 32, 0.3, heads_scale=family == "llada", rounded=True)
        told += sum(a[0] != b[0] for mine, other in zip(choices, rounded) for a, b in zip(mine, other))
    assert told > 0


@pytest.mark.parametrize(("length", "gen_length", "select"), [(160, 64, 0.5), (150, 75, 0.3), (90, 20, 0.6)])
def test_ties_go_to_the_lower_block(checkpoints, tmp_path, length: int, gen_length: int, select: float) -> None:
    """Without queries every key weighs the same: all whole blocks are equal, a partly filled one is worth less."""
    folder = checkpoints.write_llada(tmp_path / "even")
    tensors = checkpoints.read_tensors(folder)
    for key in tensors:
        if "q_proj" in key:
            tensors[key] = torch.zeros_like(tensors[key])
    checkpoints.write_tensors(folder, tensors)
    model = sparsed.load(folder, device="cpu", dtype="float32")
    attention = SparseDConfig(skip=0.0, select=select, block_size=32, selection="reference")
    result = sparsed.generate(
        model, prompt_of(length), sampler=sampler_for("llada", 3, gen_length), attention=attention
    )
    n = math.ceil((length + gen_length) / 32)
    last = math.ceil(length / 32)
    kept = set(range(min(last, int(n * select) + 1))) | set(range(last, last + int((n - last) * select) + 1))
    for layer in range(2):
        for head in range(4):
            mask = result.pattern.mask(layer, head)
            assert all(set(row.nonzero()[:, 0].tolist()) == kept for row in mask)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("skip", [0.0, 0.2, 0.29, 0.5, 0.8, 1.0])
def test_phases(model_of, steps: int, skip: float) -> None:
    """Steps 0 … int(T·skip) + 1 are dense, the last of them selects."""
    attention = SparseDConfig(skip=skip, block_size=32, selection="reference")
    sampler = SamplerConfig(steps=steps, gen_length=8, block_length=8)
    run = sparsed.denoise(model_of("llada"), prompt_of(60), sampler=sampler, attention=attention)
    end = int(steps * skip) + 1
    switch = end + 1 if end + 1 < steps else None
    assert run.switch_step == switch
    assert any("never becomes sparse" in note for note in run.notes) == (switch is None)
    phases = [step.phase for step in run]
    expected = ["dense"] * min(end, steps) + ["select"] * (end < steps)
    assert phases == expected + ["sparse"] * (steps - len(expected))
    assert (run.pattern is None) == (end >= steps) and run.switch_step == switch


def test_the_product_is_one_of_binary_floats() -> None:
    for steps, skip, product in [(100, 0.29, 28), (100, 0.57, 56), (100, 0.55, 55), (128, 0.2, 25), (10, 0.3, 3)]:
        assert select_step(steps, skip, "reference") == product + 1
        assert switch_step(steps, skip, "reference") == product + 2
    assert select_step(100, 0.29) == select_step(100, 0.29, "paper") == 29
    assert switch_step(128, 0.2, "reference") == 27 == switch_step(128, 0.2)


def test_everything_is_refused(model_of) -> None:
    with pytest.raises(ValueError, match="select.*below 1"):
        SparseDConfig(selection="reference", select=1.0)
    with pytest.raises(ValueError, match="select"):
        SparseDConfig(selection="reference", select=1)
    assert SparseDConfig(selection="reference", select=0.999).select == 0.999
    with pytest.raises(ValueError, match="selection must be one of 'paper', 'reference'"):
        SparseDConfig(selection="public")


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(("length", "gen_length", "size"), [(150, 71, 32), (129, 96, 32), (200, 120, 64)])
def test_gather_on_this_pattern_is_masked_dense_attention(
    checkpoints, folder_of, model_of, family: str, length: int, gen_length: int, size: int
) -> None:
    model = model_of(family)
    attention = SparseDConfig(skip=0.0, select=0.3, block_size=size, selection="reference")
    prompt = prompt_of(length, 1)
    result = sparsed.generate(model, prompt, sampler=sampler_for(family, 4, gen_length), attention=attention)
    total = length + gen_length
    seen = []
    for layer, mine in enumerate(result.pattern.layers):
        heads = mine.counts.shape[1]
        blocks = torch.stack([result.pattern.mask(layer, head) for head in range(heads)])
        assert torch.equal(blocks.sum(-1).int(), mine.counts[0])
        assert ((mine.indices >= 0).sum(-1) == mine.counts).all()
        seen.append(checkpoints.positions(blocks, size, total))
        generator = torch.Generator().manual_seed(layer)
        q, k, v = (torch.randn(1, n, total, 8, generator=generator) for n in (heads, heads // 2, heads // 2))
        out = gather_attention(q, k, v, mine.lists(None, result.pattern.layout), 8**-0.5)
        k, v = (x[0].double().repeat_interleave(2, 0) for x in (k, v))
        assert (out[0] - checkpoints.masked_attention(q[0].double(), k, v, seen[layer])).abs().max() < 1e-5
    assert result.pattern.layers[0].counts.unique().numel() > 1
    # And in a run: what the first sparse step is sure of is what a plain network with these masks is sure of.
    canvas = canvas_before(model, prompt, result.steps, 2, gen_length)
    logits, _ = checkpoints.PlainNetwork(folder_of(family), torch.float64).run(canvas, seen)
    if model.shift:
        logits = logits.roll(1, 0)
    sure = logits.softmax(-1).amax(-1)[length:]
    step = result.steps[2]
    assert step.phase == "sparse" and step.committed.any()
    assert torch.equal(step.tokens[step.committed], logits.argmax(-1)[length:][step.committed[0]])
    assert (step.confidence[step.committed] - sure[step.committed[0]]).abs().max() < 1e-4
