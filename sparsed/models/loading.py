"""Loading: from a name to a model in memory, onto transformers' own classes.

No code that comes with a checkpoint is run: the family is read from config.json, weights are safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsed.models.catalogue import ModelSpec
from sparsed.models.checkpoint import (
    load_tokenizer,
    read_generation,
    read_headers,
    renamed,
    report_of,
    special_ids,
)
from sparsed.models.config_checks import check_factor
from sparsed.models.devices import can_fuse, check_device_map, check_dtype, pick_device, pick_dtype
from sparsed.models.families import read_config, recognise
from sparsed.models.files import check_files
from sparsed.models.fingerprint import stamp
from sparsed.models.fuse import fuse as fuse_network
from sparsed.models.hub import Listener, locate
from sparsed.models.llada_moe import check_experts
from sparsed.models.model import Model
from sparsed.models.network import input_device, load_network
from sparsed.models.numbers import check_quantize, in_numbers
from sparsed.models.quantise import check_one_device, check_place, check_shape, is_quantised

if TYPE_CHECKING:
    from sparsed.parallel.team import Team

def load(
    name_or_path: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    fuse: bool | None = None,
    rope_factor: float | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    progress: Listener | None = None,
    team: Team | None = None,
) -> Model:
    """Loads a model: a name of the catalogue, a Hub id, or a local folder.

    The folder holds config.json, safetensors (one file, or shards with their index), and a tokenizer
    (tokenizer.json, or vocab.json and merges.txt). model_type decides the family: llada (LLaDA-MoE by its
    architecture), illada, Dream, or a Llama, Qwen2 or Qwen3 (also with the prefix a2d-) whose tokenizer or config has a
    mask token. An object "sparsed" in config.json may give mask_token, label, trained_length and the sampler's defaults
    (steps, gen_length, block_length, algorithm, temperature). What the model is follows from these files alone, by
    whatever name: the family's defaults and trained length otherwise, a chat template if the tokenizer has one. What
    they say to no effect stands in `Model.notes`.

    device: CUDA, else MPS, else CPU by default. dtype: by default bfloat16 on CUDA, float32 on MPS, and on a CPU
    the faster of float32 and bfloat16, tried out (about 0.1 s), or bfloat16 where only that fits into memory.
    device_map: spreads a model over several devices, by accelerate's rules ("auto", or module → device), instead of
    device.
    fuse: torch.compile what surrounds attention (see `sparsed.models.fuse.fuse`); by default on CUDA, where all
    weights are on one device and the machine compiles (a ZeroGPU Space does not).
    rope_factor: the base of the rotary positions is multiplied by it, for sequences longer than the model was trained
    on (NTK, as LongLLaDA does, arXiv 2506.14429; docs/python.md has its table). It changes answers at every length,
    and a run's notes say so.
    quantize: keep the decoder layers' weights in fewer bits, on CUDA or a CPU: "int8" (a scale for each row), "int4" (a
    scale and a zero point for each 128 weights of a row), both computed in `dtype`, or "fp8" (a scale for each row;
    rows of activations likewise, at each product; Ada, Hopper or later). Each is quantised as soon as it is read, by
    torchao (the extra "quantize"). Answers change; embeddings, norms and the head stay as they are.
    team: the processes that hold the model together (`sparsed.parallel.meeting.join`); device and device_map are not
    given then.
    revision: of a Hub repository, of nothing else. progress: called with a LoadProgress while files arrive and weights
    are read.

    Raises LoadError (a ValueError) in one sentence: unknown name or family, no network, no access, no
    safetensors, files or keys that would be another model, weights that do not fit the config, too little memory,
    weights that cannot be quantised so here; ValueError for a dtype that is none of float32, bfloat16, float16, a
    device map that is none, a rope_factor below 1, or a quantize that is none; FileNotFoundError if a file is missing.
    """
    if team is not None and (device is not None or device_map is not None):
        raise ValueError("torchrun places each process by itself: leave device and device_map out.")
    place = pick_device(device) if team is None else team.share.device
    chosen, factor, quantize = check_dtype(dtype), check_factor(rope_factor), check_quantize(quantize)
    check_device_map(device_map)
    check_one_device(quantize, team is not None, device_map is not None)
    if device is not None and device_map is not None:
        raise ValueError("device_map places the weights by itself: leave device out.")
    ways = 1 if team is None else team.size

    def fits(spec: ModelSpec) -> None:
        """Said before gigabytes are downloaded."""
        check_place(quantize, place, chosen, spec.label)
        if device_map is None:
            pick_dtype(chosen, place, spec.parameters // ways, spec.label, quantize, spec.kept or 0)

    spec, folder, name = locate(name_or_path, revision, progress, fits)
    label = spec.label if spec is not None else name
    notes, before = check_files(folder), stamp(folder)
    checkpoint = recognise(read_config(folder), f"config.json of {label}", factor)
    weights = read_headers(folder)
    if checkpoint.stacked:
        check_experts(weights, checkpoint.config, folder)
    check_place(quantize, place, chosen, label)
    check_shape(quantize, checkpoint.config, label)
    parameters = sum(prod(shape) for _, _, shape in weights) // ways
    unlike = (prod(shape) for _, name, shape in weights if not is_quantised(renamed(name, checkpoint.keys)))
    kept = 0 if checkpoint.stacked else sum(unlike)
    number = pick_dtype(chosen, place, parameters if device_map is None else 0, label, quantize, kept)
    tokenizer = load_tokenizer(folder)
    more_ends, unused = read_generation(folder)
    mask_id, end_ids = special_ids(tokenizer, checkpoint, label, more_ends)
    on_weight = report_of(weights, {**checkpoint.keys, **checkpoint.stacked}, number, progress)
    fusing = fuse or (fuse is None and device_map is None and can_fuse(place))
    if team is not None:
        team.share.check(checkpoint.config, label)
        network, problem = team.load(folder, number, fusing, on_weight, factor)
    else:
        network = load_network(
            folder,
            checkpoint,
            device=place,
            dtype=number,
            device_map=device_map,
            on_weight=on_weight,
            quantize=quantize,
        )
        problem = fuse_network(network) if fusing else None
    if device_map is not None:
        place = input_device(network)
    notes += [*checkpoint.notes, *unused]
    notes += [] if problem is None else [f"What surrounds attention is not fused: {problem}"]
    return Model(
        name=name,
        label=in_numbers(checkpoint.about.get("label", label), quantize),
        network=network,
        tokenizer=tokenizer,
        device=place,
        dtype=number,
        mask_id=mask_id,
        eos_id=end_ids[0],
        end_ids=end_ids,
        defaults=checkpoint.defaults.resolve(checkpoint.defaults),
        max_positions=checkpoint.trained_length,
        family=checkpoint.family,
        shift=checkpoint.shift,
        notes=tuple(notes),
        team=team,
        folder=folder,
        stamp=before,
        rope_factor=factor,
        quantize=quantize,
    )
