"""The JSON that the endpoints give, and how a run becomes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from app.finished.files import FILES, RUNS
from app.race.fields import FIELDS
from app.race.lane_view import Snapshot
from app.server.desk import Desk
from app.server.shown import Shown
from sparsed.runs import RunRecord

MASKED = "▒"
_TYPES: dict[str, Any] = {"whole": int, "number": float, "choice": str, "switch": bool, "texts": list[str]}
# A model's sampler, where a call says nothing else (with a threshold, temperature is 0 and top_p off then). Lengths in
# tokens; threshold: None where it is off.
Defaults = TypedDict(  # type: ignore[misc]
    "Defaults",
    {
        field.name: _TYPES[field.kind] if field.off is None else _TYPES[field.kind] | None
        for field in FIELDS
        if field.home == "sampler" and field.follows
    },
)


class Model(TypedDict):
    """A model that can be asked. parameters: 0 if unknown; download_gb: 10⁹ bytes, 0 if bundled; trained_length: tokens
    (0 if unknown); quantize: the numbers of fewer bits that it is kept in, else None; too_large: why it does not fit
    into this machine, "" if it does.
    """

    name: str
    label: str
    parameters: int
    download_gb: float
    bundled: bool
    in_memory: bool
    trained_length: int
    quantize: str | None
    too_large: str
    defaults: Defaults


class Speedup(TypedDict):
    """How many times faster SparseD is: the number, and as people say it ("1.41×", "faster so far")."""

    ratio: float
    text: str
    words: str


class Agreement(TypedDict):
    """How many of the tokens compared are those of full attention."""

    same: int
    compared: int
    text: str


class LaneValue(TypedDict):
    """One lane. never_sparse: it has a pattern to use and does not use it (its seconds say nothing of SparseD); step of
    total; seconds of its own computing so far; text: its answer, "▒" for each token that is still masked; ended_early:
    what comes after the answer was left out, and stays masked; right, verdict: of the finished answer, None where the
    right one is not known; rows: positions that the last step computed, of `positions` (None before the prompt is made;
    info has their sum over the steps of each phase); speedup: against full attention, once the lane does anything else;
    agreement: with full attention, at the end; info: the run as it was resolved and made so far (its switch_step counts
    from 0), None before it begins.
    """

    label: str
    never_sparse: bool
    backend: str
    phase: str
    step: int
    total: int
    seconds: float
    rows: int | None
    positions: int | None
    text: str
    ended_early: bool
    right: bool | None
    verdict: str | None
    speedup: Speedup | None
    agreement: Agreement | None
    info: RunRecord | None


class Compared(TypedDict):
    """What /compare gives. state: "loading", "preparing", "waiting", "running", and once, last, "done", "stopped",
    "refused" or "failed". position: runs before this one while it waits, and wait: for about how many seconds, if that
    is known. mode: "turns" or "together", how the lanes share the machine's devices, None before they begin.
    switch_step: SparseD's first sparse step, counted from 1, None if there is none. gold: the right answer,
    at the end. run: the key for /pattern; files: what can be downloaded, name → address below the page's own; both at
    the end of a run that made a step.
    """

    state: str
    message: str
    position: int | None
    wait: float | None
    question: str
    mode: str | None
    lanes: dict[str, LaneValue]
    speedup: Speedup | None
    agreement: Agreement | None
    switch_step: int | None
    notes: list[str]
    gold: str | None
    prompt_tokens: int | None
    run: str | None
    files: dict[str, str]


class SweptLane(TypedDict):
    """A lane at one prompt length of /sweep, when its race is done. speedup, agreement: with full attention."""

    label: str
    seconds: float | None
    steps: int | None
    speedup: Speedup | None
    agreement: Agreement | None
    right: bool | None
    never_sparse: bool


class SweptRow(TypedDict):
    """One prompt length of /sweep. state: "waiting", "preparing", "running", "done", "refused", "failed" or "stopped";
    step of total, all lanes together; lanes: each by its key, and once more the seconds and answers of full attention
    and of SparseD, and SparseD's speedup and agreement; never_sparse: SparseD's lane was full attention to its end, and
    its seconds say nothing of SparseD; infos: the runs by lane, at the end; memory: the peak in bytes; published: the
    paper's seconds and speed-up at this length, where it has any. What is not known yet is None.
    """

    length: str
    tokens: int | None
    state: str
    message: str
    step: int
    total: int
    dense_seconds: float | None
    sparse_seconds: float | None
    never_sparse: bool
    speedup: Speedup | None
    agreement: Agreement | None
    dense_right: bool | None
    sparse_right: bool | None
    lanes: dict[str, SweptLane]
    memory: int | None
    published: dict[str, float] | None
    notes: list[str]
    infos: dict[str, RunRecord]


class Swept(TypedDict):
    """What /sweep gives. state: "running", and once, last, "done", "stopped", "refused" or "failed"; progress: 0 … 1;
    label: what was compared, in a few words.
    """

    state: str
    message: str
    label: str
    question: str
    progress: float
    rows: list[SweptRow]


def model_of(desk: Desk, name: str) -> Model:
    spec, defaults, loaded = desk.models.spec(name), desk.models.defaults(name), desk.models.loaded(name)
    own = defaults.resolve(defaults)
    return {
        "name": name,
        "label": spec.label,
        "parameters": spec.parameters,
        "download_gb": spec.download_gb,
        "bundled": spec.bundled,
        "in_memory": loaded is not None,
        "trained_length": spec.trained_length if loaded is None else loaded.model.max_positions,
        "quantize": spec.quantize,
        "too_large": desk.models.too_large(name),
        "defaults": cast(Defaults, {name: _plain(getattr(own, name)) for name in Defaults.__annotations__}),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _speedup(value: Snapshot | None) -> Speedup | None:
    return None if value is None else {"ratio": value["ratio"], "text": value["text"], "words": value["words"]}


def _agreement(value: Snapshot | None) -> Agreement | None:
    return None if value is None else {"same": value["same"], "compared": value["compared"], "text": value["text"]}


def _lane(lane: Snapshot) -> LaneValue:
    text = lane["text"]
    if text is None:
        text = "".join(MASKED if step == 0 else "" if end else cell for cell, step, _, end in lane["cells"])
    return {
        "label": lane["label"],
        "never_sparse": lane["never_sparse"],
        "backend": lane["backend"],
        "phase": lane["phase"],
        "step": lane["step"],
        "total": lane["total"],
        "seconds": lane["seconds"],
        "rows": lane["rows"],
        "positions": lane["positions"],
        "text": text,
        "ended_early": lane["ended_early"],
        "right": lane["right"],
        "verdict": lane["verdict"],
        "speedup": _speedup(lane["speedup"]),
        "agreement": _agreement(lane["same"]),
        "info": lane["info"],
    }


def compared_of(shown: Shown) -> Compared:
    """A value of the page as one of the endpoint."""
    stage, run = shown.stage, shown.kept
    lanes = {lane["key"]: lane for lane in stage["lanes"]}
    sparse = [first for phase, first, _ in lanes[stage["headline"]]["phases"] if phase == "sparse"]
    return {
        "state": stage["state"],
        "message": stage["message"],
        "position": shown.position if stage["state"] == "waiting" else None,
        "wait": None if shown.wait is None else round(shown.wait, 1),
        "question": stage["question"],
        "mode": stage["mode"] and stage["mode"]["name"],
        "lanes": {key: _lane(lane) for key, lane in lanes.items()},
        "speedup": _speedup(stage["speedup"]),
        "agreement": _agreement(stage["agreement"]),
        "switch_step": sparse[0] if sparse else None,
        "notes": stage["notes"],
        "gold": stage["gold"],
        "prompt_tokens": None if run is None else run.trace.prompt.tokens,
        "run": None if run is None else run.key,
        "files": {} if run is None else {name: f"{RUNS}/{run.key}/{name}" for name in FILES},
    }


def swept_of(value: Mapping[str, Any]) -> Swept:
    """A comparison of the page as a value of the endpoint."""
    return {
        "state": value["state"],
        "message": value["message"],
        "label": value["label"],
        "question": value["question"],
        "progress": value["progress"],
        "rows": [_row(row) for row in value["rows"]],
    }


def _swept_lane(row: Mapping[str, Any], key: str, label: str) -> SweptLane:
    return {
        "label": label,
        "seconds": row[f"{key}_seconds"],
        "steps": row[f"{key}_steps"],
        "speedup": _speedup(row[f"{key}_speedup"]),
        "agreement": _agreement(row[f"{key}_agreement"]),
        "right": row[f"{key}_right"],
        "never_sparse": row[f"{key}_never_sparse"],
    }


def _row(row: Mapping[str, Any]) -> SweptRow:
    paper = row["published"]
    return {
        "length": row["length"],
        "tokens": row["tokens"],
        "state": row["state"],
        "message": row["message"],
        "step": row["step"],
        "total": row["total"],
        "dense_seconds": row["dense_seconds"],
        "sparse_seconds": row["sparse_seconds"],
        "never_sparse": row["never_sparse"],
        "speedup": _speedup(row["speedup"]),
        "agreement": _agreement(row["agreement"]),
        "dense_right": row["dense_right"],
        "sparse_right": row["sparse_right"],
        "lanes": {lane["key"]: _swept_lane(row, lane["key"], lane["label"]) for lane in row["lanes"]},
        "memory": row["memory"],
        "published": paper and {name: paper[name] for name in ("dense_seconds", "sparse_seconds", "ratio")},
        "notes": row["notes"],
        "infos": row["infos"],
    }
