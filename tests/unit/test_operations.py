"""The journal, the counters, the health check, the guard (before a real gradio app too) and the orderly stop."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from app.operations import (
    MALFORMED,
    MOST_MODELS,
    ROOT,
    UNEXPECTED,
    Guard,
    Journal,
    Metrics,
    RunReport,
    Status,
    on_terminate,
    routes,
)

SECRET = "Who keeps the lighthouse\nof Orrin\u2028Bay? \ud800"
REPORT = RunReport(
    run=7,
    via="page",
    model="mini",
    kind="about",
    tokens=254,
    gen_length=96,
    steps=48,
    state="done",
    waited=0.5,
    seconds=12.0,
    dense_seconds=7.5,
    sparse_seconds=4.5,
    speedup=7.5 / 4.5,
    right=(True, False, None),
    prompt=SECRET,
)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The journal's lines; anything that is no JSON, NaN included, is an error."""

    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no_constant) for line in stream.getvalue().splitlines()]


class TestJournal:
    def test_writes_one_line_for_a_run_with_sorted_keys_and_utc_time_and_without_the_prompt(self) -> None:
        stream = io.StringIO()
        Journal(stream).note(REPORT)
        text = stream.getvalue()
        assert text.count("\n") == 1 and text.endswith("\n") and text.isascii()
        (said,) = lines(stream)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
        assert list(said) == sorted(said)
        assert said == {
            "dense_seconds": 7.5,
            "error": "",
            "event": "run",
            "gen_length": 96,
            "kind": "about",
            "model": "mini",
            "right": [True, False, None],
            "run": 7,
            "seconds": 12.0,
            "sparse_seconds": 4.5,
            "speedup": 1.666667,
            "state": "done",
            "steps": 48,
            "tokens": 254,
            "via": "page",
            "waited": 0.5,
        }

    def test_writes_the_prompt_in_one_line_where_it_is_told_to(self) -> None:
        stream = io.StringIO()
        Journal(stream, prompts=True).note(REPORT)
        assert lines(stream)[0]["prompt"] == "Who keeps the lighthouse of Orrin Bay? \ud800"
        assert len(stream.getvalue().splitlines()) == 1

    def test_cuts_a_prompt_at_its_limit(self) -> None:
        stream = io.StringIO()
        Journal(stream, prompts=True).note(replace(REPORT, prompt="x" * 1_000_000))
        assert lines(stream)[0]["prompt"] == "x" * 19_999 + "…"

    @pytest.mark.parametrize("field", [field.name for field in fields(RunReport) if field.name != "prompt"])
    def test_no_field_can_break_the_line_or_fill_the_log(self, field: str) -> None:
        stream = io.StringIO()
        hostile = "a\r\n{\"event\": \"run\"}\x85\u2029\x1cb" * 1000
        Journal(stream).note(replace(REPORT, **{field: hostile}))
        (said,) = lines(stream)
        assert len(stream.getvalue()) < 3000
        if field == "error":
            assert said["error"] == "unnamed"
        else:
            assert said[field].startswith('a {"event": "run"}   b') and said[field].endswith("…")
            assert len(said[field]) <= 300

    def test_keeps_a_message_given_as_the_error_out_because_it_may_quote_the_prompt(self) -> None:
        stream = io.StringIO()
        Journal(stream).note(replace(REPORT, error=f"bad text: {SECRET}"))
        Journal(stream).note(replace(REPORT, error="OutOfMemoryError"))
        assert [said["error"] for said in lines(stream)] == ["unnamed", "OutOfMemoryError"]
        assert "lighthouse" not in stream.getvalue()

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_writes_numbers_that_json_does_not_know_as_null(self, number: float) -> None:
        stream = io.StringIO()
        Journal(stream).note(replace(REPORT, seconds=number, speedup=number))
        assert (lines(stream)[0]["seconds"], lines(stream)[0]["speedup"]) == (None, None)

    def test_writes_events_with_their_facts_as_plain_values(self) -> None:
        stream = io.StringIO()
        Journal(stream).event("model", name="a\nb", seconds=1.23456789, path=Path("x"), list=(1, None), map={1: "c\nd"})
        (said,) = lines(stream)
        del said["time"]
        assert said == {
            "event": "model", "list": [1, None], "map": {"1": "c d"}, "name": "a b", "path": "x", "seconds": 1.234568,
        }  # fmt: skip

    def test_says_where_an_exception_came_from_and_its_message_only_with_prompts(self) -> None:
        def fail() -> None:
            raise KeyError(SECRET)

        quiet, open_ = io.StringIO(), io.StringIO()
        for journal in (Journal(quiet), Journal(open_, prompts=True)):
            try:
                fail()
            except KeyError as error:
                journal.error(error, path="/x")
        assert "lighthouse" not in quiet.getvalue()
        (said,) = lines(quiet)
        assert (said["event"], said["error"], said["path"]) == ("error", "KeyError", "/x")
        assert re.fullmatch(r"tests/unit/test_operations\.py:\d+ in fail", said["trace"][-1])
        assert "lighthouse" in lines(open_)[0]["message"]

    def test_a_closed_a_missing_or_a_broken_stream_hurts_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        class Unsayable:
            def __str__(self) -> str:
                raise RuntimeError

        closed = io.StringIO()
        closed.close()
        for stream in (closed, Broken()):
            Journal(stream).note(REPORT)
        monkeypatch.setattr(sys, "stderr", None)
        Journal().event("start")
        well = io.StringIO()
        Journal(well).event("start", what=Unsayable())
        Journal(well).event("after")
        assert [said["event"] for said in lines(well)] == ["after"]

    def test_writes_to_the_standard_error_of_the_moment(self, capsys: pytest.CaptureFixture[str]) -> None:
        Journal().event("start")
        assert json.loads(capsys.readouterr().err)["event"] == "start"

    def test_lines_of_many_threads_stay_whole(self) -> None:
        class Slow(io.StringIO):
            """Writes in pieces, as a pipe may, and lets other threads go on between them."""

            def write(self, text: str) -> int:
                for start in range(0, len(text), 50):
                    super().write(text[start : start + 50])
                    time.sleep(0)
                return len(text)

        stream = Slow()
        journal = Journal(stream)

        def work(number: int) -> None:
            for index in range(20):
                journal.note(replace(REPORT, run=100 * number + index))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said["run"] for said in lines(stream)) == [100 * n + i for n in range(8) for i in range(20)]

    @pytest.mark.parametrize(("value", "prompts"), [("", False), ("0", False), ("1", True), (" 1 ", True)])
    def test_reads_from_the_environment_whether_prompts_are_written(self, value: str, prompts: bool) -> None:
        assert Journal.here({"SPARSED_LOG_PROMPTS": value}).prompts is prompts
        assert Journal.here({}).prompts is False

    def test_refuses_another_value_in_the_environment(self) -> None:
        with pytest.raises(ValueError, match=r"^SPARSED_LOG_PROMPTS is 'yes'; it must be 0 or 1\.$"):
            Journal.here({"SPARSED_LOG_PROMPTS": "yes"})


class TestMetrics:
    @staticmethod
    def values(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
        made = metrics.render()
        assert made is not None and made[1].startswith("text/plain")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parser.text_string_to_metric_families(made[0].decode())
            for sample in family.samples
        }

    def test_counts_runs_by_state_way_and_model_and_times_only_those_that_were_done(self) -> None:
        metrics = Metrics()
        metrics.note(REPORT)
        metrics.note(replace(REPORT, via="api", waited=40.0))
        metrics.note(replace(REPORT, state="stopped"))
        metrics.note(replace(REPORT, state="refused", waited=99.0))
        values = self.values(metrics)

        def runs(state: str, via: str) -> float:
            return values[("sparsed_runs_total", (("model", "mini"), ("state", state), ("via", via)))]

        assert (runs("done", "page"), runs("done", "api"), runs("stopped", "page"), runs("refused", "page")) == (1,) * 4
        assert values[("sparsed_steps_total", ())] == 96
        assert values[("sparsed_run_seconds_count", (("lane", "dense"),))] == 2
        assert values[("sparsed_run_seconds_sum", (("lane", "dense"),))] == 15
        assert values[("sparsed_run_seconds_sum", (("lane", "sparse"),))] == 9
        assert values[("sparsed_run_seconds_sum", (("lane", "all"),))] == 24
        assert values[("sparsed_wait_seconds_count", ())] == 3
        assert values[("sparsed_wait_seconds_sum", ())] == 41
        assert values[("sparsed_wait_seconds_bucket", (("le", "0.5"),))] == 2

    def test_asks_for_the_gauges_once_each_time_it_is_asked(self) -> None:
        now = [Status("ok", ("mini",), running=1, waiting=2, visits=3, uptime=4.5), Status("stuck")]
        asked: list[Status] = []

        def status() -> Status:
            asked.append(now[len(asked)])
            return asked[-1]

        metrics = Metrics(status)
        assert asked == []
        names = ("up", "running", "waiting", "visits", "models_in_memory", "uptime_seconds")
        first = self.values(metrics)
        assert [first[(f"sparsed_{name}", ())] for name in names] == [1, 1, 2, 3, 1, 4.5]
        second = self.values(metrics)
        assert [second[(f"sparsed_{name}", ())] for name in names] == [0, 0, 0, 0, 0, 0]
        assert len(asked) == 2

    @pytest.mark.skipif(sys.platform != "linux", reason="prometheus_client reads /proc")
    def test_says_how_much_memory_the_process_has(self) -> None:
        assert self.values(Metrics())[("process_resident_memory_bytes", ())] > 2**20

    def test_has_a_registry_of_its_own(self) -> None:
        first, second = Metrics(), Metrics()
        first.note(REPORT)
        counted = ("sparsed_runs_total", (("model", "mini"), ("state", "done"), ("via", "page")))
        assert self.values(first)[counted] == 1
        assert counted not in self.values(second)

    def test_visitors_cannot_make_endless_counters_nor_show_folders(self) -> None:
        metrics = Metrics()
        metrics.note(replace(REPORT, model="/srv/secret/tiny"))
        for number in range(1000):
            metrics.note(replace(REPORT, model=f"own\n{number}"))
        models = {dict(labels)["model"] for name, labels in self.values(metrics) if name == "sparsed_runs_total"}
        assert models == {"tiny", "other", *(f"own {number}" for number in range(MOST_MODELS - 1))}

    def test_without_the_package_it_counts_nothing_and_the_route_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        metrics = Metrics(lambda: Status("ok"))
        metrics.note(REPORT)
        assert metrics.render() is None
        answer = TestClient(Starlette(routes=routes(lambda: Status("ok"), metrics))).get("/metrics")
        assert (answer.status_code, answer.text) == (
            404,
            "There are no metrics here without prometheus_client; run: pip install prometheus-client",
        )


class TestRoutes:
    @pytest.mark.parametrize(("state", "code"), [("ok", 200), ("loading", 200), ("stuck", 503), ("stopping", 503)])
    def test_health_is_503_only_where_the_server_does_not_serve(self, state: Any, code: int) -> None:
        status = Status(state, ("mini", "/srv/secret/tiny", "../up/there", "C:\\secret\\it"), 1, 2, 3, 4.5678, "0.1.0")
        client = TestClient(Starlette(routes=routes(lambda: status, Metrics())))
        answer = client.get("/healthz")
        assert answer.status_code == code
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json() == {
            "state": state,
            "models": ["mini", "tiny", "there", "it"],
            "running": 1,
            "waiting": 2,
            "visits": 3,
            "uptime": 4.6,
            "version": "0.1.0",
        }
        head = client.head("/healthz")
        assert (head.status_code, head.content) == (code, b"")
        assert client.post("/healthz").status_code == 405

    def test_metrics_are_served_as_prometheus_reads_them(self) -> None:
        prometheus = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
        metrics = Metrics()
        metrics.note(REPORT)
        answer = TestClient(Starlette(routes=routes(lambda: Status("ok"), metrics))).get("/metrics")
        assert (answer.status_code, answer.headers["content-type"]) == (200, prometheus.CONTENT_TYPE_LATEST)
        assert 'sparsed_runs_total{model="mini",state="done",via="page"} 1.0' in answer.text


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


class Page:
    """A small gradio app, served as the page is: `launch` with the guard among `app_kwargs`."""

    def __init__(self, files: Path) -> None:
        import gradio as gr

        self.files = files
        self.go_on = threading.Event()
        self.log = io.StringIO()

        def slow(number: float, text: str) -> Iterator[str]:
            yield "first"
            assert self.go_on.wait(30)
            yield "second"

        def fails(number: float) -> str:
            raise RuntimeError(f"{SECRET} {ROOT}")

        def refuses(number: float) -> str:
            raise gr.Error("Only whole numbers, please.", print_exception=False)

        with gr.Blocks() as demo:
            number, text, choice = gr.Number(minimum=0), gr.Textbox(), gr.Dropdown(["a", "b"], value="a")
            folder = gr.FileExplorer(root_dir=str(Path(__file__).parent))
            button, file = gr.Button(), gr.File()
            button.click(slow, [number, text], text, api_name="slow")
            everything = [number, text, choice, file]
            button.click(lambda *_: "well", everything, text, queue=False, api_name="all")
            button.click(fails, number, text, queue=False, api_name="fails")
            button.click(refuses, number, text, queue=False, api_name="refuses")
        self.demo, self.folder = demo, folder._id
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        guard = Middleware(Guard, journal=Journal(self.log), own=(Path(__file__).resolve().parent,))
        given = {"middleware": [guard], "routes": routes(lambda: Status("ok"), Metrics())}
        demo.launch(
            server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False,
            run_history=False, show_error=True, app_kwargs=given,
        )  # fmt: skip
        self.port = port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def post(self, path: str, body: bytes | dict[str, Any], content_type: str = "application/json") -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(f"/gradio_api/{path}", content=content, headers={"Content-Type": content_type})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with pytest.MonkeyPatch.context() as patch:
        files = tmp_path_factory.mktemp("files")
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(files))
        # gradio's statistics of events stumble over every event that follows one with a hostile session.
        patch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
        pytest.importorskip("gradio", reason="gradio is not installed")
        page = Page(files)
        yield page
        page.go_on.set()
        page.http.close()
        page.demo.close(verbose=False)


WELL = {"data": [1, "t", "a", None], "session_hash": "abc", "fn_index": 1}
DEEP = b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b', "session_hash": "abc", "fn_index": 1}'
BODIES: dict[str, bytes | dict[str, Any]] = {
    "nothing": b"",
    "half": b'{"data": [',
    "null": b"null",
    "list": b"[]",
    "no fields": b"{}",
    "no UTF-8": b'{"data": ["\xff\xfe"], "session_hash": "x", "fn_index": 1}',
    "deep": DEEP,
    "NaN": b'{"data": [NaN, "t", "a", null], "session_hash": "x", "fn_index": NaN, "component_id": NaN}',
    "endless digits": b'{"data": [1], "session_hash": "x", "fn_index": ' + b"9" * 6000 + b"}",
    "surrogates": b'{"data": ["\\ud800"], "session_hash": "\\ud800", "fn_index": 1, "event_id": "\\ud800"}',
    "unknown function": {**WELL, "fn_index": 999},
    "function below": {**WELL, "fn_index": -1},
    "huge function": {**WELL, "fn_index": 10**30},
    "function by name": {**WELL, "fn_index": "all"},
    "data by name": {**WELL, "data": {"a": 1}},
    "data is text": {**WELL, "data": "text"},
    "session is a number": {**WELL, "session_hash": 5},
    "component without a name": {**WELL, "component_id": 1},
    "unknown component": {**WELL, "component_id": 999, "fn_name": "ls"},
    "huge component": {**WELL, "component_id": 10**30, "fn_name": "ls"},
}
ENDPOINTS = (
    "queue/join", "run/all", "run/all/", "api/all", "run/nope", "run/%00", "call/all", "call/nope", "call/v2/all",
    "call/v2/nope", "cancel", "reset", "component_server", "upload", "upload?upload_id=x", "stream/x", "stream/x/close",
    "process_recording", "vibe-edit", "vibe-code", "undo-vibe-edit", "run-history/connect", "queue/data", "heartbeat/x",
)  # fmt: skip
TYPES = (
    "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
    "multipart/form-data; boundary=x", "application/json; charset=utf-16", "a;b;c",
)  # fmt: skip


class TestGuardBeforeGradio:
    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_a_malformed_body_is_never_a_server_error(self, page: Page, endpoint: str) -> None:
        refused = 0
        for name, body in BODIES.items():
            for content_type in TYPES if name in ("no UTF-8", "unknown function") else TYPES[:1]:
                answer = page.post(endpoint, body, content_type)
                told = (endpoint, name, content_type, answer.text[:200])
                assert answer.status_code < 500, told
                assert "Traceback" not in answer.text and str(ROOT) not in answer.text, told
                assert answer.headers["x-content-type-options"] == "nosniff", told
                assert answer.headers["referrer-policy"] == "same-origin", told
                refused += answer.status_code >= 400
        assert refused > 10

    @pytest.mark.parametrize(
        ("endpoint", "body", "content_type"),
        [
            ("queue/join", BODIES["unknown function"], "application/json"),
            ("queue/join", BODIES["no UTF-8"], "text/plain"),
            ("run/all", {**WELL, "data": []}, "application/json"),
            ("run/all", {**WELL, "data": [{}, "t", "a", None]}, "application/json"),
            ("run/all", {**WELL, "data": [1, "t", "a", {"path": "\0", "meta": {"_type": "gradio.FileData"}}]},
             "application/json"),
            ("run/all", {**WELL, "data": [1, "t", "a", {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]},
             "application/json"),
            ("call/nope", {"data": []}, "application/json"),
            ("call/v2/nope", {}, "application/json"),
            ("call/v2/all", {"nothing": 1}, "application/json"),
            ("component_server", BODIES["unknown component"], "application/json"),
            ("upload", b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nhi\r\n--x--\r\n',
             "multipart/form-data; boundary=x"),
        ],
    )  # fmt: skip
    def test_what_gradio_answers_with_500_is_400_and_one_sentence(
        self, page: Page, endpoint: str, body: Any, content_type: str
    ) -> None:
        answer = page.post(endpoint, body, content_type)
        assert (answer.status_code, answer.json()) == (400, {"detail": MALFORMED, "error": MALFORMED})

    @pytest.mark.parametrize("path", ["/static/" + "a" * 5000, "/assets/" + "a" * 5000, "/gradio_api/proxy=%00"])
    def test_addresses_that_gradio_chokes_on_are_400(self, page: Page, path: str) -> None:
        answer = page.http.get(path)
        assert (answer.status_code, answer.json()["error"]) == (400, MALFORMED)

    def test_what_an_event_refuses_in_words_is_400_and_keeps_its_words(self, page: Page) -> None:
        answer = page.post("run/refuses", {"data": [1]})
        assert (answer.status_code, answer.json()["error"]) == (400, "Only whole numbers, please.")
        answer = page.post("run/all", {"data": [1, "t", "c", None]})
        assert answer.status_code == 400
        assert answer.json()["error"] == "Value: c is not in the list of choices: ['a', 'b']"

    def test_a_mistake_of_our_own_stays_500_and_the_journal_says_where(self, page: Page) -> None:
        before = len(page.log.getvalue())
        answer = page.post("run/fails", {"data": [1]})
        # (The message of this one cannot even be written as UTF-8.)
        assert (answer.status_code, answer.json()["error"]) == (500, UNEXPECTED)
        assert [line["event"] for line in lines(io.StringIO(page.log.getvalue()[before:]))] == ["error"]
        line = json.loads(page.log.getvalue()[before:])
        assert line["trace"][-1].startswith("tests/unit/test_operations.py:")
        assert "lighthouse" not in page.log.getvalue()

    def test_a_good_request_is_answered_as_before(self, page: Page) -> None:
        answer = page.post("run/all", WELL)
        assert (answer.status_code, answer.json()["data"]) == (200, ["well"])
        for path in ("/", "/config", "/theme.css", "/gradio_api/info", "/healthz", "/gradio_api/app_id", "/none"):
            answer = page.http.get(path)
            assert answer.status_code == (404 if path == "/none" else 200)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"

    def test_events_stream_as_they_are_made(self, page: Page) -> None:
        page.go_on.clear()
        assert page.post("queue/join", {"data": [1, "t"], "session_hash": "live", "fn_index": 0}).status_code == 200
        seen: list[Any] = []
        with page.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "live"}) as answer:
            assert answer.headers["x-content-type-options"] == "nosniff"
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                seen.append(message["msg"])
                if message["msg"] == "process_generating" and not page.go_on.is_set():
                    # The event waits for this: a guard that held the stream back would leave both waiting.
                    assert message["output"]["data"] == ["first"]
                    page.go_on.set()
        assert seen[-2:] == ["process_completed", "close_stream"]
        assert "process_generating" in seen

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize(("endpoint", "limit"), [("queue/join", 8), ("run/all", 8), ("upload", 64)])
    def test_big_bodies_are_413_and_those_below_the_limit_are_read(
        self, page: Page, endpoint: str, limit: int, chunked: bool
    ) -> None:
        def send(size: int) -> httpx.Response:
            start = b'{"data": ["'
            kind = "application/json"
            if endpoint == "upload":
                start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
                kind = "multipart/form-data; boundary=x"

            def pieces() -> Iterator[bytes]:
                yield start
                left = size - len(start)
                while left > 0:
                    yield b"x" * min(left, 2**18)
                    left -= 2**18

            content: Any = pieces() if chunked else b"".join(pieces())
            return page.http.post(f"/gradio_api/{endpoint}", content=content, headers={"Content-Type": kind})

        before = set(page.files.iterdir())
        answer = send(limit * 2**20 + 1)
        assert answer.status_code == 413
        assert set(page.files.iterdir()) == before
        assert answer.json()["error"] == f"This request is too large: at most {limit} MiB are accepted here."
        assert answer.headers["x-content-type-options"] == "nosniff"
        # Cut off in the middle: JSON must end, an upload need not. But its size is none of its faults.
        assert send(limit * 2**20).status_code == (200 if endpoint == "upload" else 422)
        assert page.http.get("/healthz").status_code == 200

    def test_a_client_that_asks_before_it_sends_a_big_body_is_refused_at_once(self, page: Page) -> None:
        with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
            connection.sendall(
                b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
            )
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_an_upload_whose_sender_goes_away_leaves_no_file(self, page: Page) -> None:
        before = set(page.files.iterdir())
        with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
            connection.sendall(
                b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 1000000\r\n\r\n"
                b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"y" * 200_000
            )
            self.until(lambda: set(page.files.iterdir()) != before)
        self.until(lambda: set(page.files.iterdir()) == before)

    @staticmethod
    def until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_a_stream_for_an_unknown_session_ends_and_leaves_one_line_in_the_journal(self, page: Page) -> None:
        before = len(page.log.getvalue())
        answer = page.http.get("/gradio_api/queue/data", params={"session_hash": "nobody"})
        assert answer.status_code == 200 and "unexpected_error" in answer.text
        assert [line["event"] for line in lines(io.StringIO(page.log.getvalue()[before:]))] == ["stream"]


STOPPING = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from app.operations import on_terminate

def stop():
    assert threading.current_thread() is threading.main_thread()
    print("stopping", flush=True)
    if sys.argv[2] == "hang":
        time.sleep(60)

signals = on_terminate(stop)
print("ready", flush=True)
print(signals.wait(), flush=True)
signals.restore()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no way to send SIGTERM")
class TestSignals:
    @staticmethod
    def start(how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPING, str(ROOT), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_signal_runs_the_callback_once_in_the_main_thread(self, number: signal.Signals) -> None:
        process = self.start("well")
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
        assert (out, error, process.returncode) == (f"stopping\n{number.name}\n", "", 0)

    def test_the_second_signal_ends_the_process_at_once(self) -> None:
        process = self.start("hang")
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.terminate()
        out, error = process.communicate(timeout=30)
        assert (out, error, process.returncode) == ("", "", 128 + signal.SIGTERM)

    def test_what_torchrun_passes_on_is_the_same_signal(self) -> None:
        """Within the time given; after it a second signal is one."""
        code = STOPPING.replace("on_terminate(stop)", "on_terminate(stop, 1.0)")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(ROOT), "hang"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        time.sleep(1.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT

    def test_the_wait_ends_without_the_callback_when_what_it_waits_for_is_gone(self) -> None:
        left = [True, True, False]
        called: list[int] = []
        before = signal.getsignal(signal.SIGTERM)
        signals = on_terminate(lambda: called.append(1))
        try:
            assert signal.getsignal(signal.SIGTERM) != before
            assert signals.wait(lambda: left.pop(0), poll=0.001) is None
        finally:
            signals.restore()
        assert (called, left) == ([], [])
        assert signal.getsignal(signal.SIGTERM) == before

    def test_a_signal_before_the_wait_is_not_lost(self) -> None:
        called: list[int] = []
        signals = on_terminate(lambda: called.append(1))
        try:
            signal.raise_signal(signal.SIGTERM)
            assert called == []
            assert signals.wait() == "SIGTERM"
        finally:
            signals.restore()
        assert called == [1]

    def test_works_where_a_signal_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.delattr(signal, "SIGTERM")
        signals = on_terminate(lambda: None)
        try:
            signal.raise_signal(signal.SIGINT)
            assert signals.wait() == "SIGINT"
        finally:
            signals.restore()
            monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) == before
