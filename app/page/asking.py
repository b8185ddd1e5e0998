"""Twenty questions like the last run's: what that takes, and how often each lane is right."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app.page.inputs import Server
from app.page.values import Values, as_json
from app.series import series
from app.server.visits import Visit
from app.texts import ASK_MORE


class Asking:
    """Handlers of further questions. Holds nothing of any visit."""

    def __init__(self, server: Server, starters: int) -> None:
        """starters: how many buttons start a race."""
        self.server, self.starters = server, starters

    def offer(self, http: gr.Request) -> Any:
        """The button as it is now."""
        return self.offered(self.server.visit(http))

    def offered(self, visit: Visit) -> Any:
        """The button, with how long it all will take here; off where there is nothing to ask, or a run goes on."""
        desk, asked = self.server.desk, visit.ran
        if asked is None or series.refusal(desk, asked):
            return gr.update(value=ASK_MORE, interactive=False)
        takes = series.outlook(desk, visit, asked)
        return gr.update(value=" · ".join(filter(None, (ASK_MORE, takes))), interactive=not visit.running)

    async def ask(self, http: gr.Request) -> AsyncIterator[Values]:
        """The questions, one race each; the count is streamed."""
        visit, others = self.server.visit(http), (gr.skip(),) * (2 + self.starters)
        waits, stop = gr.update(interactive=False), gr.update(value="Stop", interactive=True)
        busy = (stop, stop, *(waits,) * self.starters)
        off, ready = gr.update(value="Stop", interactive=False), gr.update(interactive=True)
        free = (off, off, *(ready,) * self.starters)
        started = False
        async with contextlib.aclosing(series.ask(self.server.desk, visit, visit.ran)) as stream:
            async for value in stream:
                over = value["state"] != "running"
                if started:
                    buttons = free if over else others
                else:
                    # Refused at once: perhaps beside a run, whose buttons these are.
                    buttons = others if over else busy
                started = True
                yield (as_json(value), *buttons)
