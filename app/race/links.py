"""A request as a link, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from app.race.fields import ON_PAGE, OWN_TEXT

_READ: dict[str, Callable[[str], Any]] = {
    "choice": str, "names": lambda value: value.split(","), "text": str,
    "turns": str, "whole": int, "number": float, "switch": lambda value: bool(("0", "1").index(value)),
}  # fmt: skip
# Beyond it, all together, a link would break on its way: then the texts are left out.
_LINKED_CHARACTERS = 1500
_TEXTS = ("text", "turns")
# What a setting was called once → what it is called now.
_ONCE = {"third": "lanes"}
# What follows the model is only said where the visitor has set it himself, and comes last.
_LINKED = sorted(ON_PAGE, key=lambda field: field.follows)


def link(given: Mapping[str, Any], touched: Collection[str]) -> str:
    """What the page's inputs hold as the query of a link that brings them back: "?model=mini&kind=about…"."""
    return "?" + urlencode(_said(given, touched), errors="replace")


def address(given: Mapping[str, Any], touched: Collection[str], start: Mapping[str, Any]) -> str:
    """The same for the page's own address, without the question mark: only what differs from `start`, which a fresh
    page holds. A length that it has None for is that page's own choice, and always said.
    """
    said, usual = _said(given, touched), _said(start, ())
    return urlencode({name: value for name, value in said.items() if value != usual.get(name)}, errors="replace")


def _said(given: Mapping[str, Any], touched: Collection[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    texts = [str(given.get(field.name) or "") for field in _LINKED if field.kind in _TEXTS]
    linked = given.get("kind") == OWN_TEXT and sum(map(len, texts)) <= _LINKED_CHARACTERS
    for field in _LINKED:
        value = given.get(field.name)
        if value is None or (field.follows and field.name not in touched):
            continue
        if field.kind in _TEXTS and (not linked or (field.kind == "turns" and not value)):
            continue
        if not field.follows and (value == field.off or value == []):
            continue
        if field.kind == "names":
            value = ",".join(value)
        said[field.name] = int(bool(value)) if field.kind == "switch" else value
    return said


def said_by_link(values: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    """The inputs that a link sets, in one sentence; nothing where it sets none. kinds: question kind → label."""
    parts = []
    for field in _LINKED:
        if field.name not in values:
            continue
        value, named = values[field.name], kinds if field.name == "kind" else field.choices or {}
        if field.kind in _TEXTS:
            value = ""
        elif field.kind == "switch":
            value = "on" if value else "off"
        elif field.kind == "names":
            value = ", ".join(str(named.get(one, one)) for one in value)
        parts.append(f"{field.said} {named.get(value, value)}".strip())
    return f"This link sets: {', '.join(parts)}." if parts else ""


def from_link(query: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(the inputs that a link's query sets, a sentence for each that cannot be read). Whether a value can be run is
    for `parse` to say; what a link does not know is left out.
    """
    values: dict[str, Any] = {}
    problems = []
    query = {_ONCE[name]: value for name, value in query.items() if name in _ONCE} | dict(query)
    for field in _LINKED:
        if field.name not in query:
            continue
        said = query[field.name]
        try:
            value = _READ[field.kind](said)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
            values[field.name] = value
        except ValueError:
            what = "neither 1 nor 0" if field.kind == "switch" else "no number"
            problems.append(f"The link's “{field.label}” {said[:40]!r} is {what}: it is left out.")
    return values, problems
