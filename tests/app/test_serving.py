"""The server as those see it who run it: it stops in good order, refuses what is not for strangers, forgets visits."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Door:
    """`python app.py` in a process of its own."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = folder / "log"
        with self.log.open("w") as log:
            # Of an option that is given twice the last one counts.
            command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), *options]
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **environment}
            )

    def answer(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> dict[str, Any]:
        """What /healthz says once a model is in memory."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                status, said = self.answer("/healthz")
                if status == 200 and json.loads(said)["state"] == "ok" and json.loads(said)["models"]:
                    return json.loads(said)
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[list[Door]]:
    made: list[Door] = []
    yield made
    for door in made:
        door.process.kill()
        door.process.wait(10)


def test_a_server_that_is_told_to_stop_ends_its_run_tells_its_client_and_goes(
    doors: list[Door], tmp_path: Path
) -> None:
    door = Door(tmp_path)
    doors.append(door)
    assert door.ready()["models"] == ["mini"]
    job = Client(door.url, verbose=False).submit(length="1k", steps=96, api_name="/compare")
    last: dict[str, Any] = {}
    for value in job:
        if value["state"] == "running" and value["lanes"]["dense"]["step"] >= 2 and last.get("state") != "told":
            last = {"state": "told"}
            door.process.send_signal(signal.SIGTERM)
        if value["state"] not in ("running", "waiting", "preparing", "loading"):
            last = value
    assert last["state"] == "stopped" and last["message"].startswith("This server is being stopped or started anew.")
    assert last["lanes"]["dense"]["step"] < 96 and "▒" in last["lanes"]["dense"]["text"]
    assert door.process.wait(30) == 0
    told = [event["event"] for event in door.events()]
    assert told[-2:] == ["stopping", "run"] or told[-2:] == ["run", "stopping"]
    assert "Traceback" not in door.log.read_text()
    assert door.process.stdout is not None
    assert door.process.stdout.read().splitlines() == [f"SparseD live: {door.url}/"]


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_server_that_is_told_to_stop_while_it_measures_the_machine_goes_in_good_order(
    doors: list[Door], tmp_path: Path, seconds: float
) -> None:
    door = Door(tmp_path)
    doors.append(door)
    door.ready()
    time.sleep(seconds)
    door.process.send_signal(signal.SIGTERM)
    assert door.process.wait(30) == 0
    assert [event["event"] for event in door.events()] == ["stopping"]
    assert len(door.log.read_text().splitlines()) == 1


def test_a_space_serves_and_gives_no_file_away(doors: list[Door], tmp_path: Path) -> None:
    door = Door(tmp_path, SPACE_ID="owner/name", SYSTEM="spaces")
    doors.append(door)
    door.ready()
    weights = str(ROOT / "assets/mini/model.safetensors")
    for path in ("/etc/passwd", str(ROOT / "app.py"), "app.py", "../app.py", weights):
        status, said = door.answer(f"/gradio_api/file={path}")
        assert status in (403, 404), (path, status)
        assert "import" not in said and "root:" not in said
    status, said = door.answer("/config")
    assert status == 200 and str(ROOT) not in said and str(Path.home()) + "/" not in said


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (["--allow-any-model"], {"SPARSED_PUBLIC": "1"}, "error: --allow-any-model is not for a public page"),
        (["--model", "nonsense"], {}, "error: The model 'nonsense' is none of mini, "),
        (["--port", "99999"], {}, "error: The page cannot listen on port 99999"),
        (["--allow-any-model"], {"SPACE_ID": "owner/name"}, "error: --allow-any-model is not for a public page"),
        ([], {"SPARSED_MAX_WAITING": "none"}, "error: SPARSED_MAX_WAITING is 'none'; it must be a number from 1 to"),
        ([], {"SPARSED_LOG_PROMPTS": "maybe"}, "error: SPARSED_LOG_PROMPTS"),
        ([], {"SPARSED_LANES": "two"}, "error: SPARSED_LANES is 'two'; it must be 'auto' or 'turns'."),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    doors: list[Door], tmp_path: Path, options: list[str], environment: dict[str, str], says: str
) -> None:
    door = Door(tmp_path, *options, **environment)
    doors.append(door)
    assert door.process.wait(60) == 2
    assert door.log.read_text().startswith(says) and len(door.log.read_text().splitlines()) == 1


def test_a_visit_is_forgotten_soon_after_its_tab_is_closed(chromium: Any, keeping: Any) -> None:
    def visits(most: int, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while keeping.state()["visits"] > most and time.monotonic() < deadline:
            time.sleep(0.2)
        return int(keeping.state()["visits"])

    before = visits(0, 60)
    context = chromium.new_context()
    pages = [context.new_page() for _ in range(3)]
    for page in pages:
        page.goto(keeping.url)
        page.wait_for_selector(".sd-facts:not([hidden])")
    assert keeping.state()["visits"] == before + 3
    pages[0].click("#sd-run")
    pages[0].wait_for_selector(".sd-stage[data-state=running]")
    context.close()
    assert visits(before, 60) == before
    keeping.idle()


def test_a_program_may_run_listed_models_only(fake: Any) -> None:
    """Whoever asks for another gets a sentence, and no download begins."""
    client = Client(fake.url, verbose=False)
    for model in ("../../etc/passwd", "/etc", "owner/name", "https://example.org/x", "mini\x00"):
        with pytest.raises(Exception, match="is not one of mini, dreamer"):
            client.predict(model=model, api_name="/compare")
    fake.idle()
