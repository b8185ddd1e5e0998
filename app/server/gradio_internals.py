"""Everything that leans on what gradio does not promise: its private attributes, the names of its exceptions, and how
its MCP server calls. Nothing else in `app` may.

Checked against gradio 6.31.0. After an upgrade tests/unit/server/test_gradio_internals.py says what is gone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, cast

import gradio as gr
from gradio.context import get_blocks_context
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

# What gradio and its libraries raise for a bad request and is no ValueError.
BAD_REQUESTS = ("InvalidURL", "FnIndexInferError")
# By this header a call tells that gradio's MCP server makes it, and by ours, for which request.
MADE_BY, CALLER = "x-gradio-user", "x-sparsed-caller"
MCP_PATH = "/gradio_api/mcp"
# Runs in the browser: an address with ?view=api shows gradio's page of the API, which it fetches at a press alone.
SHOW_API = """() => {
    const button = document.querySelector("footer button.show-api");
    if (!button || new URLSearchParams(location.search).get("view") !== "api") return;
    button.click();
    setTimeout(() => button.click());
}"""

# The exceptions of the events that the current request starts itself; None where nobody asks for them.
_failed: ContextVar[list[Exception] | None] = ContextVar("sparsed_failed", default=None)


class CutOff(MultiPartException):
    """A request's body ends here. For this class gradio deletes the files of an upload that it has begun to write; it
    keeps them for any other.
    """


def look_for_work_every(seconds: float, page: gr.Blocks) -> None:
    """How often the queue looks for something to do. Gradio looks a thousand times a second, which on two cores takes
    7 % of one from the engine. Call it after `page.queue`.
    """
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = seconds


def forget_session(session: str | None, page: gr.Blocks) -> None:
    """Drops the last value of every output, which gradio keeps of a tab that is closed, too."""
    holder = getattr(page, "state_holder", None)
    if holder is not None and session is not None:
        holder.session_data.pop(session, None)
        holder.time_last_used.pop(session, None)


def sent_with(event: gr.EventData) -> object:
    """What the browser sent with an event, whatever it is."""
    return event._data


def describe_parameters(endpoint: int, sentences: Iterable[str]) -> None:
    """What `client.view_api()` says beside each parameter of a `gr.api`, in their order. Call it inside the page."""
    page = get_blocks_context()
    assert page is not None, "there is a gr.Blocks around"
    for component, sentence in zip(page.fns[endpoint].inputs, sentences, strict=True):
        cast(Any, component).api_info()["additional_description"] = sentence


def collect_failures(app: Any, errors: list[Exception]) -> None:
    """From here on, in this context, the exceptions of events go into `errors`: gradio's answer only quotes them. `app`
    is gradio's, with the page in `blocks`; any other is left alone.
    """
    _failed.set(errors)
    blocks = getattr(app, "blocks", None)
    process = getattr(blocks, "process_api", None)
    if blocks is None or process is None or getattr(process, "watched", False):
        return

    async def process_api(*given: Any, **named: Any) -> Any:
        try:
            return await process(*given, **named)
        except Exception as error:
            failed = _failed.get()
            if failed is not None:
                failed.append(error)
            raise

    process_api.watched = True  # type: ignore[attr-defined]
    blocks.process_api = process_api


class Callers:
    """ASGI middleware: gives each request to the MCP server a number, and forgets it when the request is over. Gradio
    makes the calls of its MCP server in its own name and goes on with them when the client has hung up, but it hands on
    the headers of the client's request: the number among them says which one that was.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The older of MCP's two ways over HTTP (SSE) answers elsewhere than where it is asked: its requests are over at
        # once, whoever waits.
        if scope["type"] != "http" or MCP_PATH not in scope["path"] or "/messages" in scope["path"]:
            await self.app(scope, receive, send)
            return
        number, name = secrets.token_hex(8), CALLER.encode()
        headers = [pair for pair in scope["headers"] if pair[0] != name]
        waiting = _waiting(scope["app"])
        waiting.add(number)
        try:
            await self.app({**scope, "headers": [*headers, (name, number.encode())]}, receive, send)
        finally:
            waiting.discard(number)


def from_mcp(call: gr.Request) -> bool:
    """Whether gradio's MCP server makes this call."""
    return bool(call.headers.get(MADE_BY) == "mcp")


def hung_up(call: Request | None) -> bool:
    """Whether the client's request that this one, gradio's own, was made for is over. False for others, and where
    the server runs without `Callers`.
    """
    number = None if call is None else call.headers.get(CALLER)
    return call is not None and number is not None and number not in _waiting(call.app)


def _waiting(app: Any) -> set[str]:
    """The numbers of the requests that go on in this server."""
    if not hasattr(app.state, "sparsed_callers"):
        app.state.sparsed_callers = set()
    found: set[str] = app.state.sparsed_callers
    return found
