"""Which files of a checkpoint's folder are read: a download fetches these, a fingerprint is of these, no others.

Files beside them that would make another model are refused, or named in a note.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

_QUANTISED = (
    "quantised weights; only float32, bfloat16 and float16 ones can be loaded: take the model that they were made from"
)
# A file that says that the weights are not all that there is to the model, and what it says.
OTHERS = {
    "adapter_config.json": "an adapter (LoRA): merge it into its model, and save that",
    "quantize_config.json": _QUANTISED,
    "quant_config.json": _QUANTISED,
    "hf_quant_config.json": _QUANTISED,
}
GGUF = (
    "{} holds quantised weights of llama.cpp (GGUF), which are not read here: load the safetensors that they were made "
    "from, by their Hub id or folder."
)
_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file holds. Raises LoadError where it holds none."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LoadError(f"{file} is not valid JSON: {reason(error)}.") from error
    if not isinstance(raw, dict):
        raise LoadError(f"{file} must hold a JSON object.")
    return raw


def weight_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that hold the weights, in order: model.safetensors, or what its index names.

    They need not be there. Raises LoadError for an index that is none.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return (WEIGHTS,)
    return _indexed(folder)


def _indexed(folder: Path) -> tuple[str, ...]:
    """The files that the index of weights names, in order."""
    index = folder / INDEX
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, OSError, LookupError, AttributeError, TypeError) as error:
        raise LoadError(f"{index} is not an index of safetensors files ({reason(error)}).") from error
    # A name with a folder in it could lead anywhere.
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise LoadError(f"{index} is not an index of safetensors files in the same folder.")
    return tuple(sorted(files))


def files_read(folder: Path) -> tuple[str, ...]:
    """The names of all files that loading a folder reads, in order, of those that are there."""
    names = {CONFIG, GENERATION, INDEX, *TOKENIZER, *weight_files(folder)}
    return tuple(sorted(name for name in names if (folder / name).is_file()))


def check_files(folder: Path) -> list[str]:
    """Notes on files of a folder that are not read, though they could be meant to be.

    Raises LoadError, in one sentence, for a folder that holds another kind of model, two sets of weights, or a
    git-lfs pointer where a file should be.
    """
    for name, kind in OTHERS.items():
        if (folder / name).is_file():
            raise LoadError(f"{folder} holds {name}, which stands for {kind}.")
    gguf = sorted(folder.glob("*.gguf"))
    if gguf and not any(folder.glob("*.safetensors")):
        raise LoadError(GGUF.format(gguf[0]))
    for name in (CONFIG, GENERATION, INDEX, WEIGHTS, *TOKENIZER):
        _check_pointer(folder / name)
    read = weight_files(folder)
    for name in read:
        _check_pointer(folder / name)
    if (folder / INDEX).is_file() and (folder / WEIGHTS).is_file() and set(_indexed(folder)) != {WEIGHTS}:
        raise LoadError(f"{folder} holds {WEIGHTS} and {INDEX}, which names others: keep the weights that are meant.")
    left = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in read)
    if left and all((folder / name).is_file() for name in read):
        listed = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        verb = "is" if len(left) == 1 else "are"
        return [f"{listed} of {folder.name} {verb} not read: {_where(read)}."]
    return []


def _where(read: tuple[str, ...]) -> str:
    return f"{INDEX} names other files" if len(read) > 1 else f"the weights are in {read[0]}"


def _check_pointer(file: Path) -> None:
    if not file.is_file():
        return
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if start == _POINTER:
        raise LoadError(
            f"{file} is a git-lfs pointer, not the file itself, which was not downloaded: run `git lfs pull` in "
            f"{file.parent}, or load the model by its Hub id."
        )
