"""A run's report, and the reading of log lines, for the tests of the server's parts."""

from __future__ import annotations

import io
import json
from typing import Any

from app.server.journal import RunReport

SECRET = "Who keeps the lighthouse\nof Orrin\u2028Bay? \ud800"
REPORT = RunReport(
    run=7,
    via="page",
    model="mini",
    kind="about",
    tokens=254,
    gen_length=96,
    steps=48,
    state="done",
    waited=0.5,
    seconds=12.0,
    lane_seconds={"dense": 7.5, "sparse": 4.5},
    speedup=7.5 / 4.5,
    right=(True, False, None),
    prompt=SECRET,
)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The journal's lines; anything that is no JSON, NaN included, is an error."""

    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no_constant) for line in stream.getvalue().splitlines()]
