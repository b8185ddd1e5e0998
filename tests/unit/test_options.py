"""The command lines' options are the fields of the two configs."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from sparsed import METHODS, RECOMMENDED, AttentionConfig, CacheConfig, SamplerConfig, SparseDConfig
from sparsed.bench.command import _parser as bench_parser
from sparsed.config import PRESETS
from sparsed.generation.command import _parser
from sparsed.options import ATTENTION, CACHE, SAMPLER, attention_of, cache_of, sampler_of

# A value for each setting that is not its default, as it is written and as the config has it.
WRITTEN = {
    "steps": ("7", 7), "gen_length": ("9", 9), "block_length": ("3", 3), "algorithm": ("entropy", "entropy"),
    "temperature": ("0.5", 0.5), "seed": ("11", 11), "top_p": ("0.7", 0.7), "top_k": ("4", 4), "alg_temp": ("0.3", 0.3),
    "eps": ("0.02", 0.02), "cfg_scale": ("1.5", 1.5), "threshold": ("0.8", 0.8), "method": ("shared", "shared"),
    "skip": ("0.1", 0.1), "select": ("0.4", 0.4), "block_size": ("64", 64), "selection": ("reference", "reference"),
    "keep_importance": ("yes", True), "on_no_gain": ("dense", "dense"), "isolated": ("no", False),
    "reuse": ("no", False), "logits_eos_inf": ("yes", True), "confidence_eos_eot_inf": ("yes", True),
    "generation_rows": ("full", "full"), "refresh": ("8", 8), "early_stop": ("yes", True), "stop": ("\n\n", ("\n\n",)),
    "canvas": ("growing", "growing"), "end_think_boost": ("50", 50.0), "end_think_power": ("2", 2.0),
}  # fmt: skip


def parsed(*words: str) -> argparse.Namespace:
    return _parser().parse_args(words)


@pytest.mark.parametrize("name", [*SAMPLER, *ATTENTION])
def test_every_setting_is_an_option_of_generate(name: str) -> None:
    word, value = WRITTEN[name]
    given: dict[str, Any] = {name: value}
    for option in {f"--{name}", f"--{name.replace('_', '-')}"}:
        options = parsed(option, word)
        assert sampler_of(options) == SamplerConfig(**given if name in SAMPLER else {})
        assert attention_of(options) == AttentionConfig(**given if name in ATTENTION else {})


@pytest.mark.parametrize("name", CACHE)
def test_every_setting_of_a_cache_is_an_option_of_generate(name: str) -> None:
    word, value = {"cache": ("refresh", "refresh"), "cache_refresh": ("4", 4), "cache_keys": ("all", "all")}[name]
    given = {"method": "refresh", CACHE[name].name: value}
    for option in {f"--{name}", f"--{name.replace('_', '-')}"}:
        assert cache_of(parsed("--cache", "refresh", option, word)) == CacheConfig(**given)


def test_a_setting_of_several_values_is_given_one_by_one() -> None:
    assert sampler_of(parsed("--stop", "a b", "--stop", "c")) == SamplerConfig(stop=("a b", "c"))


def test_what_is_not_given_is_the_default() -> None:
    assert (sampler_of(parsed()), attention_of(parsed())) == (SamplerConfig(), SparseDConfig())
    assert cache_of(parsed()) == CacheConfig()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_named(method: str) -> None:
    assert attention_of(parsed("--method", method)) == AttentionConfig(method)


@pytest.mark.parametrize("words", [["--origin"], ["--dense", "--skip", "0.1"], ["--method", "dense", "--reuse", "no"]])
def test_full_attention_leaves_the_other_settings_unread(words: list[str]) -> None:
    assert attention_of(parsed(*words)) == AttentionConfig("dense")


@pytest.mark.parametrize("words", [["--reuse", "maybe"], ["--method", "causal"], ["--top_k", "few"]])
def test_a_word_that_is_no_value_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert words[1] in capsys.readouterr().err


def test_full_attention_has_no_settings_and_sparsed_is_one_type_with_the_rest() -> None:
    with pytest.raises(ValueError, match="skip belongs to sparse attention"):
        AttentionConfig("dense", skip=0.2)
    assert type(SparseDConfig(0.1)) is AttentionConfig
    assert SparseDConfig(0.1) == AttentionConfig("sparsed", skip=0.1)


def test_a_preset_is_what_is_not_said_otherwise() -> None:
    assert attention_of(parsed("--preset", "published")) == SparseDConfig()
    assert attention_of(parsed("--preset", "recommended")) == RECOMMENDED
    assert RECOMMENDED == SparseDConfig(skip=0, select=0.2, generation_rows="full")
    said = parsed("--preset", "recommended", "--skip", "0.1", "--select", "0.4")
    assert attention_of(said) == SparseDConfig(0.1, 0.4, generation_rows="full")
    # What is said wins over the preset, wherever it stands.
    for words in (("--generation-rows", "pattern", "--preset", "recommended"), ("--preset", "recommended")):
        rows = "pattern" if "pattern" in words else "full"
        assert attention_of(parsed(*words)) == SparseDConfig(skip=0, select=0.2, generation_rows=rows)
    assert attention_of(parsed("--preset", "recommended", "--method", "dense")) == AttentionConfig("dense")
    for name, attention in PRESETS.items():
        assert attention_of(bench_parser().parse_args(["--preset", name])) == attention
    with pytest.raises(SystemExit):
        parsed("--preset", "ours")
