"""The page in processes of its own, as every test and every long proof starts it."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Machines are slow, and others are at work on them.
START_SECONDS, IDLE_SECONDS, POLL_SECONDS = 240.0, 120.0, 0.1


class Server:
    """A running page. Nothing is waited for before `ready`.

    options: of the command line; one that is given twice counts as it is given last. environment: beside this
    process's own.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        script: Path = ROOT / "app.py",
        launcher: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}/"
        self.folder = folder
        self.out, self.log = folder / "out", folder / "log"  # standard output, and standard error
        with self.out.open("w") as out, self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(script), "--port", port, *options],
                cwd="/", env={**os.environ, **environment}, stdout=out, stderr=log, start_new_session=True,
            )  # fmt: skip

    @classmethod
    def watched(cls, folder: Path, which: str) -> Server:
        """The page over a stand-in or a model, with what serve.py answers beside it."""
        return cls(folder, which, script=HERE / "serve.py")

    @classmethod
    def team(cls, folder: Path, restarts: int = 0) -> Server:
        """A page of two processes. The file `plan` in the folder says which one fails, how: `team_script.sabotage`."""
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", str(restarts))
        plan = str(folder / "plan")
        return cls(folder, script=HERE / "serve_team.py", launcher=launcher, OMP_NUM_THREADS="1", FAIL=plan)

    def answer(self, path: str) -> tuple[int, str]:
        """Status and text, whatever the status. Raises OSError where nobody listens."""
        try:
            with urllib.request.urlopen(self.url + path.removeprefix("/"), timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def get(self, path: str) -> Any:
        status, said = self.answer(path)
        assert status == 200, (path, status, said)
        return json.loads(said)

    def health(self) -> dict[str, Any]:
        """What /healthz says; nothing where nobody listens (yet, or any more)."""
        try:
            return json.loads(self.answer("healthz")[1])
        except OSError:
            return {}

    def ready(self) -> dict[str, Any]:
        """What /healthz says once a model is in memory."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            said = self.health()
            if said.get("state") == "ok" and said["models"]:
                return said
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"it does not serve: {self.log.read_text()}")

    def idle(self, visits: bool = False) -> dict[str, Any]:
        """Waits until no run holds the device or waits for it (and, visits, until every visitor is gone)."""
        deadline = time.monotonic() + IDLE_SECONDS
        while (said := self.health())["running"] or said["waiting"] or visits and said["visits"]:
            assert time.monotonic() < deadline, f"after {IDLE_SECONDS:g} s: {said}"
            time.sleep(POLL_SECONDS)
        return said

    def state(self) -> dict[str, Any]:
        """What the engine did (serve.py)."""
        return self.get("test/state")

    @contextmanager
    def held(self, step: int) -> Iterator[Callable[[int], Any]]:
        """Until the end of the block this step (from 0) and later ones take for ever, however fast machines are; what
        it gives moves that (serve.py).
        """

        def hold(first: int) -> Any:
            return self.get(f"test/hold?step={first}")

        hold(step)
        try:
            yield hold
        finally:
            hold(-1)

    def stop(self, page: Any, press: Callable[[], Any] | None = None) -> None:
        """Presses Stop on a page (by a click, or by what is given), and waits until the engine has been told: what is
        held until then is not made before it, however late a busy browser comes.
        """
        before, deadline = self.state()["stops"], time.monotonic() + IDLE_SECONDS
        press() if press is not None else page.click("#sd-stop")
        while self.state()["stops"] == before:
            assert time.monotonic() < deadline, "the engine was not told to stop"
            time.sleep(POLL_SECONDS)

    def mask(self, layer: int, head: int) -> list[list[int]]:
        """The kept key blocks of every query block of the last pattern (serve.py)."""
        return self.get(f"test/mask?layer={layer}&head={head}")

    def lanes(self) -> dict[str, list[list[str | None]]]:
        """"dense" or the pattern → the text of each cell after each step of the last such run (serve.py)."""
        return self.get("test/lanes")

    def events(self) -> list[dict[str, Any]]:
        """The lines of its journal so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def memory(self) -> int | None:
        """Bytes that are in memory; None where the system does not say."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    def children(self) -> list[int]:
        """The processes that it has started, oldest first."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def gone(self, within: float) -> float:
        """Seconds until it is gone, with all that it started."""
        start = time.monotonic()
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it is still there after {within:g} s: {self.log.read_text()}") from None
        return time.monotonic() - start

    def close(self) -> None:
        """Ends it in good order if it goes soon, and whatever it has started."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
