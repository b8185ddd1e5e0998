"""Models: the catalogue, checkpoint families, loading onto transformers' own classes, and the loaded model."""

from __future__ import annotations


class LoadError(ValueError):
    """A model cannot be loaded; the message is one sentence that says why and what to do."""
