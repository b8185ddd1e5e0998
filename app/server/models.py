"""Models: loading, keeping, evicting."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from app.engine.cost import Shape, Speed
from app.engine.sentences import out_of_memory
from sparsed.models import LoadError

GB = 10**9


@dataclass(frozen=True)
class Loaded:
    """A model in memory and what is known of its speed here. label, place: for people."""

    name: str
    label: str
    place: str
    model: Any
    shape: Shape
    speed: Speed | None


class Loading:
    """A model on its way into memory, shared by all who wait for it. message: how far it is, in words."""

    def __init__(self, label: str, message: str = "starting") -> None:
        self.label = label
        self.message = message
        self._over = threading.Event()
        self._loaded: Loaded | None = None
        self._error: Exception | None = None

    def hear(self, progress: Any) -> None:
        """Takes the engine's progress; called from the loading thread."""
        self.message = str(progress)

    def end(self, outcome: Loaded | Exception) -> None:
        """The model is there, or there is a reason why not. Called once."""
        if isinstance(outcome, Loaded):
            self._loaded = outcome
        else:
            self._error = outcome
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether `result` returns at once."""
        return self._over.is_set()

    def result(self) -> Loaded:
        """The model; waits for it. Raises LoadError, one sentence, if it could not be loaded."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        assert self._loaded is not None, "a loading ends with a model or with an error"
        return self._loaded


def load_error(error: Exception, label: str) -> Exception:
    """An error of loading as one that carries a sentence."""
    if isinstance(error, (ValueError, FileNotFoundError)):
        return error
    if out_of_memory(error):
        return LoadError(f"{label} could not be loaded: this machine ran out of memory. Choose a smaller model.")
    first_line = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return LoadError(f"{label} could not be loaded ({type(error).__name__}{first_line and ': '}{first_line}).")
