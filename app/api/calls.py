"""One call of an endpoint: what it asks for, how its values are streamed, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, TypeVar

import gradio as gr

from app.lengths.forecast import NOTHING_CHOSEN
from app.race import request
from app.race.fields import BY_NAME, MAX_CHARACTERS, OWN_TEXT
from app.race.request import OF_OWN_TEXT, Request
from app.server.desk import Desk
from app.server.gradio_internals import from_mcp, hung_up
from app.server.visits import Visit

# While nothing new happens the last value is given again after so many seconds: only when it sends does the server
# notice that a client has gone, and a run that nobody waits for must not keep the device.
BEAT_SECONDS = 1.0
# Beyond these a value can be nothing that is meant; it is not repeated in the sentence that says so.
MOST_CHARACTERS, MOST_NUMBER, MOST_LENGTHS = 200, 2**53, 64
INTERNAL = "The server met an error of its own and ended this call. Its log says more."
TWO_PROMPTS = (
    "text is a prompt of your own, and kind asks one of the page's questions: give one of the two (with text, kind is "
    f"{OWN_TEXT!r})."
)
T = TypeVar("T")


def asked(desk: Desk, given: Mapping[str, Any], usual: Mapping[str, Any]) -> Request:
    """The request of a call; what is None takes the default. Raises ValueError, one sentence, for what cannot run."""
    said = {name: _read(name, given[name]) for name in usual if given.get(name) is not None}
    values = {**usual, **said}
    if not isinstance(values["text"], str):
        raise ValueError("The value of text must be a string.")
    if values["text"].strip() and values["kind"] != OWN_TEXT:
        if values["kind"] != usual["kind"]:
            raise ValueError(TWO_PROMPTS)
        values["kind"] = OWN_TEXT
    for name in ("length", "question") if values["text"].strip() else ():
        if values[name] != usual[name]:
            raise ValueError(f"The setting {name} would have no effect beside a text of your own: leave it out.")
    if isinstance(values["model"], str) and values["model"] not in desk.engine.models():
        desk.engine.admit(values["model"])
    return request.parse(
        **values,
        # What is no string is refused by `parse`.
        defaults=desk.models.defaults(values["model"] if isinstance(values["model"], str) else desk.models.default),
        models=desk.engine.models(),
        kinds=desk.engine.kinds(),
        lengths=desk.engine.lengths(),
    )


def _read(name: str, value: Any) -> Any:
    """A list of texts is for `parse` to look at."""
    listed = isinstance(value, list) and BY_NAME[name].kind in ("texts", "names", "turns")
    return value if listed else plain(name, value)


def lengths_of(desk: Desk, given: Any) -> list[str]:
    """The prompt lengths of a sweep. Raises ValueError where they are none, or no list of such."""
    known = desk.engine.lengths()
    if not isinstance(given, list) or len(given) > MOST_LENGTHS:
        raise ValueError(f"The value of lengths must be a list of some of {', '.join(known)}.")
    if not given:
        raise ValueError(NOTHING_CHOSEN)
    for name in given:
        if not isinstance(plain("lengths", name), str) or name not in known:
            raise ValueError(f"The prompt length {name!r} is not one of {', '.join(known)}.")
    return list(given)


def plain(name: str, value: Any) -> Any:
    """A value that `app.race.request.parse` can look at: nothing, or a string, number or truth value of a sane size.
    Raises ValueError.
    """
    if isinstance(value, str):
        most = MAX_CHARACTERS if name in OF_OWN_TEXT else MOST_CHARACTERS
        if len(value) > most:
            raise ValueError(f"The value of {name} has {len(value):,} characters; it may have up to {most:,}.")
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise ValueError(f"The value of {name} is a number far beyond its range.")
    elif value is not None and not isinstance(value, (int, float)):
        what = "a list" if isinstance(value, list) else "an object"
        raise ValueError(f"The value of {name} is {what}; it must be a single value.")
    return value


@contextlib.contextmanager
def sentences(desk: Desk) -> Iterator[None]:
    """What goes wrong reaches the client as one sentence; what should not have gone wrong, the log as a whole."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    # An error of ours would be sent as it is, by gradio: this is the edge where it is not.
    except Exception as error:  # noqa: BLE001
        desk.journal.error(error, via="api")
        raise gr.Error(INTERNAL, print_exception=False) from None


async def steady(stream: AsyncGenerator[T, None], http: gr.Request) -> AsyncGenerator[T, None]:
    """The values of a stream, and the last one again after each BEAT_SECONDS without a new one. Closing it, or
    cancelling who waits for it, closes the stream at once; so does a client that hangs up.
    """
    async with contextlib.aclosing(stream):
        coming: asyncio.Future[T] = asyncio.ensure_future(anext(stream))
        try:
            last: list[T] = []
            while True:
                arrived, _ = await asyncio.wait({coming}, timeout=BEAT_SECONDS)
                if arrived:
                    try:
                        last = [coming.result()]
                    except StopAsyncIteration:
                        return
                    coming = asyncio.ensure_future(anext(stream))
                if from_mcp(http) and hung_up(http.request):
                    return
                for value in last:
                    yield value
        finally:
            coming.cancel()
            # Waits for it, and takes what nobody wants to know any more.
            await asyncio.gather(coming, return_exceptions=True)


def visit_of(http: gr.Request) -> Visit:
    """A visit for one call. In line for the device the calls of one client let others pass; so do those through MCP,
    all of which gradio makes as one client.
    """
    return Visit(owner=http.session_hash)


def sender(http: gr.Request) -> Callable[[Any], Any]:
    """How a value goes out: as it is; to MCP as text, because gradio would write a dictionary as Python does."""
    return (lambda value: json.dumps(value, ensure_ascii=False)) if from_mcp(http) else (lambda value: value)
