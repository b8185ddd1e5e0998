"""Comparisons that a visitor has pinned, to compare others with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.lengths.table import Comparison, Row, Table, done

MOST_PINS = 4


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


def with_pins(comparison: Comparison | None, pins: Sequence[Pin]) -> Comparison:
    """What the view "comparison" draws: the comparison, or None before the first, and the pins below it."""
    shown = Table((), "", "", "").value("idle", "") if comparison is None else comparison
    return {**shown, "pins": [{"label": one.label, "rows": list(one.rows)} for one in pins]}
