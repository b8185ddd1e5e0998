"""Bad input over HTTP, hundreds of them: no stack trace goes out, no run is harmed, and the page works afterwards.

What a browser sends (the page's private events), what a program sends (the named endpoints), and what neither would
send (malformed bodies of gradio's own protocol), made by hypothesis, always the same ones, to a running page on
127.0.0.1. Many requests make one example, and several of them are under way at a time. tests/evidence sends
thousands.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

AT_A_TIME = 8
BATCH = 40
SECONDS = 60.0
# What no client may read: a trace, a place on this machine, the inside of a file.
LEAKS = re.compile(r'Traceback|File \\?"|site-packages|\.py\\?", line|root:x?:|/tests/app/|0x[0-9a-f]{8}')

# Code of ours that every request passes through.
PASSING = re.compile(r"/(app/server/(guard|gradio_internals)|tests/app/serve)\.py$")

# Examples of each kind; tests/evidence makes more of them.
FEW = 7

sent: Counter[str] = Counter()


def always_the_same(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        # A failing example is hundreds of inputs; the assertion names the one.
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )


# ---------------------------------------------------------------- what is sent

PATHS = [
    "../../etc/passwd", "/etc/passwd", "/etc", "..\\..\\x", "file:///etc/passwd", "http://127.0.0.1:9/x", "~/.ssh",
    "//127.0.0.1/share", "C:\\Windows", "/proc/self/environ", "mini/../../..", "mini\x00", ".", "/dev/zero",
    "GSAI-ML/LLaDA-8B-Instruct\n", "a/b/c/d", "hf://x/y",
]  # fmt: skip
SPELLED = [
    "<|endoftext|>", "<|mask|>", "<|user|>", "<|assistant|>", "[MASK]", "<s></s>", "\ue0000\ue001<|mask|>", "kaboom",
    "own", "none", "dense", "NaN", "Infinity", "null", "undefined", "true", "__class__", "constructor", "__proto__",
    "{{7*7}}", "%s%n", "' OR 1=1 --", "<script>", "\r\nX: y", "²", "٣", "1e3", "0x10", "1_000", " 7 ",
]  # fmt: skip
FILES = [
    {"path": "/etc/passwd"},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "http://127.0.0.1:9/x", "url": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}},
    {"path": "", "url": "file:///etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "x" * 5000, "meta": {"_type": "gradio.FileData"}, "orig_name": "../../x"},
    {"path": None, "meta": None},
    {"__type__": "update", "value": "x"},
    {"is_stream": True, "path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
]
numbers = st.one_of(
    st.sampled_from([
        0, 1, -1, 7, 2**31, -(2**31), 2**53 + 1, 2**63, -(2**64), 10**30, 10**400, float("nan"), float("inf"),
        float("-inf"), 1e308, -1e308, 5e-324, -0.0, 0.5, 1.5, 1e-9, True, False,
    ]),
    st.integers(-5, 5), st.floats(-2, 2),
)  # fmt: skip
texts = st.one_of(
    st.sampled_from(PATHS + SPELLED),
    st.text(max_size=30),
    # Every plane, noncharacters, and halves of surrogate pairs.
    st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0x10FFFF, categories=None), max_size=6),
    st.sampled_from(["", " ", "\x00", "\ud800", "a\udfffb", "\U0010ffff", "x" * 100_000, "ab " * 3000, "\u202e"]),
)


@cache
def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


shapes = st.one_of(
    st.none(),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, {"value": 1}, [1, "a"], nested(30, "list"), nested(60, "dict")]),
    st.sampled_from(FILES),
    st.lists(st.one_of(numbers, texts), max_size=4),
    st.dictionaries(st.text(max_size=4), numbers, max_size=3),
)
anything = st.one_of(numbers, texts, shapes)
JSON = {"content-type": "application/json"}
# Megabytes are sent a few times only.
HUGE = {"text": "x" * 5_000_000, "words": "word " * 900_000, "list": [0] * 500_000}


@dataclass
class Answer:
    """status: of the request; text: everything the client received. ended: the event has said how it ended. said: what
    it said, if that was an error.
    """

    what: Any
    status: int = 0
    text: str = ""
    ended: bool = False
    failed: bool = False
    said: Any = None
    values: list[Any] = field(default_factory=list)


def body_of(value: Any) -> bytes:
    return json.dumps(value).encode()


async def send(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> Answer:
    """One plain request."""
    answer = Answer((method, path, {name: short(value) for name, value in more.items()}))
    response = await client.request(method, path, **more)
    answer.status, answer.text = response.status_code, response.text
    answer.ended = True
    return answer


def short(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) < 600 else f"{shown[:600]} … ({len(shown)})"


async def events(client: httpx.AsyncClient, session: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """Events of one browser tab: each joins the queue, then the tab listens until all have ended."""
    answers, waiting = [], {}
    for body in bodies:
        answer = Answer({**body, "data": short(body.get("data"))})
        answers.append(answer)
        content = body_of({**body, "session_hash": session})
        response = await client.post("/gradio_api/queue/join", content=content, headers=JSON)
        answer.status, answer.text = response.status_code, response.text
        if response.status_code == 200:
            waiting[response.json()["event_id"]] = answer
        else:
            answer.ended = True
    if not waiting:
        return answers
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        assert stream.status_code == 200
        async for line in stream.aiter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line[5:])
            event = waiting.get(message.get("event_id"))
            for answer in waiting.values() if event is None else [event]:
                answer.text += line
            if message["msg"] == "process_generating":
                event.values.append(message["output"])
            if message["msg"] == "process_completed":
                event.ended = True
                if not message["success"]:
                    event.failed, event.said = True, message["output"].get("error")
                elif "data" in message["output"]:
                    event.values.append(message["output"])
                if all(one.ended for one in waiting.values()):
                    break
            if message["msg"] in ("close_stream", "unexpected_error"):
                break
    return answers


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with ThreadPoolExecutor(1) as alone:  # Playwright has a loop in the main thread
        return alone.submit(asyncio.run, work).result(timeout=SECONDS)


def all_of(server: Any, makers: Sequence[Any]) -> list[Answer]:
    """Runs them, AT_A_TIME at a time. makers: client → coroutine of an answer, or of several."""

    async def work() -> list[Answer]:
        gate = asyncio.Semaphore(AT_A_TIME)
        limits = httpx.Limits(max_connections=3 * AT_A_TIME)
        async with httpx.AsyncClient(base_url=server.url.rstrip("/"), timeout=SECONDS, limits=limits) as client:

            async def one(make: Any) -> list[Answer]:
                async with gate:
                    made = await make(client)
                    return made if isinstance(made, list) else [made]

            return [answer for answers in await asyncio.gather(*map(one, makers)) for answer in answers]

    return run(work())


class Log:
    """What the server wrote since the last look."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.seen = server.log.stat().st_size

    def new(self) -> str:
        with self.server.log.open("rb") as file:
            file.seek(self.seen)
            text = file.read().decode("utf-8", "replace")
        self.seen = self.server.log.stat().st_size
        return text

    def check(self, what: Any = None) -> None:
        """No error of ours. What gradio itself refuses (a wrong number of values, files that nobody has uploaded) it
        writes down with a trace in which only its own code, and what stands around all requests, is seen.
        """
        for trace in re.findall(r"Traceback \(most recent call last\):\n(?:[ +|].*\n|\n)*.*", self.new()):
            frames = re.findall(r'File "([^"]+)"', trace)
            ours = [one for one in frames if re.search(r"/(app|sparsed)/\w+\.py$", one) and not PASSING.search(one)]
            assert ours == [], (trace, what)


def check(log: Log, answers: Sequence[Answer]) -> None:
    for answer in answers:
        assert 200 <= answer.status < 500, answer
        assert answer.ended, answer
        found = LEAKS.search(answer.text)
        assert found is None, (found, answer)
        if answer.failed and answer.said is not None:
            assert isinstance(answer.said, str) and "\n" not in answer.said, answer
    log.check([answer.what for answer in answers])


# ---------------------------------------------------------------- the page's own events


@dataclass(frozen=True)
class Event:
    """One of the page's events, and what its inputs hold on a fresh page."""

    number: int
    label: str
    usual: tuple[Any, ...]


class Page:
    """What a browser knows of the page: its events, by the names of what they read."""

    def __init__(self, server: Any) -> None:
        config = server.get("config")
        parts = {part["id"]: part for part in config["components"]}
        self.events: list[Event] = []
        for made in config["dependencies"]:
            if made["backend_fn"] and made["api_visibility"] == "private":
                usual = tuple(self._usual(parts[one]["props"]) for one in made["inputs"])
                names = [str(parts[one]["props"].get("elem_id") or one) for one in made["inputs"]]
                targets = "+".join(str(target) for _, target in made["targets"])
                self.events.append(Event(made["id"], f"{targets}({len(names)})", usual))
        self.steps = config["dependencies"]

    @staticmethod
    def _usual(props: dict[str, Any]) -> Any:
        value = props.get("value")
        return value if value is not None or "choices" not in props else props["choices"][0][1]


@st.composite
def damaged(draw: st.DrawFn, page: Page) -> dict[str, Any]:
    """An event with one to three inputs that are wrong; sometimes the event itself is."""
    event = draw(st.sampled_from(page.events))
    data: Any = list(event.usual)
    for _ in range(draw(st.integers(1, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(anything)
    body: dict[str, Any] = {"data": data, "fn_index": event.number, "event_data": None, "trigger_id": None}
    way = draw(st.integers(0, 9))
    if way == 0:
        body["data"] = draw(st.one_of(st.just(data[:-1]), st.just([*data, 1]), st.just([]), st.just([data])))
    if way <= 4 or not event.usual:
        body["event_data"] = draw(st.one_of(clicks, anything))
    if way == 5:
        body["trigger_id"] = draw(st.integers(-3, 400))
    if way == 6:
        body["fn_index"] = draw(st.sampled_from([-1, 10**6, 2**63, 0, 1]))
    return body


clicks = st.fixed_dictionaries(
    {},
    optional={
        "meta": st.one_of(anything, st.fixed_dictionaries({"layer": anything, "head": anything})),
        "x": anything,
        "y": anything,
    },
)

_pages: dict[str, Page] = {}


@pytest.fixture
def page(fake: Any) -> Page:
    return _pages.setdefault(fake.url, Page(fake))


def test_the_page_says_which_events_it_has(page: Page) -> None:
    assert len(page.events) >= 20
    assert max(len(event.usual) for event in page.events) > 20


def damaged_events(server: Any, page: Page, examples: int) -> None:
    """Events of a browser, damaged: each ends with an answer or a sentence."""
    log, numbers_of = Log(server), iter(range(10**6))

    @always_the_same(examples)
    @given(st.lists(damaged(page), min_size=BATCH, max_size=BATCH))
    def batch(bodies: list[dict[str, Any]]) -> None:
        # Tabs with a few events each.
        parts = [bodies[start : start + 5] for start in range(0, len(bodies), 5)]
        sessions = [f"bad{next(numbers_of)}" for _ in parts]
        answers = all_of(
            server,
            [lambda client, s=s, p=p: events(client, s, p) for s, p in zip(sessions, parts, strict=True)],
        )
        check(log, answers)
        sent["events"] += len(bodies)

    batch()


def test_damaged_events_end_with_an_answer_or_a_sentence(fake: Any, page: Page) -> None:
    damaged_events(fake, page, FEW)


@pytest.mark.parametrize("what", HUGE)
def test_megabytes_are_refused_or_cut(fake: Any, page: Page, what: str) -> None:
    log = Log(fake)
    widest = [event for event in page.events if len(event.usual) > 10][:6]
    bodies = []
    for number, event in enumerate(widest):
        data = list(event.usual)
        data[(4, 1, 0)[number % 3] if number else 4] = HUGE[what]
        bodies.append({"data": data, "fn_index": event.number})
    check(log, all_of(fake, [lambda client: events(client, f"huge-{what}", bodies)]))
    sent["events"] += len(bodies)


# ---------------------------------------------------------------- the named endpoints

ENDPOINTS = ("compare", "sweep", "pattern", "models")
# A race of a moment.
QUICK = {"steps": 8, "gen_length": 16, "block_length": 16, "kind": "fact", "length": "short_context"}


class Program:
    """What a program knows of the page: the endpoints' parameters, in their order, with values that can be run."""

    def __init__(self, server: Any) -> None:
        named = server.get("gradio_api/info")["named_endpoints"]
        self.usual: dict[str, dict[str, Any]] = {}
        for name in ENDPOINTS:
            parameters = named[f"/{name}"]["parameters"]
            usual = {one["parameter_name"]: one.get("parameter_default") for one in parameters}
            if "lengths" in usual:
                usual["lengths"] = ["short_context"]
            self.usual[name] = {**usual, **{one: QUICK[one] for one in usual if one in QUICK}}


async def call(client: httpx.AsyncClient, name: str, body: Any, version: str = "") -> Answer:
    """A call of a named endpoint, to its end."""
    answer = Answer((name, version, short(body)))
    content = body if isinstance(body, bytes) else body_of(body)
    response = await client.post(f"/gradio_api/call/{version}{name}", content=content, headers=JSON)
    answer.status, answer.text = response.status_code, response.text
    if response.status_code != 200:
        answer.ended = True
        return answer
    async with client.stream("GET", f"/gradio_api/call/{name}/{response.json()['event_id']}") as stream:
        kind = ""
        async for line in stream.aiter_lines():
            answer.text += line
            if line.startswith("event:"):
                kind = line[6:].strip()
            if line.startswith("data:") and kind in ("complete", "generating", "error"):
                value = json.loads(line[5:])
                answer.ended = kind != "generating"
                if kind == "error":
                    answer.failed = True
                    answer.said = value.get("error") if isinstance(value, dict) else value
                else:
                    answer.values.append(value)
    return answer


@st.composite
def miscalled(draw: st.DrawFn, program: Program) -> tuple[str, Any, str]:
    """(endpoint, body, version of the protocol)"""
    name = draw(st.sampled_from(["compare", "compare", "compare", "sweep", "pattern", "pattern", "models"]))
    given = dict(program.usual[name])
    for _ in range(draw(st.integers(1, 3))):
        if given:
            given[draw(st.sampled_from(sorted(given)))] = draw(anything)
    if draw(st.integers(0, 3)) == 0:
        if draw(st.booleans()):
            given[draw(st.sampled_from(["x", "http", "self", "desk", "", "__class__", "request"]))] = draw(anything)
        return name, given, "v2/"
    data: Any = list(given.values())
    if draw(st.integers(0, 9)) == 0:
        data = draw(st.one_of(st.just(data[:3]), st.just([*data, 1, 2]), shapes))
    return name, {"data": data}, ""


@pytest.fixture
def program(fake: Any) -> Program:
    return Program(fake)


def damaged_calls(server: Any, program: Program, examples: int) -> None:
    """Calls of the named endpoints, damaged: each ends with an answer or a sentence."""
    log = Log(server)

    @always_the_same(examples)
    @given(st.lists(miscalled(program), min_size=BATCH, max_size=BATCH))
    def batch(calls: list[tuple[str, Any, str]]) -> None:
        answers = all_of(
            server, [lambda client, n=n, b=b, v=v: call(client, n, b, v) for n, b, v in calls]
        )
        check(log, answers)
        for answer in answers:
            if answer.failed and answer.said is not None:
                assert answer.said.endswith((".", "…")), answer
        sent["calls"] += len(calls)

    batch()


def test_damaged_calls_end_with_an_answer_or_a_sentence(fake: Any, program: Program) -> None:
    damaged_calls(fake, program, FEW)


# ---------------------------------------------------------------- malformed requests

KEYS = (
    "data", "fn_index", "session_hash", "event_id", "event_data", "trigger_id", "batched", "simple_format", "api_name",
    "component_id", "fn_name", "request", "oauth_token",
)  # fmt: skip
POSTED = (
    "queue/join", "call/compare", "call/pattern", "call/nothing", "call/v2/compare", "run/predict", "run/compare",
    "api/predict", "cancel", "reset", "component_server", "upload", "upload?upload_id=x", "stream/x", "stream/x/close",
    "process_recording", "mcp/", "nothing",
)  # fmt: skip
ASKED = (
    "gradio_api/file={t}", "gradio_api/file/{t}", "gradio_api/proxy={t}", "gradio_api/call/compare/{t}",
    "gradio_api/call/{t}/{t}", "gradio_api/stream/{t}/1/1/playlist.m3u8",
    "gradio_api/stream/{t}/{t}/{t}/playlist-file", "gradio_api/custom_component/{t}/client/component/{t}",
    "gradio_api/info?all_endpoints={t}", "gradio_api/info?{t}", "config?{t}", "sparsed-run/{t}/run.json.gz",
    "sparsed-run/{t}/{t}", "sparsed-static/{t}", "static/{t}", "assets/{t}", "svelte/{t}", "theme.css?v={t}",
    "gradio_api/deep_link?session_hash={t}", "{t}", "?{t}={t}", "healthz?{t}", "metrics?{t}", "monitoring/{t}",
    "gradio_api/run-history/records/{t}/{t}/assets/{t}", "gradio_api/openapi.json?{t}",
)  # fmt: skip
raw_texts = st.one_of(
    st.sampled_from(PATHS + SPELLED),
    st.sampled_from(["..%2f..%2fetc%2fpasswd", "%00", "%ff%fe", "%2e%2e/", "%", "%zz", "a" * 3000, "%c0%af", "?", "#"]),
    st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=12),
)
whole_bodies = st.one_of(
    st.sampled_from([
        b"", b"{", b"null", b"[]", b"0", b'"x"', b"\xff\xfe\x00", b'{"data": [', b'{"data": NaN}', b"{" * 500,
        b"[" * 100_000, b'{"a":' * 5000, b'{"data": [' + b"9" * 5000 + b"]}", b'{"data": ["\xed\xa0\x80"]}', b"\x00",
        b'{"data": ["\\ud800"], "session_hash": "\\ud800", "fn_index": 1}', b"data=1&fn_index=2",
        b"--x\r\n\r\n--x--",
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../x"\r\n\r\nhello\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="nothing"\r\n\r\nhello\r\n--x--\r\n',
    ]),
    st.binary(max_size=40),
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=5).map(body_of),
    anything.map(body_of),
)  # fmt: skip
types = st.sampled_from([
    "application/json", "application/json", "application/json", "application/json; charset=utf-7", "text/plain", "",
    "multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded", "image/png",
])  # fmt: skip
requests = st.one_of(
    st.tuples(st.just("POST"), st.sampled_from(POSTED), whole_bodies, types),
    st.tuples(st.just("POST"), st.sampled_from(POSTED), whole_bodies, types),
    st.tuples(st.sampled_from(["GET", "GET", "GET", "HEAD"]), st.tuples(st.sampled_from(ASKED), raw_texts), st.none(),
              types),
    st.tuples(st.sampled_from(["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]), st.sampled_from(POSTED), whole_bodies,
              types),
)  # fmt: skip


def address(server: Any, path: Any) -> str:
    if isinstance(path, str):
        return f"gradio_api/{path}"
    pattern, text = path
    # As it is where a client may send it so; else with its bytes in percent.
    safe = "".join(one if one.isascii() and one.isprintable() and one not in ' "<>\\^`{|}' else
                   "".join(f"%{byte:02x}" for byte in one.encode("utf-8", "replace")) for one in text)  # fmt: skip
    return pattern.replace("{t}", safe)


def plain(server: Any, made: tuple[str, Any, bytes | None, str]) -> Any:
    """client → the answer to one request; of what streams for ever, its beginning."""
    method, path, content, kind = made

    async def ask(client: httpx.AsyncClient) -> Answer:
        answer = Answer((method, path, short(content), kind))
        headers = {"content-type": kind} if kind else {}
        try:
            url = httpx.URL(server.url + address(server, path))
        except httpx.InvalidURL:
            answer.status, answer.ended = 400, True  # no client of ours can send that
            return answer
        async with client.stream(method, url, content=content, headers=headers) as stream:
            answer.status, answer.ended = stream.status_code, True
            if "event-stream" not in stream.headers.get("content-type", ""):
                answer.text = (await stream.aread()).decode("utf-8", "replace")
        return answer

    return ask


def malformed_requests(server: Any, examples: int) -> None:
    """Requests that no client would make: they are refused, without a trace."""
    log = Log(server)

    @always_the_same(examples)
    @given(st.lists(requests, min_size=4 * BATCH, max_size=4 * BATCH))
    def batch(made: list[tuple[str, Any, bytes | None, str]]) -> None:
        check(log, all_of(server, [plain(server, one) for one in made]))
        sent["requests"] += len(made)

    batch()


def test_malformed_requests_are_refused_without_a_trace(fake: Any) -> None:
    malformed_requests(fake, FEW)


# ---------------------------------------------------------------- and afterwards


def test_more_than_fifteen_hundred_inputs_later_a_good_run_is_right(fake: Any, program: Program) -> None:
    """Whatever ran before in this file, and however much of it was chosen to run."""
    if {"events", "calls", "requests"} <= set(sent):  # else only some of the tests were chosen
        assert sum(sent.values()) > 1500, sent
    a_good_run_is_right(fake, program)


def a_good_run_is_right(server: Any, program: Program) -> None:
    log = Log(server)
    server.idle()
    usual = {"data": list({**program.usual["compare"], "gen_length": 64, "block_length": 64}.values())}
    (answer,) = all_of(server, [lambda client: call(client, "compare", usual)])
    last = answer.values[-1][0]
    assert last["state"] == "done" and [lane["right"] for lane in last["lanes"].values()] == [True, True]
    assert "Traceback" not in log.new()
    assert server.state()["overlaps"] == 0
