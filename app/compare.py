"""The same race at several prompt lengths, one after another, as a stream of plain values; and their chart.

Every length is a race of its own with a place of its own in the line for the device: whoever waits is let in between
two lengths. Knows the desk and the session, not gradio.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app import charts, limits, published
from app.desk import Desk, Visit
from app.limits import Estimate
from app.peak import LANES_WORDS, Peak
from app.request import OWN_TEXT, Request, repeated
from app.session import Measured, Shown, perform
from app.stage import DENSE, SPARSE, clock
from app.words import BOTH_TOGETHER, IN_TURNS

# A row and a comparison as assets/page/lengths.js draws them; see `_row` and `_Table.value`.
Row = dict[str, Any]
Comparison = dict[str, Any]

MOST_PINS = 4
NOTHING_CHOSEN = "Choose at least one prompt length to compare."
OWN_HAS_ONE = "Your own text has one length only: choose one of the questions to compare prompt lengths."
BUSY = "A run of this page is going on: stop it, or wait for its end, before you compare."
NOT_BEGUN = "Not begun."
# A row that was not stopped and that nothing more will come of.
FINISHED = ("done", "refused", "failed")
TIMES = {
    0.01: "0.01 s", 0.03: "0.03 s", 0.1: "0.1 s", 0.3: "0.3 s", 1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min",
    180: "3 min", 600: "10 min", 1800: "30 min", 3600: "1 h", 10_800: "3 h",
}  # fmt: skip
# How each pinned comparison is marked: filled for SparseD, hollow for full attention.
PIN_SYMBOLS = ("square", "triangle-up", "star", "hexagon")


# ---- pins --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pin:
    """An earlier comparison that stays in the chart. rows: those that were done."""

    label: str
    rows: tuple[Row, ...]


def pin(pins: Sequence[Pin], comparison: Comparison | None) -> tuple[Pin, ...]:
    """The pins with this comparison as the newest; the oldest gives way beyond MOST_PINS.

    The same as before where nothing is done yet, or where it is pinned already.
    """
    rows = done(comparison["rows"]) if comparison else ()
    if comparison is None or not rows:
        return tuple(pins)
    new = Pin(comparison["label"], rows)
    if new in pins:
        return tuple(pins)
    return (*pins, new)[-MOST_PINS:]


def done(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows whose races were run to their ends."""
    return tuple(row for row in rows if row["state"] == "done")


def with_pins(comparison: Comparison | None, pins: Sequence[Pin]) -> Comparison:
    """What the view "comparison" draws: the comparison, or None before the first, and the pins below it."""
    shown = _Table((), "", "", "").value("idle", "") if comparison is None else comparison
    return {**shown, "pins": [{"label": one.label, "rows": list(one.rows)} for one in pins]}


# ---- beforehand --------------------------------------------------------------------------------------------


def foresee(desk: Desk, asked: Request, lengths: Sequence[str]) -> dict[str, tuple[Estimate | None, str]]:
    """Length → what its race of two lanes costs here (None: nobody knows), and in a few words why it will be refused,
    or "".
    """
    asked = replace(asked, third=None)
    loaded = desk.loaded(asked.model)
    if loaded is None:
        return dict.fromkeys(lengths, (None, ""))
    room, budgets = desk.room(loaded), desk.engine.lengths()
    found = {}
    for name in lengths:
        tokens = budgets[name]
        estimated = desk.estimate(loaded, asked.resolve(tokens), tokens)
        found[name] = estimated, limits.reason(estimated, room, length=tokens + asked.gen_length)
    return found


def outlook(desk: Desk, asked: Request, lengths: Sequence[str]) -> str:
    """What a comparison of these lengths will take, in a sentence or two, before it is begun."""
    if asked.kind == OWN_TEXT:
        return OWN_HAS_ONE
    chosen = _in_order(desk, lengths)
    if not chosen:
        return NOTHING_CHOSEN
    costs = foresee(desk, asked, chosen)
    refused = [f"{_shown(name)} ({reason})" for name, (_, reason) in costs.items() if reason]
    seconds = [cost.seconds for cost, reason in costs.values() if cost is not None and not reason]
    sentences = []
    if seconds:
        most = " at most" if asked.at_most else ""
        sentences.append(f"{_lengths(len(seconds))}: {limits.about(sum(seconds))} on this machine{most}.")
    elif not refused:
        sentences.append(f"{_lengths(len(chosen))}: how long that takes here is not known yet.")
    if refused:
        sentences.append(f"Too long here: {', '.join(refused)}.")
    return " ".join(sentences)


def label(desk: Desk, asked: Request) -> str:
    """What was compared, in a few words: model, steps, select, and whatever else is not as usual."""
    sampler, attention = asked.sampler, asked.attention
    parts = [
        desk.spec(asked.model).name,
        f"{'up to ' if asked.at_most else ''}{asked.steps} steps",
        "default select" if attention.select is None else f"select {attention.select:g}",
    ]
    if attention.skip is not None:
        parts.append(f"skip {attention.skip:g}")
    if attention.block_size is not None:
        parts.append(f"attention block {attention.block_size}")
    if sampler.threshold is not None:
        parts.append(f"threshold {sampler.threshold:g}")
    if sampler.cfg_scale:
        parts.append(f"CFG {sampler.cfg_scale:g}")
    if asked.backend != "auto":
        parts.append(asked.backend)
    return " · ".join(parts)


def _in_order(desk: Desk, lengths: Sequence[str]) -> list[str]:
    """The lengths once each, shortest first. Raises ValueError for one that does not exist."""
    budgets = desk.engine.lengths()
    for name in lengths if isinstance(lengths, (list, tuple)) else [lengths]:
        if not isinstance(name, str) or name not in budgets:
            raise ValueError(f"The prompt length {repeated(name)} is not one of {', '.join(budgets)}.")
    return sorted(set(lengths), key=lambda name: budgets[name])


def _lengths(count: int) -> str:
    return "1 length" if count == 1 else f"{count} lengths"


def _shown(name: str) -> str:
    return name.replace("_", " ")


# ---- the table ---------------------------------------------------------------------------------------------


def _row(name: str, budget: int, paper: published.Published | None) -> Row:
    """A length before its race.

    tokens: of the prompt, None before it is made; budget: the most it may have. state: "waiting", "preparing",
    "running", "done", "refused", "failed" or "stopped"; message: the same as a sentence. step, total: of both lanes
    together. The numbers of a race that is not done are None: seconds of each lane, speed-up and agreement as in
    `app.stage`, right and verdict (also None where nobody knows the answer), peak memory in bytes.
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
        "name": _shown(name),
        "budget": budget,
        "tokens": None,
        "state": "waiting",
        "message": "Waiting for its turn.",
        "step": 0,
        "total": 0,
        "dense_seconds": None,
        "sparse_seconds": None,
        "dense_steps": None,
        "sparse_steps": None,
        "speedup": None,
        "agreement": None,
        "dense_right": None,
        "sparse_right": None,
        "dense_verdict": None,
        "sparse_verdict": None,
        "memory": None,
        "published": figures,
        "notes": [],
    }


class _Table:
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
            row["message"] = f"Step {row['step']} of {row['total']}, both lanes together."
        elif row["state"] == "stopped" and row["step"]:
            row["message"] = f"Stopped after {row['step']} of {row['total']} steps."
        elif row["state"] == "done":
            row["message"] = "Done."
            row["speedup"], row["agreement"] = stage["speedup"], stage["agreement"]
            for key in (DENSE, SPARSE):
                row[f"{key}_seconds"] = lanes[key]["seconds"]
                row[f"{key}_steps"] = lanes[key]["step"]
                row[f"{key}_right"] = lanes[key]["right"]
                row[f"{key}_verdict"] = lanes[key]["verdict"]
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
        dense, sparse, devices = (cost.dense_seconds, cost.sparse_seconds, cost.devices) if cost else (1.0, 1.0, 1)
        left = ((1 - lanes[DENSE]["progress"]) * dense, (1 - lanes[SPARSE]["progress"]) * sparse)
        whole = limits.together((dense, sparse), devices)
        return 1 - limits.together(left, devices) / whole if whole else 0.0

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
                took += limits.together((row["dense_seconds"], row["sparse_seconds"]), cost.devices)
                foreseen += cost.seconds
        factor = took / foreseen if took > 0 and foreseen > 0 else 1.0
        return f"{limits.about(expected * factor * (1 - progress))} left"

    def _mode(self) -> str:
        """How the lanes of the races so far shared the machine, in a sentence; empty where none has begun."""
        modes = {name: mode["name"] for name, mode in self._modes.items() if mode is not None}
        together = [self.rows[name]["name"] for name, mode in modes.items() if mode == "together"]
        if not together:
            return IN_TURNS if modes else ""
        if len(together) == len(modes):
            return BOTH_TOGETHER
        return f"{BOTH_TOGETHER[:-1]} at {', '.join(together)}; at the other lengths they take turns."

    def value(self, state: str, message: str) -> Comparison:
        """All of it as JSON, a new value each time.

        state: "idle", "running", "done", "stopped", "refused" or "failed". message: changes at turning points only.
        progress: 0 … 1, with progress_text beside it. estimate: what the whole was expected to take, in words.
        """
        progress = self._progress()
        expected = self._seconds()
        finished = sum(row["state"] in FINISHED for row in self.rows.values())
        parts = [f"{finished} of {_lengths(len(self.rows))} done"]
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
            "estimate": "" if expected is None else limits.about(expected),
            "paper": self.paper,
            "memory": self.memory,
            "mode": self._mode(),
            "rows": [dict(row) for row in self.rows.values()],
        }


# ---- the races ---------------------------------------------------------------------------------------------


async def compare(desk: Desk, visit: Visit, asked: Request, lengths: Sequence[str]) -> AsyncGenerator[Comparison, None]:
    """Runs the race of `asked` at each of `lengths`, shortest first, and yields the table after every change.

    asked.length and a third lane are not looked at. A length that is refused or fails does not end the others. Ends
    within one step after `visit.stop()`, what is done staying in the table; closing the stream stops the race too, and
    frees the device. The last value is the only one whose state is not "running".
    """
    empty = _Table((), "", "", "")
    if asked.kind == OWN_TEXT:
        yield empty.value("refused", OWN_HAS_ONE)
        return
    try:
        chosen = _in_order(desk, lengths)
    except ValueError as error:
        yield empty.value("refused", str(error))
        return
    if not chosen or visit.running:
        yield empty.value("refused", BUSY if chosen else NOTHING_CHOSEN)
        return
    paper = published.source(desk.spec(asked.model).family)
    budgets = desk.engine.lengths()
    table = _Table(
        [_row(name, budgets[name], paper.runs.get(name)) for name in chosen],
        label(desk, asked),
        desk.engine.kinds().get(asked.kind, asked.kind),
        paper.words,
    )
    visit.stopping = False
    visit.running = True
    # Between two races, too, the model stays in memory.
    release = desk.hold(asked.model)
    try:
        yield table.value("running", f"Comparing {_lengths(len(chosen))}.")
        unloaded = ""
        for name in chosen:
            if visit.stopping or unloaded:
                break
            measured = Measured()
            message = f"{_shown(name)} is being run."
            stream = perform(desk, visit, replace(asked, length=name, third=None), measured, via="sweep")
            async with contextlib.aclosing(stream) as race:
                async for shown in race:
                    if table.costs is None and _ready(desk, asked, shown):
                        table.costs = foresee(desk, asked, chosen)
                    table.take(name, shown.stage, measured.tokens, measured.peak)
                    if not shown.over:
                        yield table.value("running", message)
            row = table.rows[name]
            if row["state"] == "failed":
                # An error holds what the engine had in its hands, and that may be all of the memory.
                gc.collect()
            if desk.loaded(asked.model) is None and row["state"] in ("refused", "failed"):
                unloaded = row["message"]
            if name != chosen[-1] and not visit.stopping and not unloaded:
                yield table.value("running", f"{_shown(name)}: {_outcome(row)}")
        if visit.stopping:
            table.leave_out(NOT_BEGUN)
            yield table.value("stopped", "Stopped. What was measured so far stays here.")
        elif unloaded:
            table.leave_out("The model could not be loaded.")
            yield table.value("failed", unloaded)
        else:
            yield table.value("done", _summary(table))
    finally:
        visit.running = False
        release()


def _ready(desk: Desk, asked: Request, shown: Shown) -> bool:
    """Is the model in memory, and this machine's speed measured?"""
    return not shown.loading and desk.loaded(asked.model) is not None and desk.under_way(asked.model) is None


def _outcome(row: Row) -> str:
    """How a length ended, in a few words or the sentence that says why."""
    if row["state"] != "done":
        return str(row["message"])
    if row["speedup"] is None:
        return "done."
    return f"SparseD was {row['speedup']['text']} {row['speedup']['words']}."


def _summary(table: _Table) -> str:
    good, all_of_them = len(done(table.rows.values())), len(table.rows)
    if good == all_of_them:
        return f"Done: {_lengths(good)} compared."
    return f"Done: {good} of {_lengths(all_of_them)} compared; the table says why the others were not."


# ---- the chart ---------------------------------------------------------------------------------------------


def chart(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> charts.Figure:
    """Seconds of both lanes over the prompt length, and below the speed-up beside the published one.

    Shows the rows that are done; `pinned` ones with marks of their own. Published speed-ups stand at every length asked
    for.
    """
    current = done(rows)
    if not current and not any(one.rows for one in pinned):
        return charts.empty("The seconds at each prompt length appear here when the first race is done.")
    every = [row for one in pinned for row in one.rows]
    budgets = {row["name"]: row["budget"] for row in (*every, *rows)}
    data: list[charts.Figure] = []
    for number, one in enumerate(pinned):
        data += _pinned(one, number)
    for lane in (DENSE, SPARSE):
        dash, symbol = charts.STYLES[lane]
        data.append(_seconds(current, lane, dash, symbol))
    data.append(_gains(current))
    data.append(_paper([*rows, *every]))
    gains = [row["speedup"]["ratio"] for row in (*current, *every) if row["speedup"]]
    gains += [row["published"]["ratio"] for row in (*rows, *every) if row["published"]]
    low, high = min([0.95, *gains]), max([1.05, *gains])
    room = 0.3 * (high - low)
    every_time = [row[f"{lane}_seconds"] for row in (*current, *every) for lane in (DENSE, SPARSE)]
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": charts.base_layout(
            xaxis={
                "title": {"text": "prompt length"},
                "type": "category",
                "categoryorder": "array",
                "categoryarray": sorted(budgets, key=lambda name: budgets[name]),
                "range": [-0.5, len(budgets) - 0.5],
                "anchor": "y2",
                "showgrid": False,
            },
            yaxis={"title": {"text": "time (log scale)"}, "domain": [0.46, 1], **_times(every_time)},
            yaxis2={
                "title": {"text": "speed-up"},
                "range": [low - room, high + room],
                "domain": [0, 0.36],
                "ticksuffix": "×",
                "nticks": 5,
            },
            shapes=[
                {
                    "type": "line",
                    "name": "as fast",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "yref": "y2",
                    "y0": 1,
                    "y1": 1,
                    "line": {"color": charts.MUTED, "width": 1, "dash": "dot"},
                }
            ],
            showlegend=True,
            legend=charts.LEGEND_ABOVE,
            margin={"l": 60, "r": 14, "t": 62, "b": 52},
            hovermode="closest",
        ),
    }


def _times(seconds: Sequence[float]) -> charts.Figure:
    """A logarithmic axis for these seconds, with marks that people know: 3 s, 1 min, 10 min."""
    low, high = 0.7 * max(1e-3, min(seconds)), 1.4 * max(1e-3, *seconds)
    marks = {mark: text for mark, text in TIMES.items() if low <= mark <= high}
    return {
        "type": "log",
        "range": [round(math.log10(low), 4), round(math.log10(high), 4)],
        "tickvals": list(marks),
        "ticktext": list(marks.values()),
    }


def _seconds(rows: Sequence[Row], lane: str, dash: str, symbol: str, **more: Any) -> charts.Figure:
    """The seconds of one lane over the prompt length."""
    colour = charts.COLOURS[lane]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": charts.LABELS[lane],
        "x": [row["name"] for row in rows],
        "y": [row[f"{lane}_seconds"] for row in rows],
        "text": [f"{row['tokens']:,} tokens" for row in rows],
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"symbol": symbol, "size": 9, "color": colour},
        "hovertemplate": "%{x} · %{text}<br>%{y:.2f} s<extra>%{fullData.name}</extra>",
        **more,
    }


def _gains(rows: Sequence[Row], **more: Any) -> charts.Figure:
    """The measured speed-up over the prompt length; nothing where a run never became sparse."""
    sparse = [row for row in rows if row["speedup"]]
    colour = charts.COLOURS[SPARSE]
    return {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": "speed-up here",
        "x": [row["name"] for row in sparse],
        "y": [row["speedup"]["ratio"] for row in sparse],
        "text": [f"{row['speedup']['ratio']:.2f}×" for row in sparse],
        "textposition": [f"{'top' if row['speedup']['ratio'] >= 1 else 'bottom'} center" for row in sparse],
        "textfont": {"color": charts.INK, "size": 12},
        "cliponaxis": False,
        "yaxis": "y2",
        "line": {"color": colour, "width": 2, "dash": "solid"},
        "marker": {"symbol": "diamond", "size": 9, "color": colour},
        "hovertemplate": "%{x}<br>%{y:.2f}×<extra>%{fullData.name}</extra>",
        **more,
    }


def _paper(rows: Iterable[Row]) -> charts.Figure:
    """The published speed-ups at the lengths of the rows."""
    known = {row["name"]: row for row in rows if row["published"]}
    found = sorted(known.values(), key=lambda row: int(row["budget"]))
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "speed-up in the paper",
        "x": [row["name"] for row in found],
        "y": [row["published"]["ratio"] for row in found],
        "text": [
            f"{clock(row['published']['dense_seconds'])} → {clock(row['published']['sparse_seconds'])}" for row in found
        ],
        "yaxis": "y2",
        "line": {"color": charts.INK, "width": 1.5, "dash": "dash"},
        "marker": {"symbol": "x-thin-open", "size": 10, "color": charts.INK, "line": {"width": 2}},
        "hovertemplate": "%{x}<br>%{y:.2f}× (%{text})<extra>%{fullData.name}</extra>",
    }


def _pinned(one: Pin, number: int) -> list[charts.Figure]:
    """An earlier comparison: thinner, with marks of its own, one entry in the legend."""
    symbol = PIN_SYMBOLS[number % len(PIN_SYMBOLS)]
    shared: dict[str, Any] = {"legendgroup": f"pin {number}", "opacity": 0.8}
    dense = _seconds(one.rows, DENSE, "solid", f"{symbol}-open", **shared)
    sparse = _seconds(one.rows, SPARSE, "dash", symbol, **shared)
    gains = _gains(one.rows, **shared, mode="lines+markers")
    named = ((dense, "full attention"), (sparse, "SparseD"), (gains, "speed-up"))
    for trace, what in named:
        trace["name"] = f"{one.label}: {what}"
        trace["line"] = {**trace["line"], "width": 1}
        trace["marker"] = {**trace["marker"], "symbol": trace["marker"]["symbol"], "size": 8}
        trace["showlegend"] = False
    gains["marker"]["symbol"] = symbol
    sparse["name"], sparse["showlegend"] = f"pinned: {one.label}", True
    return [dense, sparse, gains]


def chart_label(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> str:
    """The chart in words."""
    parts = []
    for row in done(rows):
        gain = f", {row['speedup']['text']} {row['speedup']['words']}" if row["speedup"] else ""
        seconds = f"{clock(row['dense_seconds'])} with full attention, {clock(row['sparse_seconds'])} with SparseD"
        parts.append(f"{row['name']}: {seconds}{gain}")
    if pinned:
        parts.append(f"pinned beside it: {', '.join(one.label for one in pinned)}")
    return "Line chart of the seconds at each prompt length. " + ("; ".join(parts) or "Nothing is measured yet")
