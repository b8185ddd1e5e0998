"""A Chromium without a window: for the pictures of this repository and for the tests of the page."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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
    from playwright.sync_api import sync_playwright  # a tool that can do without a browser needs no Playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
