"""What the page costs: `python tests/evidence/page_cost.py [--length 4k] [--rounds 3]`.

The median step time of races on the page, watched by a headless Chromium in another process, against that of
`python -m sparsed generate` alone: both in turns, torch on one thread, so that the second core is the client's.
Then what of a core the browser takes while a short prompt's steps stream in faster than the page shows them.
Needs Playwright for Python, a Chromium, and a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

import psutil
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "app")]

from servers import Server  # noqa: E402

from app.tools.browser import chromium  # noqa: E402
from sparsed import trace  # noqa: E402

THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
ENVIRONMENT = {**os.environ, **THREADS}
PHASES = ("dense", "sparse")

Times = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", default="4k", help="prompt length (default 4k)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a run (default 8)")
    parser.add_argument("--rounds", type=int, default=8, help="runs of each kind (default 8)")
    given = parser.parse_args()
    alone: list[Times] = []
    watched: list[Times] = []
    with serving() as address, chromium() as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page()
        page.set_default_timeout(1_200_000)
        for turn in range(given.rounds):
            page.goto("about:blank")
            alone.append(generate(given, Path(folder)))
            page.goto(f"{address}?{urlencode({'length': given.length, 'steps': given.steps})}")
            watched.append(times([race(page, Path(folder))]))
            print(f"round {turn + 1} of {given.rounds}", flush=True)
        for phase in PHASES:
            here, there = ([step for one in runs for step in one[phase]] for runs in (watched, alone))
            # Machines change their pace within minutes: each round's two runs are closer to each other in time.
            ratios = sorted(median(a[phase]) / median(b[phase]) for a, b in zip(watched, alone))
            print(
                f"{phase} step, {given.length}: {1000 * median(here):.1f} ms with the page, "
                f"{1000 * median(there):.1f} ms without, {100 * (median(here) / median(there) - 1):+.1f} % "
                f"({len(here)} and {len(there)} steps); round by round {100 * (median(ratios) - 1):+.1f} %, "
                f"from {100 * (ratios[0] - 1):+.1f} to {100 * (ratios[-1] - 1):+.1f} %"
            )
        page.goto(f"{address}?{urlencode({'length': 'short_context', 'steps': 256, 'gen_length': 256})}")
        share, rate = streaming(page)
        print(f"browser: {100 * share:.0f} % of a core at {rate:.1f} updates a second")
    return 0


@contextmanager
def serving() -> Iterator[str]:
    """`python app.py` until the end of the block: its address."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), **THREADS)
        try:
            server.ready()
            yield server.url
        finally:
            server.close()


def generate(given: argparse.Namespace, folder: Path) -> Times:
    """Both lanes' runs, one after the other, without a page."""
    made = []
    for name, lane in (("sparse", []), ("dense", ["--dense"])):
        path = folder / f"{name}.json"
        command = [sys.executable, "-m", "sparsed", "generate", "--prompt", given.length, "--steps", str(given.steps)]
        subprocess.run(
            [*command, *lane, "--quiet", "--save-trace", str(path)],
            cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        made.append(path)
    return times(made)


def times(paths: list[Path]) -> Times:
    """Every step of recorded runs but the first of each phase, by its phase."""
    found: Times = defaultdict(list)
    for path in paths:
        for lane in trace.load(path).lanes.values():
            for before, step in zip(lane.steps, lane.steps[1:]):
                if before.phase == step.phase:
                    found[step.phase].append(step.seconds)
    return found


def begin(page: Page) -> None:
    page.wait_for_selector(".sd-facts:not([hidden])")
    page.wait_for_timeout(2000)
    page.evaluate(
        "window.drawn = []; document.addEventListener('sparsed:stage', ({ detail }) =>"
        " { if (!detail.replay && detail.lanes[0].step) window.drawn.push(detail.state); })"
    )
    page.click("#sd-run")


def race(page: Page, folder: Path) -> Path:
    """A race on the page; its record."""
    begin(page)
    page.wait_for_function("() => window.drawn.includes('done')")
    page.get_by_role("tab", name="Take it away").click()
    with page.expect_download() as file:
        page.click('#sd-takeaway a[href$="run.json.gz"]')
    path = folder / "watched.json.gz"
    file.value.save_as(path)
    return path


def streaming(page: Page, seconds: float = 8.0) -> tuple[float, float]:
    """(the share of a core that the browser takes, pictures of the stage a second) in the middle of a race."""
    begin(page)
    page.wait_for_function("() => window.drawn.length > 8")
    before, start, drawn = busy(), time.monotonic(), page.evaluate("window.drawn.length")
    time.sleep(seconds)
    passed, more = time.monotonic() - start, page.evaluate("window.drawn.length") - drawn
    assert "done" not in page.evaluate("window.drawn"), "the race was over too early"
    return (busy() - before) / passed, more / passed


def busy() -> float:
    """Seconds of processor time of every Chromium process below this one, so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if "chrom" in process.name():
            used = process.cpu_times()
            total += used.user + used.system
    return total


if __name__ == "__main__":
    sys.exit(main())
