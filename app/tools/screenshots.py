"""Makes the pictures of README: `python -m app.tools.screenshots`.

All are of the recorded race: of this machine they have the estimate of the next run alone. Writes to assets/pictures/
race.webp, the race as an animation; then starts the page in a headless Chromium, and writes screenshot-light.png (while
the race goes on), screenshot-dark.png and screenshot-phone.png (at its end). Needs Playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, FloatRect, Page

from app.engine.local import SparsedEngine
from app.finished.animation import to_animation
from app.finished.run import OPENING
from app.tools.browser import chromium
from sparsed import trace
from sparsed.edge import go_on, program
from sparsed.files import check, write

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 500_000  # bytes of a picture


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return program(lambda: _photograph(arguments))


def _photograph(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "pictures")
    given = parser.parse_args(arguments)
    go_on()
    check(given.out / "screenshot-light.png", "--out")
    animate(given.out / "race.webp")
    with served(given.port) as address, chromium() as browser:
        take(browser, address, given.out)


def animate(path: Path) -> None:
    """The opening race, as the page's own download of it, with what is right and wrong."""
    to_animation(trace.load(OPENING), path, width=1280, seconds=14, judge=SparsedEngine().verdict)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


@contextmanager
def served(port: int) -> Iterator[str]:
    """`python app.py` until the end of the block: its address."""
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http\S+", server.stdout.readline())
        assert address is not None, "app.py prints its address when it serves"
        yield address.group()
    finally:
        server.terminate()
        server.wait()


def take(browser: Browser, address: str, out: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector(".sd-facts:not([hidden])")
    page.wait_for_selector("#sd-heatmap .sd-plot[data-drawn]")
    page.mouse.move(0, 0)
    seek(page, 0.66)
    save(page, out / "screenshot-light.png", height=1080)
    seek(page, 1)
    page.click(".sd-theme")
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)
    save(page, out / "screenshot-dark.png", height=1640)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(2000)
    save(page, out / "screenshot-phone.png", height=1900)


def seek(page: Page, share: float) -> None:
    """Moves the replay to this share of its time."""
    page.locator("#sd-replay .sd-seek").evaluate(
        "(slider, share) => { slider.value = share * slider.max; slider.dispatchEvent(new Event('input')); }", share
    )
    page.wait_for_timeout(2000)


def save(page: Page, path: Path, height: int) -> None:
    """The upper part of the page."""
    assert page.viewport_size is not None
    clip: FloatRect = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height}
    picture = page.screenshot(full_page=True, clip=clip)
    assert len(picture) < LIMIT, f"{path.name} has {len(picture):,} bytes; at most {LIMIT:,}"
    write(path, picture)
    print(f"{path.name}: {len(picture):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
