"""The configs: what they accept, what they fill in, and where the switch stands."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest

from sparsed.config import (
    AttentionConfig,
    ResolvedAttention,
    ResolvedSampler,
    SamplerConfig,
    SparseDConfig,
    select_step,
    switch_step,
)

LLADA = {
    "steps": 64,
    "gen_length": 64,
    "block_length": 64,
    "algorithm": "low_confidence",
    "temperature": 0.0,
    "seed": 0,
}
OFF = {"top_p": 1.0, "top_k": 0, "alg_temp": 0.0, "eps": 1e-3, "cfg_scale": 0.0}
DEFAULTS = ResolvedSampler(**LLADA, **OFF)
DREAM = SamplerConfig(128, 128, 128, "maskgit_plus", 0.05, 0, top_p=0.95)


@pytest.mark.parametrize("steps", [*range(1, 41), 64, 100, 128, 1000, 1024])
def test_switch_is_the_step_after_the_decimal_product_rounded_up(steps: int) -> None:
    for thousandths in range(0, 1001):
        # Whole numbers alone: ceil(steps * thousandths / 1000) without any float.
        expected = -(-steps * thousandths // 1000)
        skip = thousandths / 1000
        assert select_step(steps, skip) == expected
        assert switch_step(steps, skip) == (expected + 1 if expected < steps - 1 else None)


def test_products_use_the_decimal_as_written() -> None:
    assert math.ceil(0.55 * 100) == 56
    assert select_step(100, 0.55) == 55
    assert select_step(3, 1e-05) == 1
    assert select_step(128, 0.2) == 26 and switch_step(128, 0.2) == 27
    assert Fraction(str(0.2)) * 5 == 1 and select_step(5, 0.2) == 1


@pytest.mark.parametrize(
    ("steps", "skip", "switch"),
    [(64, 0.0, 1), (1, 0.0, None), (2, 0.0, 1), (64, 1.0, None), (4, 0.75, None), (4, 0.5, 3), (5, 0.6, 4)],
)
def test_switch_at_the_edges(steps: int, skip: float, switch: int | None) -> None:
    assert switch_step(steps, skip) == switch


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 6.5}, "steps must be a whole number, not 6.5"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"gen_length": -4}, "gen_length must be at least 1, not -4"),
        ({"block_length": 0}, "block_length must be at least 1, not 0"),
        (
            {"algorithm": "greedy"},
            "algorithm must be one of 'low_confidence', .*'entropy', not 'greedy'",
        ),
        ({"temperature": -0.1}, "temperature must be 0, or lie between 0.000001 and 10,000, not -0.1"),
        ({"temperature": math.nan}, "temperature must be 0, or lie between 0.000001 and 10,000, not nan"),
        ({"temperature": math.inf}, "temperature must be 0, or lie between 0.000001 and 10,000, not inf"),
        ({"temperature": "0"}, "temperature must be a number, not '0'"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1 .1 = off., not 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_k": 1.5}, "top_k must be a whole number, not 1.5"),
        ({"alg_temp": 1e-60}, "alg_temp must be 0, or lie between 0.000001 and 10,000, not 1e-60"),
        ({"end_think_boost": 1e39}, "end_think_boost must be 0, or lie between 0.000001 and 10,000, not 1e"),
        ({"alg_temp": -1}, "alg_temp must be 0, or lie between 0.000001 and 10,000, not -1"),
        ({"eps": 0}, "eps must lie between 0 and 1, both excluded, not 0"),
        ({"eps": math.nan}, "eps must lie between 0 and 1, both excluded, not nan"),
        ({"cfg_scale": -0.5}, "cfg_scale must be 0, or lie between 0.000001 and 10,000, not -0.5"),
        ({"threshold": 1}, "threshold must lie between 0 and 1, both excluded, not 1"),
        ({"threshold": True}, "threshold must be a number, not True"),
        ({"early_stop": 1}, "early_stop must be one of False, True, not 1"),
        ({"stop": "text"}, "stop must be a tuple of texts that are not empty, not 'text'"),
        ({"stop": ("a", "")}, "stop must be a tuple of texts that are not empty"),
        ({"stop": ("a", "caf\udce9")}, "stop must be Unicode text, not"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 2**63}, "seed must be below 2\\^63"),
    ],
)
def test_sampler_says_what_is_wrong(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplerConfig(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"skip": -0.01}, "skip must lie between 0 and 1, not -0.01"),
        ({"skip": 1.01}, "skip must lie between 0 and 1, not 1.01"),
        ({"skip": math.nan}, "skip must lie between 0 and 1, not nan"),
        ({"skip": "0.2"}, "skip must be a number, not '0.2'"),
        ({"select": 0}, "select must be above 0 and at most 1, not 0"),
        ({"select": 1.5}, "select must be above 0 and at most 1, not 1.5"),
        ({"select": math.nan}, "select must be above 0 and at most 1, not nan"),
        ({"block_size": 48}, "block_size must be one of 32, 64, 128, not 48"),
        ({"block_size": 32.0}, "block_size must be one of 32, 64, 128, not 32.0"),
        ({"selection": "best"}, "selection must be one of 'paper', 'reference', not 'best'"),
        ({"selection": "reference", "select": 1}, "select must be below 1 with selection 'reference'"),
        ({"keep_importance": 1}, "keep_importance must be one of False, True, not 1"),
        ({"on_no_gain": "stop"}, "on_no_gain must be one of 'sparse', 'dense', not 'stop'"),
        (
            {"method": "causal"},
            "method must be one of 'dense', 'sparsed', 'sliding_window', 'streaming_llm', 'random', 'shared', "
            "not 'causal'",
        ),
        ({"isolated": 0}, "isolated must be one of False, True, not 0"),
        ({"reuse": "no"}, "reuse must be one of False, True, not 'no'"),
        ({"selection": "reference", "isolated": False}, "isolated = False and method 'shared' need 'paper'"),
        ({"selection": "reference", "method": "shared"}, "isolated = False and method 'shared' need 'paper'"),
    ],
)
def test_attention_says_what_is_wrong(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AttentionConfig(**values)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    """As a sweep over numpy's ranges has them, and JSON its lists."""
    given = SamplerConfig(steps=np.int64(8), temperature=np.float32(0.5), seed=np.uint8(3), stop=["a", "b"])  # type: ignore[arg-type]
    assert given == SamplerConfig(steps=8, temperature=0.5, seed=3, stop=("a", "b"))
    assert json.dumps([given.steps, given.temperature, given.seed]) == "[8, 0.5, 3]"
    attention = AttentionConfig(skip=np.float64(0.2), block_size=np.int32(64))
    assert (type(attention.skip), type(attention.block_size)) == (float, int)
    with pytest.raises(ValueError, match="steps must be a whole number, not 8.5"):
        SamplerConfig(steps=np.float64(8.5))
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1, both excluded, not 1.5"):
        SamplerConfig(threshold=np.float32(1.5))


def test_sampler_takes_what_is_unset_from_the_model() -> None:
    assert SamplerConfig().resolve(DEFAULTS) == DEFAULTS
    asked = SamplerConfig(8, 32, 16, "random", 0.5, 3, **{**OFF, "cfg_scale": 2.0})
    resolved = asdict(asked.resolve(DEFAULTS))
    assert {name for name, value in asdict(asked).items() if value not in (None, resolved[name])} == set()
    assert SamplerConfig(**LLADA).resolve(DEFAULTS) == DEFAULTS
    assert SamplerConfig(temperature=1).resolve(DEFAULTS).steps == 64


def test_the_algorithm_decides_whose_defaults_are_taken() -> None:
    dream = SamplerConfig().resolve(DREAM)
    assert (dream.algorithm, dream.temperature, dream.top_p, dream.eps) == ("maskgit_plus", 0.05, 0.95, 1e-3)
    assert SamplerConfig(gen_length=256).resolve(DREAM).block_length == 256
    # The other family's algorithm: steps and lengths of the model, nothing of its sampler's settings.
    other = SamplerConfig(algorithm="low_confidence").resolve(DREAM)
    assert (other.steps, other.gen_length, other.block_length) == (128, 128, 128)
    assert (other.temperature, other.top_p) == (0.0, 1.0)
    other = SamplerConfig(algorithm="entropy").resolve(DEFAULTS)
    assert (other.steps, other.block_length, other.temperature) == (64, 64, 0.0)


@pytest.mark.parametrize("gen_length", [1, 7, 16, 31, 32, 33, 64, 96, 128, 160, 192, 499, 500, 512, 8192])
@pytest.mark.parametrize(("steps", "usual", "block"), [(128, 128, 32), (64, 128, 32), (48, 96, 32), (100, 128, 32)])
def test_a_generation_is_whole_blocks_with_the_usual_steps_a_token(gen_length, steps, usual, block) -> None:
    """Counted up one by one: blocks until they hold the generation, steps until there are enough for a block."""
    defaults = SamplerConfig(steps, usual, block, "low_confidence", 0.0, 0)
    resolved = SamplerConfig(gen_length=gen_length).resolve(defaults)
    length = min(block, gen_length)
    blocks = next(n for n in range(1, gen_length + 1) if n * length >= gen_length)
    share = next(n for n in range(1, length + 1) if n * usual >= steps * length)
    assert (resolved.gen_length, resolved.block_length, resolved.steps) == (blocks * length, length, blocks * share)
    said = f"{blocks * length} tokens are generated, not {gen_length}: whole semi-autoregressive blocks of {length}."
    assert resolved.changed == ((said,) if blocks * length != gen_length else ())
    # Resolving once more, as every door behind the first one does, changes nothing and forgets nothing.
    again = resolved.resolve(defaults)
    assert again == resolved and again.changed == resolved.changed


@pytest.mark.parametrize("gen_length", [1, 24, 100, 128, 499])
@pytest.mark.parametrize("defaults", [DEFAULTS, DREAM])
def test_defaults_with_one_block_have_one_for_every_length(gen_length: int, defaults: SamplerConfig) -> None:
    resolved = SamplerConfig(gen_length=gen_length).resolve(defaults)
    assert (resolved.gen_length, resolved.block_length, resolved.steps) == (gen_length, gen_length, gen_length)
    assert resolved.changed == ()


def test_what_was_not_asked_for_is_not_said_to_be_changed() -> None:
    resolved = SamplerConfig(block_length=48).resolve(DEFAULTS)
    assert (resolved.gen_length, resolved.steps, resolved.changed) == (96, 96, ())


def test_a_threshold_makes_steps_an_upper_bound() -> None:
    resolved = SamplerConfig(threshold=0.9, gen_length=96, block_length=32).resolve(DEFAULTS)
    assert (resolved.steps, resolved.block_length, resolved.threshold) == (96, 32, 0.9)
    assert SamplerConfig(threshold=0.9, steps=200).resolve(DREAM).steps == 200
    # Any number of steps at or above gen_length, whatever the number of blocks.
    assert SamplerConfig(threshold=0.9, steps=65, block_length=16).resolve(DEFAULTS).steps == 65
    assert SamplerConfig(threshold=0.9, block_length=32).resolve(DREAM).block_length == 32
    assert SamplerConfig(threshold=0.9, gen_length=100, block_length=32).resolve(DREAM).steps == 128
    assert not SamplerConfig().resolve(DREAM).at_most and resolved.at_most
    assert SamplerConfig(early_stop=True).resolve(DREAM).at_most


def test_with_a_threshold_the_defaults_draw_nothing() -> None:
    resolved = SamplerConfig(threshold=0.9).resolve(DREAM)
    assert (resolved.temperature, resolved.top_p, resolved.top_k, resolved.alg_temp) == (0.0, 1.0, 0, 0.0)
    # What was asked for stays.
    asked = SamplerConfig(threshold=0.9, temperature=0.5, top_p=0.5, top_k=7).resolve(DREAM)
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.5, 0.5, 7)


@pytest.mark.parametrize(
    ("values", "defaults", "said"),
    [
        ({"top_p": 0.9}, DEFAULTS, "top_p belongs to Dream's algorithms .*, not to 'low_confidence'"),
        ({"algorithm": "random", "top_k": 5}, DREAM, "top_k belongs to Dream's algorithms .*, not to 'random'"),
        ({"alg_temp": 0.1}, DEFAULTS, "alg_temp belongs to Dream's"),
        ({"eps": 0.1}, DEFAULTS, "eps belongs to Dream's"),
        ({"block_length": 32}, DREAM, "block_length must be gen_length .128. or unset for 'maskgit_plus', not 32"),
        ({"threshold": 0.9, "algorithm": "origin"}, DREAM, "'origin' does not give"),
        ({"threshold": 0.9, "algorithm": "entropy"}, DREAM, "'entropy' does not give"),
        ({"threshold": 0.9, "alg_temp": 0.1}, DREAM, "alg_temp has no effect with a threshold"),
        ({"threshold": 0.9, "eps": 0.1}, DREAM, "eps has no effect with a threshold"),
        ({"confidence_eos_eot_inf": True, "algorithm": "origin"}, DREAM, "no effect with 'origin'"),
        ({"alg_temp": 0.1, "algorithm": "origin"}, DREAM, "alg_temp has no effect with 'origin'"),
        ({"threshold": 0.9, "steps": 63}, DEFAULTS, "must be at least gen_length .64.*; it is 63"),
    ],
)
def test_settings_that_do_not_fit_the_algorithm(values: dict, defaults: SamplerConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplerConfig(**values).resolve(defaults)


@pytest.mark.parametrize(
    ("steps", "skip", "select"), [(128, 0.2, 26), (100, 0.29, 29), (10, 0.0, 1), (10, 0.5, 6), (10, 1.0, 11)]
)
def test_the_public_codes_select_step(steps: int, skip: float, select: int) -> None:
    # 100 · 0.29 is 28.999… in binary: the public code truncates it to 28.
    assert select_step(steps, skip, "reference") == select
    assert switch_step(steps, skip, "reference") == (select + 1 if select + 1 < steps else None)


@pytest.mark.parametrize("steps", [1, 2, 6, 12])
@pytest.mark.parametrize("gen_length", [1, 2, 6, 7, 12, 24])
def test_every_block_must_get_a_step(gen_length: int, steps: int) -> None:
    for block_length in range(1, 26):
        config = SamplerConfig(steps=steps, gen_length=gen_length, block_length=block_length)
        blocks = next(n for n in range(1, 25) if n * block_length >= gen_length)
        if steps >= blocks:
            resolved = config.resolve(DEFAULTS)
            assert (resolved.steps, resolved.gen_length) == (steps, blocks * block_length)
        else:
            said = f"^steps must be at least the number of .* = {blocks}: {steps} is less.$"
            with pytest.raises(ValueError, match=said):
                config.resolve(DEFAULTS)


def test_a_resolved_sampler_has_whole_blocks() -> None:
    with pytest.raises(ValueError, match="65 is not a multiple of 64"):
        ResolvedSampler(**{**LLADA, "gen_length": 65})


@pytest.mark.parametrize(("length", "select", "block_size"), [(1, 0.5, 32), (3999, 0.5, 32), (4000, 0.3, 128)])
def test_sparsed_defaults_follow_the_length(length: int, select: float, block_size: int) -> None:
    expected = ResolvedAttention(
        skip=0.2, select=select, block_size=block_size, selection="paper", keep_importance=False, method="sparsed",
        isolated=True, reuse=True, on_no_gain="sparse",
    )  # fmt: skip
    assert SparseDConfig().resolve(length) == expected


def test_sparsed_keeps_what_was_set() -> None:
    asked = AttentionConfig("sliding_window", skip=0.0, select=0.7, block_size=64, keep_importance=True)
    resolved = asked.resolve(100_000)
    assert (resolved.skip, resolved.select, resolved.block_size) == (0.0, 0.7, 64)
    assert resolved.keep_importance is True and resolved.method == "sliding_window"
