"""torchrun … app.py: the first process serves the page, the second follows it (gloo, CPU)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVE = Path(__file__).with_name("serve_team.py")
SECONDS = 5.0


class Page:
    """A page of two processes. plan: the file that says which one fails, and how (`team_script.sabotage`)."""

    def __init__(self, folder: Path, how: str = "", restarts: int = 0) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.plan, self.log = folder / "plan", folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                    "--max-restarts", str(restarts), str(SERVE), "--port", str(self.port),
                ],
                cwd="/", env={**os.environ, "OMP_NUM_THREADS": "1", "FAIL": str(self.plan), "FAIL_HOW": how},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        """Until it serves; children: its processes."""
        deadline = time.monotonic() + 120
        while self.health().get("state") != "ok":
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        started = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.children = [int(pid) for pid in started.split()]

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self.url + "healthz", timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)
        except OSError:
            return {}

    def start(self, length: str = "short_context", steps: int = 12) -> Any:
        from gradio_client import Client

        client = Client(self.url, verbose=False)
        return client.submit(kind="about", length=length, question=2, steps=steps, api_name="/compare")

    def gone(self, within: float) -> float:
        """Seconds until every process is gone."""
        start = time.monotonic()
        while time.monotonic() < start + within:
            if self.process.poll() is not None:
                return time.monotonic() - start
            time.sleep(0.02)
        raise AssertionError(f"processes are still there after {within} s: {self.log.read_text()}")

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    opened: list[Page] = []

    def start(**given: Any) -> Page:
        opened.append(Page(tmp_path, **given))
        return opened[-1]

    yield start
    for page in opened:
        page.close()


def running(job: Any) -> None:
    """Waits until a run has made a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        values = job.outputs()
        if values and values[-1]["state"] == "running" and values[-1]["lanes"]["dense"]["step"]:
            return
        time.sleep(0.05)
    raise AssertionError("no step within 60 s")


def test_the_page_runs_on_both_processes_and_survives_what_one_of_them_does(serve: Callable[..., Page]) -> None:
    page = serve()
    first = page.start().result()
    assert first["state"] == "done" and first["lanes"]["sparse"]["right"] is True
    assert first["mode"] == "turns"
    # The pattern is that of all four heads, two of them from the other process.
    from gradio_client import Client

    client = Client(page.url, verbose=False)
    heads = [client.predict(run=first["run"], layer=1, head=head, api_name="/pattern") for head in range(4)]
    assert len({json.dumps(head["kept"]) for head in heads}) > 1
    assert all(head["density"] == heads[0]["density"] for head in heads)

    # An error of either process is a sentence of that run alone.
    for rank, said in ((1, "memory"), (0, "memory")):
        page.plan.write_text(f"{rank} attend 40")
        failed = page.start().result()
        page.plan.write_text("")
        assert failed["state"] == "failed" and said in failed["message"], failed["message"]
        again = page.start().result()
        assert again["state"] == "done"
        assert [lane["text"] for lane in again["lanes"].values()] == [lane["text"] for lane in first["lanes"].values()]

    # Stop, in the middle of a longer run: the device is free within a step.
    job = page.start("2k", 96)
    running(job)
    start = time.monotonic()
    job.cancel()
    while page.health()["running"]:
        assert time.monotonic() - start < SECONDS
        time.sleep(0.02)
    assert page.start().result()["state"] == "done"

    # The server is told to stop in the middle of a run: the run hears of it, and both processes end.
    job = page.start("2k", 96)
    running(job)
    page.process.send_signal(signal.SIGTERM)
    last = job.result()
    assert last["state"] == "stopped" and "being stopped" in last["message"]
    assert page.gone(2 * SECONDS) < SECONDS


def test_a_process_that_is_gone_ends_the_run_with_a_sentence_and_the_server(serve: Callable[..., Page]) -> None:
    page = serve()
    job = page.start("2k", 96)
    running(job)
    start = time.monotonic()
    os.kill(page.children[1], signal.SIGKILL)
    last = job.result()
    assert last["state"] == "failed"
    assert last["message"].startswith("Process 2 of 2, which held a share of the model, is gone")
    assert time.monotonic() - start < SECONDS
    assert page.gone(2 * SECONDS) < SECONDS
    assert page.process.returncode != 0
    assert '"event": "lost"' in page.log.read_text() and "error: Process 2 of 2" in page.log.read_text()


def test_torchrun_can_start_a_page_anew(serve: Callable[..., Page]) -> None:
    """--max-restarts: the processes find each other again, every time."""
    page = serve(restarts=2)
    for _ in range(2):
        before = page.children
        os.kill(before[1], signal.SIGKILL)
        while page.health().get("state") == "ok":
            time.sleep(0.05)
        page.wait()
        assert not set(before) & set(page.children)
    assert page.start(steps=4).result()["state"] == "done"
