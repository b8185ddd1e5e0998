"""Models: the catalogue, checkpoint families, loading onto transformers' own classes, and the loaded model."""

from __future__ import annotations

import logging


class LoadError(ValueError):
    """A model cannot be loaded; the message is one sentence that says why and what to do."""


def reason(error: BaseException) -> str:
    """The kind of an error and the last line of what it says, for use inside a sentence."""
    said = (str(error).strip().splitlines() or [""])[-1].strip().rstrip(".")
    said = said if len(said) <= 160 else f"{said[:160].rsplit(' ', 1)[0]} …"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Failed to load", "Skipping import", "<enum '"))


# transformers imports torchao wherever it is installed, which then says what of it is missing, used here or not.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_of_use)
