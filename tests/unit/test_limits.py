"""Estimates, and the sentences that say no."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.cost import (
    LIBRARIES,
    Estimate,
    Shape,
    Speed,
    about,
    estimate,
    fit_speed,
    lanes_take_turns,
    memory_needed,
    peak,
    span,
    together,
)
from app.engine.local import SparsedEngine
from app.lanes import LaneSpec, lanes_for, lanes_of
from app.server.limits import Limits, reason, refusal
from sparsed.config import FULL_ATTENTION, NO_CACHE, ResolvedCache, SparseDConfig
from sparsed.machine import device_memory, give_back
from sparsed.questions.lengths import token_budget

MINI = Shape(
    layers=6, hidden=256, heads=4, head_dim=64, intermediate=512, weight_bytes=17_840_000, number_bytes=4
)
EIGHT_BILLION = Shape(
    layers=32,
    hidden=4096,
    heads=32,
    head_dim=128,
    intermediate=12288,
    weight_bytes=16_000_000_000,
    number_bytes=2,
    vocabulary=126_464,
)
GIB = 2**30


def test_two_measured_steps_give_the_linear_and_the_quadratic_part() -> None:
    true = Speed(per_token=4e-5, per_pair=4e-8)
    fitted = fit_speed([(2048, true.step(2048)), (256, true.step(256))], MINI)
    assert fitted.per_token == pytest.approx(4e-5) and fitted.per_pair == pytest.approx(4e-8)


def test_the_sixteenth_of_a_thousand_follows_from_two_short_steps() -> None:
    """Published for two cores: 512 tokens 0.040 s, 4k 0.83 s, 16k 11.8 s a step; within a factor of two is
    enough.
    """
    speed = fit_speed([(512, 0.040), (4096, 0.83)], MINI)
    assert 11.8 / 2 < speed.step(16384) < 11.8 * 2


@pytest.mark.parametrize("points", [[(512, 0.04)], [(512, 0.04), (2048, 0.10)], [(512, 0.5), (2048, 0.4)]])
def test_one_point_or_a_jittering_clock_still_gives_positive_parts(points: list[tuple[int, float]]) -> None:
    speed = fit_speed(points, MINI)
    assert speed.per_token > 0 and speed.per_pair > 0
    assert speed.step(4096) > speed.step(2048)


def test_no_measurement_no_speed() -> None:
    with pytest.raises(ValueError, match="no measured step"):
        fit_speed([], MINI)


def lanes(switch_step: int | None, density: float = 0.3, third: str | None = None) -> tuple[LaneSpec, ...]:
    """Of a race of 64 steps."""
    skip = 1.0 if switch_step is None else (switch_step - 1) / 64
    made = lanes_for(SparseDConfig(skip=skip, select=density, block_size=128), [third] if third else [])
    assert made[1].switch_step(64) == switch_step
    return made


def estimated(switch_step: int | None, density: float = 0.3, length: int = 16_448) -> Estimate:
    return estimate(MINI, Speed(4e-5, 4e-8), lanes=lanes(switch_step, density), length=length, steps=64)


def test_the_sparse_lane_saves_attention_after_the_switch_only() -> None:
    never, early, late = estimated(None), estimated(14), estimated(40)
    assert never.lanes["dense"] == never.lanes["sparse"] == pytest.approx(64 * Speed(4e-5, 4e-8).step(16_448))
    assert early.lanes["sparse"] < late.lanes["sparse"] < never.lanes["sparse"]
    assert early.seconds == early.lanes["dense"] + early.lanes["sparse"]
    assert estimated(14, density=1.0).lanes["sparse"] > never.lanes["sparse"]


@pytest.mark.parametrize("rows", ["pattern", "full"])
@pytest.mark.parametrize("refresh", [0, 4])
@pytest.mark.parametrize(("length", "generated"), [(16_448, 96), (300, 96), (1056, 100)])
def test_fresh_patterns_and_full_rows_have_their_cost(rows: str, refresh: int, length: int, generated: int) -> None:
    speed, steps, blocks = Speed(4e-5, 4e-8), 48, 2
    attention = SparseDConfig(skip=0.2, select=0.3, block_size=32, generation_rows=rows, refresh=refresh)
    found = estimate(
        MINI, speed, lanes=lanes_for(attention), length=length, steps=steps, blocks=blocks, gen_length=generated
    ).lanes["sparse"]
    # Row by row: those in a query block with a generated token see every key, the others what is gathered.
    first = next(row for row in range(length) if (row // 32 + 1) * 32 > length - generated)
    seen = [1.0 if rows == "full" and row >= first else 1.25 * 0.3 for row in range(length)]
    share, last, slow = sum(seen) / length, None, 0.0
    for step in range(steps):
        slow += speed.per_token * length
        fresh = last is None or (refresh and (step - last == refresh or step == steps // blocks))
        if step < 10:
            slow += speed.per_pair * length**2
        elif fresh:
            slow += 3 * speed.per_pair * length**2
            last = step
        else:
            slow += share * speed.per_pair * length**2
    assert found == pytest.approx(slow)


# GiB that torch held at most on one NVIDIA H200 (torch 2.11), weights included: runs with full attention and with
# SparseD that keeps 0.3, 128 tokens in blocks of 32 (`python -m sparsed bench --shape …`, docs/speed.md), without a
# cache and with a dual one.
RUNS = [
    ("llada-8b-instruct", "4k", 15.42, 17.4), ("llada-8b-instruct", "16k", 16.80, 24.4),
    ("llada-8b-instruct", "64k", None, 54.0), ("llada-8b-instruct", "128k", 30.3, 94.4),
    ("llada-8b-instruct@int8", "4k", 9.0, 10.98), ("llada-8b-instruct@int8", "16k", 10.4, 17.95),
    ("llada-8b-instruct@int4", "4k", 5.92, 7.9), ("llada-8b-instruct@int4", "16k", 7.29, 14.9),
    ("llada-8b-instruct@fp8", "4k", 8.93, 10.9), ("llada-8b-instruct@fp8", "16k", 10.4, 17.9),
    ("illada-8b-instruct", "4k", 14.7, 15.2), ("illada-8b-instruct", "16k", 16.0, 18.0),
    ("illada-8b-instruct", "64k", 21.3, 29.4),
    ("llada-moe-7b-instruct", "4k", 14.1, 14.7), ("llada-moe-7b-instruct", "16k", 15.2, 17.2),
    ("llada-moe-7b-instruct", "64k", 19.6, 27.7),
]  # fmt: skip
# One dense step over 65,536 positions, 128 of them predicted (`pytest -n 0 -s tests/gpu/test_full_size.py`).
STEPS = {
    "llada-8b-instruct": 22.0, "illada-8b-instruct": 20.99, "dream-7b-instruct": 22.9, "llada-8b-instruct@int8": 15.62,
    "llada-8b-instruct@int4": 12.52, "llada-8b-instruct@fp8": 15.78,
}  # fmt: skip


def assert_covers(measured: float | None, name: str, lanes: Sequence[LaneSpec], length: int, predicted: int) -> None:
    """The estimate is no less than what was measured, and at most a tenth above it."""
    shape = SparsedEngine().known_shape(name)
    assert shape is not None
    estimated = (shape.weight_bytes + peak(shape, lanes, length, predicted)[0]) / GIB
    assert measured is None or measured <= estimated <= 1.1 * measured, (name, length, estimated)


@pytest.mark.parametrize(("name", "length", "plain", "cached"), RUNS)
def test_the_memory_of_a_race_is_what_was_measured(name: str, length: str, plain: float | None, cached: float) -> None:
    pair, tokens = lanes_for(SparseDConfig(select=0.3)), token_budget(length) + 128
    assert_covers(plain, name, pair, tokens, 32)
    assert_covers(cached, name, [*pair, LaneSpec("dual", "", FULL_ATTENTION, ResolvedCache("dual"))], tokens, 32)


@pytest.mark.parametrize(("name", "measured"), STEPS.items())
def test_the_memory_of_a_long_step_is_what_was_measured(name: str, measured: float) -> None:
    assert_covers(measured, name, lanes_for(SparseDConfig())[:1], 65_536, 128)


def test_memory_grows_with_the_length_and_stays_sane() -> None:
    """On a CPU, mini in float32 took 0.15 to 0.19 GiB beside its weights at 8k (a process's resident size)."""
    assert 0.19 * GIB < memory_needed(MINI, 8192, 128, 128, kept=0.3) < 0.25 * GIB
    assert memory_needed(MINI, 1024, 32) < memory_needed(MINI, 4096, 32) < memory_needed(MINI, 65_600, 128)
    # Many small blocks: what is made of the importances is more than a layer's numbers.
    assert memory_needed(MINI, 65_600, 32) > 4 * 2051**2 * 16


def test_memory_counts_the_logits_of_one_block_and_the_rows_of_guidance() -> None:
    """Drawn at a temperature, logits are in float64 five times; beside a layer's numbers they do not stand."""
    plain = memory_needed(EIGHT_BILLION, 4096, 128)
    assert memory_needed(EIGHT_BILLION, 4096, 128, predicted=64) == plain
    assert memory_needed(EIGHT_BILLION, 4096, 128, predicted=1024) > 1024 * 126_464 * 42 > plain
    assert memory_needed(EIGHT_BILLION, 4096, 128, rows=2) - plain == plain - LIBRARIES
    given = {"lanes": lanes(14), "length": 4096, "steps": 64, "gen_length": 2048}
    whole, blocks = (estimate(EIGHT_BILLION, Speed(4e-5, 4e-8), blocks=blocks, **given) for blocks in (1, 64))
    assert whole.memory > 2 * blocks.memory


def test_a_process_of_several_needs_its_share_of_heads_and_columns() -> None:
    """Activations and importances of 16 of 32 heads, half of the MLP; the hidden states and the logits are whole."""
    half = replace(EIGHT_BILLION, processes=2, weight_bytes=EIGHT_BILLION.weight_bytes // 2)
    cut = replace(EIGHT_BILLION, heads=16, intermediate=6144)
    for length, block in ((4096, 128), (65_664, 128), (1000, 32)):
        assert memory_needed(half, length, block, 128) == memory_needed(cut, length, block, 128)
    assert memory_needed(half, 65_664, 128) < 0.7 * memory_needed(EIGHT_BILLION, 65_664, 128)
    assert half.pair_flops == EIGHT_BILLION.pair_flops / 2 and half.linear_flops == EIGHT_BILLION.linear_flops / 2


def test_what_caches_keep_is_counted_once_a_lane_in_each_process_for_its_heads() -> None:
    """LLaDA-8B at 64k keeps 34 GB, Dream-7B, whose heads share keys, 4 GB."""
    length, caches = 65_664, [NO_CACHE, NO_CACHE, ResolvedCache("dual"), ResolvedCache("refresh", 8)]
    one = 2 * 32 * 32 * 128 * length * 2
    dream = replace(EIGHT_BILLION, layers=28, heads=28, key_heads=4, head_dim=128)
    assert EIGHT_BILLION.kept(length) == one == pytest.approx(34.4e9, rel=0.01)
    assert dream.kept(length) == pytest.approx(3.77e9, rel=0.01)
    assert replace(EIGHT_BILLION, processes=4).kept(length, rows=2) == one // 2
    given = {"length": length, "steps": 64, "gen_length": 64}
    plain, kept = (
        lanes_of([FULL_ATTENTION, SparseDConfig(), FULL_ATTENTION, SparseDConfig()], some)
        for some in ([NO_CACHE] * 4, caches)
    )
    for devices, stores in ((1, 2), (2, 2), (3, 2), (4, 1)):
        without, found = (
            estimate(EIGHT_BILLION, Speed(4e-5, 4e-8), lanes=some, devices=devices, **given) for some in (plain, kept)
        )
        assert found.memory - without.memory == found.kept == stores * one and without.kept == 0


def test_the_sentence_that_says_no_tells_what_caches_keep() -> None:
    estimated = Estimate({"dense": 1.0, "sparse": 1.0}, 40 * GIB, kept=32 * GIB)
    said = refusal(estimated, Limits(memory=42 * GIB), length=65_664, steps=64)
    assert said == (
        "65,664 tokens would need about 40.0 GiB of memory beside the model, 32.0 GiB of it for what caches keep; 42.0 "
        "GiB are free here. Choose a shorter prompt length, or fewer lanes with a cache."
    )
    assert "cache" not in (refusal(replace(estimated, kept=0), Limits(memory=GIB), length=65_664, steps=64) or "cache")


def test_guidance_costs_twice() -> None:
    once, twice = (
        estimate(MINI, Speed(4e-5, 4e-8), lanes=lanes(14), length=4096, steps=64, rows=rows) for rows in (1, 2)
    )
    assert twice.seconds == pytest.approx(2 * once.seconds)


def test_a_third_lane_costs_its_time_and_its_pattern() -> None:
    given = {"length": 16_448, "steps": 64}
    two, three = (
        estimate(MINI, Speed(4e-5, 4e-8), lanes=lanes(14, third=third), **given) for third in (None, "random")
    )
    assert three.seconds == pytest.approx(two.seconds + two.lanes["sparse"])
    assert three.lanes["baseline"] == three.lanes["sparse"] < three.lanes["dense"] == two.lanes["dense"]
    # Six layers of four heads keep block indices of four bytes for 129 query blocks, three of ten.
    assert three.memory == pytest.approx(two.memory + 0.3 * 6 * 4 * 129 * 129 * 4, abs=1)
    between = Limits(max_seconds=(two.seconds + three.seconds) / 2)
    assert refusal(two, between, length=16_448, steps=64) is None
    sentence = refusal(three, between, length=16_448, steps=64)
    assert sentence is not None and ", or fewer lanes" in sentence
    assert "fewer lanes" not in (refusal(two, Limits(max_seconds=60), length=16_448, steps=64) or "fewer lanes")


def test_what_fits_is_not_refused() -> None:
    limits = Limits(max_seconds=3600, memory=8 * GIB)
    assert refusal(estimated(14), limits, length=16_448, steps=64) is None
    assert reason(estimated(14), limits, length=16_448) == ""
    assert refusal(None, limits, length=16_448, steps=64) is None


@pytest.mark.parametrize(
    ("limits", "length", "knobs"),
    [
        (
            Limits(max_seconds=600),
            16_448,
            ["16,448 tokens", "shorter prompt length", "steps or fewer", "10 min"],
        ),
        (Limits(max_seconds=10), 16_448, ["shorter prompt length", "SPARSED_MAX_MINUTES"]),
        (Limits(memory=GIB // 4), 16_448, ["GiB", "shorter prompt length"]),
        (Limits(max_tokens=1000), 16_448, ["16,448 tokens", "1,000", "shorter prompt length"]),
    ],
)
def test_a_refusal_names_the_limit_and_the_knob(limits: Limits, length: int, knobs: list[str]) -> None:
    sentence = refusal(estimated(14, length=length), limits, length=length, steps=64)
    assert sentence is not None and all(knob in sentence for knob in knobs)
    assert reason(estimated(14, length=length), limits, length=length)


def test_the_number_of_steps_that_a_refusal_offers_would_be_accepted() -> None:
    limits = Limits(max_seconds=600)
    sentence = refusal(estimated(14), limits, length=16_448, steps=64) or ""
    steps = int(sentence.split(" steps or fewer")[0].split()[-1])
    shorter = estimate(MINI, Speed(4e-5, 4e-8), lanes=lanes(None), length=16_448, steps=steps)
    assert shorter.seconds < 1.5 * 600


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "under 1 s"), (8.2, "about 8 s"), (9.7, "about 10 s"), (57, "about 55 s"), (58, "about 1 min"),
        (130, "about 2 min"), (1290, "about 20 min"), (3600, "about 1 h"), (5100, "about 1 h 25 min"),
    ],
)  # fmt: skip
def test_rough_times(seconds: float, words: str) -> None:
    assert about(seconds) == words
    assert seconds < 1 or span(seconds) == words.removeprefix("about ")


def test_limits_come_from_the_environment() -> None:
    limits = Limits.here({"SPARSED_MAX_MINUTES": "2.5", "SPARSED_MAX_TOKENS": "5000"})
    assert limits.max_seconds == 150 and limits.max_tokens == 5000
    assert Limits.here({}).max_seconds == 3600


def test_where_strangers_come_runs_are_shorter() -> None:
    assert not Limits.here({}).public
    assert Limits.here({"SPACE_ID": "owner/name"}) == Limits(max_seconds=300, public=True)
    assert Limits.here({"SPARSED_PUBLIC": "1"}) == Limits(max_seconds=300, public=True)
    assert Limits.here({"SPACE_ID": "owner/name", "SPARSED_PUBLIC": "0"}) == Limits()
    borrowed = {"SPACE_ID": "owner/name", "SPACES_ZERO_GPU": "true"}
    assert Limits.here(borrowed).max_seconds == 120
    assert Limits.here({**borrowed, "SPARSED_MAX_MINUTES": "3"}).max_seconds == 180
    assert Limits.here({"SPARSED_MAX_WAITING": "7"}).max_waiting == 7
    strangers = refusal(estimated(14), Limits(max_seconds=10, public=True), length=16_448, steps=64) or ""
    assert "Choose a shorter prompt length" in strangers and "SPARSED" not in strangers


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SPARSED_MAX_WAITING", "0", "from 1 to 1,000,000"),
        ("SPARSED_PUBLIC", "yes", "from 0 to 1"),
        ("SPARSED_PUBLIC", "nan", "from 0 to 1"),
        ("SPARSED_MAX_TOKENS", "12", "from 64 to 1,000,000,000"),
    ],
)
def test_a_variable_out_of_its_range_is_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is '{value}'; it must be a number {says}"):
        Limits.here({name: value})


def test_a_run_is_ended_well_after_its_estimate_and_never_late() -> None:
    limits = Limits(max_seconds=600)
    for seconds, most in ((1.0, 61.0), (20.0, 80.0), (30.0, 90.0), (100.0, 300.0), (500.0, 1200.0)):
        assert limits.announced(Estimate({"dense": seconds / 2, "sparse": seconds / 2}, 0)) == most
    assert limits.announced(None) == 1200


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="SPARSED_MAX_MINUTES is"):
        Limits.here({"SPARSED_MAX_MINUTES": value})


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # Blocks of this size stay with the library when they are freed, as long as something lies above them.
    blocks = [b"x" * (60_000 + number % 7) for number in range(2000)]
    above = b"x" * 60_000
    del blocks
    before = resident()
    give_back()
    assert before - resident() > 60_000_000 and len(above) == 60_000


def test_free_memory_is_known_on_this_kind_of_system() -> None:
    free = device_memory("cpu")
    assert free is None or free > 2**20


# ---- lanes with devices of their own -----------------------------------------------------------------------


def test_what_runs_at_the_same_time_takes_as_long_as_the_longest() -> None:
    assert [together((5.0, 3.0, 4.0), devices) for devices in (1, 2, 3)] == [12.0, 7.0, 5.0]
    assert [together((5.0, 3.0), devices) for devices in (1, 2, 3)] == [8.0, 5.0, 5.0]


def test_a_race_on_two_devices_is_as_long_as_its_longest_lane() -> None:
    given = {"lanes": lanes(14), "length": 16_448, "steps": 64}
    one, two = (estimate(MINI, Speed(4e-5, 4e-8), **given, devices=devices) for devices in (1, 2))
    assert one.seconds == one.lanes["dense"] + one.lanes["sparse"]
    assert two.seconds == two.lanes["dense"] == one.lanes["dense"] and two.lanes["sparse"] == one.lanes["sparse"]
    assert two.memory == one.memory
    # The limits and the watchdog follow.
    between = Limits(max_seconds=(one.seconds + two.seconds) / 2)
    assert refusal(two, between, length=16_448, steps=64) is None
    assert refusal(one, between, length=16_448, steps=64) is not None
    assert Limits().announced(two) == 3 * two.seconds < Limits().announced(one)


def test_a_lane_with_a_cache_costs_the_rows_that_it_computes() -> None:
    speed, length = Speed(1e-4, 1e-7), 1096
    given = {"length": length, "steps": 48, "blocks": 3, "gen_length": 96}
    attention = SparseDConfig(select=0.4, block_size=32)
    plain = estimate(MINI, speed, lanes=lanes_for(attention), **given)
    found = estimate(MINI, speed, lanes=lanes_for(attention, ["dense+dual", "sparsed+dual", "dense+refresh"]), **given)
    slow = dict.fromkeys(found.lanes, 0.0)
    for step in range(48):
        full = step % 16 == 0
        # Fast-dLLM: all rows where a block begins, then the block's; of SparseD the second block's first step selects,
        # and the third one's has the pattern.
        more = {0: 0.0, 16: 2.0, 32: 1.25 * 0.4 - 1}.get(step, 0.0)
        for key, rows, pairs in (
            ("dense+dual", length if full else 32, 0.0), ("sparsed+dual", length if full else 32, more),
            ("dense+refresh", length if step % 8 == 0 else 96, 0.0),
        ):  # fmt: skip
            slow[key] += 1e-4 * rows + 1e-7 * rows * length + 1e-7 * pairs * length**2
    for key in ("dense+dual", "sparsed+dual", "dense+refresh"):
        assert found.lanes[key] == pytest.approx(slow[key])
    assert {key: found.lanes[key] for key in plain.lanes} == plain.lanes


def test_a_third_lane_shares_the_second_device_or_has_the_third() -> None:
    given = {"lanes": lanes(14, third="random"), "length": 16_448, "steps": 64}
    one, two, three = (estimate(MINI, Speed(4e-5, 4e-8), **given, devices=devices) for devices in (1, 2, 3))
    assert two.seconds == two.lanes["sparse"] + two.lanes["baseline"] > two.lanes["dense"]
    assert three.seconds == three.lanes["dense"]
    # With a device of its own a lane's pattern is alone there.
    assert one.memory == two.memory == pytest.approx(three.memory + 0.3 * 6 * 4 * 129 * 129 * 4, abs=1)


@pytest.mark.parametrize(("value", "turns"), [(None, False), ("", False), (" auto ", False), ("turns", True)])
def test_lanes_can_be_told_to_take_turns(value: str | None, turns: bool) -> None:
    assert lanes_take_turns({} if value is None else {"SPARSED_LANES": value}) is turns


@pytest.mark.parametrize("value", ["2", "Turns", "yes", "x" * 100])
def test_another_word_is_refused_in_one_sentence(value: str) -> None:
    with pytest.raises(ValueError, match=r"^SPARSED_LANES is '.{1,40}'; it must be 'auto' or 'turns'\.$"):
        lanes_take_turns({"SPARSED_LANES": value})
