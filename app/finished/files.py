"""The files of a run that a visitor can take away, made when they are asked for."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.finished import animation, html
from app.finished.replay import Judge
from app.finished.run import Kept
from sparsed import trace as traces

# Where they are, below the root of the page: RUNS/key of the run/name.
RUNS = "sparsed-run"
# What is offered: the file's name → (its media type, what it is, in words).
FILES = {
    "run.json.gz": ("application/gzip", "Record (JSON), opens again on this page"),
    "replay.html": ("text/html; charset=utf-8", "Replay as one web page, works offline"),
    "race.webp": ("image/webp", "Animation for a slide (WebP)"),
    "race.gif": ("image/gif", "Animation for a slide (GIF)"),
}


@dataclass(frozen=True)
class Download:
    """A file's content. name: under which a browser saves it."""

    content: bytes
    media_type: str
    name: str


def download(kept: Kept, name: str, judge: Judge) -> Download:
    """One of FILES; takes up to some seconds. Raises KeyError for another name."""
    media_type, _ = FILES[name]
    prompt = kept.trace.prompt
    about = "-".join(filter(None, ("sparsed", kept.trace.model.name.rsplit("/", 1)[-1], prompt.length)))
    # A record that a visitor opened may hold anything; this goes into a header.
    saved = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', about)[:100]}-{name}"
    if name == "replay.html":
        return Download(html.to_html(kept.trace, judge=judge).encode("utf-8"), media_type, saved)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name == "run.json.gz":
            traces.save(kept.trace, path)
        else:
            animation.to_animation(kept.trace, path, judge=judge)
        return Download(path.read_bytes(), media_type, saved)


def offer(kept: Kept, prefix: str, link: str = "") -> dict[str, Any]:
    """What the page's view shows: addresses of the files, and the link that brings the settings back."""
    files = [
        {"name": name, "href": f"{prefix}/{kept.key}/{name}", "label": label} for name, (_, label) in FILES.items()
    ]
    return {"files": files, "link": link, "live": kept.live}
