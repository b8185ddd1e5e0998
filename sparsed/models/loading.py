"""Loading: from a name to a model in memory, onto transformers' own classes.

No code that comes with a checkpoint is run: the family is read from config.json, weights are safetensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsed.machine import device_memory, dtype_name
from sparsed.models import LoadError, reason
from sparsed.models.catalogue import ModelSpec
from sparsed.models.families import Checkpoint, read_config, recognise
from sparsed.models.hub import GB, Listener, LoadProgress, locate
from sparsed.models.model import Model
from sparsed.models.network import fuse as fuse_network
from sparsed.models.network import input_device, load_network, quiet_transformers
from sparsed.models.probe import fastest_cpu_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sparsed.team import Team

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens that end a turn in the templates of the families, where the vocabulary has them.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>")
_MASKS = ("<|mdm_mask|>", "<|mask|>")


def load(
    name_or_path: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    fuse: bool | None = None,
    revision: str | None = None,
    progress: Listener | None = None,
    team: Team | None = None,
) -> Model:
    """Loads a model: a name of the catalogue, a Hub id, or a local folder.

    The folder holds config.json, safetensors (one file, or shards with their index), and a tokenizer
    (tokenizer.json, or vocab.json and merges.txt). model_type decides the family: llada, Dream, or a Llama,
    Qwen2 or Qwen3 (also with the prefix a2d-) whose tokenizer or config has a mask token. An object "sparsed" in
    config.json may give mask_token, label, trained_length and the sampler's defaults (steps, gen_length,
    block_length, algorithm, temperature).

    device: CUDA, else MPS, else CPU by default. dtype: by default bfloat16 on CUDA, float32 on MPS, and on a CPU
    the faster of float32 and bfloat16, tried out (about 0.1 s), or bfloat16 where only that fits into memory.
    device_map: spreads a model over several devices, by accelerate's rules ("auto", or module → device).
    fuse: torch.compile what surrounds attention (see `sparsed.models.network.fuse`); by default on CUDA, where all
    weights are on one device and the machine compiles (a ZeroGPU Space does not).
    team: the processes that hold the model together (`sparsed.team.join`); device and device_map are not given then.
    revision: of a Hub repository. progress: called with a LoadProgress while files arrive and weights are read.

    Raises LoadError (a ValueError) in one sentence: unknown name or family, no network, no access, no
    safetensors, weights that do not fit the config, too little memory; ValueError for a dtype that is none of
    float32, bfloat16, float16; FileNotFoundError if a file is missing.
    """
    if team is not None and (device is not None or device_map is not None):
        raise ValueError("torchrun places each process by itself: leave device and device_map out.")
    place = pick_device(device) if team is None else team.share.device
    chosen = check_dtype(dtype)
    for part in device_map.values() if isinstance(device_map, Mapping) else ():
        if part != "disk":
            pick_device(f"cuda:{part}" if isinstance(part, int) else part)

    ways = 1 if team is None else team.size

    def fits(spec: ModelSpec) -> None:
        """Said before gigabytes are downloaded."""
        if device_map is None:
            pick_dtype(chosen, place, spec.parameters // ways, spec.label)

    spec, folder, name = locate(name_or_path, revision, progress, fits)
    label = spec.label if spec is not None else name
    checkpoint = recognise(read_config(folder), f"config.json of {label}")
    weights = _read_headers(folder)
    parameters = sum(prod(shape) for _, _, shape in weights) // ways
    number = pick_dtype(chosen, place, parameters if device_map is None else 0, label)
    tokenizer = _load_tokenizer(folder)
    mask_id, end_ids = _special_ids(tokenizer, checkpoint, label)
    on_weight = _report(weights, checkpoint.keys, number, progress)
    fusing = fuse or (fuse is None and device_map is None and can_fuse(place))
    if team is not None:
        team.share.check(checkpoint.config, label)
        network, problem = team.load(folder, number, fusing, on_weight)
    else:
        network = load_network(
            folder, checkpoint, device=place, dtype=number, device_map=device_map, on_weight=on_weight
        )
        problem = fuse_network(network) if fusing else None
    if device_map is not None:
        place = input_device(network)
    notes = [] if problem is None else [f"What surrounds attention is not fused: {problem}"]
    about = checkpoint.about
    # What the checkpoint says about itself goes before what the catalogue expects.
    settings = ("steps", "gen_length", "block_length", "algorithm", "temperature")
    defaults = checkpoint.defaults if spec is None else spec.defaults
    defaults = replace(defaults, **{key: about[key] for key in settings if key in about})
    return Model(
        name=name,
        label=about.get("label", label),
        network=network,
        tokenizer=tokenizer,
        device=place,
        dtype=number,
        mask_id=mask_id,
        eos_id=end_ids[0],
        end_ids=end_ids,
        defaults=defaults.resolve(defaults),
        max_positions=int(about.get("trained_length", checkpoint.positions if spec is None else spec.trained_length)),
        family=checkpoint.family,
        shift=checkpoint.shift,
        chat=bool(tokenizer.chat_template) and (spec is None or spec.chat),
        notes=tuple(notes),
        team=team,
    )


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA, else MPS, else the CPU. Raises ValueError for one that is not there."""
    if device is not None:
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:1' or 'mps', not {device!r}.") from error
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (place.index or 0) >= there.get(place.type, 1):
            raise ValueError(f"There is no device {str(place)!r} on this machine.")
        if place.type == "cuda" and place.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return place
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def can_fuse(device: torch.device) -> bool:
    """Is torch.compile worth trying: on CUDA, and not on a ZeroGPU Space, whose GPU comes and goes."""
    return device.type == "cuda" and not os.environ.get("SPACES_ZERO_GPU")


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of that name, None for None. Raises ValueError for another than DTYPES."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and chosen not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return chosen


def pick_dtype(dtype: torch.dtype | None, device: torch.device, parameters: int, label: str) -> torch.dtype:
    """The dtype asked for, else the device's best, for so many parameters. Raises LoadError if they do not fit."""
    free = device_memory(device.type, device.index)
    if dtype is None:
        if device.type == "cuda":
            dtype = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        elif device.type == "cpu":
            roomy = free is None or 4 * parameters <= free
            dtype = fastest_cpu_dtype() if roomy else torch.bfloat16
        else:
            dtype = torch.float32
    needed = parameters * dtype.itemsize
    if free is not None and needed > free:
        place = "this machine" if device.type == "cpu" else "the GPU"
        raise LoadError(
            f"{label} needs {needed / GB:.1f} GB of memory for its weights in {dtype_name(dtype)}; "
            f"{place} has {free / GB:.1f} GB free. Choose a smaller model, or spread it with device_map='auto'."
        )
    return dtype


def _read_headers(folder: Path) -> list[tuple[str, str, list[int]]]:
    """(file, name, shape) of every stored weight; reads the files' headers alone."""
    from safetensors import SafetensorError, safe_open

    files = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / files[0]).is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise LoadError(f"{index} is not an index of safetensors files ({reason(error)}).") from error
        # A name with a folder in it could lead anywhere.
        if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise LoadError(f"{index} is not an index of safetensors files in the same folder.")
    found = []
    for file in files:
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


def _report(
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


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
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
    return tokenizer


def _special_ids(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, label: str) -> tuple[int, tuple[int, ...]]:
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
