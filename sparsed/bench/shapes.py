"""The shapes of the models that a measurement can make with random weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch

from sparsed.config import ResolvedSampler
from sparsed.models.devices import can_fuse, check_dtype, pick_device, pick_dtype
from sparsed.models.families import read_config, recognise
from sparsed.models.fingerprint import fingerprint, of_random_weights
from sparsed.models.hub import locate
from sparsed.models.loading import load
from sparsed.models.model import Model
from sparsed.models.quantise import check_one_device, check_place, check_shape, is_quantised
from sparsed.models.shares import random_network
from sparsed.paths import data_dir

if TYPE_CHECKING:
    from sparsed.parallel.team import Team

# Shapes for machines or moments without the weights: what the checkpoint's config.json says. mini's is at hand.
SHAPES: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "model_type": "llada",
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "mlp_hidden_size": 12_288,
        "vocab_size": 126_464,
        "max_sequence_length": 4096,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "mask_token_id": 126_336,
        "eos_token_id": 126_081,
    },
    "illada-8b": {
        "model_type": "illada",
        "architectures": ["ILLaDAForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "vocab_size": 155_136,
        "max_position_embeddings": 8192,
        # The published base and epsilon stand in its config.json alone; speeds do not depend on them.
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "llada-moe-7b": {
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "expert_intermediate_size": 1024,
        "qk_layernorm": True,
        "vocab_size": 157_184,
        "max_position_embeddings": 8192,
        "rope_theta": 5e4,
        "rms_norm_eps": 1e-5,
        "mask_token_id": 156_895,
        "eos_token_id": 156_892,
    },
    "dream-7b": {
        "model_type": "Dream",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "mask_token_id": 151_666,
        "eos_token_id": 151_643,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "mask_token_id": 151_669,
        "eos_token_id": 151_645,
    },
}


def load_or_make(
    options: argparse.Namespace, dtype: str | None, quantize: str | None, team: Team | None = None
) -> Model:
    if options.shape is None:
        fuse = False if options.no_fuse else None
        return load(
            options.model,
            device=options.device,
            dtype=dtype,
            fuse=fuse,
            rope_factor=options.rope_factor,
            quantize=quantize,
            team=team,
        )
    return _random_model(options.shape, options.device, dtype, not options.no_fuse, quantize, team)


def identity(options: argparse.Namespace) -> tuple[str, ResolvedSampler]:
    """The fingerprint and the defaults of the model that `load_or_make` would give; its weights are not loaded."""
    if options.shape is None:
        _, folder, label = locate(options.model)
        raw, weights = read_config(folder), fingerprint(folder)
    else:
        raw, label, weights = _config_of(options.shape), options.shape, of_random_weights(options.shape)
    defaults = recognise(raw, label).defaults
    return weights, defaults.resolve(defaults)


def _config_of(shape: str) -> dict[str, Any]:
    return read_config(data_dir("assets") / "mini") if shape == "mini" else SHAPES[shape]


def _random_model(
    shape: str, device: str | None, dtype: str | None, fusing: bool, quantize: str | None, team: Team | None
) -> Model:
    """A model of this shape with random weights and no tokenizer: it takes token ids, and says nothing."""
    import transformers

    place = pick_device(device) if team is None else team.share.device
    raw = _config_of(shape)
    checkpoint = recognise(raw, shape)
    with torch.device("meta"):
        whole = getattr(transformers, checkpoint.network)(checkpoint.config)
    chosen = check_dtype(dtype)
    check_one_device(quantize, team is not None, False)
    check_place(quantize, place, chosen, shape)
    check_shape(quantize, checkpoint.config, shape)
    sizes = {name: weight.numel() for name, weight in whole.named_parameters()}
    kept = sum(size for name, size in sizes.items() if not is_quantised(name))
    number = pick_dtype(chosen, place, sum(sizes.values()), shape, quantize, kept)
    fusing = fusing and can_fuse(place)
    if team is None:
        network, problem = random_network(raw, number, place, fusing, quantize=quantize)
    else:
        team.share.check(checkpoint.config, shape)
        network, problem = team.build(raw, number, fusing)
    last = checkpoint.config.vocab_size - 1
    return Model(
        name=shape,
        label=f"{shape} (random weights)",
        network=network,
        tokenizer=None,  # type: ignore[arg-type]
        device=place,
        dtype=number,
        mask_id=next(i for i in (checkpoint.mask_id, checkpoint.usual_mask_id, last) if i is not None),
        eos_id=checkpoint.end_ids[0] if checkpoint.end_ids else 0,
        defaults=checkpoint.defaults.resolve(checkpoint.defaults),
        max_positions=checkpoint.trained_length,
        family=checkpoint.family,
        shift=checkpoint.shift,
        notes=() if problem is None else (problem,),
        team=team,
        quantize=quantize,
    )
