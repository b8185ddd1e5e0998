"""lm-evaluation-harness: importing this registers the model "sparsed"."""

from sparsed.harness.model import SparsedLM

__all__ = ["SparsedLM"]
