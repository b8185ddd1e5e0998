"""Where the project's data lies: in the clone, or inside the installed package."""

from __future__ import annotations

from pathlib import Path


def data_dir(kind: str) -> Path:
    """The folder "assets" (bundled checkpoint) or "prompts" (prompt material).

    An installed package carries its own copy under _data; in a clone the folder lies beside the package. The
    copy comes first, because what lies beside an *installed* package belongs to others.

    Raises ValueError for another kind, FileNotFoundError if neither place has it.
    """
    if kind not in ("assets", "prompts"):
        raise ValueError(f"kind must be 'assets' or 'prompts', not {kind!r}.")
    package = Path(__file__).resolve().parent
    places = (package / "_data" / kind, package.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"The folder {kind!r} was found neither at {places[1]} (a clone of the repository) "
        f"nor at {places[0]} (an installed package)."
    )
