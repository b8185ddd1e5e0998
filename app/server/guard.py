"""What stands before every request: it bounds bodies, sets the security headers, and lets no trace out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

from app.server import gradio_internals
from app.server.journal import ROOT, Journal, cause

MIB = 2**20
# Whose mistakes are ours: an exception that passed through these is never blamed on the request.
OWN = (ROOT / "app", ROOT / "sparsed")
# But these two files only pass requests on.
PASSING = (Path(__file__).resolve(), Path(gradio_internals.__file__).resolve())

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))
UPLOADS = re.compile(r"/gradio_api/upload/?$")
# Where gradio answers for itself. An exception there that is none of ours is its way of choking on a request.
GRADIO = re.compile(r"^/(gradio_api/|config|login|static/|assets/|svelte/)")
# Where gradio makes a 500 of its own of every failure of an event.
EVENTS = re.compile(r"/gradio_api/(run|api)/")
CHOKED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, AssertionError)
CHOKED_ERRNO = (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
MALFORMED = "The server cannot make sense of this request; reload the page, or see the API's description."
UNEXPECTED = "Something went wrong on the server, and its log says what."
# How long a refused body is read on, in seconds, so that a browser that is still sending gets to read the answer.
DRAIN_SECONDS = 2.0


class Guard:
    """ASGI middleware, to stand around the whole app: bounds request bodies, sets two security headers on every answer,
    and lets no exception out. Answers are passed on as they come; websockets and the lifespan are left alone.

    A body above the limit gets 413, whether it says its length or not. An exception before the answer has begun becomes
    one sentence: 400 where gradio chokes on a malformed request to an endpoint of its own, else 500; the journal gets
    the rest. Where an event that was called directly (/gradio_api/run/…) failed because of its input, gradio's 500
    becomes 400 too.

    limit, upload_limit: bytes of a request body, and of one to gradio's upload; 0 takes no uploads, whose files gradio
    would keep. own: folders whose exceptions are ours.
    """

    def __init__(
        self,
        app: Callable[[Any, Receive, Send], Awaitable[None]],
        journal: Journal | None = None,
        limit: int = 8 * MIB,
        upload_limit: int = 64 * MIB,
        own: Sequence[Path] = OWN,
    ) -> None:
        self.app = app
        self.journal = Journal() if journal is None else journal
        self.limit, self.upload_limit = limit, upload_limit
        self.own = tuple(own)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        root = scope.get("root_path", "").rstrip("/")
        if root and path.startswith(root + "/"):
            path = path[len(root) :]
        limit = self.upload_limit if UPLOADS.search(path) else self.limit
        answer = _Answer(send)
        headers = dict(scope["headers"])
        if _length(headers) > limit:
            await self._refuse(answer, receive, limit, asked=b"expect" in headers)
            return
        counted = 0
        complete = too_large = False
        upload = headers.get(b"content-type", b"").startswith(b"multipart/form-data")

        async def bounded() -> Message:
            nonlocal counted, complete, too_large
            message = await receive()
            counted += len(message.get("body", b""))
            if counted > limit:
                # Whoever reads may make something of its own of this exception: nothing it says goes out any more.
                too_large = answer.mute = True
                raise gradio_internals.CutOff("Too large.")
            if upload and not complete and message["type"] == "http.disconnect":
                answer.mute = True
                raise gradio_internals.CutOff("Gone.")
            complete = complete or not message.get("more_body", False)
            return message

        errors: list[Exception] = []
        if EVENTS.search(path):
            gradio_internals.collect_failures(scope.get("app"), errors)
            answer.review = lambda body: self._reviewed(body, errors, path, scope)
        try:
            await self.app(scope, bounded, answer)
        except Exception as error:  # this is the last one who can answer
            if not answer.mute:
                await self._answer_for(errors[-1] if errors else error, path, scope, answer)
        if too_large and not answer.started:
            answer.mute = False
            await self._refuse(answer, receive, limit, asked=False)

    async def _answer_for(self, error: Exception, path: str, scope: Mapping[str, Any], answer: _Answer) -> None:
        """One sentence for an exception that came out of the app."""
        if isinstance(cause(error), ClientDisconnect):
            return
        if not answer.started:
            await answer.say(*self._judged(error, path, scope))
        elif answer.events:
            # gradio ends a stream of events with one that says what is wrong; the exception says it again.
            self._note("stream", error, scope)
            await answer.end()
        else:
            # The answer is cut off, and the reader must see that it is: only a broken connection says so.
            raise error

    def _judged(self, error: Exception, path: str, scope: Mapping[str, Any]) -> tuple[int, str]:
        """Status and sentence for an exception: the request's fault, or ours; the journal hears of it."""
        if GRADIO.search(path) and self._malformed(cause(error)):
            self._note("malformed", error, scope)
            return 400, MALFORMED
        self.journal.error(error, method=scope["method"], path=scope["path"])
        return 500, UNEXPECTED

    def _note(self, name: str, error: Exception, scope: Mapping[str, Any]) -> None:
        self.journal.event(name, method=scope["method"], path=scope["path"], error=type(cause(error)).__name__)

    def _malformed(self, error: BaseException) -> bool:
        """Whether the exception is the request's fault: none of ours, and of a kind that bad input makes."""
        blamed = isinstance(error, CHOKED) or type(error).__name__ in gradio_internals.BAD_REQUESTS
        if not blamed and not (isinstance(error, OSError) and error.errno in CHOKED_ERRNO):
            return False
        files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
        own = [any(file.is_relative_to(folder) for folder in self.own) for file in files if file not in PASSING]
        # Other middleware of ours only passed the request on: it counts where nothing else was called.
        called = list(dropwhile(bool, own))
        return not any(called or own)

    def _reviewed(
        self, body: bytes, errors: Sequence[Exception], path: str, scope: Mapping[str, Any]
    ) -> tuple[int, bytes]:
        """Status and body for gradio's 500 about an event called directly. A refusal in words (gr.Error has a title) is
        the request's; any other is put in our words, as gradio's may name paths.
        """
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if isinstance(said, dict) and "title" in said:
            return 400, body
        if not errors:
            return 500, body
        status, sentence = self._judged(errors[-1], path, scope)
        return status, _sentence(sentence)

    async def _refuse(self, answer: _Answer, receive: Receive, limit: int, asked: bool) -> None:
        """413. asked: the client waits to be told to send its body, so there is nothing to read on."""
        said = "This server takes no uploads."
        if limit:
            said = f"This request is too large: at most {limit / MIB:g} MiB are accepted here."
        await answer.say(413, said, more=True)
        if not asked:
            # Whoever sends on for longer does not wait for an answer.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_drain(receive), DRAIN_SECONDS)
        await answer.end()


class _Answer:
    """`send` with the security headers. It knows whether the answer has begun, and can hold a 500 back for review."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = self.events = self.mute = False
        self.review: Callable[[bytes], tuple[int, bytes]] | None = None
        self._held: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if self.mute:
            return
        if message["type"] == "http.response.start":
            if self.review is not None and message["status"] == 500:
                self._held = message
                return
            await self._start(message)
        elif self._held is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._release(self._held)
        else:
            await self._send(message)

    async def _release(self, start: Message) -> None:
        assert self.review is not None
        status, body = self.review(self._body)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        self._held = None
        await self._start({**start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, message: Message) -> None:
        headers = list(message.get("headers", ()))
        present = {name.lower(): value for name, value in headers}
        headers += [(name, value) for name, value in SECURITY_HEADERS if name not in present]
        self.events = present.get(b"content-type", b"").startswith(b"text/event-stream")
        self.started = True
        await self._send({**message, "headers": headers})

    async def say(self, status: int, sentence: str, more: bool = False) -> None:
        """A whole answer of one sentence, under the names that gradio's clients look for. more: `end` follows, and the
        connection is closed.
        """
        self._held = None
        body = _sentence(sentence)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if more:
            headers.append((b"connection", b"close"))
        await self._start({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def end(self) -> None:
        """The end of an answer whose body has been sent."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _sentence(sentence: str) -> bytes:
    return json.dumps({"detail": sentence, "error": sentence}).encode()


def _length(headers: Mapping[bytes, bytes]) -> int:
    """What the request says of its length, in bytes; 0 if nothing."""
    text = headers.get(b"content-length") or b"0"
    return int(text) if text.isdigit() and len(text) < 20 else sys.maxsize


async def _drain(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
