"""Bad input over HTTP, thousands of them: no stack trace goes out, no run is harmed, and the page works afterwards.

What a browser sends (the page's private events), what a program sends (the named endpoints), and what neither would
send (malformed bodies of gradio's own protocol), made by hypothesis, always the same ones, to a running page on
127.0.0.1. Many requests make one example, and several of them are under way at a time.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

AT_A_TIME = 8
BATCH = 40
SECONDS = 60.0
# What no client may read: a trace, a place on this machine, the inside of a file.
LEAKS = re.compile(r'Traceback|File \\?"|site-packages|\.py\\?", line|root:x?:|/tests/app/|0x[0-9a-f]{8}')

sent: Counter[str] = Counter()

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


# ---------------------------------------------------------------- what is sent

PATHS = [
    "../../etc/passwd", "/etc/passwd", "/etc", "..\\..\\x", "file:///etc/passwd", "http://127.0.0.1:9/x", "~/.ssh",
    "//127.0.0.1/share", "C:\\Windows", "/proc/self/environ", "mini/../../..", "mini\x00", ".", "/dev/zero",
    "GSAI-ML/LLaDA-8B-Instruct\n", "a/b/c/d", "hf://x/y",
]  # fmt: skip
SPELLED = [
    "<|endoftext|>", "<|mask|>", "<|user|>", "<|assistant|>", "[MASK]", "<s></s>", "\ue0000\ue001<|mask|>", "kaboom", "own",
    "none", "dense", "NaN", "Infinity", "null", "undefined", "true", "__class__", "constructor", "__proto__",
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
        response = await client.post("/gradio_api/queue/join", content=body_of({**body, "session_hash": session}))
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
        self.seen += len(text.encode())
        return text


def check(log: Log, answers: Sequence[Answer]) -> None:
    for answer in answers:
        assert 200 <= answer.status < 500, answer
        assert answer.ended, answer
        found = LEAKS.search(answer.text)
        assert found is None, (found, answer)
        assert not answer.failed or answer.said is None or (isinstance(answer.said, str) and "\n" not in answer.said), answer
    written = log.new()
    assert "Traceback" not in written, (written[-3000:], [answer.what for answer in answers][:50])


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


def test_damaged_events_end_with_an_answer_or_a_sentence(fake: Any, page: Page) -> None:
    log, numbers_of = Log(fake), iter(range(10**6))

    @few
    @given(st.lists(damaged(page), min_size=BATCH, max_size=BATCH))
    def batch(bodies: list[dict[str, Any]]) -> None:
        # Tabs with a few events each.
        parts = [bodies[start : start + 5] for start in range(0, len(bodies), 5)]
        sessions = [f"bad{next(numbers_of)}" for _ in parts]
        answers = all_of(
            fake,
            [lambda client, s=s, p=p: events(client, s, p) for s, p in zip(sessions, parts, strict=True)],
        )
        check(log, answers)
        sent["events"] += len(bodies)

    batch()


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
