"""Races that one visit makes one after the other: of several prompt lengths, of several questions."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncGenerator

from app.race.request import Request
from app.server.desk import Desk
from app.server.journal import Via
from app.server.observer import Counted
from app.server.session import perform
from app.server.shown import Shown
from app.server.visits import Visit


class Several:
    """Races of one model for a visit, as a context: the visit is running meanwhile, and between two races, too, the
    model stays in memory. Each race stands in line for the device anew, so that others get their turns in between.
    """

    def __init__(self, desk: Desk, visit: Visit, model: str, via: Via) -> None:
        """via: what they are made for, for the journal."""
        self._desk, self._visit, self._model, self._via = desk, visit, model, via
        self.unloaded = ""  # why the model could not be loaded, in a sentence: no further race can be made

    def __enter__(self) -> Several:
        self._visit.stopping = False
        self._visit.running = True
        self._release = self._desk.models.hold(self._model)
        return self

    def __exit__(self, *_: object) -> None:
        self._visit.running = False
        self._release()

    @property
    def over(self) -> bool:
        """Is no further race to be made: a Stop was pressed, or the model cannot be loaded?"""
        return self._visit.stopping or bool(self.unloaded)

    async def race(self, asked: Request, observer: Counted) -> AsyncGenerator[Shown, None]:
        """The next race; its last value is `over`. Ends within one step after `visit.stop()`; closing the stream stops
        the race too, and frees the device.
        """
        desk, last = self._desk, ""
        stream = perform(desk, self._visit, asked, observer, via=self._via)
        async with contextlib.aclosing(stream) as race:
            async for shown in race:
                last = str(shown.stage["state"])
                if last in ("refused", "failed") and desk.models.loaded(self._model) is None:
                    self.unloaded = shown.stage["message"]
                yield shown
        if last == "failed":
            # An error holds what the engine had in its hands, and that may be all of the memory.
            gc.collect()

    def ready(self, shown: Shown) -> bool:
        """Is the model in memory, and this machine's speed measured?"""
        models = self._desk.models
        here = models.loaded(self._model) is not None and models.under_way(self._model) is None
        return not shown.loading and here
