"""A further turn: the last run's prompt and the answer of a lane go before the next question."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from app.finished.talk import as_text, talk, turns_after
from app.page.inputs import Server
from app.page.layout import Components
from app.page.values import Updates, as_json
from app.race.fields import AS_MODEL, MAX_CHARACTERS, OWN_TEXT
from app.race.request import of_characters
from app.server.gradio_internals import sent_with
from app.server.session import BUSY
from app.server.visits import Visit
from app.texts import FOLLOW_UP, FOLLOW_UP_HERE, NO_TURNS, NOTHING_TO_FOLLOW


class Talking:
    """Handlers of a conversation. Holds nothing of any visit."""

    def __init__(self, server: Server, components: Components) -> None:
        self.server, self.components = server, components

    def offered(self, visit: Visit) -> str:
        """What stands below the lanes: the last run's turns and a place for the next one; nothing before a run."""
        if visit.kept is None:
            return as_json(talk(None, ""))
        name = visit.kept.trace.model.name
        loaded, spec = self.server.desk.models.loaded(name), self.server.models.get(name)
        hint = FOLLOW_UP_HERE if spec is not None and spec.bundled else FOLLOW_UP
        said = "" if loaded is None or loaded.model.chat else NO_TURNS.format(model=visit.kept.trace.model.label)
        return as_json(talk(visit.kept, hint, said))

    def offer(self, http: gr.Request) -> str:
        """The same, once the page is loaded."""
        return self.offered(self.server.visit(http))

    def ask(self, http: gr.Request, sent: gr.EventData) -> Updates:
        """A further question: the inputs that ask it. Raises gr.Error, in a sentence, where it cannot be asked."""
        at, visit = self.components.inputs, self.server.visit(http)
        told = sent_with(sent)
        said = told if isinstance(told, Mapping) else {}
        text, lane = of_characters(str(said.get("text") or "")), str(said.get("lane"))
        turns = None if visit.kept is None or not text.strip() else turns_after(visit.kept, lane)
        if visit.kept is None or turns is None or visit.running:
            raise gr.Error(BUSY if visit.running else NOTHING_TO_FOLLOW, print_exception=False)
        return {
            at["kind"]: OWN_TEXT,
            at["text"]: gr.update(value=text[:MAX_CHARACTERS], visible=True),
            at["system"]: gr.update(value=visit.kept.trace.prompt.system or "", visible=True),
            at["history"]: as_text(turns),
            at["prompt_format"]: AS_MODEL,
        }

    def anew(self) -> Updates:
        """A new conversation: the earlier turns and the text are gone, and the page asks a question of its own."""
        at = self.components
        ours = at.inputs
        empty: Updates = {ours["text"]: "", ours["history"]: "", ours["system"]: ""}
        return {**empty, ours["kind"]: self.server.default_kind, at.talk: as_json({"state": "off"})}
