"""What kind of checkpoint a config.json describes, and how it becomes one of transformers' own classes.

LLaDA's weights are a Llama's under other names, Dream's are a Qwen2's, the Qwen3 diffusion model's a Qwen3's.
Nothing here, and nothing in loading, runs code that comes with a checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed.config import SamplerConfig
from sparsed.models import LoadError, reason
from sparsed.models.catalogue import DREAM_DEFAULTS, GENERIC_DEFAULTS, LLADA_DEFAULTS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BLOCK = r"^model\.transformer\.blocks\.(\d+)\."
# LLaDA's key → Llama's. `ff_out` is the head at the top and the MLP's output inside a block.
LLADA_KEYS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    _BLOCK + r"attn_norm\.": r"model.layers.\1.input_layernorm.",
    _BLOCK + r"ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    _BLOCK + r"q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    _BLOCK + r"k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    _BLOCK + r"v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    _BLOCK + r"attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    _BLOCK + r"ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    _BLOCK + r"up_proj\.": r"model.layers.\1.mlp.up_proj.",
    _BLOCK + r"ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
# What LLaDA's config can say that a Llama cannot do, with the only values that are the same model.
_LLADA_ONLY: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu",),
    "rope": (True,),
    "layer_norm_with_affine": (True, None),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "input_emb_norm": (False, None),
    "scale_logits": (False, None),
    "multi_query_attention": (False, None),
}
_CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# model_type in config.json → (family, transformers' class).
_TYPES = {
    "llada": ("llada", "llama"),
    "Dream": ("dream", "qwen2"),
    "dream": ("dream", "qwen2"),
    **{prefix + kind: (kind, kind) for kind in _CLASSES for prefix in ("", "a2d-")},
}
_DEFAULTS = {"llada": LLADA_DEFAULTS, "dream": DREAM_DEFAULTS, "llama": GENERIC_DEFAULTS}


@dataclass(frozen=True)
class Checkpoint:
    """What a config.json says.

    family: "llada", "dream", "llama", "qwen2" or "qwen3". config: transformers' own config for the class
    named `network`, bidirectional. keys: regular expression → replacement, applied to the names of the
    weights. shift: position i is predicted by the logits of position i − 1 (Dream). float32_rotation: queries
    and keys are rotated in float32 whatever the dtype of the weights (LLaDA). mask_id: of the mask token, if
    the config gives it. end_ids: end and padding tokens that it gives. positions: the longest sequence it
    names. about: the object "sparsed", our own remarks.
    """

    family: str
    network: str
    config: PreTrainedConfig
    keys: dict[str, str] = field(default_factory=dict)
    shift: bool = False
    float32_rotation: bool = False
    mask_id: int | None = None
    end_ids: tuple[int, ...] = ()
    positions: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> SamplerConfig:
        """The family's published sampler."""
        return _DEFAULTS.get(self.family, LLADA_DEFAULTS)


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json holds. Raises FileNotFoundError without one, LoadError where it is no JSON object."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"The model folder {folder} has no config.json.")
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{folder / 'config.json'} is not valid JSON: {reason(error)}.") from error
    if not isinstance(raw, dict):
        raise LoadError(f"{folder / 'config.json'} must hold a JSON object.")
    return raw


def recognise(raw: dict[str, Any], where: str) -> Checkpoint:
    """The checkpoint that a parsed config.json describes. where: how to call it in messages.

    Raises LoadError for an unknown model_type, or a LLaDA variant that is no Llama.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        known = ", ".join(name for name in _TYPES if name != "dream")
        raise LoadError(
            f"{where} says model_type {kind!r}, which is no diffusion language model known here; known are {known}."
        )
    if raw.get("quantization_config"):
        raise LoadError(f"{where} describes quantised weights; only float32, bfloat16 and float16 ones can be loaded.")
    family, backbone = _TYPES[kind]
    values = _llama_values(raw, where) if family == "llada" else raw
    config = _config(backbone, values, where)
    config.is_causal = False
    config.use_cache = False
    # Masked diffusion attends over everything, whatever its ancestor did.
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    ends = [raw.get("eos_token_id"), raw.get("pad_token_id")]
    flat = [i for end in ends for i in (end if isinstance(end, list) else [end])]
    return Checkpoint(
        family=family,
        network=f"{_CLASSES[backbone]}ForCausalLM",
        config=config,
        keys=LLADA_KEYS if family == "llada" else {},
        shift=family == "dream",
        float32_rotation=family == "llada" and raw.get("rope_full_precision", True) is not False,
        mask_id=_id(raw.get("mask_token_id")),
        end_ids=tuple(dict.fromkeys(i for i in map(_id, flat) if i is not None)),
        positions=int(config.max_position_embeddings),
        about=_about(raw.get("sparsed"), where),
    )


def _config(backbone: str, values: dict[str, Any], where: str) -> PreTrainedConfig:
    import transformers

    # dtype is decided when loading; the rest says what the checkpoint is, not how the network looks.
    apart = ("model_type", "architectures", "auto_map", "sparsed", "transformers_version", "dtype", "torch_dtype")
    kept = {key: value for key, value in values.items() if key not in apart}
    try:
        config: PreTrainedConfig = getattr(transformers, f"{_CLASSES[backbone]}Config")(**kept)
    except Exception as error:  # transformers' checks raise several kinds, and others fail on the way to them
        raise LoadError(f"{where} does not describe a {_CLASSES[backbone]} network: {reason(error)}.") from error
    return config


def _llama_values(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """A Llama's config values from LLaDA's config.json."""
    for name, allowed in _LLADA_ONLY.items():
        if raw.get(name, allowed[0]) not in allowed:
            raise LoadError(
                f"{where} says {name} {raw[name]!r}; of the LLaDA variants only {name} {allowed[0]!r} can be run here."
            )
    try:
        width, heads = int(raw["d_model"]), int(raw["n_heads"])
        return {
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": int(raw.get("n_kv_heads") or heads),
            "num_hidden_layers": int(raw["n_layers"]),
            "intermediate_size": int(raw.get("mlp_hidden_size") or raw["mlp_ratio"] * width),
            "vocab_size": int(raw.get("embedding_size") or raw["vocab_size"]),
            "max_position_embeddings": int(raw["max_sequence_length"]),
            "rms_norm_eps": float(raw.get("rms_norm_eps", 1e-5)),
            "rope_theta": float(raw.get("rope_theta", 10_000.0)),
            "tie_word_embeddings": bool(raw.get("weight_tying", False)),
            "attention_bias": False,
            "mlp_bias": False,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{where} is not a complete LLaDA config ({type(error).__name__}: {error}).") from error


def _about(remarks: Any, where: str) -> dict[str, Any]:
    """Our own remarks in a config.json, each of its type. Raises LoadError."""
    if remarks is None:
        return {}
    kinds: dict[str, tuple[type, ...]] = {
        "mask_token": (str,), "label": (str,), "algorithm": (str,), "trained_length": (int,), "steps": (int,),
        "gen_length": (int,), "block_length": (int,), "temperature": (int, float),
    }  # fmt: skip
    if not isinstance(remarks, dict):
        raise LoadError(f"{where} must hold an object under 'sparsed', not {remarks!r}.")
    for name, value in remarks.items():
        if name in kinds and (isinstance(value, bool) or not isinstance(value, kinds[name])):
            raise LoadError(f"{where} says sparsed.{name} {value!r}, which is no {kinds[name][-1].__name__}.")
    return remarks


def _id(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
