"""generation_rows="full": the generation's query blocks see every key in sparse steps, the prompt's follow the pattern.

Attention against a loop over rows and keys in float64; runs against the published network in float64, given the masks
that the text of the setting asks for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.attention.backends import few_rows
from sparsed.attention.backends.dense import SDPA
from sparsed.attention.backends.registry import SparseBackend, executed_density, load_backend
from sparsed.attention.kernels import Kernels
from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.policy import AttentionPolicy
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows

SCALE = 0.25
CLOSE = 1e-4  # what float32 may decide otherwise than float64

# ---------------------------------------------------------------------------------------------------------------------
# Attention of one layer


@dataclass
class Layer:
    """Queries, keys and values of one layer, its lists, and a run's attention that is given them."""

    q: Tensor
    k: Tensor
    v: Tensor
    lists: list[list[list[list[int]]]]  # [row][head][query block]: key blocks
    size: int
    prompt: int

    def seen(self, row: int, head: int, position: int) -> list[int]:
        """The key positions that a query sees."""
        length, size, block = self.q.shape[2], self.size, position // self.size
        members = range(block * size, min(block * size + size, length))
        if any(member >= self.prompt for member in members):
            return list(range(length))
        return [p for j in self.lists[row][head][block] for p in range(j * size, min(j * size + size, length))]

    def oracle(self, positions: list[list[int]]) -> Tensor:
        """Row by row in float64: [batch, heads, n, head_dim]."""
        batch, heads, _, dim = self.q.shape
        out = torch.zeros(batch, heads, len(positions[0]), dim, dtype=torch.float64)
        for b in range(batch):
            for n, position in enumerate(positions[b]):
                for h in range(heads):
                    keys = self.seen(b, h, position)
                    if keys:
                        group = h * self.k.shape[1] // heads
                        scores = self.k[b, group, keys].double() @ self.q[b, h, position].double() * SCALE
                        out[b, h, n] = scores.softmax(0) @ self.v[b, group, keys].double()
        return out

    def attention(self, sparse: SparseBackend, few: Any = few_rows.SDPA) -> RunAttention:
        length = self.q.shape[2]
        layout = BlockLayout(length, self.prompt, self.size)
        config = AttentionConfig(block_size=self.size, generation_rows="full").resolve(length)
        run = RunAttention(AttentionPolicy(config, layout, 8), Kernels(replace(SDPA, attend=never), sparse, few=few))
        slots = max(1, *(len(one) for row in self.lists for head in row for one in head))
        indices = [[[one + [-1] * (slots - len(one)) for one in head] for head in row] for row in self.lists]
        counts = [[[len(one) for one in head] for head in row] for row in self.lists]
        given = LayerPattern(torch.tensor(indices, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32))
        run.phase, run.layers[0] = "sparse", given.with_full(layout.generation_query_blocks)
        return run


def layer_of(batch: int, heads: int, key_heads: int, length: int, prompt: int, size: int) -> Layer:
    generator = torch.Generator().manual_seed(length + prompt)

    def drawn(count: int) -> Tensor:
        return torch.randn(batch, length, count, 32, generator=generator).transpose(1, 2)

    blocks = -(-length // size)

    def some() -> list[int]:
        kept = int(torch.randint(0, blocks + 1, (), generator=generator))
        return sorted(torch.randperm(blocks, generator=generator)[:kept].tolist())

    lists = [[[some() for _ in range(blocks)] for _ in range(heads)] for _ in range(batch)]
    return Layer(drawn(heads), drawn(key_heads), drawn(key_heads), lists, size, prompt)


def rows_of(x: Tensor, positions: Tensor) -> Tensor:
    each = positions.expand(len(x), -1)
    return x.gather(2, each[:, None, :, None].expand(*x.shape[:2], -1, x.shape[-1]))


def never(*_: Any) -> Tensor:
    raise AssertionError("nothing is left to compute here")


SHAPES = [
    # batch, query heads, key heads, length, prompt, block size
    (2, 2, 1, 97, 64, 32),  # the generation starts on a block boundary, grouped queries; the last block has one row
    (2, 4, 2, 129, 100, 32),  # a block straddles
    (1, 2, 2, 200, 130, 64),
    (3, 1, 1, 300, 200, 128),
]


# Flex without a compiler and Triton's interpreter are slow: what they are given is the same for every shape.
SMALL = (2, 2, 1, 70, 40, 32)


@pytest.mark.filterwarnings("ignore:.*torch.compile.*")
@pytest.mark.parametrize(
    ("backend", "shape"),
    [*(("gather", shape) for shape in SHAPES), ("flex", SMALL), ("triton", SMALL)],
)
def test_a_sparse_step_gives_full_rows_full_attention(row_sets, backend: str, shape: tuple[int, ...]) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("there is a GPU here: tests/gpu runs the kernels for real")
    batch, heads, key_heads, length, prompt, size = shape
    layer = layer_of(*shape)
    first = prompt // size * size
    sets: dict[str, Tensor | None] = {"all": None, **row_sets(length, size, batch)}
    # The first row that sees everything differs from sequence to sequence; one sequence may have none of them.
    sets["unlike shares"] = torch.stack([torch.arange(first - 9 + 4 * b, first + 3 + 4 * b) for b in range(batch)])
    sets["none of a sequence"] = torch.stack(
        [torch.arange(12) if b == 0 else torch.arange(first, first + 12) for b in range(batch)]
    )
    if backend != "gather":
        sets = {name: sets[name] for name in ("all", "unlike shares", "none of a sequence")}
    run = layer.attention(load_backend(backend))
    for name, positions in sets.items():
        rows = ALL if positions is None else Rows(positions)
        q = layer.q if positions is None else rows_of(layer.q, positions)
        given = (torch.arange(length)[None] if positions is None else positions).expand(batch, -1).tolist()
        wanted = layer.oracle(given)
        # The next step has other values, and what was prepared is used again.
        for sign in (1, -1) if backend == "gather" else (1,):
            before = [x.clone() for x in (q, layer.k, layer.v)]
            got = run.attend(0, q, layer.k, sign * layer.v, SCALE, rows)
            assert got.shape == q.shape and got.dtype == layer.v.dtype, name
            torch.testing.assert_close(got.double(), sign * wanted, rtol=0, atol=1e-5, msg=name)
            assert all(torch.equal(x, y) for x, y in zip(before, (q, layer.k, layer.v))), name
    if batch > 1:
        assert not torch.allclose(wanted[0], wanted[1])


@pytest.mark.parametrize(("prompt", "size"), [(70, 32), (64, 32), (40, 64)])
def test_only_what_is_asked_for_is_computed(prompt: int, size: int) -> None:
    """Rows that all see everything need no sparse backend; rows of the prompt alone no full attention."""
    layer, first = layer_of(2, 2, 1, 130, prompt, size), prompt // size * size
    tail = torch.arange(first, 130)[None]
    run = layer.attention(SparseBackend("never", never))
    got = run.attend(0, rows_of(layer.q, tail), layer.k, layer.v, SCALE, Rows(tail))
    torch.testing.assert_close(got.double(), layer.oracle(tail.expand(2, -1).tolist()), rtol=0, atol=1e-5)
    if first:
        head = torch.arange(first)[None]
        run = layer.attention(load_backend("gather"), replace(few_rows.SDPA, attend=never))
        got = run.attend(0, rows_of(layer.q, head), layer.k, layer.v, SCALE, Rows(head))
        torch.testing.assert_close(got.double(), layer.oracle(head.expand(2, -1).tolist()), rtol=0, atol=1e-5)
    else:
        # Every query block holds a position of the generation.
        got = run.attend(0, layer.q, layer.k, layer.v, SCALE, ALL)
        torch.testing.assert_close(got, SDPA.attend(layer.q, layer.k, layer.v, SCALE), rtol=0, atol=1e-6)


def test_full_attention_is_asked_for_no_row_before_the_first_full_one() -> None:
    layer, asked = layer_of(1, 2, 2, 200, 130, 64), []

    def counting(q: Tensor, *given: Any) -> Tensor:
        asked.append(q.shape[2])
        return few_rows.SDPA.attend(q, *given)

    run = layer.attention(load_backend("gather"), replace(few_rows.SDPA, attend=counting))
    run.attend(0, layer.q, layer.k, layer.v, SCALE, ALL)
    assert asked == [200 - 128]


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs

PROMPT, GENERATED, SIZE = 150, 40, 32
LENGTH, FULL_FROM = PROMPT + GENERATED, 128  # block 4, of 128 … 159, straddles the boundary
METHODS: dict[str, dict[str, Any]] = {
    "sparsed": {}, "reference": {"selection": "reference"}, "not isolated": {"isolated": False},
    "afresh": {"reuse": False}, "refreshed": {"refresh": 2},
    **{name: {"method": name} for name in ("shared", "random", "sliding_window", "streaming_llm")},
}  # fmt: skip


def sampler_of(family: str, steps: int = 6, **more: Any) -> SamplerConfig:
    if family == "dream":
        return SamplerConfig(steps, GENERATED, GENERATED, "maskgit_plus", 0.0, 0, top_p=1.0, **more)
    return SamplerConfig(steps, GENERATED, GENERATED // 2, "low_confidence", 0.0, 0, **more)


def prompts(batch: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (batch, PROMPT), generator=torch.Generator().manual_seed(seed))


class Oracle:
    """What a step of a run must have done, by the published network in float64."""

    def __init__(self, checkpoints: Any, folder: Any, model: Any, guidance: float) -> None:
        self.network = checkpoints.PlainNetwork(folder, torch.float64)
        self.positions, self.select = checkpoints.positions, checkpoints.paper_selection
        self.model, self.guidance = model, guidance

    def sequences(self, canvas: Tensor) -> list[Tensor]:
        """The canvases [length] of one forward, those without a prompt last."""
        without = canvas.clone()
        without[:, :PROMPT] = self.model.mask_id
        return [*canvas, *without] if self.guidance else [*canvas]

    def chosen(self, canvas: Tensor, select: float, rows: str, sparse: bool) -> list[list[Tensor]]:
        """The masks of each sequence and layer, bool [heads, n, n]: what the paper keeps, and with "full" `rows` all
        where a query block holds a position of the generation. sparse: the step that chooses uses them at once, so
        that a layer's queries follow from the layers before as they are masked.
        """
        chosen = []
        for sequence in self.sequences(canvas):
            masks: list[Tensor] = []
            blocks = -(-LENGTH // SIZE)
            for layer in range(self.network.layers):
                everything = torch.ones(self.network.heads, LENGTH, LENGTH, dtype=torch.bool)
                so_far = [self.positions(mask, SIZE, LENGTH) for mask in masks] if sparse else []
                seen = so_far + [everything] * (self.network.layers - len(so_far))
                q, k = self.network.run(sequence, seen)[1][layer]
                mask = torch.zeros(self.network.heads, blocks, blocks, dtype=torch.bool)
                for head, choices in enumerate(self.select(q, k, GENERATED, SIZE, select)):
                    for block, (kept, lead) in enumerate(choices):
                        assert lead > 1e-6, "another seed: this is too close to call"
                        mask[head, block, list(kept)] = True
                masks.append(with_rows(mask, rows))
            chosen.append(masks)
        return chosen

    def logits(self, canvas: Tensor, masks: list[list[Tensor]] | None) -> Tensor:
        """[batch, gen_length, vocabulary]. masks: for each sequence and layer bool [heads, n, n]; None: dense."""
        made = []
        for number, sequence in enumerate(self.sequences(canvas)):
            seen = None if masks is None else [self.positions(mask, SIZE, LENGTH) for mask in masks[number]]
            made.append(self.network.run(sequence, seen)[0])
        rows = torch.stack(made)
        if self.guidance:
            with_prompt, without = rows.chunk(2)
            rows = without + (self.guidance + 1) * (with_prompt - without)
        first = PROMPT - int(self.model.shift)
        return rows[:, first : first + GENERATED]

    def check(self, step: Any, canvas: Tensor, masks: list[list[Tensor]] | None, block: int) -> None:
        """The step committed the surest positions before `block`, with the likeliest tokens, as sure as this says."""
        logits = self.logits(canvas, masks)
        sure, token = logits.softmax(-1).max(-1)
        for b in range(len(canvas)):
            done = step.committed[b]
            was_masked = canvas[b, PROMPT:] == self.model.mask_id
            assert done.any() and (was_masked | ~done).all()
            assert torch.equal(step.tokens[b][done], token[b][done])
            assert (step.confidence[b][done] - sure[b][done]).abs().max() < CLOSE
            left = was_masked & ~done & (torch.arange(GENERATED) < block)
            if left.any():
                assert sure[b][done].min() > sure[b][left].max() - CLOSE


def with_rows(mask: Tensor, rows: str) -> Tensor:
    """A method's mask [heads, n, n] with these rows of the generation."""
    mask = mask.clone()
    assert not mask.all(-1).any(), "what is kept is not all"
    for block in range(mask.shape[-1]):
        if rows == "full" and any(p >= PROMPT for p in range(block * SIZE, min(block * SIZE + SIZE, LENGTH))):
            mask[:, block] = True
    return mask


def mask_of(pattern: Any, sequence: int) -> list[Tensor]:
    return [layer.mask()[sequence] for layer in pattern.layers]


RUNS = [
    ("llada", 1, 0.0, name, rows) for name in METHODS for rows in ("full", "pattern")
] + [
    (family, batch, guidance, "sparsed", rows)
    for family, batch, guidance in (("dream", 2, 0.0), ("qwen3", 1, 0.7), ("llada", 2, 0.7), ("dream", 1, 0.7))
    for rows in ("full", "pattern")
]  # fmt: skip


@pytest.mark.parametrize(("family", "batch", "guidance", "method", "rows"), RUNS)
def test_every_step_is_that_of_the_published_network_with_these_rows(
    checkpoints, folder_of, model_of, family: str, batch: int, guidance: float, method: str, rows: str
) -> None:
    """The prompt's query blocks see what the method keeps for them; those that hold a position of the generation see
    all keys, or with "pattern" what the method keeps for them too.
    """
    values = {"n_kv_heads": 2, "mask_predicted": False} if family == "llada" else {"mask_predicted": False}
    if family == "qwen3":
        values = {}
    model, select = model_of(family, **values), 0.3
    config: dict[str, Any] = {"skip": 0.2, "select": select, "block_size": SIZE, **METHODS[method]}
    sampler, ids = sampler_of(family, cfg_scale=guidance), prompts(batch)
    run = sparsed.denoise(model, ids, sampler=sampler, attention=AttentionConfig(generation_rows=rows, **config))
    # A run with the other rows does the same up to its select step, which tells what the method keeps.
    other = sparsed.denoise(model, ids, sampler=sampler, attention=AttentionConfig(**config))
    for _ in range(4 if method == "reference" else 3):
        next(other)
    oracle = Oracle(checkpoints, folder_of(family, **values), model, guidance)
    assert other.pattern is not None
    masked = torch.full((batch, GENERATED), model.mask_id)
    canvas, masks, made = torch.cat([ids, masked], 1), None, []
    for step in run:
        fresh = step.phase == "select" or (method == "afresh" and step.phase == "sparse")
        if fresh:
            if method in ("sparsed", "afresh", "refreshed"):
                masks = oracle.chosen(canvas, select, rows, sparse=step.phase == "sparse")
            else:
                each = range(len(run.pattern.layers[0].counts))
                masks = [[with_rows(mask, rows) for mask in mask_of(other.pattern, number)] for number in each]
            if step.phase == "select":
                for sequence, layers in enumerate(masks):
                    found = mask_of(run.pattern, sequence)
                    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, layers, strict=True))
                share = float(torch.stack([mask for layers in masks for mask in layers]).double().mean())
                assert run.pattern.requested_density == pytest.approx(share)
                assert run.pattern.full_blocks == (2 if rows == "full" else 0)
        end = GENERATED if family == "dream" else GENERATED // 2 * (1 + step.index // 3)
        oracle.check(step, canvas, masks if step.phase == "sparse" else None, end)
        made.append(step.phase)
        canvas = torch.cat([ids, step.tokens], 1)
    # A refresh every two steps, and at step 3, where the second semi-autoregressive block begins.
    after = ["select", "sparse", "select"] if method == "refreshed" else ["sparse"] * 3
    assert made == ["dense", "dense", "select", *after]


def test_the_oracle_tells_the_two_apart(checkpoints, folder_of, model_of) -> None:
    """With the rows of the one, the step of the other is refused."""
    model, sampler = model_of("llada", n_kv_heads=2, mask_predicted=False), sampler_of("llada")
    config = SparseDConfig(skip=0.2, select=0.3, block_size=SIZE, generation_rows="full")
    run = sparsed.denoise(model, prompts(1), sampler=sampler, attention=config)
    steps = list(run)
    oracle = Oracle(checkpoints, folder_of("llada", n_kv_heads=2, mask_predicted=False), model, 0.0)
    canvas = torch.cat([prompts(1), steps[2].tokens], 1)
    right = [mask_of(run.pattern, 0)]
    oracle.check(steps[3], canvas, right, GENERATED)
    wrong = [[mask.clone() for mask in right[0]]]
    wrong[0][0][:, 4, 0] = wrong[0][1][:, 4, 0] = False
    with pytest.raises(AssertionError):
        oracle.check(steps[3], canvas, wrong, GENERATED)
    with pytest.raises(AssertionError):
        oracle.check(steps[3], canvas, None, GENERATED)


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize("backend_name", ["gather", "auto"])
def test_selecting_everything_is_dense(model_of, family: str, backend_name: str) -> None:
    model, ids = model_of(family), prompts(2)
    sampler = sampler_of(family, cfg_scale=0.5 if backend_name == "auto" else 0.0)
    config = SparseDConfig(skip=0.0, select=1.0, block_size=SIZE, generation_rows="full")
    dense = sparsed.generate(model, ids, sampler=sampler, attention="dense")
    full = sparsed.generate(model, ids, sampler=sampler, attention=config, backend=backend_name)
    assert torch.equal(full.tokens, dense.tokens) and full.pattern.requested_density == 1.0
    assert executed_density("gather", full.pattern) == pytest.approx(1.0) and full.info.phases["sparse"] == 5


@pytest.mark.parametrize("length", [1, 20, 31])
def test_a_prompt_within_the_first_block_leaves_nothing_sparse(tiny, monkeypatch, length: int) -> None:
    """Every query block holds a position of the generation: no sparse backend is called, and all is dense."""
    monkeypatch.setattr("sparsed.attention.backends.gather.gather_attention", never)
    sampler = SamplerConfig(steps=5, gen_length=50)
    config = SparseDConfig(skip=0.0, select=0.1, block_size=SIZE, generation_rows="full")
    ids = prompts(2)[:, :length]
    dense = sparsed.generate(tiny, ids, sampler=sampler, attention="dense")
    full = sparsed.generate(tiny, ids, sampler=sampler, attention=config)
    assert torch.equal(full.tokens, dense.tokens) and full.info.phases == {"dense": 0, "select": 1, "sparse": 4}
    assert full.pattern.full_blocks == full.pattern.layout.blocks and executed_density("gather", full.pattern) == 1.0
    for one, two in zip(full.steps, dense.steps, strict=True):
        # But for the rounding of sums: the rows are the same, the kernel's shapes need not be.
        torch.testing.assert_close(one.confidence, two.confidence, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_kept_importances_are_those_of_all_rows(tiny) -> None:
    """What was ranked is kept for every query block, and the kept mass of full ones is all there is."""
    from sparsed.attention.analysis import kept_mass

    config = SparseDConfig(skip=0.2, select=0.3, block_size=SIZE, keep_importance=True)
    sampler = SamplerConfig(steps=5, gen_length=GENERATED)
    patterns = [
        sparsed.generate(
            tiny, prompts(1), sampler=sampler, attention=replace(config, generation_rows=rows)
        ).pattern
        for rows in ("pattern", "full")
    ]
    for one, two in zip(*(pattern.importance for pattern in patterns), strict=True):
        assert torch.equal(one, two) and (two.sum(-1) > 0).all()
    small, large = (kept_mass(pattern) for pattern in patterns)
    assert (large > small).all() and (large <= 1).all()
    assert (large >= (LENGTH - FULL_FROM) / LENGTH - 1e-3).all()
