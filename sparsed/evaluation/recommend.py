"""Which setting of attention, or of attention and cache, to recommend: the fastest that answers as well as full
attention does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sparsed.evaluation.methods import own_settings, parts_of, samples_apart
from sparsed.evaluation.scores import over_types
from sparsed.evaluation.tables import method_label

MEAN, TYPE = 0.01, 0.03
"""How far below full attention accuracy may be (shares): on the mean over question types, and on each type."""
TIE = 0.01
"""Settings whose speeds differ by no more than this share are as fast as each other."""
_ROUNDING = 1e-9

Interval = tuple[float, float]


@dataclass(frozen=True)
class Candidate:
    """A setting of attention at one prompt length, asked all the question types that full attention was asked.

    Attributes:
        method: its name.
        speed: cost of full attention ÷ its cost, as executed.
        difference: of its accuracy to full attention's, paired by question, mean over types, with its interval.
        types: type → (difference, interval), likewise.
        questions: of all types.
    """

    method: str
    speed: float
    difference: float
    interval: Interval
    types: Mapping[str, tuple[float, Interval]]
    questions: int

    @property
    def worst(self) -> str:
        """The type on which it loses most."""
        return min(self.types, key=lambda kind: self.types[kind][0])

    @property
    def qualifies(self) -> bool:
        """Within MEAN on the mean and within TYPE on each type, as measured."""
        near = all(difference >= -TYPE - _ROUNDING for difference, _ in self.types.values())
        return near and self.difference >= -MEAN - _ROUNDING

    @property
    def might_lose_more(self) -> list[str]:
        """What its intervals allow beyond that, in a few words each."""
        said = [f"{_points(self.interval[0])} on the mean"] if self.interval[0] < -MEAN - _ROUNDING else []
        return said + [
            f"{_points(interval[0])} on {kind}"
            for kind, (_, interval) in self.types.items()
            if interval[0] < -TYPE - _ROUNDING
        ]


def candidates(summary: Mapping[str, Any], length: str, caches: bool = False) -> list[Candidate]:
    """The settings of attention that can be judged at that length: those run with the folder's sampler, of known cost,
    and asked every type that full attention was asked. summary: of `summarise`. Baselines are judged like others.
    caches: those with a cache too. Else they are left out: what is recommended is a setting of SparseD's, and
    operations, which leave memory traffic out, flatter a step over few rows.
    """
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in summary["cells"]:
        if cell["length"] == length:
            cells.setdefault(cell["method"], {})[cell["type"]] = cell
    asked = cells.get("dense", {}).keys()
    found = []
    for row in summary["lengths"]:
        method, speed = row["method"], row.get("speed")
        if row["length"] != length or method == "dense" or samples_apart(method) or speed is None:
            continue
        if not caches and parts_of(method).cache != "none":
            continue
        own = cells[method]
        if own.keys() != asked or any(cell["difference"] is None for cell in own.values()):
            continue
        mean = over_types(list(own.values()))
        found.append(
            Candidate(
                method=method,
                speed=speed,
                difference=mean["mean_difference"],
                interval=mean["mean_difference_interval"],
                types={kind: (cell["difference"], cell["difference_interval"]) for kind, cell in own.items()},
                questions=sum(cell["questions"] for cell in own.values()),
            )
        )
    return found


def most_asked(summary: Mapping[str, Any], lengths: Collection[str] | None = None) -> str:
    """The prompt length at which full attention was asked most questions; of these, or of all that it was asked at."""
    asked = {row["length"]: row["questions"] for row in summary["lengths"] if row["method"] == "dense"}
    return max(asked if lengths is None else lengths, key=lambda length: asked.get(length, 0))


def recommend(summary: Mapping[str, Any], length: str, caches: bool = False) -> Candidate | None:
    """The fastest setting, by executed cost at that length, within 1 point of full attention on the mean and within 3
    on every question type, by paired differences as measured; None where none qualifies.

    Of those as fast (`TIE`): the most accurate on the mean, then on its worst type, then the one with fewest settings
    of its own. caches: as for `candidates`.
    """
    fit = [one for one in candidates(summary, length, caches) if one.qualifies]
    if not fit:
        return None
    fastest = max(one.speed for one in fit)

    def rank(one: Candidate) -> tuple[float, float, int, str]:
        return -one.difference, -one.types[one.worst][0], len(own_settings(one.method)), one.method

    return min((one for one in fit if one.speed >= fastest * (1 - TIE)), key=rank)


def recommended(summary: Mapping[str, Any], caches: bool = False) -> list[str]:
    """A sentence for each length: what `recommend` finds, how sure it is, or why there is nothing."""
    lengths = dict.fromkeys(row["length"] for row in summary["lengths"])
    return [_sentence(summary, length, caches) for length in lengths]


def _sentence(summary: Mapping[str, Any], length: str, caches: bool) -> str:
    best, judged = recommend(summary, length, caches), candidates(summary, length, caches)
    where = f"{length}, caches included" if caches else length
    if not judged:
        return (
            f"Recommended at {where}: nothing, because no setting can be judged there: it takes full attention, and "
            f"another setting asked the same question types, both of known cost."
        )
    if best is None:
        near = max(judged, key=lambda one: one.difference)
        return (
            f"Recommended at {where}: nothing, because none of {len(judged)} settings is within "
            f"{100 * MEAN:g} point of full attention on the mean and within {100 * TYPE:g} on every question type; "
            f"nearest: {method_label(near.method)} ({_points(near.difference)} on the mean, "
            f"{_points(near.types[near.worst][0])} on {near.worst})."
        )
    full = over_types([c for c in summary["cells"] if (c["length"], c["method"]) == (length, "dense")])
    more = best.might_lose_more
    sure = f"the intervals allow {', '.join(more)}" if more else "the intervals allow no more than the rule does"
    low, high = best.interval
    return (
        f"Recommended at {where}: {method_label(best.method)}, {best.speed:.2f}× by executed cost, "
        f"{_points(best.difference)} ({100 * low:+.1f} … {100 * high:+.1f}) points to full attention "
        f"({100 * full['mean_accuracy']:.1f} % right) on the mean of {len(best.types)} question types, "
        f"{_points(best.types[best.worst][0])} on the worst ({best.worst}), over {best.questions} questions; {sure}. "
        f"Judged: {len(judged)} settings."
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
