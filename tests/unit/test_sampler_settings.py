"""Sampler settings that meet: none of them cancels another without a word."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import combinations, product
from typing import Any

import pytest
import torch

from sparsed.config import ALGORITHMS, LLADA_ALGORITHMS, ResolvedSampler, SamplerConfig
from sparsed.models.catalogue import DREAM_DEFAULTS, GENERIC_DEFAULTS, LLADA_DEFAULTS, MINI_DEFAULTS
from sparsed.samplers import make_sampler

MASK, ENDS, VOCABULARY = 11, (9, 4), 12
# Values of each setting that differ from every default.
VALUES: dict[str, tuple[Any, ...]] = {
    "steps": (96, 256),
    "gen_length": (64, 100, 500),
    "block_length": (16, 48),
    "algorithm": ALGORITHMS,
    "temperature": (0.5,),
    "seed": (7,),
    "top_p": (0.6,),
    "top_k": (5,),
    "alg_temp": (0.3,),
    "eps": (0.01,),
    "cfg_scale": (1.5,),
    "threshold": (0.7,),
    "logits_eos_inf": (True,),
    "confidence_eos_eot_inf": (True,),
    "early_stop": (True,),
    "stop": (("\n\n",),),
    "canvas": ("growing",),
    "end_think_boost": (50.0,),
    "end_think_power": (2.0,),
}


def test_every_setting_is_tried() -> None:
    assert set(VALUES) == {row.name for row in fields(SamplerConfig)}


@pytest.mark.parametrize("defaults", [LLADA_DEFAULTS, DREAM_DEFAULTS, GENERIC_DEFAULTS, MINI_DEFAULTS])
@pytest.mark.parametrize("names", list(combinations(VALUES, 2)), ids="+".join)
def test_what_is_asked_for_is_kept_refused_or_said_to_be_changed(names: tuple[str, str], defaults: Any) -> None:
    for pair in product(*(VALUES[name] for name in names)):
        asked = dict(zip(names, pair))
        try:
            resolved = SamplerConfig(**asked).resolve(defaults)
        except ValueError as error:
            said = str(error)
            assert any(name in said or repr(value) in said for name, value in asked.items()), said
            continue
        changed = [name for name, value in asked.items() if getattr(resolved, name) != value]
        assert changed in ([], ["gen_length"])
        assert len(resolved.changed) == len(changed)
        if changed:
            assert f"{resolved.gen_length} tokens are generated, not {asked['gen_length']}" in resolved.changed[0]


def plain_confidence(logits: list[float], token: int, margin: bool) -> float:
    """The token's probability, or the first one's lead, under softmax(logits), by single numbers in float64."""
    total = math.fsum(math.exp(value - max(logits)) for value in logits)
    chances = [math.exp(value - max(logits)) / total for value in logits]
    if not margin:
        return chances[token]
    first, second, *_ = sorted(chances, reverse=True)
    return first - second


@pytest.mark.parametrize("algorithm", ["low_confidence", "maskgit_plus", "topk_margin"])
@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.95, 0), (0.5, 0), (1.0, 2), (0.6, 3)])
@pytest.mark.parametrize("ends", [{}, {"logits_eos_inf": True}, {"confidence_eos_eot_inf": True}], ids=str)
def test_a_threshold_is_one_of_the_models_own_distribution(algorithm, temperature, top_p, top_k, ends) -> None:
    cut: dict[str, Any] = {} if algorithm in LLADA_ALGORITHMS else {"top_p": top_p, "top_k": top_k}
    config = ResolvedSampler(16, 16, 16, algorithm, temperature, 0, threshold=0.6, **cut, **ends)
    sampler = make_sampler(config, MASK, ENDS)
    committed = 0
    for seed in range(12):
        logits = 2.5 * torch.randn(16, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        seen = logits.clone()
        if config.logits_eos_inf:
            seen[:, ENDS[0]] = -math.inf
        tokens, _ = sampler.propose(seen, torch.Generator().manual_seed(seed))
        canvas = torch.full((1, 16), MASK)
        made = sampler.commit(canvas, canvas == MASK, logits, 0, torch.Generator().manual_seed(seed))
        sure = [
            plain_confidence(row, token, algorithm == "topk_margin")
            for row, token in zip(seen.tolist(), tokens.tolist())
        ]
        last = [config.confidence_eos_eot_inf and token in ENDS for token in tokens.tolist()]
        best = min(range(16), key=lambda i: (last[i], -sure[i]))
        expected = [i == best or (sure[i] > 0.6 and not last[i]) for i in range(16)]
        assert made.written[0].tolist() == expected
        for i in range(16):
            if expected[i]:
                assert made.tokens[0, i] == tokens[i] and made.confidence[0, i] == pytest.approx(sure[i], rel=1e-4)
        committed += sum(expected)
    assert 12 < committed < 12 * 16  # neither always one nor always all


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_end_token_is_never_predicted(algorithm: str, temperature: float) -> None:
    sampler = make_sampler(ResolvedSampler(1, 64, 64, algorithm, temperature, 0, logits_eos_inf=True), MASK, ENDS)
    logits = torch.zeros(64, VOCABULARY)
    logits[:, ENDS[0]], logits[:, ENDS[1]] = 30.0, 20.0
    canvas = torch.full((1, 64), MASK)
    made = sampler.commit(canvas, canvas == MASK, logits, 0, torch.Generator().manual_seed(0))
    # The other token that ends an answer (a turn's) is none of its business.
    assert made.written.all() and set(made.tokens[0].tolist()) == {ENDS[1]}
    assert logits[0, ENDS[0]] == 30.0


@pytest.mark.parametrize(
    ("algorithm", "alg_temp"),
    [("low_confidence", 0.0), *product(["maskgit_plus", "topk_margin", "entropy"], [0.0, 0.01])],
)
def test_tokens_that_end_an_answer_are_committed_last(algorithm: str, alg_temp: float) -> None:
    config = ResolvedSampler(8, 8, 8, algorithm, 0.0, 0, alg_temp=alg_temp, confidence_eos_eot_inf=True)
    sampler = make_sampler(config, MASK, ENDS)
    wanted = [9, 1, 4, 2, 9, 3, 1, 4]
    logits = torch.zeros(8, VOCABULARY)
    for position, token in enumerate(wanted):
        logits[position, token] = 9.0 if token in ENDS else 3.0 + position / 10
    canvas = torch.full((1, 8), MASK)
    order: list[int] = []
    for step in range(8):
        eligible = canvas == MASK
        made = sampler.commit(canvas, eligible, logits[eligible[0]], step, torch.Generator().manual_seed(step))
        order += [wanted[i] for i in made.written[0].nonzero()[:, 0].tolist()]
        canvas = made.tokens
    assert canvas.tolist() == [wanted]
    assert set(order[:4]) == {1, 2, 3} and set(order[4:]) == set(ENDS)
