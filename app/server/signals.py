"""An orderly stop, when the terminal, the container or torchrun asks for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

# Between looks whether a signal came: waiting on a lock cannot be interrupted on Windows.
POLL_SECONDS = 0.1


class Signals:
    """Waits to be told to stop. The first SIGINT or SIGTERM (SIGBREAK on Windows) makes `wait` run `callback`, in the
    main thread and outside the handler; the second one ends the process at once with 128 + its number. same: what comes
    so many seconds after the first one is still the first (torchrun passes on what the terminal has sent to all).

    Must be made in the main thread; elsewhere Python raises ValueError.
    """

    def __init__(self, callback: Callable[[], None], same: float = 0.0) -> None:
        self._callback, self._same = callback, same
        self._asked: int | None = None
        self._since = 0.0
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, self._arrived)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        # No lock and no event here: the handler interrupts the main thread, which may hold it.
        if self._asked is None:
            self._asked, self._since = number, time.monotonic()
        elif time.monotonic() - self._since >= self._same:
            os._exit(128 + number)

    def wait(self, alive: Callable[[], bool] = lambda: True) -> str | None:
        """Returns the signal's name after `callback` has returned, or None once `alive` says False. Raises what
        `callback` raises.
        """
        while self._asked is None:
            if not alive():
                return None
            time.sleep(POLL_SECONDS)
        self._callback()
        return signal.Signals(self._asked).name
