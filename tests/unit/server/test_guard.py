"""The guard by itself, before small apps that do what gradio might."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.server.guard import MALFORMED, UNEXPECTED, Guard
from app.server.journal import Journal
from tests.unit.server.logged import SECRET, lines


def run_alone(coroutine: Any) -> None:
    """In a thread of its own: browser tests of the same session keep an event loop running in this one."""
    with ThreadPoolExecutor(1) as alone:
        alone.submit(asyncio.run, coroutine).result(timeout=30)


def ask(
    app: Callable[..., Any], path: str = "/", body: list[bytes] | None = None, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """What an ASGI app sends for one request whose body comes in these pieces; it takes those that it reads away."""
    pieces = [b""] if body is None else body
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": raw}
    run_alone(app(scope, receive, send))
    return sent


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes it was sent."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame", b"1")]})
    await send({"type": "http.response.body", "body": b"%d" % size})


def said(sent: list[dict[str, Any]]) -> tuple[int, dict[str, str]]:
    """Status and the JSON of an answer."""
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


class TestGuard:
    def test_adds_the_security_headers_and_keeps_the_ones_that_are_there(self) -> None:
        sent = ask(Guard(echo), body=[b"abc"])
        assert sent[0]["headers"] == [
            (b"x-frame", b"1"),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
        ]
        assert sent[1]["body"] == b"3"

        async def own(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"Referrer-Policy", b"no-referrer")]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body"})

        headers = ask(Guard(own))[0]["headers"]
        assert headers == [(b"Referrer-Policy", b"no-referrer"), (b"x-content-type-options", b"nosniff")]

    @pytest.mark.parametrize(
        ("path", "size", "status"),
        [
            ("/gradio_api/queue/join", 10, 200),
            ("/gradio_api/queue/join", 11, 413),
            ("/gradio_api/upload", 20, 200),
            ("/gradio_api/upload/", 20, 200),
            ("/gradio_api/upload", 21, 413),
            ("/gradio_api/upload_progress", 11, 413),
            ("/mine/gradio_api/uploads", 11, 413),
        ],
    )
    @pytest.mark.parametrize("announced", [True, False])
    def test_refuses_bodies_above_the_limit_whether_announced_or_not(
        self, path: str, size: int, status: int, announced: bool
    ) -> None:
        headers = {"Content-Length": str(size)} if announced else {"Transfer-Encoding": "chunked"}
        guard = Guard(echo, limit=10, upload_limit=20)
        sent = ask(guard, path, [b"x" * (size - 5), b"x" * 5], headers)
        assert sent[0]["status"] == status
        if status == 413:
            assert (b"connection", b"close") in sent[0]["headers"]
            assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
            assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        else:
            assert sent[1]["body"] == b"%d" % size

    @pytest.mark.parametrize("announced", [True, False])
    def test_reads_a_refused_body_on_before_it_ends_its_answer(self, announced: bool) -> None:
        body = [b"x" * 11] * 5
        sent = ask(Guard(echo, limit=10), body=body, headers={"Content-Length": "55"} if announced else {})
        assert (body, sent[1]["more_body"], sent[2]["more_body"]) == ([], True, False)

    def test_reads_nothing_where_the_client_asks_before_it_sends(self) -> None:
        body = [b"x" * 11]
        headers = {"Content-Length": "11", "Expect": "100-continue"}
        assert ask(Guard(echo, limit=10), body=body, headers=headers)[0]["status"] == 413
        assert body == [b"x" * 11]

    def test_says_the_limit_in_one_sentence(self) -> None:
        assert said(ask(Guard(echo), body=[b"x"], headers={"Content-Length": "9000000"})) == (
            413,
            dict.fromkeys(("detail", "error"), "This request is too large: at most 8 MiB are accepted here."),
        )

    def test_takes_no_uploads_where_it_is_told_so(self) -> None:
        guard = Guard(echo, upload_limit=0)
        sentence = "This server takes no uploads."
        assert said(ask(guard, "/gradio_api/upload", [b"x"]))[1]["error"] == sentence
        assert said(ask(guard, "/gradio_api/upload", [b"x"], {"Content-Length": "1"}))[0] == 413
        assert ask(guard, "/gradio_api/run/x", [b"x"])[0]["status"] == 200

    @pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "0x10"])
    def test_refuses_a_length_that_is_no_count(self, length: str) -> None:
        assert ask(Guard(echo), headers={"Content-Length": length})[0]["status"] == 413

    def test_an_app_that_makes_something_else_of_a_body_cut_off_cannot_answer_for_it(self) -> None:
        async def swallows(scope: Any, receive: Any, send: Any) -> None:
            try:
                await echo(scope, receive, send)
            except Exception:
                await send({"type": "http.response.start", "status": 400, "headers": []})
                await send({"type": "http.response.body", "body": b"other"})

        assert said(ask(Guard(swallows, limit=10), body=[b"x" * 11]))[0] == 413

    def test_an_exception_becomes_one_sentence_and_the_journal_says_where_it_was(self) -> None:
        async def fails(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError(SECRET)

        stream = io.StringIO()
        sent = ask(Guard(fails, Journal(stream)), "/sparsed-run/x/y")
        assert said(sent) == (500, {"detail": UNEXPECTED, "error": UNEXPECTED})
        assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
        (line,) = lines(stream)
        assert (line["event"], line["error"], line["path"]) == ("error", "RuntimeError", "/sparsed-run/x/y")
        assert line["trace"][-1].endswith("in fails")
        assert "lighthouse" not in stream.getvalue()

    @pytest.mark.parametrize(
        ("path", "error", "status"),
        [
            ("/gradio_api/queue/join", KeyError(999), 400),
            ("/gradio_api/call/nope", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 400),
            ("/gradio_api/call/nope", RecursionError(), 400),
            ("/static/a", OSError(36, "File name too long"), 400),
            ("/gradio_api/upload", OSError(28, "No space left on device"), 500),
            ("/gradio_api/queue/join", MemoryError(), 500),
            ("/gradio_api/queue/join", RuntimeError("can't start new thread"), 500),
            ("/sparsed-run/a/b", KeyError(999), 500),
            ("/", KeyError(999), 500),
        ],
    )
    def test_blames_the_request_only_for_what_bad_input_does_to_gradio(
        self, path: str, error: Exception, status: int
    ) -> None:
        async def fails(scope: Any, receive: Any, send: Any) -> None:
            raise error

        stream = io.StringIO()
        code, sentence = said(ask(Guard(fails, Journal(stream)), path))
        assert (code, sentence["error"]) == (status, MALFORMED if status == 400 else UNEXPECTED)
        assert [line["event"] for line in lines(stream)] == ["malformed" if status == 400 else "error"]

    def test_blames_no_request_for_an_exception_that_passed_through_our_own_code(self) -> None:
        async def fails(scope: Any, receive: Any, send: Any) -> None:
            raise KeyError(999)

        own = [Path(__file__).resolve().parent]
        assert said(ask(Guard(fails, Journal(io.StringIO()), own=own), "/gradio_api/queue/join"))[0] == 500

    @pytest.mark.parametrize(("ours", "status"), [(False, 400), (True, 500)])
    def test_other_middleware_of_ours_takes_no_blame_for_what_it_passed_on(self, ours: bool, status: int) -> None:
        async def endpoint() -> None:
            raise KeyError(999)

        # Code of somebody else, as the traceback has it, which fails itself or calls an endpoint of ours.
        theirs = "async def app(*given):\n    " + ("await endpoint()" if ours else "raise KeyError(999)")
        space: dict[str, Any] = {"endpoint": endpoint}
        exec(compile(theirs, "/elsewhere/routing.py", "exec"), space)

        async def passes(*given: Any) -> None:
            await space["app"](*given)

        guard = Guard(passes, Journal(io.StringIO()), own=[Path(__file__).resolve().parent])
        assert said(ask(guard, "/gradio_api/queue/join"))[0] == status

    def test_finds_the_exception_inside_a_group(self) -> None:
        class Group(Exception):
            exceptions = (KeyError(1),)

        async def fails(scope: Any, receive: Any, send: Any) -> None:
            raise Group

        assert said(ask(Guard(fails, Journal(io.StringIO())), "/gradio_api/queue/join"))[0] == 400

    def test_an_answer_that_breaks_off_is_left_broken(self) -> None:
        async def fails(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            raise RuntimeError("disk gone")

        with pytest.raises(RuntimeError, match="^disk gone$"):
            ask(Guard(fails, Journal(io.StringIO())))

    def test_a_stream_of_events_that_fails_is_ended_and_noted(self) -> None:
        async def fails(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            raise RuntimeError(SECRET)

        stream = io.StringIO()
        sent = ask(Guard(fails, Journal(stream)), "/gradio_api/queue/data")
        assert [message.get("body") for message in sent[1:]] == [b"data: 1\n\n", b""]
        assert [(line["event"], line["error"]) for line in lines(stream)] == [("stream", "RuntimeError")]

    @pytest.mark.parametrize("kind", ["websocket", "lifespan"])
    def test_websockets_and_the_lifespan_pass_untouched(self, kind: str) -> None:
        seen: list[Any] = []

        async def app(*given: Any) -> None:
            seen.extend(given)

        async def nothing(*_: Any) -> Any:
            raise AssertionError

        scope = {"type": kind}
        run_alone(Guard(app)(scope, nothing, nothing))
        assert seen == [scope, nothing, nothing]
