"""What a config.json says beyond the sizes of its network: honoured, refused in a sentence, or named in a note.

Nothing that would change a result is passed over: transformers keeps every key that it does not know, and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from sparsed.models import LoadError

# Of every family: keys that change no logits. How the weights were made, saved or meant to be run; what a generation
# by autoregression would do; what is decided when loading.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _from_model_config _name_or_path architectures attention_dropout
    attn_implementation auto_map bos_token_id dtype eos_token_id finetuning_task gradient_checkpointing id2label
    initializer_range is_causal is_decoder is_encoder_decoder label2id mask_token_id model_type name_or_path num_labels
    output_attentions output_hidden_states pad_token_id pretraining_tp problem_type return_dict sep_token_id sparsed
    tokenizer_class torch_dtype transformers_version unsloth_fixed unsloth_version use_cache use_flash_attention_2
    """.split()
)
# LLaDA's own, beside those that are honoured.
LLADA_HARMLESS = frozenset(
    """
    alibi_bias_max attention_layer_norm_with_affine block_group_size embedding_dropout flash_attention
    init_cutoff_factor init_device init_fn init_std precision residual_dropout
    """.split()
)
# Read or refused here, in every family.
CHECKED = frozenset(
    """
    compression_config layer_types partial_rotary_factor per_layer_config quantization quantization_config
    rope_parameters rope_scaling rope_theta sliding_window use_mrope use_sliding_window
    """.split()
)
# How a rotation is scaled, with what each kind reads. Two others that transformers knows change the frequencies with
# the length of a sequence.
_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
_ROPE_NEEDED = {"linear": ("factor",), "llama3": _ROPE_KEYS["llama3"][:3], "yarn": ("factor",)}
_BY_LENGTH = ("dynamic", "longrope", "su")


# Block-diffusion models, by the beginning of their model_type without case and punctuation, or of an architecture.
_BLOCK_DIFFUSION = {
    "llada2": "LLaDA2.x",
    "sdar": "SDAR",
    "fastdllm": "Fast-dLLM v2",
    "diffusiongemma": "DiffusionGemma",
}
# Others whose files leave something open that a run needs: likewise.
_OPEN = {"rnd1": "RND1", "efficientdlm": "Efficient-DLM"}


def check_kind(raw: Mapping[str, Any], where: str) -> None:
    """Raises LoadError for kinds of diffusion language models that are known, and cannot be run here."""
    named = raw.get("architectures")
    names = [raw.get("model_type"), *(named if isinstance(named, list) else ())]
    plain = [re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in names]
    for start, label in _BLOCK_DIFFUSION.items():
        if any(name.startswith(start) for name in plain):
            raise LoadError(
                f"{where} is of {label}, a block-diffusion model: a token of its prompt sees no later block, where "
                f"SparseD's patterns are for attention that goes both ways; choose a model of the catalogue."
            )
    for start, label in _OPEN.items():
        if any(name.startswith(start) for name in plain):
            raise LoadError(
                f"{where} is of {label}, whose files do not say all that a run needs (its mask token, its sampler), "
                f"and nothing is guessed here; choose a model of the catalogue."
            )


def check_only(raw: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], family: str, where: str) -> None:
    """Raises LoadError where config.json says something else than the `only` values that are the same network."""
    for name, allowed in only.items():
        if raw.get(name, allowed[0]) not in allowed:
            raise LoadError(
                f"{where} says {name} {raw[name]!r}; of the {family} variants only {name} {allowed[0]!r} can be run "
                f"here."
            )


def check_quantisation(raw: Mapping[str, Any], where: str) -> None:
    """Raises LoadError where a config.json speaks of weights in few bits."""
    for name in ("quantization_config", "compression_config", "quantization"):
        if raw.get(name):
            method = raw[name].get("quant_method") if isinstance(raw[name], dict) else None
            how = f" ({method})" if isinstance(method, str) else ""
            raise LoadError(
                f"{where} has {name}: the weights are quantised{how}; only float32, bfloat16 and float16 ones can be "
                f"loaded: take the model that they were made from."
            )


def check_network(raw: Mapping[str, Any], where: str) -> None:
    """Raises LoadError for what transformers' Llama, Qwen2 and Qwen3 would leave out without a word, or would do and a
    bidirectional network does not.
    """
    if raw.get("partial_rotary_factor") not in (None, 1):
        raise LoadError(f"{where} says partial_rotary_factor {raw['partial_rotary_factor']!r}: only 1 can be run here.")
    if raw.get("use_mrope"):
        raise LoadError(f"{where} says use_mrope {raw['use_mrope']!r}: positions of several axes cannot be run here.")
    if raw.get("per_layer_config"):
        raise LoadError(f"{where} has per_layer_config: layers that differ cannot be run here.")


def check_windows(raw: Mapping[str, Any], layer_types: Iterable[str] | None, where: str) -> None:
    """Raises LoadError where a layer would see a window of positions. layer_types: as transformers reads the config,
    None for a network that knows no windows.
    """
    said = raw.get("layer_types") if layer_types is None else layer_types
    others = sorted(set(map(str, said or ())) - {"full_attention"})
    window = raw.get("sliding_window") if layer_types is None and raw.get("use_sliding_window", True) else None
    if others or window:
        what = f"layers of {', '.join(others)}" if others else f"sliding_window {window!r}"
        raise LoadError(f"{where} asks for {what}: only layers that attend over the whole sequence can be run here.")


def check_rope(raw: Mapping[str, Any], where: str) -> None:
    """Raises LoadError for a rotation that would be another one than config.json asks for."""
    for name in ("rope_scaling", "rope_parameters"):
        if raw.get(name) is not None and not isinstance(raw[name], dict):
            raise LoadError(f"{where} must hold an object under {name!r}, not {raw[name]!r}.")
    scaling, parameters = (raw.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    if scaling and parameters and scaling != parameters:
        raise LoadError(f"{where} has rope_scaling and rope_parameters, which differ: keep the one that is meant.")
    name, asked = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    asked = {key: value for key, value in asked.items() if value is not None}
    kinds = {asked[key] for key in ("rope_type", "type") if isinstance(asked.get(key), str)}
    if len(kinds) > 1:
        raise LoadError(f"{where} has two kinds in {name}: {' and '.join(sorted(kinds))}.")
    kind = kinds.pop() if kinds else asked.get("rope_type", asked.get("type", "default"))
    if isinstance(kind, str) and kind in _BY_LENGTH:
        raise LoadError(
            f"{where} asks for {name} of type {kind!r}, whose frequencies change with the length of a sequence: that "
            f"is not done here; {_known()} are."
        )
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise LoadError(f"{where} asks for {name} of type {kind!r}, which is not known; {_known()} are.")
    outside = "original_max_position_embeddings"
    if raw.get(outside) is not None and outside in _ROPE_KEYS[kind]:
        raise LoadError(f"{where} says {outside} beside {name}, not in it: put it where type {kind!r} reads it.")
    theta = raw.get("rope_theta")
    if theta is not None and asked.get("rope_theta", theta) != theta:
        raise LoadError(f"{where} says rope_theta {theta!r}, and {asked['rope_theta']!r} in {name}: keep one.")
    if asked.pop("partial_rotary_factor", 1) != 1:
        raise LoadError(f"{where} says partial_rotary_factor in {name}: only 1 can be run here.")
    for key in _ROPE_NEEDED.get(kind, ()):
        if key not in asked:
            raise LoadError(f"{where} asks for {name} of type {kind!r} without {key!r}.")
    for key, value in asked.items():
        if key in ("rope_type", "type"):
            continue
        if key not in (*_ROPE_KEYS[kind], "rope_theta"):
            raise LoadError(f"{where} has {key!r} in {name}, which type {kind!r} does not use.")
        wanted = (bool,) if key == "truncate" else (int, float)
        if not isinstance(value, wanted) or (isinstance(value, bool) and key != "truncate") or value < 0:
            raise LoadError(f"{where} says {key} {value!r} in {name}, which is no {wanted[-1].__name__} of 0 or more.")
    if asked.get("factor", 1) < 1:
        raise LoadError(f"{where} says factor {asked['factor']!r} in {name}; it must be 1 or more.")


def check_factor(factor: float | None) -> float:
    """What rope_factor asks for, 1 for None. Raises ValueError for anything that is no number of 1 or more."""
    if factor is None:
        return 1.0
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not isfinite(factor) or factor < 1:
        raise ValueError(f"rope_factor must be a number of 1 or more (1 = as published), not {factor!r}.")
    return float(factor)


def stretch(parameters: dict[str, Any], factor: float, where: str) -> None:
    """Multiplies the base of a rotation, transformers' rope_parameters, by a factor (NTK, arXiv 2506.14429). Raises
    LoadError where config.json scales the rotation by itself.
    """
    if factor == 1:
        return
    if parameters["rope_type"] != "default":
        raise LoadError(
            f"{where} scales its rotation by itself ({parameters['rope_type']}): leave rope_factor out, which "
            f"stretches one that is not scaled."
        )
    parameters["rope_theta"] = float(parameters["rope_theta"]) * factor


def _known() -> str:
    return f"{', '.join(list(_ROPE_KEYS)[:-1])} and {list(_ROPE_KEYS)[-1]}"


def unknown(raw: Mapping[str, Any], known: Iterable[str], where: str) -> list[str]:
    """A note that names the keys that nobody here knows and that say something; none for none."""
    names = sorted(set(raw) - HARMLESS - set(known))
    said = [name for name in names if raw[name] is not None and raw[name] is not False]
    if not said:
        return []
    listed = ", ".join(said[:5]) + (", …" if len(said) > 5 else "")
    return [f"{where} says things that are not known here and have no effect: {listed}."]
