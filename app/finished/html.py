"""A run as one HTML file that plays by itself."""

from __future__ import annotations

import base64
import hashlib
import json

from app.assets import together
from app.finished.replay import Judge, origin, replay_value
from app.finished.spent import of_trace
from sparsed import trace as traces

# Those of the page (app/page/serving.py) that have something to draw here: the stage and the bar, below a heading.
STYLES = (
    "colours.css", "base.css", "header.css", "prompt.css", "lanes.css", "canvas.css", "stage.css", "playhead.css",
    "spent.css", "replay.css", "phone.css",
)  # fmt: skip
SCRIPTS = (
    "core.js", "format.js", "lane.js", "stage.js", "playback.js", "replay.js", "playhead.js", "spent.js", "record.js",
)  # fmt: skip
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>SparseD replay</title>
<style>
{style}
{more_style}
</style>
</head>
<body>
<main class="gradio-container sd-export">
<div id="sd-record"><div class="sd-view"></div></div>
<div id="sd-stage"><div class="sd-view"></div></div>
<div id="sd-replay"><div class="sd-view"></div></div>
<div id="sd-spent"><div class="sd-view"></div></div>
<noscript>This replay is drawn by the script inside this file; please allow it to run.</noscript>
</main>
<script type="application/json" id="sd-value">{value}</script>
<script>{script}</script>
</body>
</html>
"""
# What gradio brings on the page.
_STYLE = """
*, *::before, *::after { box-sizing: border-box; }
body {
  margin: 0;
  font: 16px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
}
.sd-export { display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px; }
.sd-export .sd-chips { margin-top: 10px; }
.sd-export .sd-chips li { white-space: normal; overflow-wrap: anywhere; }
.sd-export .sd-about { display: none; }
"""
_START = """
(() => {
  const value = JSON.parse(document.getElementById("sd-value").textContent);
  const mount = (kind, id, content) =>
    window.sparsed.mount(kind, document.getElementById(id), { value: JSON.stringify(content) }, () => {});
  mount("record", "sd-record", value.record);
  mount("stage", "sd-stage", null);
  mount("replay", "sd-replay", value.replay);
  mount("spent", "sd-spent", value.spent);
})();
"""


def to_html(trace: traces.Trace, *, judge: Judge | None = None) -> str:
    """A whole page that replays the run: no network, nothing beside the file.

    judge: (text, gold) → (right or not, in words). Texts of the trace stand in the file as JSON only, which the
    script shows as text. Raises ValueError for a trace that cannot be replayed (`app.finished.run.recorded`).
    """
    about = origin(trace)
    value = {
        "record": {
            "title": trace.prompt.asked or "A run of SparseD",
            "facts": ["Recorded", *(about[name] for name in ("model", "machine", "date")), tokens_of(trace)],
        },
        "replay": replay_value(trace, run=1, judge=judge),
        # A record that does not tell attention apart has nothing to say here.
        "spent": split if (split := of_trace(trace))["lanes"] else None,
    }
    script = "\n".join([together(SCRIPTS), "window.sparsed.start();", _START]).replace("</script", "<\\/script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    style = together(STYLES).replace("</style", "<\\/style")
    return _PAGE.format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=style,
        more_style=_STYLE.strip(),
        # ASCII only: a lone surrogate, which no encoding can write, becomes an escape.
        value=json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        script=script,
    )


def tokens_of(trace: traces.Trace) -> str:
    return f"{trace.prompt.tokens:,} prompt tokens"
