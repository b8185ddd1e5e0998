"""The samplers against literal versions of the published ones: whole canvas, all logits, one position at a time.

At temperature 0 every canvas of a run is compared; above, distributions (chi-square on a toy vocabulary). Nothing
of the engine's samplers is used on the literal side.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import SamplerConfig, SparseDConfig
from sparsed.samplers import make_sampler

# The engine computes the last layer on fewer rows, so its float32 rounds differently: decisions closer than
# this are nobody's to call, and a run is compared up to there.
CLOSE = 2e-5
DREAM = ("maskgit_plus", "topk_margin", "entropy")


@pytest.fixture(scope="module")
def tally() -> Iterator[dict[str, int]]:
    """Counts compared and undecidable steps; there must be hardly any of the latter."""
    counts = {"compared": 0, "close": 0}
    yield counts
    assert counts["close"] <= 0.01 * counts["compared"]


@torch.no_grad()
def whole_canvas(model, row: list[int], prompt_length: int, cfg_scale: float = 0.0) -> Tensor:
    """What predicts each position: logits [length, vocabulary], guided and (Dream) shifted by one."""
    logits = model.network(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    if cfg_scale > 0:
        blind = [model.mask_id] * prompt_length + row[prompt_length:]
        unconditional = model.network(input_ids=torch.tensor([blind]), use_cache=False).logits[0]
        logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
    if model.shift:
        logits = torch.stack([logits[max(i - 1, 0)] for i in range(len(row))])
    return logits


def filtered(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """One row of logits as Dream's probabilities: temperature, top-p, top-k, softmax, in this order."""
    values = logits.float()
    if temperature > 0:
        values = values / temperature
    if top_p < 1:
        chances = values.softmax(-1)
        before = 0.0
        for token in values.argsort(descending=True).tolist():
            if before > top_p:
                values = values.index_fill(0, torch.tensor([token]), -torch.inf)
            before += float(chances[token])
    if top_k > 0:
        kept = values.argsort(descending=True)[:top_k]
        only = torch.full_like(values, -torch.inf)
        only[kept] = values[kept]
        values = only
    return values.softmax(-1)


def sureness(chances: Tensor, algorithm: str) -> float:
    if algorithm == "topk_margin":
        first, second = chances.topk(2).values.tolist()
        return first - second
    if algorithm == "entropy":
        return float((chances * (chances + 1e-10).log()).sum())
    return float(chances.max())


class Proposal:
    """For each position asked for: the token, how sure, and by how much the token is the most likely one."""

    def __init__(self, logits: Tensor, positions: list[int], config: SamplerConfig) -> None:
        self.token, self.sure, self.lead, self.alone = {}, {}, {}, {}
        for i in positions:
            chances = logits[i].softmax(-1)
            if config.algorithm in DREAM:
                chances = filtered(logits[i], 0.0, config.top_p or 1.0, config.top_k or 0)
            self.token[i] = int(logits[i].argmax())
            self.sure[i] = sureness(chances, config.algorithm)
            first, second = logits[i].topk(2).values.tolist()
            self.lead[i] = first - second
            # Filtered down to one token: exactly as sure as any other such position, not nearly so.
            self.alone[i] = int((chances > 0).sum()) == 1

    def surest(self, count: int) -> tuple[list[int], float]:
        """The `count` surest positions, lower ones first among equals, and how clear the decision is."""
        order = sorted(self.sure, key=lambda i: (-self.sure[i], i))
        chosen, rest = order[:count], order[count:]
        margin = min((self.lead[i] for i in chosen), default=math.inf)
        if chosen and rest and not (self.alone[chosen[-1]] and self.alone[rest[0]]):
            margin = min(margin, self.sure[chosen[-1]] - self.sure[rest[0]])
        return chosen, margin


def literal_llada(model, prompt: list[int], config: SamplerConfig) -> Iterator[tuple[list[int], float]]:
    """The generation after each step, and how clear the step's decisions were."""
    row = prompt + [model.mask_id] * config.gen_length
    blocks = config.gen_length // config.block_length
    share = config.steps // blocks
    for block in range(blocks):
        end = len(prompt) + (block + 1) * config.block_length
        start = end - config.block_length
        masks = sum(token == model.mask_id for token in row[start:end])
        for step in range(share):
            logits = whole_canvas(model, row, len(prompt), config.cfg_scale or 0.0)
            masked = [i for i in range(len(prompt), end) if row[i] == model.mask_id]
            proposal = Proposal(logits, masked, config)
            chosen, margin = proposal.surest(masks // share + (step < masks % share))
            for i in chosen:
                row[i] = proposal.token[i]
            yield row[len(prompt) :], margin


def literal_dream(model, prompt: list[int], config: SamplerConfig) -> Iterator[tuple[list[int], float]]:
    row = prompt + [model.mask_id] * config.gen_length
    times = torch.linspace(1, 1e-3 if config.eps is None else config.eps, config.steps + 1)
    for step in range(config.steps):
        logits = whole_canvas(model, row, len(prompt), config.cfg_scale or 0.0)
        masked = [i for i in range(len(prompt), len(row)) if row[i] == model.mask_id]
        proposal = Proposal(logits, masked, config)
        count = int(len(masked) * (1 - times[step + 1] / times[step]))
        chosen, margin = proposal.surest(count if step < config.steps - 1 else len(masked))
        for i in chosen:
            row[i] = proposal.token[i]
        yield row[len(prompt) :], margin


def literal_threshold(model, prompt: list[int], config: SamplerConfig) -> Iterator[tuple[list[int], float]]:
    """Fast-dLLM: a block at a time until it is clean. (Predicted masks would make that forever: steps end it.)"""
    row, made = prompt + [model.mask_id] * config.gen_length, 0
    # Confidence is the model's own; at temperature 0 a top_p changes no token.
    config = replace(config, top_p=None)
    for start in range(len(prompt), len(row), config.block_length):
        while masked := [i for i in range(start, start + config.block_length) if row[i] == model.mask_id]:
            proposal = Proposal(whole_canvas(model, row, len(prompt), config.cfg_scale or 0.0), masked, config)
            chosen, margin = proposal.surest(1)
            above = [i for i in masked if proposal.sure[i] > config.threshold]
            if above:
                margin = min(proposal.lead[i] for i in above)
            margin = min(margin, *(abs(proposal.sure[i] - config.threshold) for i in masked))
            for i in {*chosen, *above}:
                row[i] = proposal.token[i]
            yield row[len(prompt) :], margin
            made += 1
            if made == (config.steps or config.gen_length):
                return


def compare(model, prompt: list[int], config: SamplerConfig, literal: Callable[..., Any], tally: dict) -> int | None:
    """Every canvas of a dense run with those of the literal sampler. Returns the steps, None if cut short."""
    run = sparsed.denoise(model, torch.tensor(prompt), sampler=config, attention="dense")
    steps = 0
    for expected, margin in literal(model, list(prompt), config):
        if margin < CLOSE:
            tally["close"] += 1
            run.close()
            return None
        step = next(run)
        assert step.index == steps and step.tokens.tolist() == [expected], f"{config}, step {steps}"
        steps += 1
        tally["compared"] += 1
    assert next(run, None) is None
    assert run.result().tokens.tolist() == [prompt + expected]
    return steps


def random_prompt(dice: random.Random, model, longest: int = 24) -> list[int]:
    """Any ids but the mask's."""
    prompt = [dice.randrange(model.network.config.vocab_size) for _ in range(dice.randint(1, longest))]
    return [0 if token == model.mask_id else token for token in prompt]


def any_model(dice: random.Random, model_of, usual: str, **values: Any):
    """Mostly the family that the sampler was published with. (Qwen3's writer has no mask to silence.)"""
    family = dice.choice([usual, usual, usual, "dream" if usual == "llada" else "llada", "qwen3", "llada_moe"])
    if family == "qwen3" and values:
        family = usual
    return model_of(family, **values)


@pytest.mark.parametrize("number", range(50))
def test_llada_low_confidence(model_of, tally, number: int) -> None:
    dice = random.Random(number)
    model = any_model(dice, model_of, "llada")
    blocks, block_length = dice.randint(1, 4), dice.randint(1, 6)
    config = SamplerConfig(
        steps=blocks * dice.randint(1, block_length + 1),
        gen_length=blocks * block_length,
        block_length=block_length,
        algorithm="low_confidence",
        temperature=0.0,
        cfg_scale=dice.choice([0.0, 0.0, 0.5, 1.5]),
    )
    steps = compare(model, random_prompt(dice, model), config, literal_llada, tally)
    assert steps in (None, config.steps)


@pytest.mark.parametrize("number", range(60))
def test_dream_deterministic_algorithms(model_of, tally, number: int) -> None:
    dice = random.Random(1000 + number)
    model = any_model(dice, model_of, "dream")
    gen_length = dice.randint(1, 16)
    config = SamplerConfig(
        steps=dice.randint(1, gen_length + 2),
        gen_length=gen_length,
        algorithm=dice.choice(DREAM),
        temperature=0.0,
        top_p=dice.choice([1.0, 0.9, 0.5]),
        top_k=dice.choice([0, 0, 2, 20]),
        alg_temp=0.0,
        eps=dice.choice([1e-3, 1e-3, 0.05, 0.4]),
        cfg_scale=dice.choice([0.0, 0.0, 0.5, 1.5]),
    )
    steps = compare(model, random_prompt(dice, model), config, literal_dream, tally)
    assert steps in (None, config.steps)


@pytest.mark.parametrize("number", range(40))
def test_threshold_decoding(model_of, tally, number: int) -> None:
    dice = random.Random(2000 + number)
    usual, algorithms = dice.choice([("llada", ("low_confidence",)), ("dream", ("maskgit_plus", "topk_margin"))])
    # Every fourth model may predict the mask token.
    model = any_model(dice, model_of, usual, **({} if number % 4 == 0 else {"mask_predicted": False}))
    blocks, block_length = dice.randint(1, 3), dice.randint(1, 6)
    gen_length = blocks * block_length
    config = SamplerConfig(
        steps=dice.choice([None, gen_length, gen_length + 5]),
        gen_length=gen_length,
        block_length=block_length,
        algorithm=dice.choice(algorithms),
        temperature=0.0,
        cfg_scale=dice.choice([0.0, 0.0, 0.8]),
        threshold=dice.choice([0.05, 0.2, 0.4, 0.9]),
    )
    if usual == "dream":
        config = replace(config, top_p=dice.choice([1.0, 0.9]))
    steps = compare(model, random_prompt(dice, model), config, literal_threshold, tally)
    assert steps is None or blocks <= steps <= (config.steps or gen_length)


def test_threshold_decoding_stops_when_it_is_done(model_of) -> None:
    model = model_of("llada", mask_predicted=False)
    prompt = torch.arange(20)
    config = SamplerConfig(gen_length=12, block_length=6, threshold=0.01, algorithm="low_confidence")
    run = sparsed.denoise(model, prompt, sampler=config, attention=SparseDConfig(skip=0.5, select=0.5))
    assert run.total == 12 and not run.finished
    result = run.result()
    assert run.finished and len(result.steps) < 6
    assert not (result.tokens == model.mask_id).any()
    assert run.switch_step is None and result.pattern is None
    assert any("never became sparse" in note for note in run.notes)


@pytest.mark.parametrize(("family", "algorithm"), [("llada", "random"), ("dream", "origin"), ("qwen3", "random")])
def test_random_positions_get_the_most_likely_tokens(model_of, family: str, algorithm: str) -> None:
    """Which positions is chance; how many (LLaDA) and which tokens are not."""
    model = model_of(family)
    prompt = random_prompt(random.Random(5), model)
    for seed in range(6):
        config = SamplerConfig(6, 12, 12 if algorithm == "origin" else 6, algorithm, 0.0, seed, cfg_scale=seed % 2 / 2)
        row = prompt + [model.mask_id] * 12
        for step in sparsed.denoise(model, torch.tensor(prompt), sampler=config, attention="dense"):
            logits = whole_canvas(model, row, len(prompt), config.cfg_scale)[len(prompt) :]
            before, after = torch.tensor(row[len(prompt) :]), step.tokens[0]
            changed = before != after
            assert (before[changed] == model.mask_id).all()
            assert torch.equal(after[changed], logits.argmax(-1)[changed])
            could = (before == model.mask_id) & (logits.argmax(-1) != model.mask_id)
            if algorithm == "random":
                assert not changed[6:].any() or step.index >= 3
                assert changed.sum() <= 2
                if could.equal(before == model.mask_id):
                    assert changed.sum() == 2
            elif step.index == 5:
                assert changed.equal(could)
            row = prompt + after.tolist()


# ---- above temperature 0: distributions, on the sampler itself ----

TOY = torch.tensor([1.3, -0.4, 0.9, 2.1, 0.0, -1.5, 1.9, 0.4])
MASK = len(TOY)  # never predicted, so that every position is committed once


def settings(**values: Any) -> SamplerConfig:
    """A resolved config."""
    dream = values["algorithm"] not in ("low_confidence", "random")
    off = {"top_p": 1.0, "top_k": 0, "alg_temp": 0.0, "eps": 1e-3} if dream else {}
    usual = {"steps": 1, "block_length": values["gen_length"], "temperature": 0.0, "seed": 0, "cfg_scale": 0.0, **off}
    config = SamplerConfig(**{**usual, **values})
    return config.resolve(replace(config, steps=config.steps or 1))


def commit(config: SamplerConfig, logits: Tensor, batch: int = 1, step: int = 0, seed: int = 0):
    """One step from all masks, every position with the same logits [vocabulary] or its own [positions, …]."""
    sampler = make_sampler(config, MASK)
    generation = torch.full((batch, config.gen_length), MASK)
    eligible = sampler.eligible(generation, step)
    rows = logits.expand(config.gen_length, -1).repeat(batch, 1)[eligible.flatten()]
    return sampler.commit(generation, eligible, rows, step, torch.Generator().manual_seed(seed))


def assert_chi_square(counts: Tensor, chances: Tensor) -> None:
    """Counts as multinomial draws with these chances: below the 99.99 % quantile (Wilson and Hilferty's)."""
    assert counts[chances == 0].sum() == 0
    counts, chances = counts[chances > 0].double(), chances[chances > 0].double()
    if len(chances) == 1:
        return
    expected = counts.sum() * chances / chances.sum()
    assert expected.min() > 5, "too few draws for this test"
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("algorithm", ["low_confidence", "random"])
def test_llada_draws_from_the_softmax_at_that_temperature(algorithm: str, temperature: float) -> None:
    """argmax of exp(logits) / (−log u)^T is a draw from softmax(logits / T)."""
    done = commit(settings(gen_length=12000, algorithm=algorithm, temperature=temperature), TOY)
    assert done.written.all()
    chances = (TOY.double() / temperature).softmax(-1)
    chances = chances * (chances > 1e-3)
    tokens = done.tokens[0]
    counts = tokens.bincount(minlength=len(TOY))
    counts[chances == 0] = 0
    assert_chi_square(counts, chances)
    if algorithm == "low_confidence":
        # Confidence is the probability without temperature and noise.
        assert torch.allclose(done.confidence[0], TOY.softmax(-1)[tokens], atol=1e-6)
    else:
        assert_chi_square((done.confidence[0] * 10).long().bincount(minlength=10), torch.full((10,), 0.1))


def test_llada_commits_the_surest_of_what_was_drawn() -> None:
    config = settings(gen_length=40, algorithm="low_confidence", temperature=1.0)
    logits = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    everything = commit(config, logits)
    some = commit(settings(steps=4, gen_length=40, algorithm="low_confidence", temperature=1.0), logits)
    surest = everything.confidence[0].argsort(descending=True, stable=True)[:10]
    assert some.written[0].nonzero()[:, 0].tolist() == sorted(surest.tolist())
    assert torch.equal(some.tokens[0, surest], everything.tokens[0, surest])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.4])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (0.35, 0), (1.0, 3), (0.9, 2), (1e-6, 0), (1.0, 1)])
def test_dream_draws_from_the_filtered_softmax(temperature: float, top_p: float, top_k: int) -> None:
    config = settings(gen_length=6000, algorithm="maskgit_plus", temperature=temperature, top_p=top_p, top_k=top_k)
    done = commit(config, TOY)
    chances = filtered(TOY, temperature, top_p, top_k)
    assert done.written.all()
    tokens = done.tokens[0]
    common = chances * (chances > 2e-3)
    counts = tokens.bincount(minlength=len(TOY))
    assert counts[chances == 0].sum() == 0
    assert_chi_square(torch.where(common > 0, counts, 0), common)
    assert torch.allclose(done.confidence[0], chances[tokens], atol=1e-6)


@pytest.mark.parametrize("algorithm", ["topk_margin", "entropy"])
def test_dream_confidence_above_temperature_0(algorithm: str) -> None:
    config = settings(gen_length=50, algorithm=algorithm, temperature=0.7, top_p=0.9)
    done = commit(config, TOY)
    expected = sureness(filtered(TOY, 0.7, 0.9, 0), algorithm)
    assert torch.allclose(done.confidence[0], torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(("steps", "eps"), [(2, 1e-3), (5, 1e-3), (4, 0.3)])
def test_dream_origin_unmasks_each_position_with_probability_1_minus_s_over_t(steps: int, eps: float) -> None:
    for step in range(steps):
        config = settings(steps=steps, gen_length=8, algorithm="origin", eps=eps)
        done = commit(config, TOY, batch=1500, step=step, seed=step)
        t, s = (1 + (eps - 1) * i / steps for i in (step, step + 1))
        chance = 1 - s / t if step < steps - 1 else 1.0
        assert (done.tokens[done.written] == TOY.argmax()).all()
        # Every row is 8 independent draws: a binomial count.
        binomial = torch.tensor([math.comb(8, n) * chance**n * (1 - chance) ** (8 - n) for n in range(9)])
        counts = done.written.sum(-1).bincount(minlength=9)
        rare = binomial * 1500 < 6
        assert_chi_square(torch.where(rare, 0, counts), torch.where(rare, 0.0, binomial.float()))
        assert_chi_square(done.written.sum(0), torch.full((8,), 1 / 8))


@pytest.mark.parametrize("algorithm", DREAM)
def test_dream_alg_temp_draws_positions_without_replacement(algorithm: str) -> None:
    scales = torch.tensor([[0.2], [0.7], [1.0], [1.5], [0.9]])
    for positions, count in ((3, 1), (5, 2)):  # int(positions · 0.4995)
        logits = TOY * scales[:positions]
        alg_temp = 0.4
        config = settings(steps=2, gen_length=positions, algorithm=algorithm, alg_temp=alg_temp)
        done = commit(config, logits, batch=5000)
        assert (done.written.sum(-1) == count).all()
        sure = torch.tensor([sureness(row.softmax(-1), algorithm) for row in logits])
        weight = (sure / alg_temp).softmax(-1).tolist()
        chance = {}
        for chosen in itertools.combinations(range(positions), count):
            # Drawn in either order; after the first, the weights of the others are what is left.
            chance[chosen] = sum(
                math.prod(weight[i] / (1 - sum(weight[j] for j in order[:n])) for n, i in enumerate(order))
                for order in itertools.permutations(chosen)
            )
        seen = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in done.written)
        assert_chi_square(torch.tensor([seen[key] for key in chance]), torch.tensor(list(chance.values())))
        last = commit(config, logits, batch=5, step=1)
        assert last.written.all()


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llada", SamplerConfig(8, 16, 8, "low_confidence", 0.8, 3)),
        ("llada", SamplerConfig(8, 16, 8, "random", 1.0, 4, cfg_scale=0.7)),
        ("dream", SamplerConfig(8, 16, 16, "maskgit_plus", 0.5, 5, top_p=0.95)),
        ("dream", SamplerConfig(8, 16, 16, "origin", 0.9, 6, top_k=5, cfg_scale=0.5)),
        ("dream", SamplerConfig(8, 16, 16, "entropy", 0.4, 7, alg_temp=0.3)),
        ("qwen3", SamplerConfig(8, 16, 16, "topk_margin", 0.4, 8)),
        ("qwen3", SamplerConfig(20, 16, 4, "low_confidence", 0.4, 9, threshold=0.3)),
    ],
)
def test_the_same_seed_gives_the_same_tokens_dense_and_sparse(model_of, family: str, config: SamplerConfig) -> None:
    model = model_of(family)
    prompt = torch.randint(0, 256, (2, 75), generator=torch.Generator().manual_seed(1))
    everything = SparseDConfig(skip=0.0, select=1.0, block_size=32)
    dense = sparsed.generate(model, prompt, sampler=config, attention="dense")
    sparse = sparsed.generate(model, prompt, sampler=config, attention=everything, backend="gather")
    assert sparse.backend == "gather" and "sparse" in {step.phase for step in sparse.steps}
    assert torch.equal(dense.tokens, sparse.tokens)
    other = sparsed.generate(model, prompt, sampler=replace(config, seed=99), attention="dense")
    assert not torch.equal(dense.tokens, other.tokens)
