"""A real browser against a real server: one Chromium, and one server for each engine that tests look at."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from servers import ROOT, Server
from visitor import listen

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


class Servers:
    """The session's servers by what serve.py is asked for, each started once."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._started: dict[str, Server] = {}

    def start(self, which: str) -> Server:
        if which not in self._started:
            self._started[which] = Server.watched(self._folders.mktemp("server"), which)
        return self._started[which]

    def close(self) -> None:
        for server in self._started.values():
            server.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory)
    yield made
    made.close()


@pytest.fixture(scope="session")
def keeping(servers: Servers) -> Server:
    """The page over a stand-in engine that leaves a record of its runs."""
    return ready(servers.start("keeping"))


@pytest.fixture(scope="session")
def fake(keeping: Server) -> Server:
    """The same, for tests that need no record."""
    return keeping


@pytest.fixture(scope="session")
def double(servers: Servers) -> Server:
    """The page over a stand-in engine with two devices, which leaves a record of its runs."""
    return ready(servers.start("double"))


@pytest.fixture(scope="session")
def real(servers: Servers, request: pytest.FixtureRequest) -> Server:
    """The page over the real engine and the bundled model (random weights where it has not been made yet)."""
    bundled = ROOT / "assets" / "mini" / "model.safetensors"
    server = servers.start("mini" if bundled.exists() else str(request.getfixturevalue("tiny_folder")))
    # One worker has all tests that measure time (tests/conftest.py): what else they need starts meanwhile.
    if any("double" in item.fixturenames for item in request.session.items):
        servers.start("double")
    return ready(server)


def ready(server: Server) -> Server:
    server.ready()
    return server


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
def dream(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The page over the real engine and a small random checkpoint in Dream's format."""
    writers = load_module(ROOT / "tests" / "engine" / "checkpoints.py").WRITERS
    folder = tmp_path_factory.mktemp("dream") / "tiny-dream"
    # The mask token is never the likeliest: every step commits what it writes.
    writers["dream"](folder, mask_predicted=False)
    return ready(servers.start(str(folder)))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
    from app.tools import browser

    if browser.executable() is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with browser.chromium() as started:
        yield started


@pytest.fixture(scope="session")
def with_profile(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """Makes a context that has a profile on the disk: the page's scripts, once compiled, come from its cache. (One
    without compiles them again for every page, which is half of what opening a page costs.) Its first tab stays empty.
    The recorded run does not begin to play by itself: that costs as much as a race, on every page.
    """
    from app.tools import browser

    made = []

    def make() -> Any:
        context = chromium.browser_type.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=browser.executable(), args=browser.FLAGS,
            viewport={"width": 1280, "height": 900}, reduced_motion="reduce",
        )  # fmt: skip
        context.add_init_script(RECORDER)
        made.append(context)
        return context

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def cached(with_profile: Callable[[], Any]) -> Any:
    """One browser context for most pages."""
    return with_profile()


class Visits:
    """Opens pages in a browser context; none of them may complain, or ask anything of another host."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._opened: list[Any] = []
        self._problems: list[str] = []

    def __call__(self, server: Server, query: str = "", viewport: Any = None, **shown: str) -> Any:
        """A page, or the one that a link's query makes, in a window of this size, with `color_scheme` and
        `reduced_motion` as given.
        """
        page = self._context.new_page()
        self._opened.append(page)
        if shown:
            page.emulate_media(**shown)
        if viewport:
            page.set_viewport_size(viewport)
        page.set_default_timeout(120_000)
        page.on("request", self._note_request)
        listen(page, self._problems)
        page.goto(server.url + query)
        page.wait_for_selector(".sd-facts:not([hidden])")
        return page

    def _note_request(self, sent: Any) -> None:
        if not sent.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self._problems.append(f"request to {sent.url}")

    def check(self) -> None:
        """Nothing has been wrong since it was last asked."""
        found = self._problems[:]
        self._problems.clear()
        assert found == []

    def close(self) -> None:
        for page in self._opened:
            if not page.is_closed():
                # What a page remembers, the next test's does not know.
                page.evaluate("localStorage.clear()")
                page.close()


@pytest.fixture
def visit(cached: Any) -> Iterator[Visits]:
    """Opens pages for one test."""
    visits = Visits(cached)
    yield visits
    visits.close()
    visits.check()


@pytest.fixture(scope="module")
def visit_once(cached: Any) -> Iterator[Visits]:
    """Opens pages that tests of a file share: each brings its page to the front, and checks when it is over."""
    visits = Visits(cached)
    yield visits
    visits.close()
    visits.check()
