"""A setting is a row of its config: its type, what it means, its range and its names on a command line.

The rows are dataclass fields; `sparsed.options` makes the command lines' options of them. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, fields
from functools import partial
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: object, least: int, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")
    if value >= below:
        raise ValueError(f"{name} must be below 2^{math.log2(below):.0f}, not {value}.")


def number(name: str, value: Any, fits: Callable[[float], bool], said: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {value!r}.")
    if not fits(value):
        raise ValueError(f"{name} must {said}, not {value}.")


def choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # Compared with type: 1 equals True, but is no answer to a yes-or-no question.
    if not any(value == one and type(value) is type(one) for one in choices):
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, not {value!r}.")


def texts(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
        raise ValueError(f"{name} must be a tuple of texts that are not empty, not {value!r}.")
    try:
        "".join(value).encode()
    except UnicodeEncodeError:  # half a character: bytes of another encoding on a command line
        raise ValueError(f"{name} must be Unicode text, not {value!r}.") from None


# Beyond these, what is divided or multiplied by them is no number in float32, or in float16.
OFF_OR_MORE = partial(
    number, fits=lambda value: value == 0 or 1e-6 <= value <= 1e4, said="be 0, or lie between 0.000001 and 10,000"
)
BETWEEN = partial(number, fits=lambda value: 0 < value < 1, said="lie between 0 and 1, both excluded")


def setting(check: Callable[[str, Any], None], help: str, *also: str, kind: type = float, **more: Any) -> Any:
    """The field of a setting; None unless `more` has a default.

    check: refuses a (name, value) out of range. also: further names on a command line. more, for a sampler: `dream`,
    only Dream's algorithms have it; `many`, a command line gives one value at a time.
    """
    default = more.pop("default", None)
    return field(default=default, metadata={"check": check, "help": help, "also": also, "kind": kind, **more})


def word(choices: tuple[str, ...], help: str, **more: Any) -> Any:
    """The field of a setting that is one of a few words, which a command line lists."""
    return setting(partial(choice, choices=choices), help, kind=str, choices=choices, **more)


def switch(help: str) -> Any:
    """The field of a setting that is on or off."""
    return setting(partial(choice, choices=(False, True)), help, kind=bool)


def given(config: Any) -> dict[str, Any]:
    """The fields of a config that are not None."""
    return {f.name: value for f in fields(config) if (value := getattr(config, f.name)) is not None}


def check_each(config: type, values: Any) -> None:
    """The range of each field that is set, by the rows of the class `config`. Numbers of another library (numpy) and
    lists become Python's own numbers and tuples.
    """
    for row in fields(config):
        value = _plain(getattr(values, row.name))
        if value is not None:
            row.metadata["check"](row.name, value)
            object.__setattr__(values, row.name, value)  # configs are frozen


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def check_set(values: Any, but: tuple[str, ...] = ()) -> None:
    for row in fields(values):
        if getattr(values, row.name) is None and row.name not in but:
            raise ValueError(f"{row.name} is missing.")
