"""The server as those see it who run it: it stops in good order, refuses what is not for strangers, forgets visits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from servers import ROOT, Server

from app.options import read


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a page with these options and this environment."""
    made: list[Server] = []

    def started(*options: str, **environment: str) -> Server:
        made.append(Server(tmp_path, *options, **environment))
        return made[-1]

    yield started
    for server in made:
        server.close()


def test_a_server_that_is_told_to_stop_ends_its_run_tells_its_client_and_goes(
    start: Callable[..., Server],
) -> None:
    door = start()
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
    assert door.out.read_text().splitlines() == [f"SparseD live: {door.url}"]


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_server_that_is_told_to_stop_while_it_measures_the_machine_goes_in_good_order(
    start: Callable[..., Server], seconds: float
) -> None:
    door = start()
    door.ready()
    time.sleep(seconds)
    door.process.send_signal(signal.SIGTERM)
    assert door.process.wait(30) == 0
    assert [event["event"] for event in door.events()] == ["stopping"]
    assert len(door.log.read_text().splitlines()) == 1


def test_a_space_serves_and_gives_no_file_away(start: Callable[..., Server]) -> None:
    door = start(SPACE_ID="owner/name", SYSTEM="spaces")
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
        (["--allow-any-model"], {"SPARSED_PUBLIC": "1"}, "--allow-any-model is not for a public page"),
        (["--model", "nonsense"], {}, "The model 'nonsense' is none of mini, "),
        (["--port", "99999"], {}, "The page cannot listen on port 99999"),
        (["--allow-any-model"], {"SPACE_ID": "owner/name"}, "--allow-any-model is not for a public page"),
        ([], {"SPARSED_MAX_WAITING": "none"}, "SPARSED_MAX_WAITING is 'none'; it must be a number from 1 to"),
        ([], {"SPARSED_LOG_PROMPTS": "maybe"}, "SPARSED_LOG_PROMPTS"),
        ([], {"SPARSED_LANES": "two"}, "SPARSED_LANES is 'two'; it must be 'auto' or 'turns'."),
    ],
)
def test_a_wrong_setting_is_one_sentence(options: list[str], environment: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        read(options, environment)
    said = str(refused.value)
    assert said.startswith(says) and said.endswith(".") and "\n" not in said


def test_a_wrong_setting_ends_the_process_with_that_sentence_before_the_page_is_imported() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['app.py', '--port', '99999']\n"
        f"try:\n    runpy.run_path({str(ROOT / 'app.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, {'gradio', 'torch', 'plotly'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 set()\n"
    assert done.stderr == "error: The page cannot listen on port 99999: choose another one with --port.\n"


def test_a_visit_is_forgotten_soon_after_its_tab_is_closed(visit: Any, keeping: Any) -> None:
    before = set(keeping.state()["visits"])
    pages = [visit(keeping) for _ in range(3)]
    ours = set(keeping.state()["visits"]) - before
    assert len(ours) == 3
    pages[0].click("#sd-run")
    pages[0].wait_for_selector(".sd-stage[data-state=running]")
    for page in pages:
        page.close()
    deadline = time.monotonic() + 60
    while ours & set(keeping.state()["visits"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    keeping.idle()


def test_a_program_may_run_listed_models_only(fake: Any) -> None:
    """Whoever asks for another gets a sentence, and no download begins."""
    client = Client(fake.url, verbose=False)
    for model in ("../../etc/passwd", "/etc", "owner/name", "https://example.org/x", "mini\x00"):
        with pytest.raises(Exception, match="is not one of mini, dreamer"):
            client.predict(model=model, api_name="/compare")
    fake.idle()
