"""Lanes with a cache in the bench: whole runs, runs put together, their limits and their tables."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsed.bench import cached as cached_module
from sparsed.bench import measure as measure_module
from sparsed.bench import numbers
from sparsed.bench.cached import work_in_runs
from sparsed.bench.command import _kept, main
from sparsed.cache.rows import ALL
from sparsed.config import CacheConfig, SamplerConfig, SparseDConfig
from sparsed.denoising import denoise
from sparsed.denoising.predictor import Predictor
from sparsed.typed_json import read_as


@pytest.fixture
def threads_of_torch() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for garbage before each run takes longer than the run."""
    monkeypatch.setattr("sparsed.bench.cached.gc", SimpleNamespace(collect=lambda: 0))


CACHES = [CacheConfig("prefix"), CacheConfig("dual"), CacheConfig("delayed", 4), CacheConfig("refresh", 4)]


def cached(model: Any, compose: list[int], caches: Any = CACHES, repeats: int = 1, **sampler: Any) -> Any:
    given = {"steps": 16, "gen_length": 32, "block_length": 16, **sampler}
    attention = SparseDConfig(skip=0.2, select=0.3, block_size=32)
    ids = torch.arange(2, 102)
    return measure_module.measure(
        model, ids, "100", SamplerConfig(**given), attention, compose=compose, caches=caches, repeats=repeats
    )[0], ids, attention  # fmt: skip


def test_lanes_with_a_cache_are_the_runs_of_the_engine(tiny: Any) -> None:
    """Whole: the same steps and tokens as `sparsed.denoise` makes. Put together: the same rows in the same steps."""
    result, ids, attention = cached(tiny, [], repeats=2)
    assert [lane.method for lane in result.cached] == [
        f"{method}+{cache}" for method in ("dense", "sparsed")
        for cache in ("prefix", "dual", "delayed:cache_refresh=4", "refresh:cache_refresh=4")
    ]  # fmt: skip
    together, _, _ = cached(tiny, [32])
    for steps, lanes in ((16, result.cached), (32, together.cached)):
        for lane, (given, cache) in zip(lanes, ((a, c) for a in ("dense", attention) for c in CACHES), strict=True):
            sampler = SamplerConfig(steps=steps, gen_length=32, block_length=16)
            run = denoise(tiny, ids, sampler=sampler, attention=given, cache=cache)
            # Random tokens are never the mask token, which the model may give.
            made = run.result().steps if lane.whole else run.planned
            assert (lane.steps, lane.whole) == (steps, steps == 16)
            assert lane.phases == Counter(step.phase for step in made if step.rows == 132)
            few = Counter(step.rows for step in made if step.rows < 132)
            repeats = 2 if lane.whole else 1
            assert {one.rows: one.step.count for one in lane.few} == {n: repeats * count for n, count in few.items()}
            assert lane.rows == pytest.approx(sum(step.rows for step in made) / (132 * steps), abs=1e-4)
            assert (lane.same_tokens is None) == (steps == 32) and len(lane.seconds) == repeats
            if lane.whole:
                assert lane.run["rows"] == run.info.record()["rows"] and 0 <= lane.same_tokens <= 1
    again = read_as(numbers.Measurement, json.loads(json.dumps(asdict(result))), "it")
    assert json.dumps(asdict(again)) == json.dumps(asdict(result)), "as a folder keeps it"


def test_a_run_put_together_takes_what_its_steps_take(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a step over every row takes 100 s with full attention, 130 s when it selects and 40 s by the
    pattern, one of fewer rows a second for each row; the first of each number of rows is made twice and counts once.
    """
    clock, forwards = [0.0], list[tuple[str, int]]()
    real = Predictor.logits

    def logits(self: Any, canvas: Any, eligible: Any, attention: Any, rows: Any = ALL, *more: Any) -> Any:
        count = rows.count(132)
        forwards.append((attention.phase, count))
        clock[0] += {"dense": 100, "select": 130, "sparse": 40}[attention.phase] if count == 132 else count
        return real(self, canvas, eligible, attention, rows, *more)

    monkeypatch.setattr(Predictor, "logits", logits)
    for module in ("denoising.run", "bench.rehearsal"):
        monkeypatch.setattr(f"sparsed.{module}.perf_counter", lambda: clock[0])
    # In 32 steps, 16 a block: the pattern would be made at step 7, and is made at step 16, where a block begins.
    result, _, _ = cached(tiny, [32], [CacheConfig("dual"), CacheConfig("refresh", 8)])
    dual, refresh, with_dual, with_refresh = result.cached
    assert dual.seconds == (2 * 100 + 30 * 16,) and refresh.seconds == (4 * 100 + 28 * 32,)
    assert with_dual.seconds == (100 + 130 + 30 * 16,) and with_refresh.seconds == (100 + 130 + 2 * 40 + 28 * 32,)
    assert [lane.speedup for lane in result.cached] == [round(3200 / lane.seconds[0], 3) for lane in result.cached]
    assert with_refresh.phases == {"dense": 1, "select": 1, "sparse": 2}
    # What the two lanes without a cache made, then of each lane with one what it needs.
    made = forwards[-(1 + 30 + 1) - (1 + 28 + 1) - (2 + 30 + 1) - (2 + 28 + 1) :]
    assert [count for _, count in made].count(132) == 1 + 1 + 2 + 2 and ("sparse", 132) not in made


def test_the_limit_of_a_cached_step_is_reading_weights_and_what_it_sees(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsed.bench.cached.copy_speed", lambda _: 1e9)
    result, _, _ = cached(tiny, [], [CacheConfig("refresh", 4, "pattern")])
    config = tiny.network.config
    names = dict(tiny.network.named_parameters())
    tied = "lm_head.weight" not in names
    weights = sum(weight.numel() for name, weight in names.items() if "embed" not in name or tied)
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    dense, sparsed = result.cached
    assert dense.kept == sparsed.kept == 132 * position
    assert [few.limit for few in dense.few] == [pytest.approx((4 * weights + 132 * position) / 1e6, abs=1e-4)]
    # Before there is a pattern every key; then 2 of 4 blocks of the prompt and the one of the generation.
    all_keys, listed = sorted(sparsed.few, key=lambda few: -few.keys)
    assert (all_keys.keys, listed.keys) == (132, 96) and all_keys.limit == dense.few[0].limit
    assert listed.limit == pytest.approx((4 * weights + 96 * position) / 1e6, abs=1e-4)


def test_a_cache_without_room_is_left_out_and_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sparsed.bench.cached.device_memory", lambda *_: 10_000)
    result, _ = measure_module.measure(
        tiny, torch.arange(2, 102), "100", SamplerConfig(steps=2, gen_length=8), SparseDConfig(block_size=32),
        caches=[CacheConfig("dual")], say=said.append,
    )  # fmt: skip
    assert result.cached == ()
    assert [line.partition(": left out")[0] for line in said if "left out" in line] == [
        "Full attention + Fast-dLLM, dual", "SparseD + Fast-dLLM, dual",
    ]  # fmt: skip


def test_a_cache_that_runs_out_of_memory_is_left_out_and_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = cached_module._lane

    def lane(bench: Any, attention: Any, *more: Any) -> Any:
        if attention == "dense":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(bench, attention, *more)

    monkeypatch.setattr(cached_module, "_lane", lane)
    result, _ = measure_module.measure(
        tiny, torch.arange(2, 102), "100", SamplerConfig(steps=2, gen_length=8), SparseDConfig(block_size=32),
        caches=[CacheConfig("dual")], say=said.append,
    )  # fmt: skip
    assert [one.method for one in result.cached] == ["sparsed+dual"]
    assert "Full attention + Fast-dLLM, dual: left out, the memory of cpu ran out" in said


def test_the_work_of_caches_is_told_beforehand(tiny: Any) -> None:
    """Of runs that are made whole, the rows that they compute; of others, those that are made."""
    result, _, attention = cached(tiny, [])
    sampler = SamplerConfig(steps=16, gen_length=32, block_length=16).resolve(tiny.defaults)
    told = work_in_runs(sampler, attention, CACHES, [], 100)
    assert told == pytest.approx(sum(lane.rows for lane in result.cached), rel=0.01)
    # Two blocks of 16 steps, the second with the pattern: one forward over all 132 rows, or two; 30 of 16 rows.
    apart = work_in_runs(sampler, attention, [CacheConfig("dual")], [32], 100)
    assert apart == pytest.approx((3 * 132 + 2 * 30 * 16) / (132 * 16))


def test_what_no_cached_run_can_be_is_refused_before_anything_is_measured(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "take_turns", lambda *_: pytest.fail("nothing is to be measured"))
    with pytest.raises(ValueError, match="steps must be at least the number of .* = 2: 1 is less"):
        cached(tiny, [1])
    with pytest.raises(ValueError, match="With a threshold nothing is known of a run before it is made"):
        cached(tiny, [64], threshold=0.9, steps=32)


def test_tables_of_caches(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], threads_of_torch: None
) -> None:
    out = ["--out", str(tmp_path), "--lengths", "200", "300", "--steps", "16"]
    common = "--random-tokens --gen-length 32 --dtype float32 --block-size 32 --device cpu --threads 1".split()
    main([*common, "--model", str(tiny_folder), *out, "--cache", "dual", "refresh", "--cache-refresh", "4"])
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Speed-up over full attention of the same call, runs of 16 steps:")
    kept = _kept(tmp_path)
    told = dict(zip(("SparseD", *(lane.label for lane in kept[0].cached)), lines[at + 2 :]))
    assert told["SparseD"].split()[1:] == [f"{result.speedup:.2f}×" for result in kept]
    for number, lane in enumerate(kept[0].cached):
        wanted = [f"{result.cached[number].speedup:.2f}×" for result in kept]
        assert told[lane.label].removeprefix(lane.label).split() == wanted
    assert len(kept[0].cached) == 4 and kept[0].composed == () and kept[0].cached[3].run["cache"]["refresh"] == 4
    [row] = [line for line in lines if line.startswith("SparseD + Refresh") and "GiB" in line][:1]
    assert " 1 / 1 / 2 " in row and " 12 " in row and "put together" not in "\n".join(lines)
