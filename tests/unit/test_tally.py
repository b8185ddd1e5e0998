"""What several questions add up to, against a slow count of its own."""

from __future__ import annotations

import json
import math

import pytest

from app.lanes import lanes_for
from app.series.tally import FEWEST_PAIRED, Answered, answered, rows
from sparsed.config import SparseDConfig

LANES = lanes_for(SparseDConfig(), ["sliding_window"])
# Which lanes were right, question by question.
RIGHT = [(1, 1, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1), (1, 1, 0), (0, 0, 0), (1, 1, 1)]


def of(right: tuple[int, ...], seconds: tuple[float, ...] = (3.0, 2.0, 1.0), never: bool = False) -> Answered:
    keys = [lane.key for lane in LANES]
    never_sparse = {key: never and key != "dense" for key in keys}
    return Answered(dict(zip(keys, map(bool, right))), dict(zip(keys, seconds)), never_sparse)


def bounds(right: int, count: int) -> tuple[float, float]:
    """The shares p from which the share that was seen is 1.96 standard errors away, by bisection."""

    def away(p: float) -> float:
        return abs(right / count - p) - 1.96 * math.sqrt(p * (1 - p) / count)

    def crossing(inside: float, outside: float) -> float:
        if away(outside) <= 0:
            return outside
        for _ in range(80):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if away(middle) > 0 else (middle, outside)
        return inside

    return crossing(right / count, 0.0), crossing(right / count, 1.0)


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_each_lane_has_its_right_answers_their_interval_and_its_seconds(count: int) -> None:
    questions = [of(right, (3.0 + number, 2.0, 1.0)) for number, right in enumerate(RIGHT[:count])]
    made = rows(LANES, questions)
    json.dumps(made, allow_nan=False)
    assert [row["label"] for row in made] == ["Full attention", "SparseD", "Sliding window"]
    assert [row["full"] for row in made] == [True, False, False]
    for place, row in enumerate(made):
        assert (row["right"], row["questions"]) == (sum(right[place] for right in RIGHT[:count]), count)
        low, high = bounds(row["right"], count)
        assert row["interval"] == pytest.approx([low, high], abs=1e-6)
        assert row["range"] == f"{100 * low:.0f}–{100 * high:.0f}\u00a0%"
    whole = sum(3.0 + number for number in range(count))
    assert [row["seconds"] for row in made] == [f"{whole / count:.2f} s", "2.00 s", "1.00 s"]
    assert [row["gain"] and row["gain"]["text"] for row in made] == [
        None, f"{whole / (2 * count):.2f}×", f"{whole / count:.2f}×",
    ]  # fmt: skip
    # A difference is told of five questions or more, by question.
    assert [row["difference"] is None for row in made] == [True, count < FEWEST_PAIRED, count < FEWEST_PAIRED]


def test_the_difference_is_paired_by_question() -> None:
    made = {row["key"]: row["difference"] for row in rows(LANES, [of(right) for right in RIGHT])}
    # Six and six of eight, of which one is right with one lane alone each; the window has three fewer.
    assert made["sparse"]["text"] == "0 points"
    won = sum(window > dense for dense, _, window in RIGHT)
    lost = sum(window < dense for dense, _, window in RIGHT)
    assert (won, lost) == (1, 4) and made["baseline"]["text"] == "−38 points"
    # Bonett and Price (2012): the normal interval after one more question of either kind.
    p, q, n = (won + 1) / 10, (lost + 1) / 10, 10
    spread = 1.96 * math.sqrt((p + q - (p - q) ** 2) / n)
    low, high = (round(100 * (p - q + sign * spread)) for sign in (-1, 1))
    assert made["baseline"]["range"] == f"−{-low} … {'+' if high > 0 else ''}{high}".replace("-", "−")
    better = rows(LANES, [of((0, 1, 0))] * 5)[1]["difference"]
    assert better["text"] == "+100 points" and better["range"].endswith("+100")


def test_equal_times_are_called_equal_and_a_lane_that_was_never_sparse_has_no_factor() -> None:
    same = rows(LANES, [of((1, 1, 1), (2.0, 1.95, 2.4))] * 2)
    assert [row["gain"] and row["gain"]["words"] for row in same] == [None, "about the same speed", "slower"]
    never = rows(LANES, [of((1, 1, 1), never=True)] * 2)
    assert [row["gain"] for row in never] == [None] * 3 and [row["never_sparse"] for row in never] == [0, 2, 2]
    some = rows(LANES, [of((1, 1, 1), never=True), of((1, 1, 1))])
    assert some[1]["gain"]["text"] == "1.50×" and some[1]["never_sparse"] == 1


def test_before_the_first_question_there_are_no_numbers() -> None:
    for row in rows(LANES, []):
        assert (row["right"], row["questions"], row["interval"], row["seconds"]) == (0, 0, [0.0, 1.0], None)
        assert row["gain"] is row["difference"] is None


def test_only_a_race_that_all_lanes_have_ended_counts() -> None:
    def stage(state: str, right: bool | None) -> dict[str, object]:
        lane = {"key": "dense", "right": right, "seconds": 2.5, "never_sparse": False}
        return {"state": state, "lanes": [lane, {**lane, "key": "sparse", "right": False}]}

    assert answered(stage("stopped", True)) is None and answered(stage("done", None)) is None
    assert answered(stage("done", True)) == Answered(
        {"dense": True, "sparse": False}, {"dense": 2.5, "sparse": 2.5}, {"dense": False, "sparse": False}
    )
