"""LLaDA's sampler against an oracle that is written with loops over single numbers."""

from __future__ import annotations

import math
import random

import pytest
import torch

from sparsed.config import ResolvedSampler
from sparsed.samplers import make_sampler, surest
from sparsed.samplers.llada import propose_tokens, schedule

MASK = 5
VOCABULARY = 11


def resolved(**values) -> ResolvedSampler:
    return ResolvedSampler(**{"algorithm": "low_confidence", "temperature": 0.0, "seed": 0, **values})


def oracle_shares(steps: int, blocks: int) -> list[int]:
    shares = [0] * blocks
    for step in range(steps):
        shares[step % blocks] += 1
    return shares


def oracle_end(step: int, steps: int, gen_length: int, block_length: int) -> int:
    """One past the last position of the block that a step is in."""
    turns: list[int] = []
    for block, share in enumerate(oracle_shares(steps, gen_length // block_length)):
        turns += [block] * share
    return (turns[step] + 1) * block_length


def oracle_schedule(steps: int, gen_length: int, block_length: int) -> list[int]:
    """Deals the steps to the blocks and the positions of each block to its steps, one at a time, and counts."""
    dealt = []
    for share in oracle_shares(steps, gen_length // block_length):
        hands = [0] * share
        for position in range(block_length):
            hands[position % share] += 1
        dealt += hands
    return dealt


def oracle_step(row: list[int], logits: dict[int, list[float]], config: ResolvedSampler, step: int):
    """One row, temperature 0, low_confidence: the new row, and position → confidence of what was written."""
    end = oracle_end(step, config.steps, config.gen_length, config.block_length)
    candidates = []
    for position in range(end):
        if row[position] != MASK:
            continue
        values = logits[position]
        token = max(range(len(values)), key=lambda i: (values[i], -i))
        probability = 1 / sum(math.exp(value - values[token]) for value in values)
        candidates.append((-probability, position, token))
    count = oracle_schedule(config.steps, config.gen_length, config.block_length)[step]
    written = {}
    new = list(row)
    for negative, position, token in sorted(candidates)[:count]:
        new[position] = token
        written[position] = -negative
    return new, written


def shapes(rng: random.Random) -> tuple[int, int, int]:
    block_length = rng.randint(1, 9)
    blocks = rng.randint(1, 4)
    share = rng.randint(1, block_length + 3)
    return blocks * share + rng.randint(0, blocks - 1), blocks * block_length, block_length


def logit_rows(rng: random.Random) -> list[list[float]]:
    """Up to four rows of logits for positions to share, so that confidences are often exactly equal.

    Within a row equal logits are common. Rows of different confidence differ by more than rounding can.
    """
    rows: list[list[float]] = []
    surest: list[float] = []
    while len(rows) < 4:
        levels = [rng.randint(-16, 16) / 4 for _ in range(4)]
        row = [rng.choice(levels) for _ in range(VOCABULARY)]
        confidence = 1 / sum(math.exp(value - max(row)) for value in row)
        if all(abs(confidence - other) > 1e-4 for other in surest):
            rows.append(row)
            surest.append(confidence)
    return rows[: rng.randint(1, 4)]


@pytest.mark.parametrize("seed", range(150))
def test_every_step_of_a_run_equals_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    steps, gen_length, block_length = shapes(rng)
    config = resolved(steps=steps, gen_length=gen_length, block_length=block_length)
    sampler = make_sampler(config, MASK)
    batch = rng.randint(1, 3)
    pool = logit_rows(rng)
    canvas = torch.full((batch, gen_length), MASK)
    rows = canvas.tolist()
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        # The mask token may be predicted too: then the position stays masked.
        full = [[rng.choice(pool) for _ in range(gen_length)] for _ in range(batch)]
        eligible = sampler.eligible(canvas, step)
        end = oracle_end(step, steps, gen_length, block_length)
        assert eligible.tolist() == [[t == MASK and i < end for i, t in enumerate(row)] for row in rows]
        logits = torch.tensor(full)[eligible]
        commit = sampler.commit(canvas, eligible, logits, step, generator)
        for b in range(batch):
            new, written = oracle_step(rows[b], dict(enumerate(full[b])), config, step)
            assert commit.tokens[b].tolist() == new
            assert commit.written[b].nonzero()[:, 0].tolist() == sorted(written)
            for position in range(gen_length):
                got = float(commit.confidence[b, position])
                if position in written:
                    assert got == pytest.approx(written[position], rel=1e-5)
                else:
                    assert math.isnan(got)
            rows[b] = new
        canvas = commit.tokens


@pytest.mark.parametrize("seed", range(60))
def test_schedule_deals_every_block_evenly(seed: int) -> None:
    steps, gen_length, block_length = shapes(random.Random(1000 + seed))
    assert list(schedule(steps, gen_length, block_length)) == oracle_schedule(steps, gen_length, block_length)


def test_schedule_gives_the_remainder_to_the_first_steps() -> None:
    assert schedule(6, 14, 7) == (3, 2, 2, 3, 2, 2)
    assert schedule(8, 3, 3) == (1, 1, 1, 0, 0, 0, 0, 0)
    # Of steps too: 3 and 2 for two blocks.
    assert schedule(5, 14, 7) == (3, 2, 2, 4, 3)


def test_a_step_that_commits_nothing_changes_nothing() -> None:
    sampler = make_sampler(resolved(steps=4, gen_length=2, block_length=2), MASK)
    canvas = torch.tensor([[1, 2]])
    eligible = sampler.eligible(canvas, 3)
    commit = sampler.commit(canvas, eligible, torch.empty(0, VOCABULARY), 3, torch.Generator())
    assert commit.tokens.tolist() == [[1, 2]] and not commit.written.any() and commit.confidence.isnan().all()


def test_ties_go_to_the_lowest_position() -> None:
    # Long enough that an unstable sort would shuffle.
    confidence = torch.full((2, 4096), 0.25)
    confidence[1, 100] = 0.5
    confidence[0, :7] = -torch.inf
    chosen = surest(confidence, 3)
    assert chosen[0].nonzero()[:, 0].tolist() == [7, 8, 9]
    assert chosen[1].nonzero()[:, 0].tolist() == [0, 1, 100]


def test_positions_at_minus_infinity_are_never_chosen() -> None:
    confidence = torch.tensor([[-torch.inf, 0.1, -torch.inf], [0.3, 0.2, 0.1]])
    assert surest(confidence, 2).tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_noise_is_the_published_formula_in_float64(temperature: float) -> None:
    logits = torch.randn(40, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    tokens = propose_tokens(logits, temperature, torch.Generator().manual_seed(9))
    uniform = torch.rand(40, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for row, (values, noise) in enumerate(zip(logits.tolist(), uniform.tolist(), strict=True)):
        scores = [math.exp(x) / (-math.log(u)) ** temperature for x, u in zip(values, noise, strict=True)]
        assert int(tokens[row]) == scores.index(max(scores))
    assert (tokens != logits.argmax(-1)).any()


def test_temperature_one_draws_from_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(40_000, 4)
    tokens = propose_tokens(logits, 1.0, torch.Generator().manual_seed(3))
    share = torch.bincount(tokens, minlength=4) / 40_000
    # Four standard deviations of the least certain share.
    assert (share - probabilities).abs().max() < 4 * math.sqrt(0.25 / 40_000)


def test_confidence_is_without_noise() -> None:
    config = resolved(steps=1, gen_length=30, block_length=30, temperature=2.0)
    sampler = make_sampler(config, MASK)
    canvas = torch.full((1, 30), MASK)
    logits = torch.randn(30, VOCABULARY, generator=torch.Generator().manual_seed(2))
    commit = sampler.commit(canvas, canvas == MASK, logits, 0, torch.Generator().manual_seed(4))
    assert (commit.tokens[0] != logits.argmax(-1)).any()
    for position, token in enumerate(commit.tokens[0].tolist()):
        values = logits[position].tolist()
        expected = math.exp(values[token]) / sum(math.exp(value) for value in values)
        assert float(commit.confidence[0, position]) == pytest.approx(expected, rel=1e-5)


def test_random_algorithm_takes_likely_tokens_in_random_order() -> None:
    config = resolved(steps=4, gen_length=40, block_length=40, algorithm="random")
    sampler = make_sampler(config, MASK)
    canvas = torch.full((1, 40), MASK)
    logits = torch.randn(40, VOCABULARY, generator=torch.Generator().manual_seed(2))
    logits[:, MASK] = -9
    orders = set()
    for seed in range(8):
        commit = sampler.commit(canvas, canvas == MASK, logits, 0, torch.Generator().manual_seed(seed))
        assert int(commit.written.sum()) == 10
        assert (commit.tokens[commit.written] == logits.argmax(-1)[commit.written[0]]).all()
        value = commit.confidence[commit.written]
        assert (value >= 0).all() and (value < 1).all() and value.unique().numel() == 10
        orders.add(tuple(commit.written[0].nonzero()[:, 0].tolist()))
    assert len(orders) == 8


def test_the_sampler_leaves_its_input_alone() -> None:
    config = resolved(steps=2, gen_length=6, block_length=6)
    sampler = make_sampler(config, MASK)
    canvas = torch.full((2, 6), MASK)
    logits = torch.randn(12, VOCABULARY, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    sampler.commit(canvas, canvas == MASK, logits, 0, torch.Generator())
    assert (canvas == MASK).all() and torch.equal(logits, before)


@pytest.mark.parametrize("algorithm", ["random", "low_confidence", "origin", "maskgit_plus", "entropy"])
def test_another_default_dtype_changes_nothing(algorithm: str) -> None:
    # While transformers loads a bfloat16 model, that is torch's default dtype in every thread.
    dream = algorithm not in ("random", "low_confidence")
    config = ResolvedSampler(64, 64, 64, algorithm, 0.0, 0, 1.0, 0, 0.5 if algorithm == "entropy" else 0.0, 1e-3, 0.0)
    sampler = make_sampler(config, mask_id=9)
    logits = torch.randn(64, 9, generator=torch.Generator().manual_seed(1))

    def masked_after_every_step() -> list[int]:
        generation = torch.full((1, 64), 9)
        generator = torch.Generator().manual_seed(2)
        left = []
        for step in range(64):
            eligible = sampler.eligible(generation, step)
            rows = logits[eligible[0]]
            generation = sampler.commit(generation, eligible, rows, step, generator).tokens
            left.append(int((generation == 9).sum()))
        return left

    expected = masked_after_every_step()
    assert expected[-1] == 0 and (dream or expected == list(range(63, -1, -1)))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert masked_after_every_step() == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("seed", range(20))
def test_the_current_block_is_that_of_the_step(seed: int) -> None:
    steps, gen_length, block_length = shapes(random.Random(2000 + seed))
    sampler = make_sampler(resolved(steps=steps, gen_length=gen_length, block_length=block_length), MASK)
    canvas = torch.full((2, gen_length), MASK)
    for step in range(steps):
        first = oracle_end(step, steps, gen_length, block_length) - block_length
        start, end = sampler.block(canvas, step)
        assert start.tolist() == [[first]] * 2 and end.tolist() == [[first + block_length]] * 2


def test_with_a_threshold_the_current_block_is_each_rows_first_undone_one() -> None:
    sampler = make_sampler(resolved(steps=12, gen_length=12, block_length=4, threshold=0.5), MASK)
    canvas = torch.ones(4, 12, dtype=torch.int64)
    for row, positions in enumerate([[0, 11], [6], [8, 9], []]):
        canvas[row, positions] = MASK
    start, end = sampler.block(canvas, 7)
    # The last row is done: an empty block at the end.
    assert start.flatten().tolist() == [0, 4, 8, 12] and end.flatten().tolist() == [4, 8, 12, 12]
    assert sampler.eligible(canvas, 7).nonzero().tolist() == [[0, 0], [1, 6], [2, 8], [2, 9]]
