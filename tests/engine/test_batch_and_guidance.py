"""Several rows at once and classifier-free guidance, both with SparseD; and which rows and logits are computed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparsed
from sparsed import SamplerConfig, SparseDConfig

CLOSE = 1e-4
LLADA = SamplerConfig(8, 24, 12, "low_confidence", 0.0, 0)
DREAM = SamplerConfig(8, 24, 24, "maskgit_plus", 0.0, 0, top_p=0.9)
ENTROPY = SamplerConfig(6, 24, 24, "entropy", 0.0, 0)
RUNS = [("llada", LLADA), ("dream", DREAM), ("qwen3", LLADA), ("dream", ENTROPY)]


def prompts(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


def masks_of(pattern, batch: int = 0) -> torch.Tensor:
    """Bool [layers, heads, n, n] of one row."""
    heads = pattern.layers[0].counts.shape[1]
    return torch.stack(
        [
            torch.stack([pattern.mask(layer, head, batch) for head in range(heads)])
            for layer in range(len(pattern.layers))
        ]
    )


@pytest.mark.parametrize(("family", "sampler"), RUNS)
@pytest.mark.parametrize("selection", ["paper", "reference"])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_a_batch_is_its_rows(model_of, family: str, sampler, selection: str, cfg_scale: float) -> None:
    """Tokens, confidences and patterns of every row are those of the row alone."""
    model, sampler = model_of(family), replace(sampler, cfg_scale=cfg_scale)
    attention = SparseDConfig(skip=0.25, select=0.3, block_size=32, selection=selection)
    ids = prompts(3, 170)
    together = sparsed.generate(model, ids, sampler=sampler, attention=attention)
    assert "sparse" in {step.phase for step in together.steps}
    rows = 6 if cfg_scale else 3
    assert {layer.counts.shape[0] for layer in together.pattern.layers} == {rows}
    for row in range(3):
        alone = sparsed.generate(model, ids[row : row + 1], sampler=sampler, attention=attention)
        assert torch.equal(together.tokens[row], alone.tokens[0]) and together.text[row] == alone.text[0]
        for a, b in zip(together.steps, alone.steps, strict=True):
            assert a.phase == b.phase and torch.equal(a.tokens[row], b.tokens[0])
            assert torch.equal(a.committed[row], b.committed[0])
            assert torch.allclose(a.confidence[row], b.confidence[0], atol=1e-5, equal_nan=True)
        for half in range(rows // 3):
            assert torch.equal(masks_of(together.pattern, half * 3 + row), masks_of(alone.pattern, half))
    # Rows have patterns of their own.
    assert not torch.equal(masks_of(together.pattern, 0), masks_of(together.pattern, 1))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("attention", ["dense", SparseDConfig(skip=0.0, select=0.5, block_size=32)])
def test_a_batch_with_a_threshold_is_its_rows(model_of, family: str, attention) -> None:
    """Rows are done at different times; the others go on without them."""
    model = model_of(family, mask_predicted=False)
    algorithm = "low_confidence" if family == "llada" else "maskgit_plus"
    sampler = SamplerConfig(None, 24, 8, algorithm, 0.0, 0, threshold=0.15)
    ids = prompts(4, 100, seed=5)
    together = sparsed.generate(model, ids, sampler=sampler, attention=attention)
    lengths = []
    for row in range(4):
        alone = sparsed.generate(model, ids[row], sampler=sampler, attention=attention)
        lengths.append(len(alone.steps))
        for a, b in zip(together.steps, alone.steps):
            assert torch.equal(a.tokens[row], b.tokens[0])
        assert torch.equal(together.tokens[row], alone.tokens[0])
    assert len(together.steps) == max(lengths) and len(set(lengths)) > 1


@pytest.mark.parametrize(("family", "sampler"), RUNS[:3])
@pytest.mark.parametrize("selection", ["paper", "reference"])
def test_guided_patterns_are_each_rows_own(
    checkpoints, folder_of, model_of, family: str, sampler, selection: str
) -> None:
    """Conditional rows first; the others see their prompt masked out."""
    model, sampler = model_of(family), replace(sampler, cfg_scale=1.2)
    ids = prompts(2, 150, seed=2)
    attention = SparseDConfig(skip=0.25, select=0.3, block_size=32, selection=selection)
    result = sparsed.generate(model, ids, sampler=sampler, attention=attention)
    index = next(step.index for step in result.steps if step.phase == "select")
    before = result.steps[index - 1].tokens
    plain = checkpoints.PlainNetwork(folder_of(family), torch.float64)
    choose = checkpoints.paper_selection if selection == "paper" else checkpoints.public_selection
    compared = close = 0
    for row in range(4):
        prompt = ids[row % 2] if row < 2 else torch.full((150,), model.mask_id)
        _, seen = plain.run(torch.cat([prompt, before[row % 2]]))
        for layer, (q, k) in enumerate(seen):
            choices = choose(q, k, 24, 32, 0.3, heads_scale=family == "llada")
            for head, blocks in enumerate(choices):
                mask = result.pattern.mask(layer, head, row)
                for block, (kept, lead) in enumerate(blocks):
                    compared += 1
                    if lead < CLOSE:
                        close += 1
                    else:
                        assert set(mask[block].nonzero()[:, 0].tolist()) == kept, (row, layer, head, block)
    assert close <= 0.02 * compared


@pytest.mark.parametrize(("family", "sampler"), RUNS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cfg_scale", [0.3, 2.0])
def test_selecting_everything_is_dense_with_guidance(model_of, family: str, sampler, batch: int, cfg_scale) -> None:
    model, sampler = model_of(family), replace(sampler, cfg_scale=cfg_scale)
    ids = prompts(batch, 75, seed=7)
    everything = SparseDConfig(skip=0.0, select=1.0, block_size=32)
    dense = sparsed.generate(model, ids, sampler=sampler, attention="dense")
    sparse = sparsed.generate(model, ids, sampler=sampler, attention=everything, backend="gather")
    assert torch.equal(sparse.tokens, dense.tokens) and sparse.pattern.requested_density == 1.0
    assert [step.phase for step in sparse.steps[:2]] == ["select", "sparse"]
    for a, b in zip(sparse.steps, dense.steps, strict=True):
        assert torch.equal(a.tokens, b.tokens)
    plain = sparsed.generate(model, ids, sampler=replace(sampler, cfg_scale=0.0), attention="dense")
    assert not torch.equal(plain.tokens, dense.tokens)


@pytest.mark.parametrize(("family", "trained"), [("llada", 256), ("dream", 512)])
def test_beyond_the_trained_length_is_speed_only(model_of, family: str, trained: int) -> None:
    model = model_of(family)
    sampler = SamplerConfig(steps=2, gen_length=2)
    for length, beyond in ((trained - 2, False), (trained - 1, True), (1300, True)):
        run = sparsed.denoise(model, prompts(1, length), sampler=sampler)
        notes = [note for note in run.notes if note.startswith("Speed only")]
        assert len(notes) == beyond
        if beyond:
            text = notes[0].replace(",", "")
            assert f"trained to {trained} positions" in text and str(length + 2) in text
            assert notes[0].endswith(".") and model.label in notes[0]
    # Allowed, all the same.
    assert len(sparsed.generate(model, prompts(1, trained - 1), sampler=sampler, attention="dense").steps) == 2


# ---- only the logits that matter ----


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation gives, among those with a dimension of the vocabulary's size."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.most, self.rows = vocabulary, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape:
                self.most = max(self.most, tensor.numel())
                if tensor.shape[-1] == self.vocabulary:
                    self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return out


@pytest.mark.parametrize(
    ("family", "sampler"), [*RUNS, ("llada", replace(LLADA, block_length=24, threshold=0.3, steps=24))]
)
@pytest.mark.parametrize("attention", ["dense", SparseDConfig(skip=0.2, select=0.3, block_size=32)])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_no_tensor_of_length_times_vocabulary(model_of, family, sampler, attention, cfg_scale, temperature) -> None:
    model = model_of(family)
    vocabulary, length, batch = model.network.config.vocab_size, 200, 2
    sampler = replace(sampler, cfg_scale=cfg_scale, temperature=temperature)
    with Allocations(vocabulary) as seen:
        result = sparsed.generate(model, prompts(batch, length), sampler=sampler, attention=attention)
    assert len(result.steps) >= 2
    eligible = batch * (sampler.block_length or 24) * (2 if cfg_scale else 1)
    width = model.network.config.hidden_size
    # The head's own weights are vocabulary · width; a view of them is no allocation.
    assert 0 < seen.rows <= max(eligible, width)
    assert seen.most < (length + 24) * vocabulary
    with Allocations(vocabulary) as whole:
        model.network(input_ids=prompts(1, length + 24))
    assert whole.most >= (length + 24) * vocabulary  # the test does see such a tensor


@pytest.mark.parametrize(("family", "sampler"), RUNS)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_last_layer_ends_with_the_rows_that_are_needed(model_of, family: str, sampler, cfg_scale, batch) -> None:
    """MLP, output projection and head of the last layer; everything before them runs for all positions."""
    model, sampler = model_of(family), replace(sampler, cfg_scale=cfg_scale)
    network = model.network
    first, last = network.model.layers[0], network.model.layers[-1]
    ends = {"mlp": last.mlp, "o_proj": last.self_attn.o_proj, "head": network.lm_head, "norm": network.model.norm}
    wholes = {"mlp 0": first.mlp, "o_proj 0": first.self_attn.o_proj}
    wholes |= {name: getattr(last.self_attn, name) for name in ("q_proj", "k_proj", "v_proj")}
    rows: dict[str, list[int]] = {name: [] for name in (*ends, *wholes)}
    prompt_length, gen_length = 140, 24
    attention = SparseDConfig(skip=0.3, select=0.3, block_size=32)
    with ExitStack() as stack:
        for name, module in (ends | wholes).items():

            def note(_module, inputs, _out, name=name) -> None:
                rows[name].append(inputs[0].numel() // inputs[0].shape[-1])

            stack.callback(module.register_forward_hook(note).remove)
        steps = list(sparsed.denoise(model, prompts(batch, prompt_length), sampler=sampler, attention=attention))
    assert {step.phase for step in steps} == {"dense", "select", "sparse"}
    passes = 2 if cfg_scale else 1
    canvas = torch.full((batch, gen_length), model.mask_id)
    for step in steps:
        end = (step.index * 2 // sampler.steps + 1) * 12 if sampler.block_length == 12 else 24
        needed = int((canvas[:, :end] == model.mask_id).sum()) * passes
        assert {name: rows[name][step.index] for name in ends} == dict.fromkeys(ends, needed)
        everything = batch * (prompt_length + gen_length) * passes
        assert {name: rows[name][step.index] for name in wholes} == dict.fromkeys(wholes, everything)
        canvas = step.tokens
    assert {len(found) for found in rows.values()} == {len(steps)}
