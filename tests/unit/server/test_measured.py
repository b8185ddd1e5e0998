"""Estimates learn from what a visit's runs took."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import pytest

from app.engine.cost import Estimate, Shape, Speed, estimate, lane_seconds
from app.race.fields import usual
from app.race.request import Request, parse
from app.server.measured import Measured
from app.server.models import Loaded
from sparsed.models.catalogue import MINI_DEFAULTS

LOADED = Loaded("mini", "", "", None, Shape(6, 256, 4, 64, 512, 9_000_000, 2), Speed(2e-5, 3e-8))  # type: ignore[arg-type]
TOKENS = 1024


def asked(tokens: int = TOKENS, **more: Any) -> Request:
    known: Any = {"defaults": MINI_DEFAULTS, "models": ["mini"], "kinds": ["about"], "lengths": ["1k"]}
    return parse(**usual("mini", "about", "1k") | more, **known).resolve(tokens)


def base(of: Request, tokens: int = TOKENS, loaded: Loaded = LOADED) -> Estimate:
    about: Any = {"blocks": of.blocks, "gen_length": of.gen_length}
    return estimate(loaded.shape, loaded.speed, lanes=of.lanes, length=tokens + of.gen_length, steps=of.steps, **about)  # type: ignore[arg-type]


def times(of: Request, factor: float, steps: int | None = None) -> dict[str, list[float]]:
    """Seconds of each step where every one takes so many times as long as expected."""
    length = TOKENS + of.gen_length
    return {
        lane.key: [
            factor * lane_seconds(lane, [step], LOADED.speed, length, of.gen_length)  # type: ignore[arg-type]
            for step in lane.plan(of.steps, of.blocks, of.gen_length)[:steps]
        ]
        for lane in of.lanes
    }


def test_after_runs_of_a_length_the_estimate_is_the_median_of_what_they_took() -> None:
    of, measured = asked(lanes=["sliding_window", "sparsed+refresh"]), Measured()
    before = base(of)
    assert measured.applied(before, LOADED, of, TOKENS) == before
    walls = []
    for factor in (1.5, 2.0, 9.0):  # the last time the machine was busy
        made = times(of, factor)
        walls.append(1.1 * sum(map(sum, made.values())))  # a tenth passes between the steps
        measured.learn(LOADED, of, TOKENS, made, walls[-1])
    learned = measured.applied(before, LOADED, of, TOKENS)
    assert learned is not None and learned.seconds == pytest.approx(median(walls)) and learned.memory == before.memory
    # The machine is taken for faster since; what its runs took stays.
    faster = replace(LOADED, speed=Speed(1e-5, 1.5e-8))
    again = measured.applied(base(of, loaded=faster), faster, of, TOKENS)
    assert again is not None and again.seconds == pytest.approx(median(walls))


def test_other_lengths_and_lanes_learn_too_and_other_models_do_not() -> None:
    of, measured = asked(), Measured()
    made = times(of, 3.0) | {"sparse": times(of, 2.0)["sparse"]}
    measured.learn(LOADED, of, TOKENS, made, sum(map(sum, made.values())))
    longer = asked(4096, lanes=["sliding_window"])
    before = base(longer, 4096)
    learned = measured.applied(before, LOADED, longer, 4096)
    assert learned is not None
    factors = {lane: learned.lanes[lane] / before.lanes[lane] for lane in learned.lanes}
    # Of a lane that has not run, all that is known of the model is taken.
    assert factors == pytest.approx({"dense": 3.0, "sparse": 2.0, "baseline": 2.5})
    assert measured.applied(before, replace(LOADED, name="other"), longer, 4096) == before


def test_a_run_that_was_stopped_tells_by_the_steps_that_it_made() -> None:
    of, measured = asked(), Measured()
    made = times(of, 2.0, steps=5)
    measured.learn(LOADED, of, TOKENS, made, sum(map(sum, made.values())))
    learned = measured.applied(base(of), LOADED, of, TOKENS)
    assert learned is not None and learned.seconds == pytest.approx(2 * base(of).seconds)
    measured.learn(LOADED, of, TOKENS, times(of, 50.0, steps=2), 1.0)  # too few
    assert measured.applied(base(of), LOADED, of, TOKENS) == learned
