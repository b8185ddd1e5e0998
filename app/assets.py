"""The files that the page and its exports are drawn with: styles and scripts of assets/page/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "assets" / "page"


def together(names: Sequence[str]) -> str:
    """These files in one piece, in this order."""
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)
