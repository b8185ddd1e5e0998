"""The figure of accuracy against speed in a browser: what plotly makes of it."""

from __future__ import annotations

import random
from typing import Any

from app.tools.tradeoff import page_of, shown
from sparsed.evaluation.methods import ablations
from sparsed.evaluation.scores import wilson


def test_names_do_not_overlap_in_a_browser(chromium: Any) -> None:
    draw, rows = random.Random(1), []
    for method in ablations(["all"]):
        right = 190 if method == "dense" else draw.randint(100, 200)
        rows.append(
            {"length": "4k", "method": method, "type": "lookup", "questions": 200, "accuracy": right / 200,
             "interval": wilson(right, 200), "difference": right / 200 - 0.95, "difference_interval": (-0.1, 0.1),
             "speed": 1.0 if method == "dense" else draw.uniform(0.8, 8)}
        )  # fmt: skip
    page = shown(chromium, page_of({"cells": rows, "lengths": rows}, "4k", measured=False, dark=False))
    picture = page.screenshot()
    boxes = page.eval_on_selector_all(
        ".annotation-text",
        "texts => texts.map(one => one.getBoundingClientRect()).map(r => [r.left, r.top, r.right, r.bottom])",
    )
    page.close()
    assert picture.startswith(b"\x89PNG") and len(picture) > 50_000
    assert len(rows) > 40 and len(boxes) > 0.5 * len(rows)  # those that have room beside their points
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            apart = max(one[0] - two[2], two[0] - one[2], one[1] - two[3], two[1] - one[3])
            assert apart > -2, (one, two)
