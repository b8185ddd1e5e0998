"""Scores of an evaluation: shares with Wilson intervals, and differences paired by question."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsed.config import CACHES, METHODS
from sparsed.evaluation.cost import executed_cost, length_of, work_of
from sparsed.evaluation.methods import parts_of, samples_apart
from sparsed.models.sizes import Sizes
from sparsed.questions.lengths import token_budget
from sparsed.runs import RunRecord, Tally, disagreements, notes_of, settings_of, unlike

SETTLED = 16_384
"""Means over lengths stop here: longer prompts are asked fewer questions."""


@dataclass(frozen=True)
class Answer:
    """An answer to one question of the grid, and how right it is; a line of records-*.jsonl.

    Attributes:
        type, kind: question type of the grid, and the question kind of `sparsed.questions`.
        length: of the prompt, as asked for.
        index: number of the question in its cell.
        method: "dense", or how the sparse steps attend; a cache follows a plus, settings of its own a colon
            (`sparsed.evaluation.methods`).
        exact: the answer is a gold answer.
        right, facts, invented: facts stated, facts asked for, sentences stated that are none of them.
        verdict: "yes" or "no", the gold answer of a comparison.
        depth: where the needed documents were to stand, 0 … 1; None if none is needed.
        agreement: share of tokens equal to the dense answer's, up to the longer answer's end; None for dense.
        seconds: the run's own compute, divided by the questions that ran together.
        tokens: ids of the answer, its end token included.
        text, gold, others: where the answer is wrong: it, the right one that it is nearest to, and what is right as
            well.
        prompt: the prompt's token ids in a few letters: the same for answers to the same prompt.
        run: what ran (`RunInfo.record`), for all questions that ran together.
        density: share of all pairs of their rows that its sparse steps computed; None for a run without one.
        head_rows: rows of logits that its steps asked for, all together.
        rows: positions that its steps computed, by phase, likewise. This, `head_rows`, `density`, `run` and `prompt`
            are None where an earlier version did not keep them.
    """

    type: str
    length: str
    index: int
    kind: str
    method: str
    exact: bool
    right: int
    facts: int
    invented: int
    verdict: str
    depth: float | None
    agreement: float | None
    seconds: float
    tokens: list[int]
    text: str | None = None
    gold: str | None = None
    prompt: str | None = None
    run: RunRecord | None = None
    density: float | None = None
    head_rows: int | None = None
    others: list[str] | None = None
    rows: dict[str, int] | None = None


@dataclass(frozen=True)
class Observation:
    """What the masks of one SparseD run looked like.

    Attributes:
        type, length, index: the question.
        heads: mean intersection over union of the masks of two different heads of a layer.
        later: [step from 0, mean intersection over union of the switch's mask and one selected at that step].
        run: as of an answer.
    """

    type: str
    length: str
    index: int
    heads: float
    later: list[list[float]]
    run: RunRecord | None = None


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a share, as (low, high) between 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / (1 + z * z / total)), min(1.0, (centre + spread) / (1 + z * z / total))


def paired(won: int, lost: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of the difference of two shares over the same `total` questions, of which the first method alone
    has `won` right and the second alone `lost`: Bonett and Price's (2012), the normal interval after one more question
    of each of the two kinds. Unlike the plain normal one it is not empty where no answer differs.
    """
    more, less = (won + 1) / (total + 2), (lost + 1) / (total + 2)
    spread = z * math.sqrt((more + less - (more - less) ** 2) / (total + 2))
    return max(-1.0, more - less - spread), min(1.0, more - less + spread)


def summarise(
    records: Sequence[Answer],
    observations: Sequence[Observation] = (),
    doubts: Sequence[str] = (),
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Scores of every method, as plain values for JSON. sizes: of the network, without which no cost is known.

    Returns a dict of lists of rows: "cells" by length and question type, "lengths" over the types (with their mean:
    `over_types`), "depths" by length and depth; "means", per method the mean over the lengths up to 16k of the paired
    differences to dense and of the token agreement; "observations" by length. See `_score` for a row. "settings": what
    ran, by length and method (`settings_of`); "notes": what the runs said (`notes_of`); "doubts": sentences about what
    these records do not say, those given and those that follow from the records.
    """
    ran = [({"length": r.length, "method": r.method}, r.run) for r in records]
    ran += [({"length": o.length, "method": "observed"}, o.run) for o in observations]
    settings = settings_of(ran)
    types = list(dict.fromkeys(record.type for record in records))
    # Dense, SparseD, the baselines; the settings of a method in the order in which they were asked.
    asked = sorted(dict.fromkeys(record.method for record in records), key=_place)

    def rows(*keys: str, only: Callable[[Answer], bool] = lambda _: True) -> list[dict[str, Any]]:
        groups: dict[tuple[Any, ...], list[Answer]] = defaultdict(list)
        for record in records:
            if only(record):
                groups[tuple(getattr(record, key) for key in keys)].append(record)
        scored = []
        for group, found in groups.items():
            dense = {(r.type, r.index): r for r in found if r.method == "dense"}
            for method in (m for m in asked if any(r.method == m for r in found)):
                own = [r for r in found if r.method == method]
                scored.append({**dict(zip(keys, group, strict=True)), "method": method, **_score(own, dense, sizes)})
        places: dict[str, Callable[[Any], Any]] = {"length": token_budget, "type": types.index, "depth": float}
        return sorted(scored, key=lambda row: [places[key](row[key]) for key in keys])

    cells = rows("length", "type")
    lengths = [
        {**row, **over_types([c for c in cells if all(c[key] == row[key] for key in ("length", "method"))])}
        for row in rows("length")
    ]
    means = {}
    for method in (m for m in asked if m != "dense"):
        own = [r for r in lengths if r["method"] == method and token_budget(r["length"]) <= SETTLED]
        known = [r for r in own if r["difference"] is not None]
        if known:
            agreeing = [r["agreement"] for r in known if r["agreement"] is not None]
            means[method] = {
                "lengths": [r["length"] for r in known],
                "difference": sum(r["difference"] for r in known) / len(known),
                "agreement": sum(agreeing) / len(agreeing) if agreeing else None,
            }
    return {
        "cells": cells,
        "lengths": lengths,
        "depths": rows("length", "depth", only=lambda r: r.depth is not None),
        "means": means,
        "observations": _observed(observations),
        "settings": settings,
        "notes": notes_of((place["method"], run) for place, run in ran),
        "doubts": [*doubts, *disagreements(settings, ("length", "method")), *_unpaired(records)],
    }


def over_types(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over question types, each counting alike, of one method's cells of one length: "types", how many;
    "mean_accuracy"; and the mean of the paired differences to dense with its 95 % interval, from those of the types,
    which are independent. None unless each type has one.
    """
    count = len(cells)
    found: dict[str, Any] = {
        "types": count,
        "mean_accuracy": sum(cell["accuracy"] for cell in cells) / count,
        "mean_difference": None,
        "mean_difference_interval": None,
    }
    if all(cell["difference"] is not None for cell in cells):
        bounds = [cell["difference_interval"] for cell in cells]
        middle = sum(low + high for low, high in bounds) / 2 / count
        spread = math.hypot(*(high - low for low, high in bounds)) / 2 / count
        found["mean_difference"] = sum(cell["difference"] for cell in cells) / count
        found["mean_difference_interval"] = middle - spread, middle + spread
    return found


def _place(method: str) -> tuple[int, int, bool]:
    attention, cache, own = parts_of(method)
    place = METHODS.index(attention) if attention in METHODS else len(METHODS)
    return place, CACHES.index(cache) if cache in CACHES else len(CACHES), bool(own)


def _score(records: Sequence[Answer], dense: Mapping[tuple[str, int], Answer], sizes: Sizes | None) -> dict[str, Any]:
    """Questions, right, accuracy with its interval (shares), facts right (share), invented sentences, seconds a
    question, yes/no as [right, asked]; for others than dense the paired difference in accuracy with its 95 % interval
    (`paired`) and the mean token agreement, over the questions that dense has answered too, in a run like it
    (`unlike_dense`). Of the runs that are known ("runs"): the mean of their forwards, the steps of all by phase, how
    many never were sparse, how many went back to full attention, and the mean share of all rows that their steps
    computed ("rows"). How fast: `_speed`.
    """
    right, total = sum(r.exact for r in records), len(records)
    runs = [r.run for r in records if r.run is not None]
    tally = Tally.of(runs)
    shares = [_share_of_rows(r.run, r.rows) for r in records if r.run is not None]
    row: dict[str, Any] = {
        "questions": total,
        "right": right,
        "accuracy": right / total,
        "interval": wilson(right, total),
        "facts_right": sum(r.right for r in records) / max(1, sum(r.facts for r in records)),
        "invented": sum(r.invented for r in records),
        "seconds": sum(r.seconds for r in records) / total,
        "difference": None,
        "difference_interval": None,
        "agreement": None,
        "runs": tally.known,
        "forwards": sum(run["forwards"] for run in runs) / len(runs) if runs else None,
        "phases": {phase: sum(run["phases"][phase] for run in runs) for phase in runs[0]["phases"]} if runs else None,
        "rows": sum(shares) / len(shares) if shares else None,
        "never_sparse": tally.never_sparse,
        "dense_again": tally.dense_again,
    }
    for verdict in ("yes", "no"):
        asked = [r for r in records if r.verdict == verdict]
        if asked:
            row[verdict] = [sum(r.exact for r in asked), len(asked)]
    besides = [(r, dense.get((r.type, r.index))) for r in records if r.method != "dense"]
    pairs = [int(r.exact) - int(d.exact) for r, d in besides if d is not None and not unlike_dense(r, d)]
    if pairs:
        won, lost = pairs.count(1), pairs.count(-1)
        row["difference"] = (won - lost) / len(pairs)
        row["difference_interval"] = paired(won, lost, len(pairs))
    known = [
        agreement
        for r, d in besides
        if (d is None or not unlike_dense(r, d)) and (agreement := _agreement(r, d)) is not None
    ]
    row["agreement"] = sum(known) / len(known) if known else None
    return row | _speed(records, dense, sizes)


def _speed(records: Sequence[Answer], dense: Mapping[tuple[str, int], Answer], sizes: Sizes | None) -> dict[str, Any]:
    """How fast one method's answers are, against full attention as the folder's sampler runs it, on the same questions.

    "density": mean share of the pairs that sparse steps computed. "cost": mean floating point operations of an answer
    (`executed_cost`); "speed": those of the dense answers ÷ those of these. "measured_speed": likewise in seconds of
    the steps, on one device and over runs of as many sequences as the dense one's: a batch makes each answer cheaper.
    Each None where it is not known.
    """
    densities = [r.density for r in records if r.density is not None]
    costs: list[tuple[float, float]] = []
    times: list[tuple[float, float]] = []
    for record in records:
        other = dense.get((record.type, record.index))
        if other is None or unlike_dense(record, other):
            continue
        one, two = _cost(other, sizes), _cost(record, sizes)
        if one is not None and two is not None:
            costs.append((one, two))
        if record.run is not None and other.run is not None and record.run["batch"] == other.run["batch"]:
            times.append((other.seconds, record.seconds))
    known = [cost for record in records if (cost := _cost(record, sizes)) is not None]
    return {
        "density": sum(densities) / len(densities) if densities else None,
        "cost": sum(known) / len(known) if known else None,
        "speed": _ratio(costs),
        "measured_speed": _ratio(times),
    }


def _cost(answer: Answer, sizes: Sizes | None) -> float | None:
    work = work_of(answer.run, answer.density, answer.head_rows, answer.rows)
    return None if sizes is None or work is None else executed_cost(sizes, work)


def _share_of_rows(run: RunRecord, rows: Mapping[str, int] | None) -> float:
    """Rows that the steps of a run computed, of all rows in each step: all, where an earlier version did not count."""
    return 1.0 if rows is None else sum(rows.values()) / (run["forwards"] * length_of(run))


def _ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The sum of the first ÷ the sum of the second ones."""
    below = sum(two for _, two in pairs)
    return sum(one for one, _ in pairs) / below if below else None


def _agreement(answer: Answer, dense: Answer | None) -> float | None:
    """The share of equal tokens that the answer keeps; where dense answered later, from the tokens of both.

    An answer's last token ends it, and stands for all that would follow.
    """
    if answer.agreement is not None or dense is None:
        return answer.agreement
    shorter, longer = sorted((answer.tokens, dense.tokens), key=len)
    padded = shorter + shorter[-1:] * (len(longer) - len(shorter))
    return sum(one == two for one, two in zip(longer, padded, strict=True)) / len(longer)


def unlike_dense(answer: Answer, dense: Answer) -> list[str]:
    """Why an answer cannot be compared with the dense one: the names of what was not the same.

    The dense one is of the method "dense": full attention as the folder's sampler runs it. A method with settings of
    the sampler of its own is compared with that one too, and has another sampler and other steps by its definition.
    """
    other = ["prompt"] if None not in (answer.prompt, dense.prompt) and answer.prompt != dense.prompt else []
    meant = ("sampler", "total") if samples_apart(answer.method) else ()
    return other + [name for name in unlike(answer.run, dense.run) if name not in meant]


def _unpaired(records: Sequence[Answer]) -> list[str]:
    """That answers are not compared with dense ones, and why."""
    dense = {(r.type, r.length, r.index): r for r in records if r.method == "dense"}
    why: Counter[str] = Counter()
    for r in records:
        beside = dense.get((r.type, r.length, r.index))
        if beside is not None and (names := unlike_dense(r, beside)):
            why[", ".join(names)] += 1
    return [
        f"Answers not compared with the dense ones, because of another {names}: {count}."
        for names, count in why.items()
    ]


def _observed(observations: Sequence[Observation]) -> list[dict[str, Any]]:
    """Per length: questions, mean overlap of two heads, mean overlap of the switch's mask and each later one's."""
    by_length: dict[str, list[Observation]] = defaultdict(list)
    for one in observations:
        by_length[one.length].append(one)
    rows = []
    for length, found in sorted(by_length.items(), key=lambda item: token_budget(item[0])):
        later: dict[float, list[float]] = defaultdict(list)
        for one in found:
            for step, overlap in one.later:
                later[step].append(overlap)
        rows.append(
            {
                "length": length,
                "questions": len(found),
                "heads": sum(one.heads for one in found) / len(found),
                "later": {int(step): sum(values) / len(values) for step, values in sorted(later.items())},
            }
        )
    return rows
