"""Caches against the published algorithms, written here in plain loops from their papers and public codes: float64, one
sequence, one row at a time to be committed. Nothing of the engine is used on the literal side.
"""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import CacheConfig, SamplerConfig, SparseDConfig
from sparsed.attention.backends.few_rows import rows_kind
from sparsed.cache.rows import ALL
from sparsed.cache.size import store_bytes
from sparsed.cache.store import RowStore
from sparsed.config import CACHES, ResolvedSampler
from sparsed.denoising.plan import plan_of
from sparsed.denoising.predictor import Predictor

# The engine computes in float32: decisions closer than this are nobody's to call, and a run is compared up to there.
CLOSE = 2e-5
LAYERS = 2
SHAPES: dict[str, dict[str, Any]] = {
    "llada": {"n_layers": LAYERS},
    "dream": {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS},
    "llada_moe": {"num_hidden_layers": LAYERS},
    "illada": {"num_hidden_layers": LAYERS},
}
PROMPT = torch.randint(6, 250, (1, 21), generator=torch.Generator().manual_seed(7))
METHODS = [CacheConfig("prefix"), CacheConfig("dual"), *(CacheConfig("delayed", refresh) for refresh in (2, 4, 8)),
           CacheConfig("refresh", 8), CacheConfig("refresh", 3)]  # fmt: skip


@pytest.fixture(scope="module")
def tally() -> Iterator[dict[str, int]]:
    """Counts compared and undecidable steps; there must be hardly any of the latter."""
    counts = {"compared": 0, "close": 0}
    yield counts
    assert counts["close"] <= 0.01 * counts["compared"]


class Step(NamedTuple):
    rows: list[int]  # computed, positions of the sequence
    tokens: list[int]  # of the generation, after it
    margin: float  # how clear its decisions were


class Literal:
    """A run of one sequence with the keys and values of every position of every layer, as a step left them last."""

    def __init__(self, network: Any, model: Any, prompt: list[int], config: ResolvedSampler) -> None:
        self.network, self.mask, self.shift, self.config = network, model.mask_id, int(model.shift), config
        self.start = len(prompt)
        self.row = prompt + [model.mask_id] * (0 if config.canvas == "growing" else config.gen_length)
        self.blind = [model.mask_id] * len(prompt) + [model.mask_id] * config.gen_length
        self.stores: tuple[dict[int, Any], dict[int, Any]] = ({}, {})

    def forward(self, row: list[int], rows: list[int], store: dict[int, Any], seen: Any) -> dict[int, Tensor]:
        """Logits of the rows; their keys and values are written into the store before anybody looks at it."""
        net = self.network
        x = net.weights[net.names["embed"] + ".weight"][torch.tensor([row[i] for i in rows])]
        for layer in range(net.layers):
            h = net._rms(x, net._weight("attn_norm", layer))
            q, k, v = (net._heads(h, name, layer) for name in ("q", "k", "v"))
            q, k = (turned(net, t, rows) for t in (q, k))
            keys, values = store.setdefault(layer, ([None] * len(row), [None] * len(row)))
            for n, i in enumerate(rows):
                keys[i], values[i] = k[:, n], v[:, n]
            k, v = torch.stack(keys, 1), torch.stack(values, 1)
            mixed = torch.zeros_like(q)
            for head in range(net.heads):
                of = head // (net.heads // net.kv_heads)
                scores = q[head] @ k[of].T / net.head_dim**0.5
                if seen is not None:
                    scores = scores.masked_fill(~seen[layer][head, rows], -torch.inf)
                mixed[head] = scores.softmax(-1) @ v[of]
            x = x + net._linear(mixed.transpose(0, 1).flatten(1), "out", layer)
            h = net._rms(x, net._weight("ff_norm", layer))
            x = x + net.mlp(h, layer)
        x = net._rms(x, net._weight("norm"))
        head, tied = net.names["head"] + ".weight", net.names["embed"] + ".weight"
        logits = x @ net.weights[head if head in net.weights else tied].T
        return dict(zip(rows, logits))

    def masked(self, first: int, end: int) -> list[int]:
        """Masked positions of the generation in [first, end), which count from its beginning."""
        return [i for i in range(first, min(end, len(self.row) - self.start)) if self.row[self.start + i] == self.mask]

    def step(self, rows: list[int], candidates: list[int], count: int | None, seen: Any = None) -> Step:
        """Computes rows and commits the `count` surest candidates; None: by the threshold."""
        logits = self.forward(self.row, rows, self.stores[0], seen)
        scale = self.config.cfg_scale
        if scale:
            blind = self.blind[: self.start] + self.row[self.start :]
            other = self.forward(blind, rows, self.stores[1], seen)
            logits = {i: other[i] + (scale + 1) * (logits[i] - other[i]) for i in rows}
        token, sure, lead = {}, {}, {}
        for i in candidates:
            one = logits[self.start + i - self.shift]
            first, second = one.topk(2).values.tolist()
            token[i], sure[i], lead[i] = int(one.argmax()), float(one.softmax(0).max()), first - second
        order = sorted(candidates, key=lambda i: (-sure[i], i))
        threshold = self.config.threshold
        if count is None:
            assert threshold is not None
            count = max(1, sum(sure[i] > threshold for i in order))
            edge = min((abs(sure[i] - threshold) for i in order), default=1.0)
        else:
            edge = 1.0
        chosen, rest = order[:count], order[count:]
        margin = min([edge, *(lead[i] for i in chosen)])
        if chosen and rest:
            margin = min(margin, sure[chosen[-1]] - sure[rest[0]])
        for i in chosen:
            self.row[self.start + i] = token[i]
        later = self.start + self.config.gen_length - len(self.row)
        return Step(rows, self.row[self.start :] + [self.mask] * later, margin)

    def run(self, cache: CacheConfig) -> Iterator[Step]:
        """Each step of the method; a semi-autoregressive block ends after its share of steps, or with a threshold when
        nothing of it is masked. Of a canvas that grows, a block is appended where it begins, and nothing is stored.
        """
        config, step = self.config, 0
        grows = config.canvas == "growing"
        turns = sorted(step % (config.gen_length // config.block_length) for step in range(config.steps))
        for first in range(0, config.gen_length, config.block_length):
            end = first + config.block_length
            if grows:
                self.row += [self.mask] * config.block_length
                self.stores = ({}, {})
            everything = list(range(len(self.row)))
            share = turns.count(first // config.block_length)
            masks = len(self.masked(first, end))
            before: list[set[int]] = []  # not committed at the end of each step of the block
            for i in range(share) if config.threshold is None else itertools.count():
                if config.threshold is not None and not self.masked(first, end):
                    break
                rows, candidates = everything, self.masked(0, end)
                if cache.method in ("prefix", "dual") and i > 0:
                    last = len(self.row) if cache.method == "prefix" else self.start + end
                    rows = list(range(self.start + first - self.shift, last))
                    candidates = self.masked(first, end)
                elif cache.method == "delayed" and i > 1 and i % (cache.refresh or 8):
                    read = {self.start + j - self.shift for j in self.masked(0, config.gen_length)}
                    rows = sorted({self.start + j for j in before[i - 2]} | read)
                elif cache.method == "refresh" and step % (cache.refresh or 8) and not (grows and i == 0):
                    rows = list(range(self.start - self.shift, len(self.row)))
                count = masks // share + (i < masks % share) if config.threshold is None else None
                yield self.step(rows, candidates, count)
                before.append(set(self.masked(0, config.gen_length)))
                step += 1


def turned(net: Any, x: Tensor, rows: list[int]) -> Tensor:
    """Rotary embedding at the true positions of rows: [heads, rows, head_dim]."""
    longest = torch.zeros(x.shape[0], max(rows) + 1, x.shape[2], dtype=x.dtype)
    longest[:, rows] = x
    return net._rotate(longest)[:, rows]


def compare(run: Any, literal: Iterator[Step], tally: dict[str, int]) -> None:
    """Every step's rows and tokens, up to a decision that nobody can call."""
    made = iter(run)
    for wanted in literal:
        tally["compared"] += 1
        if wanted.margin < CLOSE:
            tally["close"] += 1
            return
        got = next(made)
        assert got.rows == len(wanted.rows), f"step {got.index}"
        assert got.tokens[0].tolist() == wanted.tokens, f"step {got.index}"
    assert run.finished


@pytest.fixture(scope="module")
def network_of(folder_of: Callable[..., Path], checkpoints: ModuleType) -> Callable[[str], Any]:
    return lambda family: checkpoints.PlainNetwork(folder_of(family, **SHAPES[family]), torch.float64)


@pytest.mark.parametrize("cache", METHODS, ids=lambda cache: f"{cache.method}-{cache.refresh}")
@pytest.mark.parametrize(
    ("steps", "block"),
    [
        (16, 32),  # one block, with a refresh in its middle
        (16, 16),
        (32, 8),  # one position a step
        (10, 8),  # blocks of 3 and of 2 steps, steps of 2, 3 and 4 positions
    ],
)
def test_llada_commits_what_the_published_algorithms_do(
    model_of: Any, network_of: Any, tally: dict[str, int], cache: CacheConfig, steps: int, block: int
) -> None:
    model = model_of("llada", **SHAPES["llada"])
    asked = SamplerConfig(steps=steps, gen_length=32, block_length=block, algorithm="low_confidence", temperature=0.0)
    config = asked.resolve(model.defaults)
    run = sparsed.denoise(model, PROMPT, sampler=asked, attention="dense", cache=cache)
    compare(run, Literal(network_of("llada"), model, PROMPT[0].tolist(), config).run(cache), tally)


@pytest.mark.parametrize("cache", METHODS, ids=lambda cache: f"{cache.method}-{cache.refresh}")
@pytest.mark.parametrize("family", SHAPES)
def test_thresholds(
    model_of: Any, network_of: Any, tally: dict[str, int], cache: CacheConfig, family: str
) -> None:
    model = model_of(family, **SHAPES[family])
    asked = SamplerConfig(gen_length=24, steps=24, block_length=8, threshold=0.12, temperature=0.0, canvas="fixed",
                          early_stop=False)  # fmt: skip
    config = asked.resolve(model.defaults)
    run = sparsed.denoise(model, PROMPT, sampler=asked, attention="dense", cache=cache)
    literal = Literal(network_of(family), model, PROMPT[0].tolist(), config)
    compare(run, literal.run(cache), tally)


@pytest.mark.parametrize("cache", [CacheConfig(), *METHODS], ids=lambda cache: f"{cache.method}-{cache.refresh}")
@pytest.mark.parametrize("family", ["illada", "dream"])
@pytest.mark.parametrize("more", [{"steps": 20}, {"steps": 11, "cfg_scale": 0.7}, {"steps": 24, "threshold": 0.12}],
                         ids=["schedule", "guidance", "threshold"])  # fmt: skip
def test_a_canvas_that_grows(
    model_of: Any, network_of: Any, tally: dict[str, int], cache: CacheConfig, family: str, more: dict[str, Any]
) -> None:
    """Rows, tokens and the positions that are there. Dream, which is shifted, with LLaDA's algorithm."""
    model = model_of(family, **SHAPES[family])
    asked = SamplerConfig(gen_length=24, block_length=8, canvas="growing", algorithm="low_confidence", temperature=0.0,
                          early_stop=False, **more)  # fmt: skip
    config = asked.resolve(model.defaults)
    run = sparsed.denoise(model, PROMPT, sampler=asked, attention="dense", cache=cache)
    literal = Literal(network_of(family), model, PROMPT[0].tolist(), config)
    lengths = []

    def heard() -> Iterator[Step]:
        for step in literal.run(cache):
            lengths.append(len(literal.row))
            yield step

    compare(run, heard(), tally)
    assert [step.length for step in run.steps] == lengths[: len(run.steps)]


@pytest.mark.parametrize("cache", METHODS, ids=lambda cache: f"{cache.method}-{cache.refresh}")
@pytest.mark.parametrize("family", ["llada", "qwen3"])
def test_guidance(model_of: Any, network_of: Any, tally: dict[str, int], cache: CacheConfig, family: str) -> None:
    model = model_of(family, **SHAPES[family])
    asked = SamplerConfig(steps=12, gen_length=24, block_length=12, cfg_scale=0.7, temperature=0.0,
                          algorithm="low_confidence")  # fmt: skip
    run = sparsed.denoise(model, PROMPT, sampler=asked, attention="dense", cache=cache)
    literal = Literal(network_of(family), model, PROMPT[0].tolist(), asked.resolve(model.defaults))
    compare(run, literal.run(cache), tally)


@pytest.mark.parametrize("cache", METHODS, ids=lambda cache: f"{cache.method}-{cache.refresh}")
def test_dream_reads_the_row_before_each_position(
    model_of: Any, network_of: Any, tally: dict[str, int], cache: CacheConfig
) -> None:
    """Its schedule is its own, so the literal run commits as many as the engine's step does."""
    model = model_of("dream", **SHAPES["dream"])
    asked = SamplerConfig(steps=10, gen_length=24, temperature=0.0, top_p=1.0, algorithm="maskgit_plus")
    config = asked.resolve(model.defaults)
    run = sparsed.denoise(model, PROMPT, sampler=asked, attention="dense", cache=cache)
    steps = list(run)
    literal = Literal(network_of("dream"), model, PROMPT[0].tolist(), config)
    before: list[set[int]] = []
    for i, step in enumerate(steps):
        masked, rows = literal.masked(0, 24), list(range(len(literal.row)))
        if cache.method in ("prefix", "dual") and i:
            rows = rows[20:]
        elif cache.method == "delayed" and i > 1 and i % (cache.refresh or 8):
            rows = sorted({literal.start + j for j in before[i - 2]} | {literal.start + j - 1 for j in masked})
        elif cache.method == "refresh" and i % (cache.refresh or 8):
            rows = rows[20:]
        wanted = literal.step(rows, masked, int(step.committed.sum()))
        before.append(set(literal.masked(0, 24)))
        tally["compared"] += 1
        if wanted.margin < CLOSE:
            tally["close"] += 1
            return
        assert (step.rows, step.tokens[0].tolist()) == (len(wanted.rows), wanted.tokens), f"step {i}"


def run_of(model: Any, cache: CacheConfig | None, prompt: Tensor = PROMPT, **more: Any) -> Any:
    given = {"steps": 16, "gen_length": 32, "block_length": 16, "temperature": 0.0, "algorithm": "low_confidence",
             "canvas": "fixed"}  # fmt: skip
    attention = more.pop("attention", "dense")
    return sparsed.denoise(
        model, prompt, sampler=SamplerConfig(**{**given, **more}), attention=attention, cache=cache
    )


@pytest.mark.parametrize("cache", [CacheConfig(), CacheConfig("refresh", 1), CacheConfig("delayed", 1)],
                         ids=lambda cache: cache.method)  # fmt: skip
@pytest.mark.parametrize("attention", ["dense", SparseDConfig(select=0.4, block_size=32)])
def test_every_row_in_every_step_is_no_cache(model_of: Any, cache: CacheConfig, attention: Any) -> None:
    model = model_of("llada", **SHAPES["llada"])
    one, other = (list(run_of(model, c, attention=attention)) for c in (None, cache))
    for a, b in zip(one, other, strict=True):
        assert (a.phase, a.rows) == (b.phase, b.rows) and a.rows == 53
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.committed, b.committed)
        assert torch.equal(a.confidence.nan_to_num(-1), b.confidence.nan_to_num(-1))


def test_one_block_behind_which_nothing_stands_is_dual_and_prefix_alike(model_of: Any) -> None:
    model = model_of("llada", **SHAPES["llada"])
    one, other = (list(run_of(model, CacheConfig(method), block_length=32)) for method in ("prefix", "dual"))
    for a, b in zip(one, other, strict=True):
        assert a.rows == b.rows and torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.confidence.nan_to_num(-1), b.confidence.nan_to_num(-1))


BATCH = torch.randint(2, 250, (3, 21), generator=torch.Generator().manual_seed(8))
SPARSE = SparseDConfig(skip=0.3, select=0.4, block_size=32, generation_rows="full")


def rows_of(result: Any, sequence: int) -> list[int]:
    """How many rows each step computed of a sequence."""
    every = range(len(result.tokens))
    return [
        plan.rows.count(plan.length) for parts in result.plans for part, plan in parts if sequence in every[part]
    ]


@pytest.mark.parametrize("method", CACHES)
@pytest.mark.parametrize("more", [{}, {"cfg_scale": 0.6}, {"attention": SPARSE}, {"threshold": 0.1, "steps": 32},
                                  {"steps": 44}],
                         ids=["plain", "guidance", "sparse", "threshold", "steps without tokens"])  # fmt: skip
def test_the_rows_of_a_batch_are_the_rows_alone(model_of: Any, method: str, more: dict[str, Any]) -> None:
    model, cache = model_of("llada", **SHAPES["llada"]), CacheConfig(method)
    together = run_of(model, cache, BATCH, **more).result()
    for n, prompt in enumerate(BATCH):
        alone = run_of(model, cache, prompt[None], **more).result()
        assert together.tokens[n].tolist() == alone.tokens[0].tolist()
        assert rows_of(together, n) == rows_of(alone, 0)
        if together.pattern is not None and alone.pattern is not None:
            for both, own in zip(together.pattern.layers, alone.pattern.layers):
                assert torch.equal(both.mask()[n], own.mask()[0])


def test_interleaved_runs_with_different_caches_are_the_runs_alone(model_of: Any) -> None:
    model = model_of("llada", **SHAPES["llada"])
    caches = [None, *(CacheConfig(method) for method in CACHES[1:])]
    alone = [run_of(model, cache, attention=SPARSE).result().tokens.tolist() for cache in caches]
    runs = [run_of(model, cache, attention=SPARSE) for cache in caches]
    for _ in range(16):
        for run in runs:
            next(run)
    assert [run.result().tokens.tolist() for run in runs] == alone


def planned(method: str, refresh: int, steps: int, blocks: int, skip_step: int) -> list[tuple[str, bool]]:
    """(phase, every row?) of each step: SparseD selects at the first full step from `skip_step` on, or at that step
    itself where the cache computes every row in none to come; full steps after it use the pattern.
    """
    turns, made = sorted(step % blocks for step in range(steps)), []
    for step in range(steps):
        i = step - turns.index(turns[step])
        made.append(
            {"none": True, "prefix": i == 0, "dual": i == 0, "refresh": step % (refresh or 1) == 0,
             "delayed": i in (0, 1) or i % (refresh or 1) == 0}[method]
        )  # fmt: skip
    coming = [step for step in range(skip_step, steps) if made[step]]
    select = coming[0] if coming else skip_step
    if select < steps:
        made[select] = True
    return [("select" if step == select else "sparse" if full and step > select else "dense", full)
            for step, full in enumerate(made)]  # fmt: skip


# Selecting in the first step, in the midst of a block, and where no full step comes any more; of others the plan alone.
RUN = (0, 5, 13)


@pytest.mark.parametrize(
    ("steps", "blocks", "selection"),
    [(16, 1, "paper"), (16, 2, "paper"), (16, 4, "paper"), (11, 4, "paper"), (14, 4, "reference")],
)
@pytest.mark.parametrize("at", [0, 1, 5, 8, 13, 15])
def test_sparsed_selects_where_the_cache_computes_every_row_anyway(
    model_of: Any, steps: int, blocks: int, selection: str, at: int
) -> None:
    model = model_of("llada", **SHAPES["llada"])
    skip = at / 16
    skip_step = math.ceil(steps * skip) if selection == "paper" else math.floor(steps * skip) + 1
    for method, refresh in [("none", 0), ("prefix", 0), ("dual", 0), ("delayed", 4), ("refresh", 3), ("refresh", 40)]:
        attention = SparseDConfig(skip, 0.4, 32, selection)
        cache = CacheConfig(method, refresh or None)
        run = run_of(model, cache, attention=attention, steps=steps, block_length=32 // blocks)
        wanted = planned(method, refresh, steps, blocks, skip_step)
        assert {"select"} & {phase for phase, _ in wanted} == ({"select"} if skip_step < steps else set())
        first = next((step for step, (phase, _) in enumerate(wanted) if phase == "sparse"), None)
        told = plan_of(run.sampler, run.attention, run.cache, run.prompt_length)
        assert run.switch_step == first and [(step.phase, step.rows == run.length) for step in told] == wanted
        if at not in RUN:
            continue
        made = run.result()
        assert [(step.phase, step.rows) for step in told] == [(step.phase, step.rows) for step in made.steps]
        assert made.switch_step == first and made.info.switch_step == first
        for phase in ("dense", "select", "sparse"):
            assert made.info.rows[phase] == sum(step.rows for step in made.steps if step.phase == phase)
        assert any("never becomes sparse" in note for note in made.notes) == (first is None)


@pytest.mark.parametrize("keys", ["all", "pattern"])
@pytest.mark.parametrize("rows", ["pattern", "full"])
def test_a_planned_step_says_how_many_keys_its_rows_see(model_of: Any, keys: str, rows: str) -> None:
    """Counted in the pattern that the run made, of which the last block is whole; a shifted model's row before."""
    model = model_of("dream", **SHAPES["dream"])
    attention = SparseDConfig(skip=0.2, select=0.4, block_size=32, generation_rows=rows)
    prompt = torch.randint(2, 250, (1, 96), generator=torch.Generator().manual_seed(3))
    run = run_of(model, CacheConfig("refresh", 4, keys), prompt, attention=attention)
    told, made = plan_of(run.sampler, run.attention, run.cache, run.prompt_length, model.shift), run.result()
    assert [(step.phase, step.rows) for step in told] == [(step.phase, step.rows) for step in made.steps]
    assert made.pattern is not None
    for plan in told:
        seen = []
        for row in range(128 - plan.rows, 128):
            every = plan.phase != "sparse" or (rows == "full" and row >= 96)
            seen += [128 if every else 32 * int(made.pattern.layers[0].counts[0, 0, row // 32])]
        assert plan.keys == pytest.approx(sum(seen) / len(seen))


def test_with_a_threshold_a_plan_is_the_longest_run(model_of: Any) -> None:
    model = model_of("llada", **SHAPES["llada"])
    for method in ("dual", "delayed"):
        run = run_of(model, CacheConfig(method), threshold=0.9999, steps=64)
        told = plan_of(run.sampler, run.attention, run.cache, run.prompt_length)
        assert len(told) == 32 >= len(run.result().steps)
        of_block = [step.rows for step in told[16:]]
        assert of_block == ([53, *[16] * 15] if method == "dual" else
                            [53, 53, *(53 if i % 8 == 0 else 16 - (i - 1) for i in range(2, 16))])  # fmt: skip


def test_with_a_threshold_no_full_step_is_waited_for_beyond_the_last_token(model_of: Any) -> None:
    """Steps, an upper bound, would have one at 40; the 32 tokens are there long before."""
    model = model_of("llada", mask_predicted=False, **SHAPES["llada"])
    attention = SparseDConfig(skip=0.1, select=0.4, block_size=32)
    run = run_of(model, CacheConfig("refresh", 40, "pattern"), attention=attention, threshold=0.9999, steps=64)
    made = run.result()
    assert [step.phase for step in made.steps][:9] == ["dense"] * 7 + ["select", "sparse"]
    assert made.steps[7].rows == run.length and not any("never" in note for note in made.notes)


@pytest.mark.parametrize("keys", ["all", "pattern"])
@pytest.mark.parametrize("rows", ["pattern", "full"])
def test_a_cache_with_sparsed_sees_what_it_should(
    model_of: Any, network_of: Any, checkpoints: ModuleType, tally: dict[str, int], keys: str, rows: str
) -> None:
    """The steps as planned, full ones after the select step through its mask, few rows through all keys or the mask."""
    model, network = model_of("llada", **SHAPES["llada"]), network_of("llada")
    prompt = torch.randint(2, 250, (1, 70), generator=torch.Generator().manual_seed(9))
    asked = SamplerConfig(steps=16, gen_length=32, block_length=16, temperature=0.0, algorithm="low_confidence")
    attention = SparseDConfig(skip=0.1, select=0.3, block_size=32, generation_rows=rows)
    for method, refresh in [("prefix", 0), ("delayed", 3), ("refresh", 3)]:
        cache = CacheConfig(method, refresh or None, keys)
        run = sparsed.denoise(model, prompt, sampler=asked, attention=attention, cache=cache)
        literal = Literal(network, model, prompt[0].tolist(), asked.resolve(model.defaults))
        before: list[set[int]] = []
        for step in run:
            i = step.index % 8
            first, end = step.index // 8 * 16, step.index // 8 * 16 + 16
            every, candidates = list(range(102)), literal.masked(0, end)
            if step.rows < 102 and method == "prefix":
                every, candidates = every[70 + first :], literal.masked(first, end)
            elif step.rows < 102:
                every = every[70:] if method == "refresh" else sorted(70 + j for j in before[i - 2])
            seen = None
            if step.phase == "sparse":
                assert run.pattern is not None
                blocks = [run.pattern.layers[n].mask()[0] for n in range(LAYERS)]
                seen = [checkpoints.positions(one, 32, 102) for one in blocks]
            assert (step.phase == "sparse") == (run.pattern is not None and step.phase != "select"
                                                and (step.rows == 102 or keys == "pattern"))  # fmt: skip
            wanted = literal.step(every, candidates, 2, seen)
            before = [*before, set(literal.masked(0, 32))] if i else [set(literal.masked(0, 32))]
            tally["compared"] += 1
            if wanted.margin < CLOSE:
                tally["close"] += 1
                break
            assert (step.rows, step.tokens[0].tolist()) == (len(wanted.rows), wanted.tokens), f"{method} {step.index}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("more", [{}, {"cfg_scale": 0.5}])
def test_a_store_is_as_large_as_told(model_of: Any, family: str, dtype: str, more: dict[str, Any]) -> None:
    """The memory of the tensors that a run really holds, through its steps of every and of some rows."""
    model = model_of(family, dtype, **SHAPES[family])
    run, config = run_of(model, CacheConfig("refresh", 3), **more), model.network.config
    told = store_bytes(
        53, layers=LAYERS, key_heads=config.num_key_value_heads, rows=2 if more else 1,
        number_bytes=model.dtype.itemsize,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    )  # fmt: skip
    for _ in range(5):
        next(run)
        [part] = run._parts or []
        assert part.store is not None
        kept = [tensor.untyped_storage() for layer in part.store._layers.values() for tensor in layer]
        assert sum({place.data_ptr(): place.nbytes() for place in kept}.values()) == told == part.store.bytes


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", [CacheConfig("prefix"), CacheConfig("delayed"), CacheConfig("refresh", 4, "pattern")])
def test_warming_up_meets_every_kind_of_forward_that_is_planned(
    model_of: Any, monkeypatch: pytest.MonkeyPatch, cache: CacheConfig, family: str
) -> None:
    """On a CPU it is not asked for; and a run goes on as if it had not been."""
    model, made = model_of(family, **SHAPES[family]), set[Any]()
    real = Predictor.logits

    def logits(self: Any, canvas: Any, eligible: Any, attention: Any, rows: Any = ALL, *more: Any) -> Any:
        count = rows.count(self.length)
        made.add((attention.phase, "every" if count == self.length else rows_kind(count)))
        return real(self, canvas, eligible, attention, rows, *more)

    monkeypatch.setattr(Predictor, "logits", logits)
    wanted = run_of(model, cache, attention=SPARSE).result()
    needed = set(made)
    made.clear()
    run = run_of(model, cache, attention=SPARSE)
    run._each_kind(run._canvas)
    assert made >= needed
    assert run.result().tokens.tolist() == wanted.tokens.tolist()


@pytest.mark.parametrize("way", ["finished", "closed", "failed"])
def test_the_store_goes_with_the_run(model_of: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    model, stores = model_of("llada", **SHAPES["llada"]), list[Any]()

    class Watched(RowStore):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            stores.append(weakref.ref(self))

    monkeypatch.setattr("sparsed.denoising.run.RowStore", Watched)
    run = run_of(model, CacheConfig("dual"), attention=SPARSE)
    next(run), next(run)
    assert stores[0]() is not None
    if way == "finished":
        run.result()
    elif way == "closed":
        run.close()
    else:
        monkeypatch.setattr(run._sampler.__class__, "commit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(run)
        monkeypatch.undo()
    gc.collect()
    assert stores[0]() is None
    # Nothing is left of it for the next run.
    assert run_of(model, CacheConfig("dual")).result().tokens.shape == (1, 53)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "lru"}, "method must be one of"),
        ({"method": "dual", "refresh": 4}, "has no refresh"),
        ({"method": "refresh", "refresh": 0}, "refresh must be at least 1"),
        ({"keys": "all"}, "keys belongs to a cache"),
        ({"method": "dual", "keys": "some"}, "keys must be one of"),
    ],
)
def test_what_is_no_cache_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CacheConfig(**given)


def test_what_does_not_go_together_is_refused(model_of: Any) -> None:
    model, keys = model_of("llada", **SHAPES["llada"]), CacheConfig("dual", keys="pattern")
    with pytest.raises(ValueError, match="needs a pattern that is kept"):
        run_of(model, keys)
    with pytest.raises(ValueError, match="needs a pattern that is kept"):
        run_of(model, keys, attention=SparseDConfig(reuse=False))
    with pytest.raises(ValueError, match="give prompts one by one"):
        run_of(model, CacheConfig("dual"), BATCH, threshold=0.5, steps=32, attention=SPARSE)
    with pytest.raises(ValueError, match="cache must be a CacheConfig"):
        sparsed.denoise(model, PROMPT, cache="dual")  # type: ignore[arg-type]
