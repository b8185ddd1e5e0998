"""The orderly stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.server.journal import ROOT
from app.server.signals import Signals

Handlers = dict[signal.Signals, Any]


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    """What answers to signals before the test; it does so after it, too."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


STOPPING = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from app.server.signals import Signals

def stop():
    assert threading.current_thread() is threading.main_thread()
    print("stopping", flush=True)
    if sys.argv[2] == "hang":
        time.sleep(60)

signals = Signals(stop)
print("ready", flush=True)
print(signals.wait(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no way to send SIGTERM")
class TestSignals:
    @staticmethod
    def start(how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPING, str(ROOT), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_signal_runs_the_callback_once_in_the_main_thread(self, number: signal.Signals) -> None:
        process = self.start("well")
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
        assert (out, error, process.returncode) == (f"stopping\n{number.name}\n", "", 0)

    def test_the_second_signal_ends_the_process_at_once(self) -> None:
        process = self.start("hang")
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.terminate()
        out, error = process.communicate(timeout=30)
        assert (out, error, process.returncode) == ("", "", 128 + signal.SIGTERM)

    def test_what_torchrun_passes_on_is_the_same_signal(self) -> None:
        """Within the time given; after it a second signal is one."""
        code = STOPPING.replace("Signals(stop)", "Signals(stop, 1.0)")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(ROOT), "hang"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        time.sleep(1.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT

    def test_the_wait_ends_without_the_callback_when_what_it_waits_for_is_gone(self, handlers: Handlers) -> None:
        left = [True, True, False]
        called: list[int] = []
        signals = Signals(lambda: called.append(1))
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
        assert signals.wait(lambda: left.pop(0)) is None
        assert (called, left) == ([], [])

    def test_a_signal_before_the_wait_is_not_lost(self, handlers: Handlers) -> None:
        called: list[int] = []
        signals = Signals(lambda: called.append(1))
        signal.raise_signal(signal.SIGTERM)
        assert called == []
        assert signals.wait() == "SIGTERM"
        assert called == [1]

    def test_works_where_a_signal_does_not_exist(self, handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
        term = signal.SIGTERM
        monkeypatch.delattr(signal, "SIGTERM")
        signals = Signals(lambda: None)
        signal.raise_signal(signal.SIGINT)
        assert signals.wait() == "SIGINT"
        assert signal.getsignal(term) == handlers[term]
