"""The table of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from app.engine import cost as cost_module
from app.engine.cost import Estimate, about
from app.engine.peak import LANES_WORDS, Peak
from app.figures import base
from app.figures.palette import LANES
from app.lanes import PAIR, LaneSpec
from app.lengths import paper as published
from app.texts import ALL_TOGETHER, BOTH_TOGETHER, IN_TURNS

# A lane, a row and a comparison as assets/page/lengths.js draws them; see `row_of` and `Table.value`.
Lane = dict[str, Any]
Row = dict[str, Any]
Comparison = dict[str, Any]
_PAIR = {lane.key for lane in PAIR}
_OF_A_LANE = ("seconds", "steps", "right", "verdict", "speedup", "agreement")
# A row that was not stopped and that nothing more will come of.
FINISHED = ("done", "refused", "failed")
# Beside the seconds of a lane of SparseD that were full attention's to the end.
NEVER = " · never sparse"
TIMES = {
    0.01: "0.01 s", 0.03: "0.03 s", 0.1: "0.1 s", 0.3: "0.3 s", 1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min",
    180: "3 min", 600: "10 min", 1800: "30 min", 3600: "1 h", 10_800: "3 h",
}  # fmt: skip


def done(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows whose races were run to their ends."""
    return tuple(row for row in rows if row["state"] == "done")


def lanes_in(rows: Iterable[Row]) -> tuple[Lane, ...]:
    """The lanes of a comparison, of which every row has the same; none where there is no row."""
    return next((tuple(row["lanes"]) for row in rows), ())


def of(row: Row, lane: Lane, what: str) -> Any:
    """A number of this lane's, see `row_of`."""
    return row[f"{lane['key']}_{what}"]


def lengths_in(count: int) -> str:
    return "1 length" if count == 1 else f"{count} lengths"


def is_shown(name: str) -> str:
    return name.replace("_", " ")


def row_of(
    name: str, budget: int, paper: published.Published | None, lanes: Sequence[LaneSpec] = PAIR
) -> Row:
    """A length before its race of these lanes.

    tokens: of the prompt, None before it is made; budget: the most it may have. state: "waiting", "preparing",
    "running", "done", "refused", "failed" or "stopped"; message: the same as a sentence. step, total: of all
    lanes together. lanes: what each is called, and its style; column: what its numbers stand below. The numbers of a
    race that is not done are None: of each lane (`of`) seconds, steps, speedup and agreement as in `app.race.snapshot`,
    right and verdict (also None where nobody knows the answer); SparseD's speedup and agreement once more; peak memory
    in bytes. infos: what each lane was (`sparsed.denoising.info.RunInfo` as JSON). never_sparse: SparseD's lane was
    full attention to its end, so that its seconds say nothing of SparseD; of each lane likewise.
    """
    figures = None
    if paper is not None:
        figures = {
            "dense_seconds": paper.dense,
            "sparse_seconds": paper.sparse,
            "ratio": round(paper.gain, 4),
            "text": f"{paper.gain:.2f}×",
        }
    return {
        "length": name,
        "name": is_shown(name),
        "budget": budget,
        "tokens": None,
        "state": "waiting",
        "message": "Waiting for its turn.",
        "step": 0,
        "total": 0,
        "lanes": [
            {
                "key": lane.key, "label": lane.label, "name": lane.name, "style": lane.style, "full": lane.full,
                "column": lane.method if lane.key in _PAIR else lane.label,
            }
            for lane in lanes
        ],
        **{f"{lane.key}_{what}": None for lane in lanes for what in _OF_A_LANE},
        **{f"{lane.key}_never_sparse": False for lane in lanes},
        "never_sparse": False,
        "speedup": None,
        "agreement": None,
        "memory": None,
        "published": figures,
        "notes": [],
        "infos": {},
    }


class Table:
    """The rows of one comparison, and how far all of it is."""

    def __init__(self, rows: Sequence[Row], label: str, question: str, paper: str) -> None:
        self.rows = {row["length"]: row for row in rows}
        self.label = label
        self.question = question
        self.paper = paper
        self.memory = ""
        self.costs: dict[str, tuple[Estimate | None, str]] | None = None
        self._shares = dict.fromkeys(self.rows, 0.0)
        self._modes: dict[str, dict[str, str] | None] = {}

    def take(self, name: str, stage: dict[str, Any], tokens: int | None, peak: Peak | None) -> None:
        """What a snapshot of this length's race says."""
        row = self.rows[name]
        lanes = {lane["key"]: lane for lane in stage["lanes"]}
        row["state"] = {"loading": "preparing", "waiting": "preparing"}.get(stage["state"], stage["state"])
        row["tokens"] = tokens
        row["step"] = sum(lane["step"] for lane in lanes.values())
        row["total"] = sum(lane["total"] for lane in lanes.values())
        row["notes"] = stage["notes"]
        row["message"] = stage["message"]
        if row["state"] == "running":
            every = "both" if len(lanes) == 2 else f"all {len(lanes)}"
            row["message"] = f"Step {row['step']} of {row['total']}, {every} lanes together."
        elif row["state"] == "stopped" and row["step"]:
            row["message"] = f"Stopped after {row['step']} of {row['total']} steps."
        elif row["state"] == "done":
            row["message"] = "Done."
            row["speedup"], row["agreement"] = stage["speedup"], stage["agreement"]
            for key, lane in lanes.items():
                row[f"{key}_seconds"], row[f"{key}_steps"] = lane["seconds"], lane["step"]
                row[f"{key}_agreement"] = lane["same"]
                for what in ("right", "verdict", "speedup", "never_sparse"):
                    row[f"{key}_{what}"] = lane[what]
            row["infos"] = {key: lane["info"] for key, lane in lanes.items()}
            row["never_sparse"] = row[f"{PAIR[1].key}_never_sparse"]
            row["memory"] = None if peak is None else peak.bytes
        # What is said of lanes with GPUs of their own is true of those that took turns as well.
        if peak is not None and self.memory != LANES_WORDS:
            self.memory = peak.words
        self._modes[name] = stage["mode"]
        self._shares[name] = self._share(name, lanes)

    def leave_out(self, after: str) -> None:
        """The rows that were not begun will not be any more. after: what came before them, in words."""
        for row in self.rows.values():
            if row["state"] == "waiting":
                row["state"], row["message"] = "stopped", after

    def _share(self, name: str, lanes: dict[str, dict[str, Any]]) -> float:
        """How much of a race is done, 0 … 1, by the time that each lane is expected to take still."""
        cost = (self.costs or {}).get(name, (None, ""))[0]
        seconds, devices = (cost.lanes, cost.devices) if cost else (dict.fromkeys(lanes, 1.0), 1)
        left = [(1 - lanes[key]["progress"]) * expected for key, expected in seconds.items()]
        whole = cost_module.together(tuple(seconds.values()), devices)
        return 1 - cost_module.together(left, devices) / whole if whole else 0.0

    def _weights(self) -> dict[str, float]:
        """Length → what it counts: the seconds it is expected to take, or its tokens where one of them is unknown."""
        seconds: dict[str, float] = {}
        for name, (cost, reason) in (self.costs or {}).items():
            if reason:
                seconds[name] = 0.0
            elif cost is not None:
                seconds[name] = cost.seconds
        if len(seconds) == len(self.rows) and sum(seconds.values()) > 0:
            return seconds
        return {name: float(row["budget"]) for name, row in self.rows.items()}

    def _progress(self) -> float:
        """How much of the whole is done, 0 … 1. Never goes back: what is over counts whole, however it ended."""
        weights = self._weights()
        whole = sum(weights.values())
        if not whole:
            return 0.0
        shares = {name: 1.0 if row["state"] in FINISHED else self._shares[name] for name, row in self.rows.items()}
        return sum(weights[name] * shares[name] for name in self.rows) / whole

    def _seconds(self) -> float | None:
        """What all races together are expected to take here; None where that is not known."""
        costs = self.costs or {}
        known = [cost.seconds for cost, reason in costs.values() if cost is not None and not reason]
        missing = sum(cost is None and not reason for cost, reason in costs.values())
        return sum(known) if known and not missing else None

    def _left(self, progress: float) -> str:
        """About how long it still takes: as expected, or by what the lengths so far took against that."""
        expected = self._seconds()
        if expected is None:
            return ""
        took, foreseen = 0.0, 0.0
        for row in done(self.rows.values()):
            cost = (self.costs or {})[row["length"]][0]
            if cost is not None:
                took += cost_module.together([row[f"{key}_seconds"] for key in cost.lanes], cost.devices)
                foreseen += cost.seconds
        factor = took / foreseen if took > 0 and foreseen > 0 else 1.0
        return f"{about(expected * factor * (1 - progress))} left"

    def _mode(self) -> str:
        """How the lanes of the races so far shared the machine, in a sentence; empty where none has begun."""
        modes = {name: mode["name"] for name, mode in self._modes.items() if mode is not None}
        together = [self.rows[name]["name"] for name, mode in modes.items() if mode == "together"]
        if not together:
            return IN_TURNS if modes else ""
        said = BOTH_TOGETHER if len(lanes_in(self.rows.values())) == 2 else ALL_TOGETHER
        if len(together) == len(modes):
            return said
        return f"{said[:-1]} at {', '.join(together)}; at the other lengths they take turns."

    def value(self, state: str, message: str) -> Comparison:
        """All of it as JSON, a new value each time.

        state: "idle", "running", "done", "stopped", "refused" or "failed". message: changes at turning points only.
        progress: 0 … 1, with progress_text beside it. estimate: what the whole was expected to take, in words.
        """
        progress = self._progress()
        expected = self._seconds()
        finished = sum(row["state"] in FINISHED for row in self.rows.values())
        parts = [f"{finished} of {lengths_in(len(self.rows))} done"]
        if state == "running":
            parts += [
                f"{row['name']}: {row['message'][0].lower()}{row['message'][1:].rstrip('.')}"
                for row in self.rows.values()
                if row["state"] in ("preparing", "running") and row["message"]
            ]
            if left := self._left(progress):
                parts.append(left)
        return {
            "state": state,
            "message": message,
            "label": self.label,
            "question": self.question,
            "progress": round(progress, 4),
            "progress_text": " · ".join(parts) if self.rows else "",
            "estimate": "" if expected is None else about(expected),
            "paper": self.paper,
            "memory": self.memory,
            "mode": self._mode(),
            "rows": [dict(row) for row in self.rows.values()],
        }


def times_of(seconds: Sequence[float]) -> base.Figure:
    """A logarithmic axis for these seconds, with marks that people know: 3 s, 1 min, 10 min."""
    low, high = 0.7 * max(1e-3, min(seconds)), 1.4 * max(1e-3, *seconds)
    marks = {mark: text for mark, text in TIMES.items() if low <= mark <= high}
    return {
        "type": "log",
        "range": [round(math.log10(low), 4), round(math.log10(high), 4)],
        "tickvals": list(marks),
        "ticktext": list(marks.values()),
    }


def seconds_of(rows: Sequence[Row], lane: Lane, **more: Any) -> base.Figure:
    """The seconds of one lane over the prompt length."""
    colour, dash, symbol = LANES[lane["style"] - 1]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": lane["label"],
        "x": [row["name"] for row in rows],
        "y": [of(row, lane, "seconds") for row in rows],
        "text": [f"{row['tokens']:,} tokens{NEVER if of(row, lane, 'never_sparse') else ''}" for row in rows],
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"symbol": symbol, "size": 9, "color": colour},
        "hovertemplate": "%{x} · %{text}<br>%{y:.2f} s<extra>%{fullData.name}</extra>",
        **more,
    }
