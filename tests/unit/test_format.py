"""Times on the page are said by app/phrases.py and, while a run goes on, by assets/page/format.js: the same text."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

import pytest

from app.assets import PAGE
from app.phrases import clock

CLOCKS = {
    0.0: "0.00 s",
    0.844: "0.84 s",
    # Half way the even digit is taken.
    0.125: "0.12 s",
    0.375: "0.38 s",
    9.994: "9.99 s",
    9.995: "10.0 s",
    12.25: "12.2 s",
    12.75: "12.8 s",
    59.94: "59.9 s",
    59.95: "1 min 00 s",
    60.5: "1 min 00 s",
    61.5: "1 min 02 s",
    185.2: "3 min 05 s",
    3599.4: "59 min 59 s",
    3599.6: "1 h 00 min",
    4500.0: "1 h 15 min",
    7800.0: "2 h 10 min",
    90000.0: "25 h 00 min",
}
SCRIPT = """
globalThis.window = { sparsed: {} };
require(process.argv[1]);
const seconds = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(seconds.map(window.sparsed.format.clock)));
"""


def clocks_of_the_page(seconds: list[float]) -> list[str]:
    """What format.js says, by node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH to run the page's script with")
    given = json.dumps(seconds)
    done = subprocess.run(
        [node, "-e", SCRIPT, str(PAGE / "format.js")], input=given, capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout))


def test_clocks_are_as_people_read_them() -> None:
    assert {seconds: clock(seconds) for seconds in CLOCKS} == CLOCKS


def test_the_page_says_every_clock_as_the_server_does() -> None:
    draw = random.Random(16)
    seconds = [*CLOCKS, *(10 ** draw.uniform(-4, 5) for _ in range(20_000))]
    # Those that lie half way between two texts, and what snapshots hold: microseconds.
    seconds += [eighths / 8 for eighths in range(8000)] + [round(draw.uniform(0, 70), 6) for _ in range(20_000)]
    assert clocks_of_the_page(seconds) == [clock(one) for one in seconds]
