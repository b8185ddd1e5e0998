"""The guard before a real gradio app, served as the page is."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.middleware import Middleware

from app.server.guard import MALFORMED, UNEXPECTED, Guard
from app.server.health import Metrics, Status, routes
from app.server.journal import ROOT, Journal
from tests.unit.server.logged import SECRET, lines


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
        given = {"middleware": [guard], "routes": routes(lambda: Status("ok"), Metrics(lambda: Status("ok")))}
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
        assert line["trace"][-1].startswith("tests/unit/server/test_guard_before_gradio.py:")
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
