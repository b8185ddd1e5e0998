"""A request as a link, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from app.race.request import FOLLOWING, NO_BASELINE, OWN_TEXT

# What a link says, and as what; of the settings that follow the model, those that the visitor has set.
_LINKED: dict[str, Callable[[str], Any]] = {
    "model": str, "kind": str, "length": str, "question": int, "text": str, "skip": float, "selection": str,
    "seed": int, "backend": str, "track": lambda value: value == "1", "third": str,
    "steps": int, "gen_length": int, "block_length": int, "algorithm": str, "temperature": float, "threshold": float,
    "cfg_scale": float, "top_p": float, "select": float, "block_size": int,
}  # fmt: skip
# Beyond it a link would break on its way; such a text is left out.
_LINKED_CHARACTERS = 1500


def link(given: Mapping[str, Any], touched: Collection[str]) -> str:
    """What the page's inputs hold as the query of a link that brings them back: "?model=mini&kind=about…"."""
    said = {}
    for name in _LINKED:
        value = given.get(name)
        if value is None or (name in FOLLOWING and name not in touched):
            continue
        if name == "text" and (given.get("kind") != OWN_TEXT or len(str(value)) > _LINKED_CHARACTERS):
            continue
        if name == "third" and value == NO_BASELINE:
            continue
        if name == "track":
            value = int(bool(value))
        said[name] = value
    return "?" + urlencode(said, errors="replace")


def from_link(query: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(the inputs that a link's query sets, a sentence for each that cannot be read). Whether a value can be run is
    for `parse` to say; what a link does not know is left out.
    """
    values: dict[str, Any] = {}
    problems = []
    for name, read in _LINKED.items():
        if name not in query:
            continue
        try:
            value = read(query[name])
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
            values[name] = value
        except ValueError:
            problems.append(f"The link's {name.replace('_', ' ')} {query[name][:40]!r} is no number: it is left out.")
    return values, problems
