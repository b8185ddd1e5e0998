"""What belongs to one open page."""

from __future__ import annotations

from typing import Any

from app.finished.run import Kept
from app.lanes import SPARSE
from app.race.race import Race
from app.texts import Shades
from sparsed.attention.masks import Masks

KEPT_VISITS = 512


class Visit:
    """What belongs to one open page. stopping: Stop was pressed (or the tab closed) for the current run, which may not
    have begun yet. latest: the newest preparation of a prompt; older ones give way to it. selected: the pattern of the
    current run, from its select step on. kept: the last run that is over, or a recorded one; unseen while the page does
    not show it yet. looked_at: layer and head; shades: what their view shows; seen: the lane whose pattern that is.
    comparison, pins: the last comparison of prompt lengths, and earlier ones that stay (see `app.compare`). owner: who
    stands in line for it; None for a visit that stands for itself alone.
    """

    def __init__(self) -> None:
        self.latest: object = None
        self.race: Race | None = None
        self.selected: Masks | None = None
        self.kept: Kept | None = None
        self.unseen = False
        self.looked_at = (1, 0)
        self.shades: Shades = "both"
        self.seen = SPARSE
        self.comparison: dict[str, Any] | None = None
        self.pins: tuple[Any, ...] = ()
        self.running = False
        self.stopping = False
        self.owner: str | None = None

    def stop(self) -> None:
        """End the current run within the step that runs now, or before it gets the device."""
        self.stopping = True
        if self.race is not None:
            self.race.stop()
