"""The door: builds the page and serves it. `python app.py --help` lists the options.

Under torchrun the first process serves the page; the others hold their shares of every model, and follow it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

# The page runs from any working directory, and without a word to anyone.
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Gradio's statistics of events break for good where a visitor sends half a character, and nobody reads them here.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
# The visitor's browser often runs on the same few cores. Threads that spin while they wait for each other
# would fight it: measured on 2 cores beside a browser, steps are a quarter faster when they sleep. torch
# reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from app import options
from app.engine.gpu import gpu_is_borrowed
from sparsed.edge import go_on, program
from sparsed.parallel.launch import Launch

if __name__ == "__main__":
    # What is asked for is read before gradio is imported, which takes seconds: --help and a wrong value are answered at
    # once. Of several processes the first one reads it, and says what is wrong.
    try:
        LAUNCH = Launch.here()
        if LAUNCH.kind == "data":
            raise ValueError("accelerate launch is for evaluations and sweeps: start the page with python or torchrun.")
        GIVEN = options.read() if LAUNCH.rank == 0 else None
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

# On a ZeroGPU Space this stands in for CUDA, and must come before everything that uses it.
if gpu_is_borrowed():
    import spaces

# `gradio app.py` binds the name `app` to this script afterwards: a later `from app.x import y` would look for it in
# here, so every import of the package stands at the top of its module.
from app import texts
from app.engine import borrowed, local
from app.page import serving, wiring
from app.server import desk
from app.server.signals import Signals

if TYPE_CHECKING:
    import gradio as gr

    from sparsed.parallel.team import Team

DEFAULT_KIND = "about"
# A run that goes on when the server is told to stop has so long for its step; then its visitor's page so long to hear
# of it.
STEP_SECONDS, TELL_SECONDS = 20.0, 1.0
# A Ctrl-C comes twice under torchrun: from the terminal, and from torchrun, which has heard it too.
SAME_SIGNAL_SECONDS = 3.0


def build(given: options.Options | None = None, team: Team | None = None) -> tuple[desk.Desk, gr.Blocks]:
    """The desk (nothing loaded yet, but for the models of a ZeroGPU Space) and the page around it. given: the usual
    ones unless said otherwise. team: the processes that hold every model together.

    Raises ValueError for a bad environment variable, and what loading raises on a ZeroGPU Space.
    """
    given = given or options.read([])
    if gpu_is_borrowed():
        names = borrowed.placed(default=given.model)
        here = desk.Desk(borrowed.ZeroEngine(names, spaces.GPU), names[0], given.limits, given.journal)
        here.models.place(names)
    else:
        used = local.SparsedEngine(given.model, any_model=given.any_model, team=team)
        here = desk.Desk(used, given.model, given.limits, given.journal, any_model=given.any_model)
    return here, wiring.build_page(here, default_kind=DEFAULT_KIND)


def stop(here: desk.Desk) -> None:
    """No run begins any more; those that go on end after their step, and their pages hear of it."""
    busy = not here.quiet
    here.close()
    here.journal.event("stopping")
    until = time.monotonic() + STEP_SECONDS
    while not here.quiet and time.monotonic() < until:
        time.sleep(0.05)
    if busy:
        time.sleep(TELL_SECONDS)


def main(launch: Launch, given: options.Options | None) -> int:
    """Serve the page until it is interrupted; the model loads meanwhile. given: None in a follower."""
    go_on()  # whoever reads its first line may go away
    team: Team | None = None
    try:
        if launch.kind == "tensor":
            # The followers stay in there.
            from sparsed.parallel.meeting import join

            team = join(launch)
        here, demo = build(given, team)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    assert given is not None, "the process that serves has read its options"
    # The first line on standard output is the address; gradio would write of its MCP server before.
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, address, _ = demo.launch(
                server_name=given.host,
                server_port=given.port,
                prevent_thread_lock=True,
                quiet=True,
                **serving.launch_options(here),
            )
    except (OSError, OverflowError):
        # gradio asks for a port that nobody uses, and says in its own words that there is none, or no such host.
        print(f"error: {options.cannot_listen(given.port, given.host)}", file=sys.stderr)
        return 2
    if address is None:
        # `gradio app.py` runs this file again for its reloading and serves that; the first visit loads the
        # model.
        return 0
    print(f"{texts.TITLE}: {address}", flush=True)
    signals = Signals(lambda: stop(here), SAME_SIGNAL_SECONDS if team is not None else 0.0)
    if team is not None:
        team.on_lost = here.lose
    here.models.open()
    # gradio's own way of waiting would end at once, in the middle of a step.
    signals.wait(lambda: demo.is_running and not here.lost)
    if here.lost:
        print(f"error: {here.lost}", file=sys.stderr)
        time.sleep(TELL_SECONDS)
    demo.close(verbose=False)
    if team is not None and here.quiet:
        team.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that loads a model, or whose step does not come back, would be torn down in the midst of torch's own
    # threads, and the process would abort.
    os._exit(1 if here.lost else 0)


if __name__ == "__main__":
    sys.exit(program(lambda: main(LAUNCH, GIVEN)))
