"""What belongs to one open page, and which runs are remembered."""

from __future__ import annotations

import gc
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.accuracy.own import OwnRun
from app.finished.run import MOST_IMPORTANCE, Kept, opening
from app.race.race import Race
from app.race.request import Request
from app.server.measured import Measured
from app.texts import Shades
from sparsed.attention.masks import Masks
from sparsed.machine import give_back

KEPT_VISITS = 512
# What the last runs of all visits may take of memory, importances apart.
KEPT_BYTES = 512 * 2**20
# Runs without an open page, of programs and of pages that were left: so many, for so long.
KEPT_APART = 32
KEPT_APART_SECONDS = 900.0
# With importances of at most so many bytes.
APART_IMPORTANCE = 8 * 2**20


class Visit:
    """What belongs to one open page: at most one race that goes on, and the last one that is over."""

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner  # who stands in line for it; None for a visit that stands for itself alone
        self.latest: object = None  # the newest preparation of a prompt; older ones give way to it
        self.running = False  # a run of this page goes on, or waits
        self.stopping = False  # Stop was pressed (or the tab closed) for that run, which may not have begun yet
        self.race: Race | None = None  # the one that goes on
        self.selected: Masks | None = None  # the pattern of that race, from its select step on
        self.selected_in = 0  # the step that made it, counted from 1
        self.kept: Kept | None = None  # the last run that is over, or a recorded one
        self.ran: Request | None = None  # what the last run was asked for; None where `kept` is a recorded one
        # Why its last run could not be made, in a sentence, and the model that was chosen (anything a browser sends).
        self.refused: tuple[str, Any] = ("", None)
        self.measured = Measured()  # what its runs took, for the next estimate
        self.unseen = False  # the page does not show `kept` yet
        self.looked_at = (1, 0)  # layer and head
        self.shades: Shades = "both"  # what their view shows
        self.what_if: float | None = None  # the select that is tried on it; None: the run's own
        self.seen = ""  # the key of the lane whose pattern that is, "" for SparseD's
        self.own: OwnRun | None = None  # its last run, in the figure of accuracy against speed
        self.by_clock = False  # that figure's speeds
        self.comparison: dict[str, Any] | None = None  # the last one of prompt lengths (see `app.lengths`)
        self.pins: tuple[Any, ...] = ()  # earlier ones that stay
        self.points: tuple[Any, ...] = ()  # the speed-ups of its single runs

    def stop(self) -> None:
        """End the current run within the step that runs now, or before it gets the device."""
        self.stopping = True
        if self.race is not None:
            self.race.stop()


class Visits:
    """The visits by name (a session's), and the last runs without one. quiet: whether no run goes on anywhere."""

    def __init__(self, quiet: Callable[[], bool]) -> None:
        self._quiet = quiet
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._apart: OrderedDict[str, tuple[float, Kept]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._visits)

    def of(self, name: str | None) -> Visit:
        """The visit of that name, made if it is new; the ones used longest ago are forgotten."""
        key = name or "api"
        with self._lock:
            visit = self._visits.setdefault(key, Visit(key))
            self._visits.move_to_end(key)
            idle = [k for k, v in self._visits.items() if k != key and not v.running]
            for old in idle[: max(0, len(self._visits) - KEPT_VISITS)]:
                del self._visits[old]
            return visit

    def stop(self, name: str | None) -> None:
        """End the visit's race within the step that runs now; nothing happens when there is none."""
        with self._lock:
            visit = self._visits.get(name or "api")
        if visit is not None:
            visit.stop()

    def leave(self, name: str | None) -> None:
        """The visit's tab was closed, or loads the page anew: its race ends and what it held is forgotten, its last run
        after a while.
        """
        with self._lock:
            visit = self._visits.pop(name or "api", None)
            if visit is not None and visit.kept is not None:
                self._remember_apart(visit.kept)
        if visit is not None:
            visit.stop()
        # Beside a run it would cost that run's time.
        if self._quiet():
            del visit
            gc.collect()
            give_back()

    def kept(self, key: str) -> Kept | None:
        """The run of that key, as long as the visit it belongs to keeps it; the recorded one always."""
        with self._lock:
            self._forget()
            runs = [visit.kept for visit in self._visits.values()]
            runs += [run for _, run in self._apart.values()]
        asked = key.encode("utf-8", "replace")
        for run in (*runs, opening()):
            if run is not None and secrets.compare_digest(run.key.encode("ascii"), asked):
                return run
        return None

    def remember(self, visit: Visit, run: Kept) -> None:
        """This is the visit's last run now. Of the importances, which are large, those of the visits longest ago go."""
        with self._lock:
            visit.kept, visit.unseen, visit.selected = run, True, None
            room = MOST_IMPORTANCE - run.importance_bytes
            for other in reversed(self._visits.values()):
                if other is visit or other.kept is None:
                    continue
                room -= other.kept.importance_bytes
                if room < 0:
                    other.kept = replace(other.kept, importance=None)
            room = KEPT_BYTES
            for other in reversed(self._visits.values()):
                room -= 0 if other.kept is None else other.kept.bytes
                if room < 0 and other is not visit:
                    other.kept = None

    def remember_call(self, run: Kept) -> None:
        """Keeps a run that a program made, so that it can ask for its pattern and its files: the last few, for a while.
        """
        with self._lock:
            self._remember_apart(run)

    def _remember_apart(self, run: Kept) -> None:
        """Call with the lock held."""
        small = run.importance_bytes <= APART_IMPORTANCE
        self._apart[run.key] = time.monotonic(), run if small else replace(run, importance=None)
        while len(self._apart) > KEPT_APART:
            self._apart.popitem(last=False)
        self._forget()

    def _forget(self) -> None:
        """Call with the lock held."""
        now = time.monotonic()
        for key in [key for key, (since, _) in self._apart.items() if now - since > KEPT_APART_SECONDS]:
            del self._apart[key]
