"""The door: builds the page and serves it. `python app.py --help` lists the options."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# The page runs from any working directory, and without a word to anyone.
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# The visitor's browser often runs on the same few cores. Threads that spin while they wait for each other
# would fight it: measured on 2 cores beside a browser, steps are a quarter faster when they sleep. torch
# reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Every module of the package `app` is imported here, at the top: `gradio app.py` binds the name `app` to this
# script afterwards, and a later `from app.x import y` would look for it in here.
from app import (
    canvas,
    charts,
    compare,
    desk,
    engine,
    explorer,
    export,
    kept,
    limits,
    looks,
    page,
    peak,
    published,
    race,
    replay,
    request,
    serving,
    session,
    settings,
    stage,
    takeaway,
    theme,
    words,
)

MODULES = (
    canvas, charts, compare, desk, engine, explorer, export, kept, limits, looks, page,
    peak, published, race, replay, request, serving, session, settings, stage, takeaway, theme, words,
)  # fmt: skip
DEFAULT_KIND = "about"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python app.py", description="Full attention and SparseD, side by side."
    )
    parser.add_argument(
        "--host", default=None, help="address to listen on (default 127.0.0.1, or GRADIO_SERVER_NAME)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=None,
        help="port (default GRADIO_SERVER_PORT, or the first free from 7860)",
    )
    parser.add_argument(
        "--model", default="mini", help="a model of the catalogue, or a folder (default: mini)"
    )
    return parser.parse_args(arguments)


def build(model: str = "mini") -> tuple[desk.Desk, page.gr.Blocks]:
    """The desk (nothing loaded yet) and the page around it. Raises ValueError for a bad environment variable.
    """
    here = desk.Desk(engine.SparsedEngine(model), model, limits.Limits.here())
    return here, page.build_page(here, default_kind=DEFAULT_KIND)


def main() -> int:
    """Serve the page until it is interrupted; the model loads meanwhile."""
    given = options()
    try:
        here, demo = build(given.model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _, address, _ = demo.launch(
        server_name=given.host,
        server_port=given.port,
        prevent_thread_lock=True,
        quiet=True,
        **serving.launch_options(here),
    )
    if address is None:
        # `gradio app.py` runs this file again for its reloading and serves that; the first visit loads the
        # model.
        return 0
    print(f"{words.TITLE}: {address}", flush=True)
    here.open()
    demo.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
