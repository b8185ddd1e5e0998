"""What a run is asked for with: the ordered table of inputs, read by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from app.page.settings import within
from app.page.values import names_of
from app.race import request
from app.race.fields import FOLLOWING, ON_PAGE, OWN_TEXT
from app.race.request import Request
from app.server.desk import Desk
from app.server.visits import Visit
from sparsed.models.catalogue import ModelSpec

# The order in which gradio sends them: those that follow the model last, and after them what the visitor has set.
NAMES = tuple(field.name for field in sorted(ON_PAGE, key=lambda field: field.follows))


@dataclass(frozen=True)
class Given:
    """What the inputs hold: anything, since it comes from the browser."""

    values: Mapping[str, Any]
    # The names of those that the visitor has set himself, of FOLLOWING and "length".
    touched: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def own(self) -> bool:
        """Whether the prompt is the visitor's own text."""
        return bool(self["kind"] == OWN_TEXT)

    @property
    def empty(self) -> bool:
        """Whether it is, and there is none yet."""
        return self.own and not str(self["text"] or "").strip()

    def but(self, **values: Any) -> Given:
        """The same with other values."""
        return replace(self, values={**self.values, **values})


def read(values: Sequence[Any]) -> Given:
    """What gradio sends for the inputs, by name."""
    *held, touched = values
    return Given(dict(zip(NAMES, held, strict=True)), frozenset(names_of(touched)))


@dataclass(frozen=True)
class Server:
    """What every handler has: the desk, and what a fresh page asks for."""

    desk: Desk
    default_kind: str
    # None: the longest whose race is done within a moment on this machine.
    default_length: str | None

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """Name → row of the list; grows where any model may be loaded."""
        return self.desk.engine.models()

    @property
    def kinds(self) -> Mapping[str, str]:
        """Question kind → label."""
        return self.desk.engine.kinds()

    @property
    def lengths(self) -> Mapping[str, int]:
        """Prompt length → tokens."""
        return self.desk.engine.lengths()

    def visit(self, http: gr.Request) -> Visit:
        """What belongs to the page that sent this."""
        return self.desk.visits.of(http.session_hash)

    def asked(self, given: Given) -> Request:
        """The request that the inputs make. Raises ValueError, one sentence, for what cannot be run."""
        chosen = given["model"]
        if isinstance(chosen, str):
            self.desk.engine.admit(chosen)
        # What is no string is refused by `parse`.
        defaults = self.desk.models.defaults(chosen if isinstance(chosen, str) else self.desk.models.default)
        values = within({**given.values, **dict.fromkeys(set(FOLLOWING) - given.touched)})
        if not given.own:
            # What stands in the boxes for a text of one's own waits there, out of sight.
            values |= dict.fromkeys(request.OF_OWN_TEXT, "")
        return request.parse(
            **values, defaults=defaults, models=self.models, kinds=self.kinds, lengths=self.lengths, lenient=True
        )
