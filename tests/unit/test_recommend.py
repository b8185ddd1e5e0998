"""Which setting is recommended, on made-up summaries whose answer is plain."""

from __future__ import annotations

from typing import Any

import pytest

from sparsed.evaluation.recommend import candidates, recommend, recommended

HALF = 0.012  # of each interval
# Method → speed, and the difference to dense on each type.
Made = dict[str, tuple[float | None, dict[str, float | None]]]


def summary(made: Made, types: tuple[str, ...] = ("lookup", "chain4"), length: str = "4k") -> dict[str, Any]:
    cells, lengths = [], []
    for method, (speed, differences) in {"dense": (1.0, dict.fromkeys(types)), **made}.items():
        lengths.append({"length": length, "method": method, "speed": speed})
        for kind, difference in differences.items():
            interval = None if difference is None else (difference - HALF, difference + HALF)
            cells.append(
                {"length": length, "method": method, "type": kind, "questions": 200, "accuracy": 0.9,
                 "difference": difference, "difference_interval": interval}
            )  # fmt: skip
    return {"cells": cells, "lengths": lengths}


def both(one: float, two: float | None = None) -> dict[str, float | None]:
    return {"lookup": one, "chain4": one if two is None else two}


@pytest.mark.parametrize(
    ("made", "best"),
    [
        ({"sparsed": (1.5, both(0.0)), "sparsed:select=0.1": (2.5, both(-0.005))}, "sparsed:select=0.1"),
        # Within a point on the mean, more than three lost on one type; and the other way round.
        ({"sparsed": (1.5, both(0.0)), "sparsed:select=0.1": (2.5, both(0.031, -0.035))}, "sparsed"),
        ({"sparsed": (1.5, both(0.0)), "sparsed:select=0.1": (2.5, both(-0.015))}, "sparsed"),
        # The bounds themselves are within.
        ({"sparsed:select=0.1": (2.5, both(-0.01))}, "sparsed:select=0.1"),
        ({"sparsed:select=0.1": (2.5, both(0.01, -0.03))}, "sparsed:select=0.1"),
        ({"sparsed:select=0.1": (2.5, both(0.0102, -0.0302))}, None),
        # Slower than full attention, but it is what there is.
        ({"sparsed:block_size=32": (0.9, both(0.0))}, "sparsed:block_size=32"),
        # As fast as each other: the most accurate, then the better on its worst type, then the one said in fewest
        # settings, then by name.
        ({"sparsed:skip=0": (2.51, both(-0.005)), "sparsed:refresh=8": (2.5, both(0.0))}, "sparsed:refresh=8"),
        ({"sparsed:skip=0": (2.53, both(-0.005)), "sparsed:refresh=8": (2.5, both(0.0))}, "sparsed:skip=0"),
        ({"sparsed:skip=0": (2.5, both(0.02, -0.02)), "sparsed:refresh=8": (2.5, both(0.0))}, "sparsed:refresh=8"),
        ({"sparsed:skip=0.2": (2.5, both(0.0)), "sparsed": (2.5, both(0.0))}, "sparsed"),
        ({"sparsed:skip=0.2": (2.5, both(0.0)), "sparsed:select=0.3": (2.5, both(0.0))}, "sparsed:select=0.3"),
        # Not asked every type, no speed, no difference: not judged.
        ({"sparsed": (1.5, both(0.0)), "sparsed:skip=0": (9.0, {"lookup": 0.0})}, "sparsed"),
        ({"sparsed": (1.5, both(0.0)), "sparsed:skip=0": (None, both(0.0))}, "sparsed"),
        ({"sparsed": (1.5, both(0.0)), "sparsed:skip=0": (9.0, {"lookup": 0.0, "chain4": None})}, "sparsed"),
        # Another sampler is no setting of attention.
        ({"sparsed": (1.5, both(0.0)), "sparsed:threshold=0.9": (9.0, both(0.0))}, "sparsed"),
        ({"dense:steps=12": (4.0, both(0.0))}, None),
        ({"shared": (1.6, both(0.0)), "sparsed": (1.5, both(0.0))}, "shared"),
        ({"sparsed": (1.5, both(-0.2))}, None),
        ({}, None),
    ],
)
def test_the_fastest_within_the_bounds_is_recommended(made: Made, best: str | None) -> None:
    found = recommend(summary(made), "4k")
    assert (found and found.method) == best
    # The order in which methods were asked decides nothing.
    turned = recommend(summary(dict(reversed(made.items()))), "4k")
    assert turned == found
    (said,) = recommended(summary(made))
    assert said.startswith("Recommended at 4k: nothing, because" if best is None else "Recommended at 4k: ")


def test_caches_are_recommended_where_they_are_asked_for() -> None:
    speeds = {"sparsed": 1.5, "sparsed+dual:skip=0": 9.0, "dense+prefix": 4.0}
    made: Made = {method: (speed, both(0.0)) for method, speed in speeds.items()}
    plain, cached = recommend(summary(made), "4k"), recommend(summary(made), "4k", caches=True)
    assert plain is not None and plain.method == "sparsed"
    assert cached is not None and cached.method == "sparsed+dual:skip=0"
    assert [len(candidates(summary(made), "4k", caches)) for caches in (False, True)] == [1, 3]
    (said,) = recommended(summary(made), caches=True)
    assert said.startswith("Recommended at 4k, caches included: SparseD + Fast-dLLM, dual, skip 0, 9.00× by executed")


def test_each_length_is_judged_by_itself() -> None:
    one, two = summary({"sparsed": (1.2, both(0.0))}), summary({"sparsed": (1.4, both(-0.5))}, length="16k")
    whole = {name: one[name] + two[name] for name in one}
    assert recommend(whole, "4k") is not None and recommend(whole, "16k") is None and recommend(whole, "8k") is None
    assert [said[:18] for said in recommended(whole)] == ["Recommended at 4k:", "Recommended at 16k"]


def test_it_says_what_the_intervals_allow() -> None:
    sure = recommend(summary({"sparsed": (1.5, both(0.005))}), "4k")
    assert sure is not None and not sure.might_lose_more
    # The mean of two types of half-width 0.012 each has 0.012 / √2.
    assert sure.interval == (pytest.approx(0.005 - HALF / 2**0.5), pytest.approx(0.005 + HALF / 2**0.5))
    unsure = summary({"sparsed": (1.5, both(0.015, -0.025))})
    found = recommend(unsure, "4k")
    assert found is not None and found.worst == "chain4" and found.questions == 400
    assert found.might_lose_more == ["-1.3 on the mean", "-3.7 on chain4"]
    (said,) = recommended(unsure)
    assert "SparseD, 1.50× by executed cost, -0.5 (-1.3 … +0.3) points to full attention (90.0 % right) on" in said
    assert "-2.5 on the worst (chain4), over 400 questions; the intervals allow -1.3 on the mean, -3.7 on ch" in said
    assert "allow no more than the rule" in recommended(summary({"sparsed": (1.5, both(0.005))}))[0]


def test_nothing_to_recommend_is_said_with_its_reason() -> None:
    (said,) = recommended(summary({"sparsed": (1.5, both(-0.1, -0.3)), "sparsed:skip=0": (1.6, both(-0.5))}))
    assert "none of 2 settings is within 1 point" in said and "SparseD (-20.0 on the mean, -30.0 on chain4)" in said
    assert "no setting can be judged" in recommended(summary({}))[0]
    # A summary of an earlier version has no speeds.
    old = summary({"sparsed": (1.5, both(0.0))})
    for row in old["lengths"]:
        del row["speed"]
    assert candidates(old, "4k") == [] and "no setting can be judged" in recommended(old)[0]
