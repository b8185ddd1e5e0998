"""A hundred faults drawn from a seed; tests/engine/test_faults.py has each kind, and each lane, in twelve."""

from __future__ import annotations

from typing import Any

import pytest
from test_faults import Page, drawn, dream_page, injector, llama_page, weather

__all__ = ["dream_page", "injector", "llama_page"]  # fixtures

FAULTS = 100
SEED = 20261122


def test_a_hundred_faults_are_a_hundred_sentences_and_hurt_no_later_run(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    injected: Any = request.getfixturevalue("injector")
    pages: list[Page] = [request.getfixturevalue(name) for name in ("llama_page", "dream_page")]
    mine, theirs = drawn(3, 60, SEED), drawn(2, FAULTS - 60, SEED + 1)
    struck = weather(pages[0], mine, injected) + weather(pages[1], theirs, injected)
    assert len(struck) == FAULTS
    # The draw reaches dense and sparse attention and the logits.
    assert min(struck.count(name) for name in ("scaled_dot_product_attention", "gather_attention", "logits")) >= 15
    # Whoever runs the page finds in the log where each came from.
    assert capfd.readouterr().err.count('"event": "error"') == FAULTS
