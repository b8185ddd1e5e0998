"""Draws accuracy against speed, a point for each method of an evaluation: python -m app.tools.tradeoff runs/ablations
--length 4k --out tradeoff.html

With several lengths there is a curve for each. The ending of --out decides: .html is a page that needs no network, .png
a picture (it takes Playwright for Python and a Chromium), .json the figure as plotly reads it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from PIL import Image

from app.accuracy.shipped import is_packed, unpacked
from app.figures.palette import palette, with_values
from app.figures.tradeoff import HEIGHT, MOST_LENGTHS, WIDTH, lengths_of, tradeoff
from app.tools.browser import chromium
from sparsed.edge import go_on, program
from sparsed.evaluation.reading import doubts, read_records, read_sizes
from sparsed.evaluation.scores import summarise
from sparsed.files import check, write
from sparsed.results_folder import key_there

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ENDINGS = (".html", ".png", ".json")
COLOURS = 128
EDGE = 14  # pixels around the figure


def summary_of(path: Path, questions: int | None = None) -> dict[str, Any]:
    """Of a folder that `python -m sparsed eval --out` wrote, of a file that its --json did, or of
    assets/evaluation.json. questions: of each type only the first so many, of a folder.
    """
    if path.is_dir():
        records = [record for record in read_records(path) if questions is None or record.index < questions]
        known = summarise(records, doubts=doubts(path), sizes=read_sizes(path))
        return {"key": key_there(path), **known}
    if questions is not None:
        raise ValueError(f"--questions needs a folder of answers, and {path} is none.")
    try:
        summary = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}).") from None
    if is_packed(summary):
        return unpacked(summary)
    if not isinstance(summary, dict) or not {"cells", "lengths"} <= summary.keys():
        raise ValueError(f"{path} is not what python -m sparsed eval --json writes.")
    return summary


def page_of(summary: dict[str, Any], length: str | Sequence[str], measured: bool, dark: bool) -> str:
    """The figure as a page of HTML, plotly's script inside."""
    figure = with_values(tradeoff(summary, length, measured).figure, dark)
    figure["layout"]["paper_bgcolor"] = figure["layout"]["plot_bgcolor"] = palette(dark)["panel"]
    figure["layout"] |= {"width": WIDTH, "autosize": False}
    page: str = go.Figure(figure).to_html(include_plotlyjs=True, config={"displayModeBar": False})
    style = f"body {{ margin: {EDGE}px; background: {palette(dark)['panel']} }}"
    return page.replace("<head>", f"<head><style>{style}</style>")


def picture_of(page: str) -> bytes:
    """A page's figure as PNG, two pixels for one; it has few colours, which makes the file small."""
    with chromium() as browser:
        drawn = Image.open(BytesIO(shown(browser, page).screenshot())).convert("RGB")
    small = BytesIO()
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def shown(browser: Browser, page: str) -> Page:
    """The page in a browser, once its figure is drawn."""
    found = browser.new_page(
        viewport={"width": WIDTH + 2 * EDGE, "height": HEIGHT + 2 * EDGE}, device_scale_factor=2
    )
    found.set_content(page)
    found.wait_for_selector(".main-svg")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return program(lambda: _draw(arguments))


def _draw(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m app.tools.tradeoff", description=__doc__)
    parser.add_argument("folder", type=Path, help="what python -m sparsed eval --out wrote, the file of its --json, "
                        "or assets/evaluation.json")  # fmt: skip
    parser.add_argument("--length", nargs="+", help="prompt length, or several: then the colours are lengths, and each "
                        "has a curve; default the first one at which speeds are known")  # fmt: skip
    parser.add_argument("--methods", nargs="+", help="only these, and full attention; default every method there")
    parser.add_argument("--questions", type=int, help="of each type only the first so many, so that all settings were "
                        "asked the same")  # fmt: skip
    parser.add_argument("--measured", action="store_true", help="speed by the clock, not by executed operations")
    parser.add_argument("--dark", action="store_true", help="in the colours of the dark design")
    parser.add_argument("--out", type=Path, default=Path("tradeoff.html"), help="file to write: .html, .png or .json")
    given = parser.parse_args(arguments)
    go_on()
    check(given.out, "--out")
    if given.out.suffix not in ENDINGS:
        raise ValueError(f"--out must end in {', '.join(ENDINGS)}, not {str(given.out)!r}.")
    summary = summary_of(given.folder, given.questions)
    if given.methods is not None:
        asked = {"dense", *given.methods}
        for rows in ("cells", "lengths"):
            summary[rows] = [row for row in summary[rows] if row["method"] in asked]
    known = lengths_of(summary, given.measured)
    if not known:
        raise ValueError(f"{given.folder} holds no setting beside full attention whose speed is known.")
    lengths = list(dict.fromkeys(given.length or known[:1]))
    for length in lengths:
        if length not in known:
            raise ValueError(f"--length must be one of {', '.join(known)}, not {length!r}.")
    if len(lengths) > MOST_LENGTHS:
        raise ValueError(f"--length takes {MOST_LENGTHS} lengths at most, not {len(lengths)}.")
    view = tradeoff(summary, lengths, given.measured)
    if given.out.suffix == ".json":
        write(given.out, json.dumps(with_values(view.figure, given.dark), indent=1))
    else:
        page = page_of(summary, lengths, given.measured, given.dark)
        write(given.out, page if given.out.suffix == ".html" else picture_of(page))
    for doubt in summary.get("doubts", ()):
        print(f"note: {doubt}", file=sys.stderr)
    print(f"{given.out}: {view.label}")


if __name__ == "__main__":
    sys.exit(main())
