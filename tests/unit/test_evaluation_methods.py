"""Methods as they are written: attention and sampler of their own, one way to write each, and the ablations."""

from __future__ import annotations

import pytest

from sparsed.config import CACHES, FULL_ATTENTION, METHODS, AttentionConfig, CacheConfig, SamplerConfig, SparseDConfig
from sparsed.evaluation.methods import (
    ABLATIONS,
    VARIED,
    Method,
    ablations,
    own_settings,
    parse_method,
    parts_of,
    samples_apart,
)

BASE = SparseDConfig(skip=0.1)
DEFAULTS = SamplerConfig(
    steps=48, gen_length=96, block_length=96, algorithm="low_confidence", temperature=0, seed=0
).resolve(SamplerConfig(steps=48, gen_length=96, block_length=96, algorithm="low_confidence", temperature=0, seed=0))


def test_methods_take_settings_of_their_own() -> None:
    assert parse_method("dense", BASE) == Method("dense", FULL_ATTENTION)
    assert parse_method("sparsed", BASE) == Method("sparsed", SparseDConfig(skip=0.1))
    asked = parse_method("streaming_llm:skip=0,block_size=64,reuse=no", BASE)
    assert asked.attention == AttentionConfig("streaming_llm", skip=0.0, block_size=64, reuse=False)
    assert asked.sampler == SamplerConfig()
    asked = parse_method("sparsed:steps=96,select=0.1,block_length=32", BASE)
    assert asked.attention == SparseDConfig(skip=0.1, select=0.1)
    assert asked.sampler == SamplerConfig(steps=96, block_length=32)
    assert parse_method("dense:threshold=0.9", BASE).sampler == SamplerConfig(threshold=0.9)
    assert parse_method("dense:steps=12", BASE).attention == FULL_ATTENTION
    assert parse_method("dense+prefix", BASE) == Method("dense+prefix", FULL_ATTENTION, cache=CacheConfig("prefix"))
    asked = parse_method("sparsed+refresh:refresh=8,cache_refresh=4,cache_keys=pattern", BASE)
    assert asked.cache == CacheConfig("refresh", refresh=4, keys="pattern")
    assert asked.attention == SparseDConfig(skip=0.1, refresh=8)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fast", "Method 'fast' is unknown; choose from dense, sparsed"),
        ("dense:skip=0", "skip belongs to sparse attention; full attention takes steps, block_length, threshold"),
        ("dense:speed=0", "'speed=0' is no setting; write one of steps, block_length, threshold as"),
        ("sparsed:", "'' is no setting; write one of skip, select"),
        ("sparsed:speed=2", "'speed=2' is no setting"),
        ("sparsed:reuse=maybe", "'reuse=maybe' is no setting"),
        ("sparsed:skip", "'skip' is no setting"),
        ("sparsed:steps=many", "'steps=many' is no setting; write one of .*threshold as name=value"),
        ("sparsed:skip=0,skip=0.1", "skip stands there twice"),
        ("sparsed:steps=6,select=0.1,steps=6", "steps stands there twice"),
        ("sparsed:gen_length=64", "gen_length is the same for all answers of a folder; give it as --gen-length"),
        ("dense:temperature=0.5", "temperature is the same for all answers of a folder; give it as --temperature"),
        ("sparsed:method=dense", "'method=dense' is no setting"),
        ("sparsed:skip=2", "skip must lie"),
        ("sparsed:steps=0", "steps must be"),
        ("dense:threshold=1.5", "threshold must"),
        ("dense+fast", "the cache 'fast' is unknown; choose from prefix, dual, delayed, refresh"),
        ("dense+none", "the cache 'none' is unknown"),
        ("sparsed+", "the cache '' is unknown"),
        ("sparsed:cache_refresh=4", r"cache_refresh belongs to a cache, as in sparsed\+refresh:cache_refresh=4"),
        ("dense+dual:cache_refresh=4", "its cache: The cache 'dual' has no refresh: only delayed and refresh have"),
        ("dense+delayed:cache_refresh=0", "its cache: refresh must be at least 1, not 0"),
        ("dense+dual:cache_keys=pattern", "its cache: keys = 'pattern' needs a pattern that is kept"),
        ("sparsed+dual:cache_keys=pattern,reuse=no", "its cache: keys = 'pattern' needs a pattern that is kept"),
        ("sparsed+dual:cache_keys=some", "its cache: keys must be one of 'all', 'pattern', not 'some'"),
        ("sparsed+dual:cache=prefix", "'cache=prefix' is no setting; write one of cache_refresh, cache_keys, skip"),
        ("dense+dual:skip=0", "full attention takes cache_refresh, cache_keys, steps, block_length, threshold"),
    ],
)
def test_what_is_no_method_is_refused(method: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_method(method, BASE)


def test_there_is_one_way_to_write_a_method() -> None:
    ways = ["sparsed:skip=0,select=0.1,reuse=no,steps=96", "sparsed:steps=96,select=.1,reuse=no,skip=0.0"]
    assert {parse_method(way, BASE).name for way in ways} == {ways[0]}
    assert parse_method("dense:threshold=.90,block_length=32", BASE).name == "dense:block_length=32,threshold=0.9"
    ways = ["cache_refresh=4,cache_keys=all,skip=0", "skip=0.0,cache_keys=all,cache_refresh=04"]
    assert {parse_method(f"sparsed+delayed:{way}", BASE).name for way in ways} == {f"sparsed+delayed:{ways[0]}"}
    every = [method for group in ABLATIONS.values() for method in group]
    for method in ("dense", "sparsed", "shared:block_size=64", *every):
        assert parse_method(method, SparseDConfig()).name == method


def test_a_name_says_its_settings() -> None:
    assert own_settings("dense") == own_settings("shared") == {}
    assert own_settings("sparsed:skip=0,threshold=0.9") == {"skip": "0", "threshold": "0.9"}
    assert parts_of("dense+dual") == ("dense", "dual", {})
    assert parts_of("sparsed+refresh:cache_refresh=4") == ("sparsed", "refresh", {"cache_refresh": "4"})
    assert parts_of("shared:skip=0") == ("shared", "none", {"skip": "0"})
    for name in ("dense", "sparsed", "sparsed:skip=0,block_size=32,reuse=no", "dense+refresh:cache_refresh=4"):
        assert not samples_apart(name)
    for setting in VARIED:
        assert samples_apart(f"sparsed:skip=0,{setting}=1") and samples_apart(f"dense:{setting}=1")


def test_a_method_has_the_sampler_of_all_but_for_its_own_settings() -> None:
    common = SamplerConfig(steps=24, temperature=0.5, seed=3)
    assert parse_method("sparsed", BASE).sampler_in(common) == common
    own = parse_method("dense:steps=12", BASE).resolve(common, DEFAULTS)
    assert (own.steps, own.gen_length, own.temperature, own.seed) == (12, 96, 0.5, 3)
    # A threshold makes steps an upper bound; the 24 that the others make are none.
    own = parse_method("dense:threshold=0.9", BASE).resolve(common, DEFAULTS)
    assert (own.steps, own.threshold, own.seed) == (96, 0.9, 3)
    own = parse_method("sparsed:block_length=32", BASE).resolve(SamplerConfig(), DEFAULTS)
    assert (own.steps, own.gen_length, own.block_length) == (48, 96, 32)
    own = parse_method("sparsed:steps=96,block_length=32", BASE).resolve(common, DEFAULTS)
    assert (own.steps, own.block_length) == (96, 32)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("dense:steps=2,block_length=32", "Method 'dense:.*': steps must be at least the number .* = 3: 2 is less"),
        ("dense:steps=12,threshold=0.9", "Method 'dense:.*': With a threshold, steps is an upper bound"),
        ("sparsed:block_length=40", "Method 'sparsed:block_length=40': 96 tokens, .* no whole number .* blocks of 40"),
    ],
)
def test_own_settings_that_do_not_fit_the_others_are_refused(method: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_method(method, BASE).resolve(SamplerConfig(), DEFAULTS)


def test_ablations_vary_one_thing_and_stand_beside_dense_and_the_published_setting() -> None:
    assert ablations(["select", "refresh"])[:3] == ["dense", "sparsed", "sparsed:select=0.03"]
    assert len(ablations(["select", "refresh"])) == 2 + 6 + 3
    whole = ablations(["all"])
    assert whole == ablations(["refresh", "all"]) and len(whole) == len(set(whole))
    assert set(whole) == {"dense", "sparsed", *(method for group in ABLATIONS.values() for method in group)}
    assert set(METHODS) <= set(whole)
    for group, methods in ABLATIONS.items():
        if group not in ("generation_rows", "shared", "baselines", "cache"):
            allowed = [[group], *([["skip", group]] if group == "threshold" else [])]
            assert all(list(own_settings(method)) in allowed for method in methods), group
    caches = set(CACHES) - {"none"}
    asked = {(attention, cache): [] for attention in ("dense", "sparsed") for cache in caches}
    for attention, cache, own in map(parts_of, ABLATIONS["cache"]):
        asked[attention, cache].append(own)
    assert all(asked["dense", cache] == [{}] for cache in caches)
    assert all(asked["sparsed", cache] == [{}, {"cache_keys": "pattern"}] for cache in caches)
    full = [own_settings(method) for method in ABLATIONS["generation_rows"]]
    assert all(one["generation_rows"] == "full" and one.keys() <= {"skip", "select", "generation_rows"} for one in full)
    # Every density that is tried, with the published skip, a twentieth, and none at all.
    settings = {(one.get("select"), one.get("skip")) for one in full}
    assert settings == {(share, skip) for share in (None, "0.05", "0.1", "0.2") for skip in (None, "0.05", "0")}
