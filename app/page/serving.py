"""What the page is served with: theme, the script and the style of its own, plotly.js, and the files of a run."""

from __future__ import annotations

import asyncio
import hashlib
import html
import importlib.util
import json
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app import texts
from app.assets import together
from app.finished import files
from app.finished.run import MOST_FILE
from app.page.theme import theme
from app.server import health
from app.server.desk import Desk
from app.server.gradio_internals import Callers
from app.server.guard import MIB, Guard

# What the page looks like and does: files of assets/page/, put together in this order. Later styles may change what
# earlier ones say; later scripts use the tools of earlier ones.
STYLES = (
    "colours.css", "base.css", "header.css", "controls.css", "drawer.css", "trouble.css", "prompt.css", "lanes.css",
    "canvas.css", "stage.css", "charts.css", "playhead.css", "evidence.css", "spent.css", "story.css", "replay.css",
    "series.css", "talk.css", "lengths.css", "accuracy.css", "downloads.css", "phone.css",
)  # fmt: skip
SCRIPTS = (
    "core.js", "format.js", "header.js", "drawer.js", "trouble.js", "prompt.js", "lane.js", "stage.js", "chart.js",
    "playback.js", "replay.js", "playhead.js", "cursor.js", "map.js", "evidence.js", "spent.js", "story.js",
    "series.js", "talk.js", "lengths.js", "downloads.js",
)  # fmt: skip
STYLE, SCRIPT = "page.css", "page.js"
# Below the root of the page: its own style and script, and the plotly.js that the plotly package brings.
STATIC = "sparsed-static"


def launch_options(desk: Desk) -> dict[str, Any]:
    """Arguments for `Blocks.launch` that the page needs: theme, style, script, its static files and downloads, /healthz
    and /metrics, and the guard before every request.
    """
    metrics = desk.metrics or health.Metrics(desk.status)
    desk.metrics = metrics
    # A file comes in a frame.
    largest = MOST_FILE + MIB
    guard = Middleware(Guard, journal=desk.journal, upload_limit=largest)
    return {
        "theme": theme(),
        "head": _head(),
        "app_kwargs": {
            "routes": [*_routes(), _downloads(desk), *health.routes(desk.status, metrics)],
            "middleware": [guard, Middleware(Callers)],
        },
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        # What a visitor may read is raised as gr.Error; of anything else he gets no more than that it happened.
        "show_error": False,
        "max_file_size": MOST_FILE,
        "mcp_server": True,
        # Whoever waits in line holds one of them.
        "max_threads": 256,
        # Gradio keeps the last value of every output of every session, also of tabs that are closed; the page drops
        # them then, and this bounds those of whoever never says goodbye.
        "state_session_capacity": 256,
    }


def _plotly_script() -> Path:
    """plotly.js as the installed plotly package ships it; plotly itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ImportError("plotly is not installed; run: pip install -r requirements.txt")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _routes() -> list[Any]:
    plotly = _plotly_script()
    year = {"Cache-Control": "public, max-age=31536000, immutable"}

    async def plotly_js(_: Any) -> FileResponse:
        return FileResponse(plotly, media_type="text/javascript", headers=year)

    async def page_js(_: Any) -> Response:
        return Response(script(), media_type="text/javascript", headers=year)

    async def page_css(_: Any) -> Response:
        return Response(together(STYLES), media_type="text/css", headers=year)

    return [
        Route(f"/{STATIC}/plotly.js", plotly_js),
        Route(f"/{STATIC}/{SCRIPT}", page_js),
        Route(f"/{STATIC}/{STYLE}", page_css),
    ]


def _downloads(desk: Desk) -> Route:
    async def file(http: Any) -> Response:
        run, name = desk.visits.kept(http.path_params["key"]), http.path_params["name"]
        if run is None or name not in files.FILES:
            said = "This run is not kept any more: the page was closed, or another run took its place."
            return PlainTextResponse(said, status_code=404)
        made = await asyncio.to_thread(files.download, run, name, desk.engine.verdict)
        headers = {"Content-Disposition": f'attachment; filename="{made.name}"', "Cache-Control": "no-store"}
        return Response(made.content, media_type=made.media_type, headers=headers)

    return Route(f"/{files.RUNS}/{{key}}/{{name}}", file)


def script() -> str:
    """The page's own script; its last line begins to draw."""
    return f"{together(SCRIPTS)}\nwindow.sparsed.start();\n"


def _head() -> str:
    def address(name: str, content: str) -> str:
        return f"{STATIC}/{name}?v={hashlib.sha256(content.encode()).hexdigest()[:12]}"

    style = address(STYLE, together(STYLES))
    plotly = _plotly_script()
    version = f"{STATIC}/plotly.js?v={plotly.stat().st_size}"
    return (
        f'<meta name="description" content="{texts.TAGLINE}">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="stylesheet" href="{style}">'
        f'<script src="{address(SCRIPT, script())}" data-plotly="{version}" '
        f'data-buttons="{html.escape(json.dumps(texts.button_titles()))}"></script>'
    )
