"""Scores as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsed.config import METHOD_LABELS, METHODS
from sparsed.runs import Tally, told


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown: accuracy by length, by length and type, methods with settings of their own,
    observations; below them what the runs noted, and what these results do not say.
    """
    parts = [_by_method(summary["lengths"], ("length",))] if summary["lengths"] else []
    if len({row["type"] for row in summary["cells"]}) > 1:
        parts.append(_by_method(summary["cells"], ("length", "type")))
    if any(":" in row["method"] for row in summary["lengths"]):
        parts.append(_settings(summary["lengths"]))
    for method, mean in summary["means"].items():
        if method in METHODS:
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
    """A line for each length and setting of SparseD, dense for comparison, and other methods' own settings."""
    head = ["length", "setting", "questions", "exact match", "to dense", "tokens agreeing", "seconds a question"]
    head.append("forwards an answer")
    lines = []
    for row in rows:
        name, _, settings = row["method"].partition(":")
        if name in ("dense", "sparsed") or settings:
            said = _words(settings) or ("default" if name == "sparsed" else "dense")
            said = said if name in ("dense", "sparsed") else f"{METHOD_LABELS.get(name, name)}: {said}"
            answers = [_share(row), _difference(row), _percent(row["agreement"]), f"{row['seconds']:.3f}"]
            answers.append(_count(row.get("forwards")))
            lines.append([row["length"], _tally([row]).heading(said), str(row["questions"]), *answers])
    return markdown(head, lines)


def method_label(method: str) -> str:
    """A method in words; the settings of its own after a comma."""
    plain, _, settings = method.partition(":")
    return ", ".join([METHOD_LABELS.get(plain, plain), *([_words(settings)] if settings else [])])


def heading(method: str, rows: Sequence[dict[str, Any]]) -> str:
    """A method in words, and beside it whether its runs became sparse, by the rows that it has among these."""
    return _tally([row for row in rows if row["method"] == method]).heading(method_label(method))


def _tally(rows: Sequence[dict[str, Any]]) -> Tally:
    """Rows of `summarise`; those of an earlier version tell nothing of their runs."""
    known = (Tally(row["runs"], row["never_sparse"], row["dense_again"]) for row in rows if "runs" in row)
    return sum(known, Tally())


def _words(settings: str) -> str:
    return settings.replace("=", " ").replace(",", ", ")


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
