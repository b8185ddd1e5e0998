"""A real browser against a real server. One Chromium for all tests, and a server for each engine: a stand-in, one that
leaves records of its runs, the real one.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVE = Path(__file__).with_name("serve.py")

# Records every picture of the stage and every message of the stream, before the page's own script runs.
RECORDER = """
window.seen = [];
window.messages = [];
document.addEventListener("sparsed:stage", (event) => {
  if (event.detail.replay) return;
  const { state, run, sequence, lanes } = event.detail;
  const canvases = {};
  for (const lane of lanes) {
    const cells = document.querySelectorAll(`[data-lane="${lane.key}"] .sd-canvas .sd-cell`);
    canvases[lane.key] = [...cells].map((cell) => (cell.dataset.state === "masked" ? "▒" : cell.textContent)).join("|");
  }
  window.seen.push({ state, run, sequence, steps: lanes.map((lane) => lane.step), canvases, at: performance.now() });
});
const realFetch = window.fetch;
window.fetch = async (...given) => {
  const response = await realFetch(...given);
  if (!String(given[0]?.url ?? given[0]).includes("queue/data") || !response.body) return response;
  const [mine, theirs] = response.body.tee();
  (async () => {
    const reader = mine.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      const parts = text.split("\\n\\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data:")) window.messages.push(part.slice(5));
    }
  })().catch(() => {});
  return new Response(theirs, { status: response.status, headers: response.headers });
};
"""


class Server:
    """A running page; `state()`, `mask()` and `lanes()` ask the engine behind it."""

    def __init__(self, which: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = log
        self._output = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(SERVE), str(self.port), which],
            cwd="/",
            stdout=self._output,
            stderr=self._output,
        )
        for _ in range(400):
            try:
                self.get("test/state")
                return
            except OSError:
                if self._process.poll() is not None:
                    raise RuntimeError(log.read_text()) from None
                time.sleep(0.1)
        raise RuntimeError(f"no page after 40 s: {log.read_text()}")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return json.load(answer)

    def state(self) -> dict[str, Any]:
        return self.get("test/state")

    def mask(self, layer: int, head: int) -> list[list[int]]:
        return self.get(f"test/mask?layer={layer}&head={head}")

    def lanes(self) -> dict[str, list[list[str | None]]]:
        """"dense" or the pattern → the text of each cell after each step of the last such run."""
        return self.get("test/lanes")

    def idle(self) -> None:
        """Wait until no run holds the device."""
        deadline = time.monotonic() + 60
        while self.state()["waiting"]:
            assert time.monotonic() < deadline, "a run still holds the device after 60 s"
            time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._output.close()


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page over the stand-in engine."""
    server = Server("fake", tmp_path_factory.mktemp("fake") / "log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page over a stand-in engine that leaves a record of its runs."""
    server = Server("keeping", tmp_path_factory.mktemp("keeping") / "log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page over a stand-in engine with two devices, which leaves a record of its runs."""
    server = Server("double", tmp_path_factory.mktemp("double") / "log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The page over the real engine and the bundled model (random weights where it has not been made yet)."""
    bundled = ROOT / "assets" / "mini" / "model.safetensors"
    which = "mini" if bundled.exists() else str(request.getfixturevalue("tiny_folder"))
    server = Server(which, tmp_path_factory.mktemp("real") / "log")
    yield server
    server.close()


def load_module(path: Path) -> ModuleType:
    """A module beside the tests (tests are no package, so it cannot be imported by name)."""
    name = f"tests_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up by name
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def fake_engine() -> ModuleType:
    """The module fake_engine.py."""
    return load_module(Path(__file__).with_name("fake_engine.py"))


@pytest.fixture(scope="session")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page over the real engine and a small random checkpoint in Dream's format."""
    writers = load_module(ROOT / "tests" / "engine" / "checkpoints.py").WRITERS
    folder = tmp_path_factory.mktemp("dream") / "tiny-dream"
    # The mask token is never the likeliest: every step commits what it writes.
    writers["dream"](folder, mask_predicted=False)
    server = Server(str(folder), tmp_path_factory.mktemp("real-dream") / "log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
    headless = load_module(Path(__file__).with_name("headless.py"))
    if headless.executable() is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with headless.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def cached(chromium: Any) -> Iterator[Any]:
    """One browser context for most pages: what it has loaded once comes from its cache."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(RECORDER)
    yield context
    context.close()


@pytest.fixture
def visit(chromium: Any, cached: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page, or the one that a link's query makes; at the end no page may have complained or asked anything of
    another host. (Going on to another address would cut off what gradio still asks for, and it complains of that.)
    """
    opened, problems = [], []

    def note_request(sent: Any) -> None:
        if not sent.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            problems.append(f"request to {sent.url}")

    def note_console(message: Any) -> None:
        if message.type == "error":
            problems.append(f"console: {message.text}")

    def open_page(server: Server, query: str = "", **options: Any) -> Any:
        if options:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            context.add_init_script(RECORDER)
            opened.append(context)
        else:
            context = cached
        page = context.new_page()
        opened.insert(0, page)
        page.set_default_timeout(30_000)
        page.on("request", note_request)
        page.on("console", note_console)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(server.url + query)
        page.wait_for_selector(".sd-facts:not([hidden])")
        return page

    yield open_page
    for one in opened:
        one.close()
    assert problems == []
