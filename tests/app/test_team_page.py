"""torchrun … app.py: the first process serves the page, the second follows it (gloo, CPU)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from servers import Server

SECONDS = 15.0


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Server]:
    started = Server.team(tmp_path)
    started.ready()
    yield started
    started.close()


def ask(page: Server, length: str = "short_context", steps: int = 12) -> Any:
    """A program's run."""
    client = Client(page.url, verbose=False)
    return client.submit(kind="about", length=length, question=2, steps=steps, api_name="/compare")


def running(job: Any) -> None:
    """Waits until a run has made a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        values = job.outputs()
        if values and values[-1]["state"] == "running" and values[-1]["lanes"]["dense"]["step"]:
            return
        time.sleep(0.05)
    raise AssertionError("no step within 60 s")


def test_the_page_runs_on_both_processes_survives_an_error_of_one_and_ends_when_one_is_gone(page: Server) -> None:
    plan = page.folder / "plan"
    first = ask(page).result()
    assert first["state"] == "done" and first["lanes"]["sparse"]["right"] is True
    assert first["mode"] == "turns"
    # The pattern is that of all four heads, two of them from the other process.
    client = Client(page.url, verbose=False)
    heads = [client.predict(run=first["run"], layer=1, head=head, api_name="/pattern") for head in range(4)]
    assert len({json.dumps(head["kept"]) for head in heads}) > 1
    assert all(head["density"] == heads[0]["density"] for head in heads)

    # An error of either process is a sentence of that run alone.
    for rank, said in ((1, "memory"), (0, "memory")):
        plan.write_text(f"{rank} attend 40")
        failed = ask(page).result()
        plan.write_text("")
        assert failed["state"] == "failed" and said in failed["message"], failed["message"]
        again = ask(page).result()
        assert again["state"] == "done"
        assert [lane["text"] for lane in again["lanes"].values()] == [lane["text"] for lane in first["lanes"].values()]

    # Stop, in the middle of a longer run: the device is free within a step.
    job = ask(page, "2k", 96)
    running(job)
    start = time.monotonic()
    job.cancel()
    while page.health()["running"]:
        assert time.monotonic() - start < SECONDS
        time.sleep(0.02)
    assert ask(page).result()["state"] == "done"

    # A process is gone in the middle of a run: the run hears of it, and the server ends.
    job = ask(page, "2k", 96)
    running(job)
    start = time.monotonic()
    os.kill(page.children()[1], signal.SIGKILL)
    last = job.result()
    assert last["state"] == "failed"
    assert last["message"].startswith("Process 2 of 2, which held a share of the model, is gone")
    assert time.monotonic() - start < SECONDS
    page.gone(SECONDS)
    assert page.process.returncode != 0
    assert '"event": "lost"' in page.log.read_text() and "error: Process 2 of 2" in page.log.read_text()
