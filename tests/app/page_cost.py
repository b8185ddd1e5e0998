"""What the page costs: `python tests/app/page_cost.py [--length 4k] [--rounds 3]`.

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
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

import psutil
from headless import ROOT, chromium, served
from playwright.sync_api import Page

sys.path.insert(0, str(ROOT))

from sparsed import trace  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
PHASES = ("dense", "sparse")

Times = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", default="4k", help="prompt length (default 4k)")
    parser.add_argument("--steps", type=int, default=16, help="denoising steps of a run (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default 3)")
    given = parser.parse_args()
    alone: Times = defaultdict(list)
    watched: Times = defaultdict(list)
    with served(7898, ENVIRONMENT) as address, chromium() as browser, tempfile.TemporaryDirectory() as folder:
        page = browser.new_page()
        page.set_default_timeout(1_200_000)
        for turn in range(given.rounds):
            page.goto("about:blank")
            generate(given, Path(folder), alone)
            page.goto(f"{address}?{urlencode({'length': given.length, 'steps': given.steps})}")
            add(race(page, Path(folder)), watched)
            print(f"round {turn + 1} of {given.rounds}", flush=True)
        for phase in PHASES:
            here, there = median(watched[phase]), median(alone[phase])
            print(
                f"{phase} step, {given.length}: {1000 * here:.1f} ms with the page, {1000 * there:.1f} ms without, "
                f"{100 * (here / there - 1):+.1f} % ({len(watched[phase])} and {len(alone[phase])} steps)"
            )
        page.goto(f"{address}?{urlencode({'length': 'short_context', 'steps': 256, 'gen_length': 256})}")
        share, rate = streaming(page)
        print(f"browser: {100 * share:.0f} % of a core at {rate:.1f} updates a second")
    return 0


def generate(given: argparse.Namespace, folder: Path, times: Times) -> None:
    """Both lanes' runs, one after the other, without a page."""
    for lane in ([], ["--dense"]):
        path = folder / "alone.json"
        command = [sys.executable, "-m", "sparsed", "generate", "--prompt", given.length, "--steps", str(given.steps)]
        subprocess.run(
            [*command, *lane, "--quiet", "--save-trace", str(path)],
            cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        add(path, times)


def add(path: Path, times: Times) -> None:
    """Every step of a recorded race but each phase's first, by its phase."""
    for lane in trace.load(path).lanes.values():
        for before, step in zip(lane.steps, lane.steps[1:]):
            if before.phase == step.phase:
                times[step.phase].append(step.seconds)


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
