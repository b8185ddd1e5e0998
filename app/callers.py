"""Which calls through MCP somebody still waits for.

Gradio makes the calls of its MCP server in its own name, and goes on with them when the client has hung up. But it
hands on the headers of the client's request: a number of ours among them says which one that was.
"""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "x-sparsed-caller"
MCP_PATH = "/gradio_api/mcp"


class Callers:
    """ASGI middleware: gives each request to the MCP server a number, and forgets it when the request is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The older of MCP's two ways over HTTP (SSE) answers elsewhere than where it is asked: its requests are over at
        # once, whoever waits.
        if scope["type"] != "http" or MCP_PATH not in scope["path"] or "/messages" in scope["path"]:
            await self.app(scope, receive, send)
            return
        number = secrets.token_hex(8)
        name = HEADER.encode()
        headers = [pair for pair in scope["headers"] if pair[0] != name]
        waiting = _waiting(scope["app"])
        waiting.add(number)
        try:
            await self.app({**scope, "headers": [*headers, (name, number.encode())]}, receive, send)
        finally:
            waiting.discard(number)


def hung_up(call: Request | None) -> bool:
    """Whether the client's request that this one, gradio's own, was made for is over. False for others, and where
    the server runs without `Callers`.
    """
    number = None if call is None else call.headers.get(HEADER)
    return call is not None and number is not None and number not in _waiting(call.app)


def _waiting(app: Any) -> set[str]:
    """The numbers of the requests that go on in this server."""
    if not hasattr(app.state, "sparsed_callers"):
        app.state.sparsed_callers = set()
    found: set[str] = app.state.sparsed_callers
    return found
