"""A link to the page that brings settings with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.page.inputs import NAMES, Given, Server
from app.page.trouble import in_page_words
from app.page.values import Values, one_line
from app.race.fields import BY_NAME, FOLLOWING, ON_PAGE, OWN_TEXT, usual
from app.race.links import from_link, said_by_link
from app.race.request import ASKED_A_QUESTION, OF_OWN_TEXT, of_characters
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
        asked = (field.name for field in ON_PAGE if not field.follows and field.name not in OF_OWN_TEXT)
        return {name: given[name] for name in asked}

    def follow_link(self, http: gr.Request, arrived: Any, text: Any, history: Any) -> Values:
        """What the query of the page's address sets, and what is to be said of it; the rest stays as it is.

        arrived: "reload" or "back_forward" where the visitor returns to what he has set himself, of which nothing is
        said. text, history: his own text in this tab and what was said before it, which an address may be too short
        for.
        """
        server = self.server
        values, problems = from_link(dict(http.query_params))
        said = "" if arrived in ("reload", "back_forward") else said_by_link(values, server.kinds)
        if values.get("kind") == OWN_TEXT and isinstance(text, str) and text and "text" not in values:
            earlier = history if isinstance(history, str) else ""
            values |= {"text": of_characters(text)} | ({"history": of_characters(earlier)} if earlier else {})
        touched = frozenset(values) & {*FOLLOWING, "length"}
        if values:
            start = usual(server.desk.models.default, server.default_kind, next(iter(server.lengths)))
            try:
                asked = server.asked(Given({**start, **values}, touched))
                problems += asked.left_out
                unread = () if asked.kind == OWN_TEXT else OF_OWN_TEXT
                problems += [
                    f"The link's “{BY_NAME[name].label}” is left out. {ASKED_A_QUESTION}"
                    for name in unread
                    if values.get(name)
                ]
            except ValueError as error:
                values, said = {}, ""
                problems = [f"This link cannot be followed. {in_page_words(str(error))}"]
        sets: dict[str, dict[str, Any]] = {name: {"value": value} for name, value in values.items()}
        for name in ("text", "system") if values.get("kind") == OWN_TEXT else ():
            # With what goes into it: a browser that is busy can leave out a box that is shown in a later update.
            sets.setdefault(name, {})["visible"] = True
        updates = [gr.update(**sets[name]) if name in sets else gr.skip() for name in NAMES]
        line = " ".join(filter(None, (said, *problems)))
        return (*updates, ",".join(sorted(touched)) if values else gr.skip(), one_line(line) if line else "")
