"""The evaluation that comes with the app: assets/evaluation.json, made by python -m app.tools.evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsed.config import RECOMMENDED
from sparsed.config.rows import given
from sparsed.evaluation.scores import wilson

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "evaluation.json"
PUBLISHED_METHOD = "sparsed"
# What an evaluation calls the recommended setting.
RECOMMENDED_METHOD = f"{PUBLISHED_METHOD}:" + ",".join(
    f"{name}={value}" for name, value in given(RECOMMENDED).items() if name != "method"
)

# What is kept of the rows of `sparsed.evaluation.scores.summarise`; shares with their intervals follow from counts.
_COLUMNS = {
    "lengths": (
        "length", "method", "questions", "right", "difference", "difference_interval", "speed", "measured_speed",
        "forwards", "rows", "made",
    ),
    "cells": ("length", "type", "method", "questions", "right", "difference", "difference_interval", "made"),
}  # fmt: skip
# Rules compare differences with bounds; so many digits lose nothing there.
_DIGITS = 10

Summary = Mapping[str, Any]
Row = Mapping[str, Any]


def packed(summary: Summary, model: str) -> str:
    """A summary (`sparsed.evaluation.scores.summarise`, "keys" of folders, and in each row "made": which of them it was
    made with) as the text of a small JSON file: what the figure and the recommendation need, a line for each row.
    """
    keys = ",\n".join(map(_line, summary["keys"]))
    parts = [f'"model":{_line(model)}', f'"keys":[\n{keys}\n]']
    for name, columns in _COLUMNS.items():
        rows = ",\n".join(_line([_rounded(row[column]) for column in columns]) for row in summary[name])
        parts.append(f'"{name}":{{"columns":{_line(columns)},"rows":[\n{rows}\n]}}')
    return "{" + ",\n".join(parts) + "}\n"


def unpacked(value: Any) -> dict[str, Any]:
    """What `packed` wrote, as the figure and the recommendation take it; "model", its name; "key", the first of its
    keys, which are alike but for versions and for settings that came later. Raises ValueError for what is none.
    """
    try:
        keys = [dict(key) for key in value["keys"]]
        found = {"model": str(value["model"]), "key": keys[0], "keys": keys, "doubts": []}
        for name in _COLUMNS:
            columns = value[name]["columns"]
            rows = [dict(zip(columns, row, strict=True)) for row in value[name]["rows"]]
            found[name] = [row | _shares(row["right"], row["questions"]) for row in rows]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"This is not what python -m app.tools.evaluation writes ({error}).") from None
    return found


def is_packed(value: Any) -> bool:
    """Whether the value of a JSON file looks like one of `packed`."""
    return isinstance(value, dict) and all(isinstance(value.get(name), dict) for name in _COLUMNS)


@lru_cache(maxsize=1)
def shipped() -> dict[str, Any]:
    """The summary that comes with the app."""
    return unpacked(json.loads(SHIPPED.read_text("utf-8")))


def lengths(summary: Summary) -> list[str]:
    """The prompt lengths of a summary, shortest first."""
    return list(dict.fromkeys(row["length"] for row in summary["lengths"]))


def row_of(summary: Summary, length: str, method: str) -> Row | None:
    """The row of a method at a length; None where it was not asked there."""
    found = (row for row in summary["lengths"] if (row["length"], row["method"]) == (length, method))
    return next(found, None)


def _shares(right: int, questions: int) -> dict[str, Any]:
    return {"accuracy": right / questions, "interval": wilson(right, questions)}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
