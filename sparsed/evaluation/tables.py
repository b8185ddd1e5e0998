"""Scores as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsed.config import METHOD_LABELS, METHODS


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown: accuracy by length, by length and type, settings of SparseD's own, observations."""
    parts = [_by_method(summary["lengths"], ("length",))] if summary["lengths"] else []
    if len({row["type"] for row in summary["cells"]}) > 1:
        parts.append(_by_method(summary["cells"], ("length", "type")))
    if any(":" in row["method"] for row in summary["lengths"]):
        parts.append(_settings(summary["lengths"]))
    for method, mean in summary["means"].items():
        if method in METHODS:
            parts.append(
                f"{METHOD_LABELS[method]}, mean over {', '.join(mean['lengths'])}: {100 * mean['difference']:+.2f} "
                f"points to dense, {_percent(mean['agreement'])} of the tokens agree."
            )
    for row in summary["observations"]:
        later = ", ".join(f"step {step + 1}: {overlap:.2f}" for step, overlap in row["later"].items())
        parts.append(
            f"Masks at {row['length']} ({row['questions']} questions), mean intersection over union: two heads "
            f"{row['heads']:.2f}; the switch and {later}."
        )
    return "\n\n".join(parts)


def _by_method(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """A line for each cell, a column for each method."""
    present = [method for method in METHODS if any(row["method"] == method for row in rows)]
    against = "sparsed" in present and "dense" in present
    head = [*keys, "questions", *(METHOD_LABELS[method] for method in present)]
    head += ["SparseD − dense", "tokens agreeing"] if against else []
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
        lines.append(line)
    return markdown(head, lines)


def _settings(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each length and setting of SparseD."""
    head = ["length", "setting", "questions", "exact match", "to dense", "tokens agreeing", "seconds a question"]
    lines = []
    for row in rows:
        name, _, settings = row["method"].partition(":")
        if name in ("dense", "sparsed"):
            said = settings.replace("=", " ").replace(",", ", ") or ("default" if name == "sparsed" else "dense")
            answers = [_share(row), _difference(row), _percent(row["agreement"]), f"{row['seconds']:.3f}"]
            lines.append([row["length"], said, str(row["questions"]), *answers])
    return markdown(head, lines)


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
