"""Which files of a checkpoint's folder are read: a download fetches these, a fingerprint is of these, no others."""

from __future__ import annotations

import json
from pathlib import Path

from sparsed.models import LoadError, reason

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers reads for a tokenizer of the kinds that are loaded here.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def weight_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that hold the weights, in order: model.safetensors, or what its index names.

    They need not be there. Raises LoadError for an index that is none.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return (WEIGHTS,)
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise LoadError(f"{index} is not an index of safetensors files ({reason(error)}).") from error
    # A name with a folder in it could lead anywhere.
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise LoadError(f"{index} is not an index of safetensors files in the same folder.")
    return tuple(sorted(files))


def files_read(folder: Path) -> tuple[str, ...]:
    """The names of all files that loading a folder reads, in order, of those that are there."""
    names = {CONFIG, GENERATION, INDEX, *TOKENIZER, *weight_files(folder)}
    return tuple(sorted(name for name in names if (folder / name).is_file()))
