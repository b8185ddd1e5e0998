"""JSON values as dataclasses: what a file holds has the names and types that the class says, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", NoneType: "null"}


def read_as(kind: Any, value: Any, what: str) -> Any:
    """A value that json.loads gave, as the type `kind`.

    kind: a dataclass or NamedTuple (a list in JSON), Mapping, tuple, Literal of texts, union, str, bool, int
    (64 bits), float (finite), None, or Any for what is only told on. Keys that a dataclass does not have are ignored;
    one that is missing takes the field's default. A dataclass that stands there already is taken as it is.

    Raises ValueError, with `what` or the name of the field, where it is none.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(inner, value, what)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        values, hints = _expect(dict, value, what, "an object"), get_type_hints(kind)
        # What is missing takes the class's own value, or is null.
        told = [f.name for f in fields(kind) if f.name in values or f.default is MISSING]
        return kind(**{name: read_as(hints[name], values.get(name), repr(name)) for name in told})
    if origin is Mapping:
        values = _expect(dict, value, what, "an object")
        return {_key(inner[0], key, what): read_as(inner[1], item, f"{what} {key!r}") for key, item in values.items()}
    if origin is tuple:
        return tuple(_entries(inner, value, what))
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, inner))}.")
        return value
    if issubclass(kind, tuple):
        return kind(*_entries(tuple(get_type_hints(kind).values()), value, what))
    # True is an int to Python; whole numbers of any length, and as floats too, are numbers to JSON.
    good = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or value is not True)
    if good and kind in (int, float):
        good = value is not False and abs(value) < (2**63 if kind is int else 1e300)
    if not good:
        raise ValueError(f"{what} must be {_NAMES[kind]}.")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, what: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not NoneType)
    for kind in others:
        try:
            return read_as(kind, value, what)
        except ValueError:
            if isinstance(value, dict):  # its own fault says more than that it is none of the others
                raise
    return read_as(last, value, what)


def _entries(kinds: tuple[Any, ...], value: Any, what: str) -> list[Any]:
    items = _expect(list, value, what, "a list")
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        raise ValueError(f"{what} must have {len(kinds)} entries, not {len(items)}.")
    return [read_as(kind, item, f"an entry of {what}") for kind, item in zip(kinds, items)]


def _key(kind: Any, key: str, what: str) -> Any:
    if kind is int and not (key.isascii() and key.isdigit() and len(key) < 19):
        raise ValueError(f"{what} has a key that is no whole number.")
    return kind(key)


def _expect(kind: type, value: Any, what: str, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be {name}.")
    return value
