"""Lanes with a cache as tables in the terminal: how much faster each is, and why."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from sparsed.bench.numbers import CachedLane, FewRowSteps, Measurement
from sparsed.config import METHOD_LABELS

# Of more numbers of rows than so many, some are shown.
_SHOWN = 4


def print_cached(results: Sequence[Measurement]) -> None:
    """Nothing where no cache was asked for."""
    results = [result for result in results if result.cached]
    for steps in dict.fromkeys(lane.steps for result in results for lane in result.cached):
        print(f"\nSpeed-up over full attention of the same call, runs of {steps} steps:")
        _print(_speeds(results, steps))
    for result in results:
        print(f"\n{result.length}, {result.dtype}: lanes with a cache; steps over every row: dense / select / sparse")
        _print(_lanes(result))
        print(f"\n{result.length}, {result.dtype}: steps of fewer rows, milliseconds: median (quartiles)")
        _print(_few(result))
    if any(not lane.whole for result in results for lane in result.cached):
        print(
            "* put together: steps over every row count with the medians of such steps in the lanes without a cache; "
            "every step of fewer rows was made."
        )


def _speeds(results: Sequence[Measurement], steps: int) -> list[list[str]]:
    """Methods × measurements."""
    labels = list(dict.fromkeys(lane.label for result in results for lane in result.cached))
    rows = [["", *(f"{result.length}, {result.dtype}" for result in results)]]
    rows.append([METHOD_LABELS["sparsed"], *(_sparsed(result, steps) for result in results)])
    for label in labels:
        found = [[lane for lane in result.cached if (lane.label, lane.steps) == (label, steps)] for result in results]
        rows.append([label, *(_speed(lanes[0]) if lanes else "–" for lanes in found)])
    return rows


def _sparsed(result: Measurement, steps: int) -> str:
    if steps == result.steps:
        return f"{result.speedup:.2f}×"
    return next((f"{run.speedup:.2f}×" for run in result.composed if run.steps == steps), "–")


def _speed(lane: CachedLane) -> str:
    return f"{lane.speedup:.2f}×"


def _lanes(result: Measurement) -> list[list[str]]:
    """Lanes × quantities."""
    head = ["lane", "steps", "run s", "speed-up", "over the cache alone", "every row", "fewer rows", "rows computed"]
    rows = [[*head, "same tokens", "kept", "peak memory"]]
    alone = {(_cache(lane), lane.steps): lane for lane in result.cached if _dense(lane)}
    for lane in result.cached:
        same = alone.get((_cache(lane), lane.steps))
        rows.append(
            [
                lane.label,
                str(lane.steps),
                f"{statistics.median(lane.seconds):.2f}" + ("" if lane.whole else " *"),
                _speed(lane),
                "–" if same in (None, lane) else f"{lane.speedup / same.speedup:.2f}×",
                " / ".join(str(lane.phases.get(phase, 0)) for phase in ("dense", "select", "sparse")),
                str(lane.steps - sum(lane.phases.values())),
                f"{100 * lane.rows:.1f} %",
                "–" if lane.same_tokens is None else f"{100 * lane.same_tokens:.0f} %",
                f"{lane.kept / 2**30:.2f} GiB",
                "–" if lane.peak_memory is None else f"{lane.peak_memory / 2**30:.2f} GiB",
            ]
        )
    return rows


def _few(result: Measurement) -> list[list[str]]:
    """Steps of some rows × their times, in milliseconds."""
    rows = [["lane", "steps", "rows", "keys", "made", "step", "limit", "step / limit"]]
    for lane in result.cached:
        rows += [
            [
                lane.label,
                str(lane.steps),
                str(few.rows),
                f"{few.keys:.0f}",
                str(few.step.count),
                str(few.step),
                f"{few.limit:.3g}",
                f"{few.over_limit:.2f}×",
            ]
            for few in _shown(lane.few)
        ]
    return rows


def _cache(lane: CachedLane) -> object:
    return lane.run["cache"]["method"]


def _dense(lane: CachedLane) -> bool:
    return bool(lane.run["attention"]["method"] == "dense")


def _shown(few: Sequence[FewRowSteps]) -> list[FewRowSteps]:
    """All, or some of them from the fewest rows to the most."""
    if len(few) <= _SHOWN:
        return list(few)
    return [few[round(place * (len(few) - 1) / (_SHOWN - 1))] for place in range(_SHOWN)]


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]))
