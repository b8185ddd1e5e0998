"""Errors of an engine, in a sentence."""

from __future__ import annotations

from sparsed.machine import out_of_memory
from sparsed.parallel.launch import TeamLost


def error_sentence(error: BaseException, lane: str | None = None) -> str:
    """One sentence for the visitor about an error of the engine. Details go to the log, not to the page."""
    where = f" in the lane “{lane}”" if lane else ""
    name = type(error).__name__
    if isinstance(error, TeamLost):
        return str(error)
    if out_of_memory(error):
        return (
            f"This machine ran out of memory{where}. Choose a shorter prompt length or a shorter generation, and press "
            "Run again."
        )
    if isinstance(error, (ValueError, FileNotFoundError)):
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".")
    said = f": {first_line}" if first_line else ""
    return f"The run ended early{where} with an error of the engine ({name}{said}). You can press Run again."
