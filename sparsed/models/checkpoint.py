"""What stands in a checkpoint's folder: its config, the headers of its weights, its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsed.models import LoadError, reason
from sparsed.models.chat import check_template
from sparsed.models.families import Checkpoint
from sparsed.models.files import weight_files
from sparsed.models.hub import Listener, LoadProgress
from sparsed.models.network import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that end a turn in the templates of the families, where the vocabulary has them.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>")
_MASKS = ("<|mdm_mask|>", "<|mask|>")


def read_headers(folder: Path) -> list[tuple[str, str, list[int]]]:
    """(file, name, shape) of every stored weight; reads the files' headers alone."""
    from safetensors import SafetensorError, safe_open

    found = []
    for file in weight_files(folder):
        if not (folder / file).is_file():
            others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
            hint = f" ({others[0]} is a pickle, which can run code, and is not loaded)" if others else ""
            raise FileNotFoundError(f"The model folder {folder} has no {file}{hint}.")
        try:
            with safe_open(folder / file, framework="pt") as opened:
                found += [(file, name, opened.get_slice(name).get_shape()) for name in opened.keys()]
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{folder / file} cannot be read: {reason(error)}.") from error
    return found


def report_of(
    weights: list[tuple[str, str, list[int]]], keys: Mapping[str, str], dtype: torch.dtype, progress: Listener | None
) -> Callable[[str], None]:
    """Turns the names of weights, as they are loaded, into progress in bytes and files."""
    waiting: dict[str, tuple[str, int]] = {}
    for file, name, shape in weights:
        for pattern, target in keys.items():
            name = re.sub(pattern, target, name)
        waiting[name] = (file, prod(shape) * dtype.itemsize)
    left = {file: sum(place == file for place, _ in waiting.values()) for file in {file for file, _, _ in weights}}
    total, files, done = sum(size for _, size in waiting.values()), len(left), 0

    def loaded(name: str) -> None:
        nonlocal done
        if progress is None or name not in waiting:
            return
        file, size = waiting.pop(name)
        done, left[file] = done + size, left[file] - 1
        progress(LoadProgress("weights", done, total, sum(count == 0 for count in left.values()), files))

    return loaded


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # The class is named: guessing it from the model's type could rebuild the tokenizer as another family's, or want
    # to run the checkpoint's code.
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if (folder / "tokenizer.json").is_file():
        kind: Any = PreTrainedTokenizerFast
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        kind = Qwen2Tokenizer  # Dream's, which has no tokenizer.json
    else:
        raise FileNotFoundError(
            f"The model folder {folder} has no tokenizer.json, and no vocab.json with merges.txt either."
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"The model folder {folder} has no tokenizer_config.json.")
    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            reason = (str(error).splitlines() or [""])[0]
            raise LoadError(f"The tokenizer in {folder} cannot be read ({type(error).__name__}: {reason}).") from error
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        if "default" not in templates:
            raise LoadError(f"{folder} has the chat templates {', '.join(map(repr, templates))}, and no 'default' one.")
        tokenizer.chat_template = templates["default"]
    if tokenizer.chat_template:
        try:
            check_template(tokenizer)
        except ValueError as error:
            raise LoadError(f"The chat template in {folder} is not written in Jinja: {error}.") from error
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, label: str) -> tuple[int, tuple[int, ...]]:
    """The mask token, and every token that ends an answer, the tokenizer's end token first.

    Raises LoadError without a mask token or an end token.
    """
    vocabulary, size = tokenizer.get_vocab(), checkpoint.config.vocab_size
    named = (checkpoint.about.get("mask_token"), tokenizer.mask_token)
    stated = None if checkpoint.about.get("mask_token") else checkpoint.mask_id
    masks = [stated, *(vocabulary.get(token) for token in (*named, *_MASKS) if token)]
    mask_id = next((int(i) for i in masks if i is not None), None)
    if mask_id is None or mask_id >= size:
        raise LoadError(
            f"{label} has no mask token (config.json and tokenizer name none that its {size} embeddings hold): is this "
            f"a masked diffusion model?"
        )
    ends = [vocabulary.get(tokenizer.eos_token), *checkpoint.end_ids, vocabulary.get(tokenizer.pad_token)]
    ends += [vocabulary.get(token) for token in _TURN_ENDS]
    end_ids = tuple(dict.fromkeys(int(i) for i in ends if i is not None and i != mask_id and i < size))
    if not end_ids:
        raise LoadError(f"{label} has no end token: its tokenizer and config.json name none.")
    return mask_id, end_ids
