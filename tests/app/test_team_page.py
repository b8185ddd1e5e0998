"""torchrun … app.py: the first process serves the page, the second follows it (gloo, CPU)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from servers import Server

SECONDS = 5.0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    opened: list[Server] = []

    def start(**given: Any) -> Server:
        opened.append(Server.team(tmp_path, **given))
        opened[-1].ready()
        return opened[-1]

    yield start
    for page in opened:
        page.close()


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


def test_the_page_runs_on_both_processes_and_survives_what_one_of_them_does(serve: Callable[..., Server]) -> None:
    page = serve()
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

    # The server is told to stop in the middle of a run: the run hears of it, and both processes end.
    job = ask(page, "2k", 96)
    running(job)
    page.process.send_signal(signal.SIGTERM)
    last = job.result()
    assert last["state"] == "stopped" and "being stopped" in last["message"]
    assert page.gone(2 * SECONDS) < SECONDS


def test_a_process_that_is_gone_ends_the_run_with_a_sentence_and_the_server(serve: Callable[..., Server]) -> None:
    page = serve()
    job = ask(page, "2k", 96)
    running(job)
    start = time.monotonic()
    os.kill(page.children()[1], signal.SIGKILL)
    last = job.result()
    assert last["state"] == "failed"
    assert last["message"].startswith("Process 2 of 2, which held a share of the model, is gone")
    assert time.monotonic() - start < SECONDS
    assert page.gone(2 * SECONDS) < SECONDS
    assert page.process.returncode != 0
    assert '"event": "lost"' in page.log.read_text() and "error: Process 2 of 2" in page.log.read_text()


def test_torchrun_can_start_a_page_anew(serve: Callable[..., Server]) -> None:
    """--max-restarts: the processes find each other again, every time."""
    page = serve(restarts=2)
    for _ in range(2):
        before = page.children()
        os.kill(before[1], signal.SIGKILL)
        while page.health().get("state") == "ok":
            time.sleep(0.05)
        page.ready()
        assert not set(before) & set(page.children())
    assert ask(page, steps=4).result()["state"] == "done"
