"""Every weight of a network comes from its checkpoint, and every one of the checkpoint is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sparsed.models import LoadError

# Buffers that old checkpoints carry along; they follow from the config.
_IGNORED = (".rotary_emb.inv_freq",)
_KINDS = {"missing_keys": "missing", "mismatched_keys": "of another shape", "unexpected_keys": "left over"}


def check_report(report: Mapping[str, Any], folder: Path) -> None:
    """Raises LoadError for what transformers reports of loading a folder."""
    found = {
        word: [key if isinstance(key, str) else key[0] for key in report.get(kind) or ()]
        for kind, word in _KINDS.items()
    }
    check_coverage(found, folder)


def check_coverage(found: Mapping[str, Collection[str]], folder: Path) -> None:
    """Raises LoadError where weights are wrong in a way: "missing" and the like → their names."""
    wrong = {word: sorted(key for key in keys if not key.endswith(_IGNORED)) for word, keys in found.items()}
    wrong = {word: keys for word, keys in wrong.items() if keys}
    if wrong:
        some = {word: ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "") for word, keys in wrong.items()}
        said = "; ".join(f"{len(keys)} {word} ({some[word]})" for word, keys in wrong.items())
        raise LoadError(f"The weights in {folder} do not fit its config.json: {said}.")
