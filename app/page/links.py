"""A link to the page that brings settings with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.page.inputs import NAMES, Given, Server
from app.page.values import Values, toast
from app.race.fields import FOLLOWING, ON_PAGE, OWN_TEXT, usual
from app.race.links import from_link
from app.race.request import ASKED_A_QUESTION
from app.texts import Example


class Links:
    """What a fresh page's address sets, and what an example does. Holds nothing of any visit."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def values_of(self, example: Example) -> dict[str, Any]:
        """What an example sets, by the input's name: all but what follows the model and the length, which nobody has
        set any more then, and a text of the visitor's own, which waits out of sight.
        """
        given = usual(self.server.desk.models.default, example.kind, example.length)
        given |= {"question": example.question, "lanes": list(example.lanes)}
        return {field.name: given[field.name] for field in ON_PAGE if not field.follows and field.kind != "text"}

    def follow_link(self, http: gr.Request) -> Values:
        """What a link's query sets; the rest stays as it is."""
        server = self.server
        values, problems = from_link(dict(http.query_params))
        touched = frozenset(values) & {*FOLLOWING, "length"}
        if values:
            start = usual(server.desk.models.default, server.default_kind, next(iter(server.lengths)))
            try:
                asked = server.asked(Given({**start, **values}, touched))
                problems += asked.left_out
                unread = () if asked.kind == OWN_TEXT else ("text", "system")
                problems += [
                    f"The link's {name} is left out. {ASKED_A_QUESTION}" for name in unread if values.get(name)
                ]
            except ValueError as error:
                values = {}
                problems = [f"This link cannot be followed. {error}"]
        for problem in problems:
            toast(problem)
        sets: dict[str, dict[str, Any]] = {name: {"value": value} for name, value in values.items()}
        for name in ("text", "system") if values.get("kind") == OWN_TEXT else ():
            # With what goes into it: a browser that is busy can leave out a box that is shown in a later update.
            sets.setdefault(name, {})["visible"] = True
        updates = [gr.update(**sets[name]) if name in sets else gr.skip() for name in NAMES]
        return (*updates, ",".join(sorted(touched)) if values else gr.skip())
