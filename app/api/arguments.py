"""What an endpoint takes, in the form in which gradio, its clients and MCP read it: a signature, types, and a line for
each argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import gradio as gr

from app.race.fields import FIELDS, Field
from app.server.gradio_internals import describe_parameters

_TYPES: dict[str, Any] = {
    "whole": int, "number": float, "switch": bool, "texts": list[str], "turns": list[dict[str, str]],
}  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """One argument of an endpoint."""

    name: str
    type: Any
    # A sentence: what it may be is said by its type, and again here where a type cannot.
    doc: str
    default: Any = inspect.Parameter.empty


def one_of(names: Iterable[Any]) -> Any:
    """The type of one of these values; gradio makes a list of allowed values of it, for its documents and for MCP."""
    return cast(Any, Literal)[tuple(names)]


def settings(
    choices: Mapping[str, Collection[str]], usual: Mapping[str, Any], without: Collection[str] = ()
) -> list[Argument]:
    """The arguments for the settings that programs have.

    choices: of the settings whose choices the table does not know; any string will do for what is in neither. usual:
    see `app.race.fields.usual`.
    """
    return [
        Argument(field.name, _type(field, choices), field.doc, usual[field.name])
        for field in FIELDS
        if field.in_api and field.name not in without
    ]


def publish(endpoint: Callable[..., Any], arguments: Sequence[Argument], returned: Any) -> None:
    """Registers `endpoint` with the `gr.Blocks` that is being built, under its own name.

    endpoint: takes the request and the values of `arguments`, in their order. returned: the type of what it gives, of
    each value for a stream. Its docstring says what it does, and after "Returns:" what that is.
    """
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("http", positional, annotation=gr.Request)]
    parameters += [
        inspect.Parameter(one.name, positional, default=one.default, annotation=one.type) for one in arguments
    ]
    endpoint.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    endpoint.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": returned}
    about, _, gives = (endpoint.__doc__ or "").partition("Returns:")
    # Gradio takes one line for each.
    lines = "".join(f"\n    {one.name}: {one.doc}" for one in arguments)
    endpoint.__doc__ = f"{about.strip()}\n\nParameters:{lines}\n\nReturns:\n    {' '.join(gives.split())}"
    number = gr.api(endpoint, concurrency_limit=None, api_visibility="public")["id"]
    # MCP reads the function's docstring instead.
    describe_parameters(number, [one.doc for one in arguments])


def _type(field: Field, choices: Mapping[str, Collection[str]]) -> Any:
    known = choices.get(field.name) or field.choices
    made: Any = one_of(known) if known else _TYPES.get(field.kind, str)
    if field.kind == "names":
        return list[made]
    return made | None if field.follows else made
