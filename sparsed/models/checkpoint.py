"""What stands in a checkpoint's folder: its config, the headers of its weights, its tokenizer."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsed.models import LoadError, reason
from sparsed.models.chat import check_template
from sparsed.models.families import Checkpoint, token_ids
from sparsed.models.files import GENERATION, read_json, weight_files
from sparsed.models.hub import Listener, LoadProgress
from sparsed.models.network import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that end a turn in the templates of the families, where the vocabulary has them.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|role_end|>", "<|endoftext|>")
_NUMBERS = {"F64", "F32", "BF16", "F16"}
# What generation_config.json may say beside the sampler of an autoregressive model.
_GENERATION = (
    "_from_model_config", "bos_token_id", "eos_token_id", "mask_token_id", "pad_token_id", "transformers_version",
    "use_cache",
)  # fmt: skip
_LENGTHS = ("delete_token_id", "expand_token_id")
_MASKS = ("<|mdm_mask|>", "<|mask|>")


def read_headers(folder: Path) -> list[tuple[str, str, list[int]]]:
    """(file, name, shape) of every stored weight; reads the files' headers alone. Raises LoadError for weights that are
    no float numbers of 16 bits or more, FileNotFoundError for a file that is not there.
    """
    from safetensors import SafetensorError, safe_open

    found = []
    for file in weight_files(folder):
        if not (folder / file).is_file():
            hint = _instead(folder)
            raise FileNotFoundError(f"The model folder {folder} has no {file}{hint}.")
        try:
            with safe_open(folder / file, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}
                found += [(file, name, part.get_shape()) for name, part in slices.items()]
                kinds = {part.get_dtype(): name for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{folder / file} cannot be read: {reason(error)}.") from error
        for kind in sorted(kinds.keys() - _NUMBERS):
            raise LoadError(
                f"{folder / file} holds numbers of type {kind} ({kinds[kind]}): only float32, bfloat16 and float16 "
                f"weights can be loaded."
            )
    return found


def _instead(folder: Path) -> str:
    """What a folder without its weights has instead, in brackets."""
    says = {
        "*.safetensors": "it has {}, which no index names",
        **dict.fromkeys(("*.bin", "*.pt", "*.pth"), "{} is a pickle, which can run code, and is not loaded"),
    }
    found = ((said, path.name) for pattern, said in says.items() for path in sorted(folder.glob(pattern)))
    return next((f" ({said.format(name)})" for said, name in found), "")


def read_generation(folder: Path) -> tuple[tuple[int, ...], list[str]]:
    """The end and padding tokens that generation_config.json names, where there is one, and notes on what else it says:
    a sampler for autoregression, which is not used, and DreamOn's tokens that change a length. Raises LoadError where
    it is no JSON object.
    """
    if not (folder / GENERATION).is_file():
        return (), []
    said = read_json(folder / GENERATION)
    unused = [name for name, value in sorted(said.items()) if name not in _GENERATION and value not in (None, False)]
    where, notes = f"{GENERATION} of {folder.name}", []
    if lengths := [name for name in unused if name in _LENGTHS]:
        notes.append(
            f"{where} has {', '.join(lengths)} (DreamOn): answers that grow or shrink while they are written are not "
            f"supported, and those tokens stand in an answer as they are."
        )
    if others := [name for name in unused if name not in _LENGTHS]:
        notes.append(f"{where} has {', '.join(others)}: not used, samplers here have other settings.")
    return token_ids(said.get("eos_token_id"), said.get("pad_token_id")), notes


def renamed(name: str, keys: Mapping[str, str]) -> str:
    """The name in the network of a stored weight."""
    for pattern, target in keys.items():
        name = re.sub(pattern, target, name)
    return name


def report_of(
    weights: list[tuple[str, str, list[int]]], keys: Mapping[str, str], dtype: torch.dtype, progress: Listener | None
) -> Callable[[str], None]:
    """Turns the names of weights, as they are loaded, into progress in bytes and files."""
    waiting: dict[str, list[tuple[str, int]]] = {}  # several of a name, where they are stacked
    for file, name, shape in weights:
        waiting.setdefault(renamed(name, keys), []).append((file, prod(shape) * dtype.itemsize))
    left = Counter(file for file, _, _ in weights)
    total, files, done = sum(size for parts in waiting.values() for _, size in parts), len(left), 0

    def loaded(name: str) -> None:
        nonlocal done
        if progress is None or name not in waiting:
            return
        for file, size in waiting.pop(name):
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
    about = read_json(folder / "tokenizer_config.json")
    if about.get("fast_tokenizer_files"):
        raise LoadError(f"The tokenizer in {folder} names fast_tokenizer_files: only tokenizer.json can be read.")
    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            reason = (str(error).splitlines() or [""])[0]
            raise LoadError(f"The tokenizer in {folder} cannot be read ({type(error).__name__}: {reason}).") from error
    # How long a sequence may be is the network's matter, and the run's notes say it.
    tokenizer.model_max_length = sys.maxsize
    _check_twice(folder, tokenizer, about)
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


def _check_twice(folder: Path, tokenizer: PreTrainedTokenizerBase, about: Mapping[str, Any]) -> None:
    """Raises LoadError for files that say the same thing of a tokenizer in two ways. tokenizer.json and
    chat_template.jinja are read; vocab.json, and the template of tokenizer_config.json (`about`), are not beside them.
    """
    if (folder / "tokenizer.json").is_file() and (folder / "vocab.json").is_file():
        ids, known = read_json(folder / "vocab.json"), tokenizer.get_vocab()
        other = next((token for token, i in ids.items() if known.get(token) != i), None)
        if other is not None:
            raise LoadError(
                f"tokenizer.json and vocab.json in {folder} give other ids to {other!r}: keep the one that is meant."
            )
    file, said = folder / "chat_template.jinja", about.get("chat_template")
    if file.is_file() and isinstance(said, str) and said.strip() != file.read_text(encoding="utf-8").strip():
        raise LoadError(
            f"{folder} has two chat templates, chat_template.jinja and one in tokenizer_config.json: keep the one that "
            f"is meant."
        )


def special_ids(
    tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, label: str, more_ends: tuple[int, ...] = ()
) -> tuple[int, tuple[int, ...]]:
    """The mask token, and every token that ends an answer, the tokenizer's end token first.

    The mask is the token that "sparsed" names in config.json, else config.json's mask_token_id, else the tokenizer's,
    else the family's own.
    more_ends: what generation_config.json adds. Raises LoadError without a mask token or an end token, and for a
    tokenizer with tokens that the network has no embedding for.
    """
    vocabulary, size = tokenizer.get_vocab(), checkpoint.config.vocab_size
    last = max(vocabulary, key=lambda token: vocabulary[token], default="")
    if vocabulary.get(last, 0) >= size:
        raise LoadError(
            f"The tokenizer of {label} has tokens up to {last!r} with id {vocabulary[last]}, and config.json "
            f"embeddings for {size}: they are not of one model."
        )
    named = checkpoint.about.get("mask_token")
    if named is not None and named not in vocabulary:
        raise LoadError(f"config.json of {label} says sparsed.mask_token {named!r}, which the tokenizer does not have.")
    stated = checkpoint.mask_id if named is None else None
    masks = [stated, *(vocabulary.get(token) for token in (named, tokenizer.mask_token, *_MASKS) if token)]
    masks.append(checkpoint.usual_mask_id)
    mask_id = next((int(i) for i in masks if i is not None), None)
    if mask_id is None or mask_id >= size:
        raise LoadError(
            f"{label} has no mask token (config.json and tokenizer name none that its {size} embeddings hold): only "
            f"masked diffusion models can be run here; of one, sparsed.mask_token in config.json may name the token."
        )
    ends = [vocabulary.get(tokenizer.eos_token), *checkpoint.end_ids, *more_ends]
    ends += [vocabulary.get(tokenizer.pad_token), *(vocabulary.get(token) for token in _TURN_ENDS)]
    end_ids = tuple(dict.fromkeys(int(i) for i in ends if i is not None and i != mask_id and i < size))
    if not end_ids:
        raise LoadError(f"{label} has no end token: its tokenizer and config.json name none.")
    return mask_id, end_ids
