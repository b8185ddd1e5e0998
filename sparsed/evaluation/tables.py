"""Scores as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsed.config import CACHE_LABELS, METHOD_LABELS, METHODS
from sparsed.evaluation.methods import Parts, parts_of
from sparsed.runs import Tally, told


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown: accuracy by length, by length and type, methods with a cache or settings of their own,
    observations; below them what the runs noted, and what these results do not say.
    """
    parts = [_by_method(summary["lengths"], ("length",))] if summary["lengths"] else []
    several = len({row["type"] for row in summary["cells"]}) > 1
    if several:
        parts.append(_by_method(summary["cells"], ("length", "type")))
    if any(row["method"] not in METHODS for row in summary["lengths"]):
        parts.append(_settings(summary["lengths"]))
        if several:
            parts.append(_settings_by_type(summary["lengths"], summary["cells"]))
    if any(row.get("speed") is not None for row in summary["lengths"]):
        parts += [_speed(summary["lengths"]), _clock(summary)]
    for method, mean in summary["means"].items():
        if not parts_of(method).own:
            parts.append(
                f"{heading(method, summary['lengths'])}, mean over {', '.join(mean['lengths'])}: "
                f"{100 * mean['difference']:+.2f} points to dense, {_percent(mean['agreement'])} of the tokens agree."
            )
    for row in summary["observations"]:
        later = ", ".join(f"step {step + 1}: {overlap:.2f}" for step, overlap in row["later"].items())
        parts.append(
            f"Masks at {row['length']} ({row['questions']} questions), mean intersection over union: two heads "
            f"{row['heads']:.2f}; the switch and {later}."
        )
    parts += told(summary["notes"], method_label)
    parts += [f"Note: {said}" for said in summary["doubts"]]
    return "\n\n".join(parts)


def _by_method(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """A line for each cell, a column for each method."""
    present = [method for method in METHODS if any(row["method"] == method for row in rows)]
    against = "sparsed" in present and "dense" in present
    head = [*keys, "questions", *(heading(method, rows) for method in present)]
    head += ["SparseD − dense", "tokens agreeing"] if against else []
    head.append("forwards an answer")
    lines = []
    for cell in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        found = {row["method"]: row for row in rows if tuple(row[key] for key in keys) == cell}
        asked = max(row["questions"] for row in found.values())
        line = [*map(str, cell), str(asked)]
        for method in present:
            row = found.get(method)
            fewer = f", n = {row['questions']}" if row and row["questions"] < asked else ""
            line.append("–" if row is None else _share(row) + fewer)
        if against:
            row = found.get("sparsed", {})
            line += [_difference(row), _percent(row.get("agreement"))]
        # One number where all methods took as many, else one for each column.
        forwards = [_count(found.get(method, {}).get("forwards")) for method in present]
        line.append(" / ".join(forwards if len(set(forwards)) > 1 else forwards[:1]) or "–")
        lines.append(line)
    return markdown(head, lines)


def _settings(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each length and method, those with a cache or settings of their own beside the others."""
    computed = _computed(rows)
    head = ["length", "setting", "questions", "exact match", "to dense", "tokens agreeing", "seconds a question"]
    head += ["forwards an answer", *computed, *_SPEEDS]
    lines = []
    for row in rows:
        answers = [_share(row), _difference(row), _percent(row["agreement"]), f"{row['seconds']:.3f}"]
        answers += [_count(row.get("forwards")), *(_percent(row.get("rows")) for _ in computed), *_speeds(row)]
        lines.append([row["length"], _tally([row]).heading(_setting(row["method"])), str(row["questions"]), *answers])
    return markdown(head, lines)


def _settings_by_type(rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> str:
    """A line for each length and method, a column for each question type, and their mean."""
    types = list(dict.fromkeys(cell["type"] for cell in cells))
    found = {(cell["length"], cell["method"], cell["type"]): cell for cell in cells}
    lines = []
    for row in rows:
        own = [found.get((row["length"], row["method"], kind)) for kind in types]
        shares = ["–" if cell is None else _share(cell) for cell in own]
        lines.append([row["length"], _setting(row["method"]), *shares, *_mean(row)])
    return markdown(["length", "setting", *types, "mean over types", "mean to dense"], lines)


def _speed(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each length and method without settings of its own: how fast it is."""
    computed = _computed(rows)
    head = ["length", "method", "forwards an answer", *computed, "density", "seconds a question", *_SPEEDS]
    return markdown(
        head,
        (
            [
                row["length"],
                method_label(row["method"]),
                _count(row["forwards"]),
                *(_percent(row.get("rows")) for _ in computed),
                "–" if row["density"] is None else f"{row['density']:.3f}",
                f"{row['seconds']:.3f}",
                *_speeds(row),
            ]
            for row in rows
            if not parts_of(row["method"]).own
        ),
    )


def _clock(summary: dict[str, Any]) -> str:
    """What the columns of speed mean, and where the seconds were measured."""
    devices = {row["device"] for row in summary["settings"]}
    device = (summary.get("key") or {}).get("device") or ", ".join(sorted(devices))
    return (
        f"Speed as executed: operations of full attention's answers ÷ those of the same questions' answers here, all "
        f"that the network computes counted. As measured: likewise in seconds of the steps, of runs of as many "
        f"questions together; on {device}, to be compared within this folder alone."
    )


def _computed(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The heading of the share of all rows that an answer's steps computed, if any left some out."""
    return ["rows computed"] if any((row.get("rows") or 1) < 1 for row in rows) else []


_SPEEDS = ("speed as executed", "as measured")


def _speeds(row: dict[str, Any]) -> list[str]:
    return ["–" if (speed := row.get(name)) is None else f"{speed:.2f}×" for name in ("speed", "measured_speed")]


def _mean(row: dict[str, Any]) -> list[str]:
    difference = {"difference": row["mean_difference"], "difference_interval": row["mean_difference_interval"]}
    return [f"{100 * row['mean_accuracy']:.1f}", _difference(difference)]


def _setting(method: str) -> str:
    """A method as the tables of settings say it: of SparseD without a cache its settings alone."""
    parts = parts_of(method)
    if parts.cache == "none" and parts.attention in ("dense", "sparsed"):
        return ", ".join([*(["dense"] if parts.attention == "dense" else []), *_words(parts)]) or "default"
    return method_label(method)


def method_label(method: str) -> str:
    """A method in words: "SparseD + Fast-dLLM, dual"; the settings of its own after a comma."""
    parts = parts_of(method)
    names = [METHOD_LABELS.get(parts.attention, parts.attention)]
    names += [CACHE_LABELS.get(parts.cache, parts.cache)] if parts.cache != "none" else []
    return ", ".join([" + ".join(names), *_words(parts)])


def heading(method: str, rows: Sequence[dict[str, Any]]) -> str:
    """A method in words, and beside it whether its runs became sparse, by the rows that it has among these."""
    return _tally([row for row in rows if row["method"] == method]).heading(method_label(method))


def _tally(rows: Sequence[dict[str, Any]]) -> Tally:
    """Rows of `summarise`; those of an earlier version tell nothing of their runs."""
    known = (Tally(row["runs"], row["never_sparse"], row["dense_again"]) for row in rows if "runs" in row)
    return sum(known, Tally())


def _words(parts: Parts) -> list[str]:
    return [f"{name} {value}" for name, value in parts.own.items()]


def _count(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.1f}".removesuffix(".0")


def _share(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _difference(row: dict[str, Any]) -> str:
    if row.get("difference") is None:
        return "–"
    low, high = row["difference_interval"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [f"| {' | '.join(row)} |" for row in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])
