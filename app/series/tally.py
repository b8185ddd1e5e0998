"""What several questions add up to: of each lane right answers, seconds, and the difference to full attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.lanes import LaneSpec, reference
from app.phrases import PERCENT, clock, gain, points
from app.race.lane_view import Snapshot
from sparsed.evaluation.scores import paired, wilson

# Of fewer questions a difference between two lanes says nothing.
FEWEST_PAIRED = 5


@dataclass(frozen=True)
class Answered:
    """One question that every lane has answered; each by the lane's key."""

    right: Mapping[str, bool]
    seconds: Mapping[str, float]  # of the lane's own compute
    never_sparse: Mapping[str, bool]


def answered(stage: Snapshot) -> Answered | None:
    """What a race's last snapshot says; None where it did not reach its end, or nobody knows what is right."""
    lanes = {lane["key"]: lane for lane in stage["lanes"]}
    right = {key: lane["right"] for key, lane in lanes.items()}
    if stage["state"] != "done" or None in right.values():
        return None
    return Answered(
        right,
        {key: lane["seconds"] for key, lane in lanes.items()},
        {key: lane["never_sparse"] for key, lane in lanes.items()},
    )


def rows(lanes: Sequence[LaneSpec], questions: Sequence[Answered]) -> list[dict[str, Any]]:
    """A row of JSON for each lane.

    full: full attention, without a cache. right, questions: counts. interval: 95 % Wilson's of their share, 0 … 1, with
    `range` in words. seconds: the mean a question, in words; None before the first. gain: how many times faster than
    full attention all questions were together, as text and words. difference: to full attention, paired by question,
    as text with its 95 % interval (range); None of fewer than FEWEST_PAIRED. never_sparse: questions that the lane
    answered without ever being sparse. gain and difference are None for full attention.
    """
    first, count = reference(lanes), len(questions)
    made = []
    for lane in lanes:
        right = sum(one.right[lane.key] for one in questions)
        never = sum(one.never_sparse[lane.key] for one in questions)
        spent = sum(one.seconds[lane.key] for one in questions)
        low, high = wilson(right, count)
        row: dict[str, Any] = {
            "key": lane.key,
            "label": lane.label,
            "style": lane.style,
            "full": lane is first,
            "right": right,
            "questions": count,
            "interval": [low, high],
            "range": f"{100 * low:.0f}–{100 * high:.0f}{PERCENT}",
            "seconds": clock(spent / count) if count else None,
            "gain": None,
            "difference": None,
            "never_sparse": never,
        }
        if first is not None and lane is not first and count:
            if spent > 0 and never < count:
                text, words = gain(sum(one.seconds[first.key] for one in questions) / spent)
                row["gain"] = {"text": text, "words": words}
            if count >= FEWEST_PAIRED:
                row["difference"] = _difference(questions, lane.key, first.key)
        made.append(row)
    return made


def _difference(questions: Sequence[Answered], key: str, other: str) -> dict[str, str]:
    """How many points more a lane has right than the other, over the same questions."""
    won = sum(one.right[key] and not one.right[other] for one in questions)
    lost = sum(one.right[other] and not one.right[key] for one in questions)
    low, high = paired(won, lost, len(questions))
    return {
        "text": f"{points((won - lost) / len(questions), 0)} points",
        "range": f"{points(low, 0)} … {points(high, 0)}",
    }
