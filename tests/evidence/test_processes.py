"""Four processes that hold a model together, and pages and evaluations that are started anew in the midst of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from servers import ROOT, Server
from test_evaluate import alone, goes_on, launch
from test_team import check_equal, check_lost, folders, scenarios
from test_team_page import SECONDS, ask, running

__all__ = ["folders"]  # a fixture


def test_a_team_of_four_gives_what_one_process_gives_until_one_is_gone(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every family in every setting."""
    models: list[Path] = request.getfixturevalue("folders")
    made = scenarios(4, "equal+lost", tmp_path / "out.json", *models, ROOT / "assets" / "mini")
    check_equal(made.found["equal"], 4)
    check_lost(made, 4)


def test_torchrun_can_start_a_page_anew_and_it_stops_in_good_order(tmp_path: Path) -> None:
    """--max-restarts: the processes find each other again, every time."""
    page = Server.team(tmp_path, restarts=2)
    try:
        page.ready()
        for _ in range(2):
            before = page.children()
            os.kill(before[1], signal.SIGKILL)
            while page.health().get("state") == "ok":
                time.sleep(0.05)
            page.ready()
            assert not set(before) & set(page.children())
        assert ask(page, steps=4).result()["state"] == "done"

        # The server is told to stop in the middle of a run: the run hears of it, and both processes end.
        job = ask(page, "2k", 96)
        running(job)
        page.process.send_signal(signal.SIGTERM)
        last = job.result()
        assert last["state"] == "stopped" and "being stopped" in last["message"]
        assert page.gone(2 * SECONDS) < SECONDS
    finally:
        page.close()


def test_two_processes_go_on_where_two_were_killed_and_give_what_one_gives(tmp_path: Path) -> None:
    two = tmp_path / "two"
    # One of two processes is killed when it has given an answer; accelerate ends the other.
    running = launch(two)
    try:
        file = two / "records-1-of-2.jsonl"
        end = time.monotonic() + 120
        while not (file.exists() and file.read_bytes().count(b"\n")) and time.monotonic() < end:
            time.sleep(0.005)
        workers = psutil.Process(running.pid).children()
        next(worker for worker in workers if worker.environ().get("RANK") == "1").kill()
        running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode != 0
    # Its last answer did not get into the file as a whole.
    file.write_bytes(file.read_bytes()[:-20])
    alone(tmp_path)
    goes_on(tmp_path)
