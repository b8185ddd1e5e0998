"""What whoever runs the server needs: one log line a run, counters, a health check, a guard before every request, and
an orderly stop. Knows neither gradio nor the engine; starlette is all that it imports, and prometheus_client if there.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from itertools import dropwhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, TextIO

from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

Via = Literal["page", "api", "sweep"]
Ending = Literal["done", "stopped", "refused", "failed", "overdue", "full"]
State = Literal["ok", "loading", "stuck", "lost", "stopping"]

ROOT = Path(__file__).resolve().parent.parent
# Whose mistakes are ours: an exception that passed through these is never blamed on the request.
OWN = (ROOT / "app", ROOT / "sparsed")
MIB = 2**20
# The longest text that a log line takes over, in characters; prompts are cut later.
LONGEST_TEXT, LONGEST_PROMPT = 300, 20_000
# A model's name may be a folder that a visitor typed: after so many names, the counters call the others "other".
MOST_MODELS = 32
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)


@dataclass(frozen=True)
class RunReport:
    """What there is to say about one run when it is over.

    waited: seconds in line. seconds: wall time from having the device to the end. dense_seconds, sparse_seconds: device
    time of the lanes. right: verdicts, one a lane, None where there is none. error: the exception's class name, or "".
    prompt: the visitor's text; "" unless SPARSED_LOG_PROMPTS=1.
    """

    run: int
    via: Via
    model: str
    kind: str
    tokens: int | None
    gen_length: int
    steps: int
    state: Ending
    waited: float = 0.0
    seconds: float = 0.0
    dense_seconds: float = 0.0
    sparse_seconds: float = 0.0
    speedup: float | None = None
    right: tuple[bool | None, ...] = ()
    error: str = ""
    prompt: str = ""


class Journal:
    """Writes one line of JSON for each thing that happens: sorted keys, ASCII, UTC. Any thread may write; no failure to
    write, a closed stream among them, reaches the caller.

    stream: None is sys.stderr as it is when a line is written. prompts: whether visitors' texts are written too.
    """

    def __init__(self, stream: TextIO | None = None, prompts: bool = False) -> None:
        self.prompts = prompts
        self._stream = stream
        self._lock = threading.Lock()

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None, stream: TextIO | None = None) -> Journal:
        """The journal of this machine: SPARSED_LOG_PROMPTS=1 writes prompts. Raises ValueError for other values than
        0 and 1.
        """
        text = (os.environ if environment is None else environment).get("SPARSED_LOG_PROMPTS", "").strip()
        if text not in ("", "0", "1"):
            raise ValueError(f"SPARSED_LOG_PROMPTS is {text!r}; it must be 0 or 1.")
        return cls(stream, prompts=text == "1")

    def note(self, report: RunReport) -> None:
        """One run. Its prompt is left out unless prompts are written."""
        facts = asdict(report)
        # A class name and nothing else: a message may quote the prompt.
        if not re.fullmatch(r"[\w.]{0,100}", report.error, re.ASCII):
            facts["error"] = "unnamed"
        prompt = facts.pop("prompt")
        if self.prompts:
            facts["prompt"] = _flat(prompt, LONGEST_PROMPT)
        self._write("run", facts)

    def event(self, name: str, /, **facts: object) -> None:
        """Anything else, such as "start", "model", "stopping" or "error"."""
        self._write(name, facts)

    def error(self, error: BaseException, /, **facts: object) -> None:
        """An exception nobody expected: its class and where it came from; its message only if prompts are written, for
        it may quote one.
        """
        if self.prompts:
            facts["message"] = error
        self._write("error", {**facts, "error": type(error).__name__, "trace": _trace(error)})

    def _write(self, name: str, facts: Mapping[str, object]) -> None:
        try:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            plain = {key: value if key == "prompt" else _plain(value) for key, value in facts.items()}
            line = json.dumps({**plain, "event": _flat(name), "time": now}, sort_keys=True, allow_nan=False)
            with self._lock:
                stream = sys.stderr if self._stream is None else self._stream
                stream.write(line + "\n")
                stream.flush()
        except Exception:  # whatever is wrong with the log, the run goes on
            return


def _flat(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text in one line of at most `longest` characters."""
    whole = len(text) <= longest
    return " ".join((text if whole else text[: longest - 1] + "…").splitlines())


def _plain(value: object) -> object:
    """What JSON can say, without line breaks, NaN or endless texts."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_flat(str(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return _flat(value if isinstance(value, str) else str(value))


def _trace(error: BaseException) -> list[str]:
    """Where an exception came from, outermost first: file:line in function, without the lines' text."""
    places = []
    for frame in traceback.extract_tb(_cause(error).__traceback__)[-30:]:
        path = Path(frame.filename)
        short = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-2:])
        places.append(f"{short.as_posix()}:{frame.lineno} in {frame.name}")
    return places


def _cause(error: BaseException) -> BaseException:
    """The first single exception of a group, which is what a task group makes of one."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error


@dataclass(frozen=True)
class Status:
    """How the server is, for /healthz: nothing about any visitor.

    state: "ok", "loading" (a model; it serves), "stuck" (a step does not come back), "lost" (so is a process that held
    a share of the model) or "stopping". models: names of the models in memory. running, waiting: runs on the device and
    in line. visits: open pages. uptime: seconds.
    """

    state: State
    models: tuple[str, ...] = ()
    running: int = 0
    waiting: int = 0
    visits: int = 0
    uptime: float = 0.0
    version: str = ""


def _public(model: str) -> str:
    """A model's name as outsiders may see it: of a folder of this machine only the last part."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(model).is_absolute() or model.startswith((".", "~")):
            return _flat(kind(model).name)
    return _flat(model)


class Metrics:
    """Counters and histograms for Prometheus, in a registry of their own; without the package prometheus_client they
    count nothing.

    status: asked once for each `render`, for the gauges; None leaves these out.
    """

    def __init__(self, status: Callable[[], Status] | None = None) -> None:
        self._models: set[str] = set()
        try:
            import prometheus_client
        except ImportError:
            self._registry = None
            return
        self._registry = registry = prometheus_client.CollectorRegistry()
        self._render = prometheus_client.generate_latest
        self._media_type = prometheus_client.CONTENT_TYPE_LATEST
        self._runs = prometheus_client.Counter(
            "sparsed_runs", "Runs that are over.", ["state", "via", "model"], registry=registry
        )
        self._steps = prometheus_client.Counter(
            "sparsed_steps", "Denoising steps of runs that came to their end, those of one lane.", registry=registry
        )
        self._seconds = prometheus_client.Histogram(
            "sparsed_run_seconds",
            'Seconds of a run that came to its end: device time of a lane, or "all": wall time of all.',
            ["lane"],
            buckets=SECONDS,
            registry=registry,
        )
        self._waited = prometheus_client.Histogram(
            "sparsed_wait_seconds",
            "Seconds in line, of runs that were not refused.",
            buckets=SECONDS,
            registry=registry,
        )
        prometheus_client.ProcessCollector(registry=registry)
        if status is not None:
            registry.register(_Gauges(status))

    def note(self, report: RunReport) -> None:
        """Count one run. Never raises for odd numbers."""
        if self._registry is None:
            return
        model = _public(report.model)
        if len(self._models) < MOST_MODELS:
            self._models.add(model)
        self._runs.labels(report.state, report.via, model if model in self._models else "other").inc()
        if report.state != "refused":
            self._waited.observe(max(0.0, report.waited))
        if report.state == "done":
            self._steps.inc(max(0, report.steps))
            self._seconds.labels("dense").observe(report.dense_seconds)
            self._seconds.labels("sparse").observe(report.sparse_seconds)
            self._seconds.labels("all").observe(report.seconds)

    def render(self) -> tuple[bytes, str] | None:
        """The text for Prometheus and its media type; None without the package."""
        if self._registry is None:
            return None
        return self._render(self._registry), self._media_type


class _Gauges:
    """What is so now, asked when Prometheus asks. (A collector, in prometheus_client's words.)"""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import GaugeMetricFamily

        now = self._status()
        for name, said, value in (
            ("sparsed_up", "1 while the server serves, 0 when it is stuck, lost or stopping.", _serves(now)),
            ("sparsed_running", "Runs on the device.", now.running),
            ("sparsed_waiting", "Runs in line.", now.waiting),
            ("sparsed_visits", "Open pages.", now.visits),
            ("sparsed_models_in_memory", "Models in memory.", len(now.models)),
            ("sparsed_uptime_seconds", "Seconds since the start.", now.uptime),
        ):
            yield GaugeMetricFamily(name, said, value=value)

    def describe(self) -> Iterable[Any]:
        """Nothing beforehand: there may be no status to ask yet."""
        return ()


def _serves(status: Status) -> bool:
    return status.state in ("ok", "loading")


NO_METRICS = "There are no metrics here without prometheus_client; run: pip install prometheus-client"


def routes(status: Callable[[], Status], metrics: Metrics) -> list[Route]:
    """/healthz (200 while the server serves, 503 when it is stuck, lost or stopping) and /metrics (404 without the
    package).

    status: called in the event loop; it must answer at once, so it may not wait for a lock that a run holds.
    """

    async def healthz(_: Any) -> Response:
        now = status()
        said = {field.name: getattr(now, field.name) for field in fields(now)}
        said["models"] = [_public(model) for model in now.models]
        said["uptime"] = round(now.uptime, 1)
        return JSONResponse(said, status_code=200 if _serves(now) else 503, headers={"Cache-Control": "no-store"})

    async def measured(_: Any) -> Response:
        made = metrics.render()
        if made is None:
            return PlainTextResponse(NO_METRICS, status_code=404)
        return Response(made[0], headers={"Content-Type": made[1], "Cache-Control": "no-store"})

    return [Route("/healthz", healthz, methods=["GET"]), Route("/metrics", measured, methods=["GET"])]


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
# Exceptions of libraries for a bad request that have no base in common with the above.
CHOKED_NAMES = ("InvalidURL", "InvalidPathError", "ComponentProcessingError", "FnIndexInferError")
CHOKED_ERRNO = (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
MALFORMED = "The server cannot make sense of this request; reload the page, or see the API's description."
UNEXPECTED = "Something went wrong on the server, and its log says what."
# How long a refused body is read on, in seconds, so that a browser that is still sending gets to read the answer.
DRAIN_SECONDS = 2.0

# The exceptions of the events that the current request starts itself; set only where the guard looks at them.
_failed: ContextVar[list[Exception] | None] = ContextVar("sparsed_failed", default=None)


class _CutOff(MultiPartException):
    """The body ends here, being too large, or because the client is gone. The class is the one for which gradio deletes
    the files of an upload that it has begun to write; it keeps them for any other.
    """


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
                raise _CutOff("Too large.")
            if upload and not complete and message["type"] == "http.disconnect":
                answer.mute = True
                raise _CutOff("Gone.")
            complete = complete or not message.get("more_body", False)
            return message

        errors: list[Exception] = []
        if EVENTS.search(path):
            _watch_events(scope.get("app"))
            _failed.set(errors)
            answer.review = lambda body: self._reviewed(body, errors, scope)
        try:
            await self.app(scope, bounded, answer)
        except Exception as error:  # this is the last one who can answer
            if not answer.mute:
                await self._answer_for(errors[-1] if errors else error, path, scope, answer)
        if too_large and not answer.started:
            answer.mute = False
            await self._refuse(answer, receive, limit, asked=False)

    async def _answer_for(
        self, error: Exception, path: str, scope: Mapping[str, Any], answer: _Answer
    ) -> None:
        """One sentence for an exception that came out of the app."""
        if isinstance(_cause(error), ClientDisconnect):
            return
        facts = {"method": scope["method"], "path": scope["path"]}
        if answer.started:
            if not answer.events:
                # The answer is cut off, and the reader must see that it is: only a broken connection says so.
                raise error
            # gradio ends a stream of events with one that says what is wrong; the exception says it again.
            self.journal.event("stream", **facts, error=type(_cause(error)).__name__)
            await answer.end()
        elif GRADIO.search(path) and self._malformed(error):
            self.journal.event("malformed", **facts, error=type(_cause(error)).__name__)
            await answer.say(400, MALFORMED)
        else:
            self.journal.error(error, **facts)
            await answer.say(500, UNEXPECTED)

    def _malformed(self, error: BaseException) -> bool:
        """Whether the exception is the request's fault: none of ours, and of a kind that bad input makes."""
        error = _cause(error)
        blamed = isinstance(error, CHOKED) or type(error).__name__ in CHOKED_NAMES
        if not blamed and not (isinstance(error, OSError) and error.errno in CHOKED_ERRNO):
            return False
        here = Path(__file__).resolve()
        files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
        own = [any(file.is_relative_to(folder) for folder in self.own) for file in files if file != here]
        # Other middleware of ours only passed the request on: it counts where nothing else was called.
        called = list(dropwhile(bool, own))
        return not any(called or own)

    def _reviewed(
        self, body: bytes, errors: Sequence[Exception], scope: Mapping[str, Any]
    ) -> tuple[int, bytes]:
        """Status and body for gradio's 500 about an event called directly. A refusal in words (gr.Error has a title) is
        the request's; what gradio made of input that it could not read is put in our words, as its own may name paths.
        """
        try:
            said = json.loads(body)
        except ValueError:
            return 500, body
        facts = {"method": scope["method"], "path": scope["path"]}
        if isinstance(said, dict) and "title" in said:
            return 400, body
        if errors and self._malformed(errors[-1]):
            self.journal.event("malformed", **facts, error=type(_cause(errors[-1])).__name__)
            return 400, _sentence(MALFORMED)
        if errors:
            self.journal.error(errors[-1], **facts)
        return 500, body

    async def _refuse(self, answer: _Answer, receive: Receive, limit: int, asked: bool) -> None:
        """413. asked: the client waits to be told to send its body, so there is nothing to read on."""
        said = f"This request is too large: at most {limit / MIB:g} MiB are accepted here."
        if limit == 0:
            said = "This server takes no uploads."
        await answer.say(413, said, close=True, more=True)
        if not asked:
            try:
                await asyncio.wait_for(_drain(receive), DRAIN_SECONDS)
            except asyncio.TimeoutError:
                pass  # whoever sends on for so long does not wait for an answer
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

    async def say(self, status: int, sentence: str, close: bool = False, more: bool = False) -> None:
        """A whole answer of one sentence, under the names that gradio's clients look for. more: `end` follows."""
        self._held = None
        body = _sentence(sentence)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if close:
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
    text = headers.get(b"content-length", b"")
    return int(text) if text.isdigit() and len(text) < 20 else 0 if not text else sys.maxsize


async def _drain(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _watch_events(app: Any) -> None:
    """Lets the guard see why an event failed: gradio's answer only quotes the exception. `app` is gradio's, with the
    page in `blocks`; any other is left alone.
    """
    blocks = getattr(app, "blocks", None)
    process = getattr(blocks, "process_api", None)
    if process is None or getattr(process, "watched", False):
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
    blocks.process_api = process_api  # type: ignore[union-attr]


class Signals:
    """Waits to be told to stop. The first SIGINT or SIGTERM (SIGBREAK on Windows) makes `wait` run `callback`, in the
    main thread and outside the handler; the second one ends the process at once with 128 + its number. same: what comes
    so many seconds after the first one is still the first (torchrun passes on what the terminal has sent to all).

    Must be made in the main thread; elsewhere Python raises ValueError.
    """

    def __init__(self, callback: Callable[[], None], same: float = 0.0) -> None:
        self._callback, self._same = callback, same
        self._asked: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._arrived)

    def _arrived(self, number: int, _: Any) -> None:
        # No lock and no event here: the handler interrupts the main thread, which may hold it.
        if self._asked is None:
            self._asked, self._since = number, time.monotonic()
        elif time.monotonic() - self._since >= self._same:
            os._exit(128 + number)

    def wait(self, alive: Callable[[], bool] = lambda: True, poll: float = 0.1) -> str | None:
        """Returns the signal's name after `callback` has returned, or None once `alive` says False. poll: seconds
        between looks (waiting on a lock cannot be interrupted on Windows). Raises what `callback` raises.
        """
        while self._asked is None:
            if not alive():
                return None
            time.sleep(poll)
        self._callback()
        return signal.Signals(self._asked).name

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def on_terminate(callback: Callable[[], None], same: float = 0.0) -> Signals:
    """From here on a signal to stop leads to `callback`, once, when the main thread is in `Signals.wait`."""
    return Signals(callback, same)
