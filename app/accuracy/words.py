"""What the evaluation that comes with the app says, in sentences made of its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.accuracy.shipped import PUBLISHED_METHOD, RECOMMENDED_METHOD, Row, Summary, row_of
from app.figures.points import in_words
from app.lanes import additions
from app.phrases import PERCENT, points
from sparsed.config import RECOMMENDED
from sparsed.evaluation.methods import parts_of, samples_apart
from sparsed.evaluation.recommend import TYPE, most_asked, recommend

# Question types as the page says them (`sparsed.evaluation.plan.TYPES`).
KINDS = {
    "lookup": "single facts", "two_hop": "two hops", "comparison": "comparisons", "several": "several facts",
    "arithmetic": "word problems", "unanswerable": "questions without an answer", "chain3": "three hops",
    "chain4": "four hops", "open": "open questions", "list": "lists",
}  # fmt: skip
# The recommended setting: what it has of the paper's settings, and beyond them.
RECOMMENDED_WORDS = ", ".join(
    f"{name} {value:g}" for name in ("skip", "select") if (value := getattr(RECOMMENDED, name)) is not None
) + "".join(f", {words}" for words in additions(RECOMMENDED))
_ROUNDING = 1e-9


def evidence(summary: Summary) -> str:
    """Why a setting is recommended, in one line: beside where lanes are chosen."""
    length = most_asked(summary)
    ours, paper = row_of(summary, length, RECOMMENDED_METHOD), row_of(summary, length, PUBLISHED_METHOD)
    if ours is None or paper is None:
        return ""
    return (
        f"Recommended: {RECOMMENDED_WORDS}. {summary['model']} at {length}, {ours['questions']} questions: "
        f"{_difference(ours)} to full attention at {ours['speed']:.2f}× by operations; SparseD as published "
        f"{_difference(paper, '')} at {paper['speed']:.2f}×."
    )


def findings(summary: Summary, length: str) -> list[str]:
    """What wins and what loses at a prompt length: full attention, SparseD as published, the recommended setting, and
    the settings with a cache together; a sentence or two each. By operations, and by the clock of the machine that
    answered.
    """
    said = []
    dense = row_of(summary, length, "dense")
    if dense is not None:
        said.append(
            f"{summary['model']}, {dense['questions']} questions of {len(_kinds(summary, length))} kinds at {length}: "
            f"full attention has {100 * dense['accuracy']:.1f}{PERCENT} right."
        )
    paper, ours = row_of(summary, length, PUBLISHED_METHOD), row_of(summary, length, RECOMMENDED_METHOD)
    if paper is not None:
        said.append(f"SparseD as published: {_weighed(paper)}; {_lost(summary, [paper])}.")
    if ours is not None:
        said.append(f"Recommended, {RECOMMENDED_WORDS}: {_weighed(ours)}; {_lost(summary, [ours])}.")
    best = recommend(summary, length)
    if best is not None and best.method != RECOMMENDED_METHOD:
        name = "SparseD as published" if best.method == PUBLISHED_METHOD else in_words(best.method)
        unasked = "; the recommended setting was not measured there" if ours is None else ""
        said.append(f"By this length alone, {name} would be recommended{unasked}.")
    cached = [row for row in summary["lengths"] if row["length"] == length and _has_cache(row)]
    if cached:
        said.append(
            f"With a cache ({len(cached)} settings): {_points(cached)} points at {_factors(cached, 'speed')} by "
            f"operations, {_factors(cached, 'measured_speed')} by the clock; {_lost(summary, cached)}."
        )
    return said


def where(summary: Summary) -> str:
    """Where the answers were made, and what that is no proof of."""
    key = summary["key"]
    device = str(key["device"]).partition("(")[2].rstrip(")") or key["device"]
    return (
        f"The clock is that of one {device} ({key['dtype']}, torch {key['versions']['torch']}). One small model, and "
        f"so few questions of a kind that one answer is several points."
    )


def _kinds(summary: Summary, length: str) -> list[str]:
    return list(dict.fromkeys(cell["type"] for cell in summary["cells"] if cell["length"] == length))


def _has_cache(row: Row) -> bool:
    known = row["speed"] is not None and row["difference"] is not None
    return known and parts_of(row["method"]).cache != "none" and not samples_apart(row["method"])


def _weighed(row: Row) -> str:
    clock = "" if row["measured_speed"] is None else f" ({row['measured_speed']:.2f}× by the clock)"
    return f"{_difference(row)} at {row['speed']:.2f}×{clock}"


def _lost(summary: Summary, rows: Sequence[Row]) -> str:
    """The kinds on which these settings of one length lose more than the rule allows, on their mean; the worst first.
    """
    of = {(row["length"], row["method"]) for row in rows}
    found: dict[str, list[float]] = {}
    for cell in summary["cells"]:
        if (cell["length"], cell["method"]) in of and cell["difference"] is not None:
            found.setdefault(cell["type"], []).append(cell["difference"])
    means = {kind: sum(values) / len(values) for kind, values in found.items()}
    worst = sorted((mean, kind) for kind, mean in means.items() if mean < -TYPE - _ROUNDING)
    if not worst:
        return f"no kind loses more than {100 * TYPE:g} points"
    told = [f"{KINDS.get(kind, kind)} ({points(mean)})" for mean, kind in worst]
    return f"{'on average they lose' if len(rows) > 1 else 'loses'} on {_listed(told)}"


def _difference(row: Row, unit: str = " points") -> str:
    low, high = row["difference_interval"]
    return f"{points(row['difference'])}{unit} ({points(low)} … {points(high)})"


def _points(rows: Iterable[Row]) -> str:
    values = sorted(row["difference"] for row in rows)
    return " to ".join(dict.fromkeys((points(values[0]), points(values[-1]))))


def _factors(rows: Iterable[Row], name: str) -> str:
    values = sorted(row[name] for row in rows if row[name] is not None)
    if not values:
        return "an unknown speed"
    return " to ".join(dict.fromkeys((f"{values[0]:.2f}×", f"{values[-1]:.2f}×")))


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
