"""A Chromium without a window, and a page for it: for the tests and for the scripts beside them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def executable() -> str | None:
    """Where Chromium or Chrome is; None if there is none on the PATH."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser until the end of the block. Exits, with a sentence, where there is none."""
    found = executable()
    if found is None:
        sys.exit("error: no Chromium or Chrome on the PATH")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def served(port: int, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """`python app.py` until the end of the block: its address."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert server.stdout is not None
        address = re.search(r"http\S+", server.stdout.readline())
        assert address is not None, "app.py prints its address when it serves"
        yield address.group()
    finally:
        server.terminate()
        server.wait()
