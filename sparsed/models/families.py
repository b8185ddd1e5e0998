"""What kind of checkpoint a config.json describes, and how it becomes one of transformers' own classes.

LLaDA's weights are a Llama's under other names, iLLaDA's a Llama's under its own, LLaDA-MoE's a Qwen3-MoE's, Dream's a
Qwen2's, the Qwen3 diffusion model's a Qwen3's.
Nothing here, and nothing in loading, runs code that comes with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed.config import SamplerConfig
from sparsed.models import LoadError, reason
from sparsed.models.catalogue import (
    DREAM_DEFAULTS,
    DREAM_LENGTH,
    GENERIC_DEFAULTS,
    ILLADA_DEFAULTS,
    LLADA_DEFAULTS,
    ModelSpec,
)
from sparsed.models.config_checks import (
    CHECKED,
    LLADA_HARMLESS,
    check_kind,
    check_network,
    check_only,
    check_quantisation,
    check_rope,
    check_windows,
    stretch,
    unknown,
)
from sparsed.models.files import CONFIG, read_json
from sparsed.models.illada import ILLADA_KNOWN, ILLADA_MASK, illada_values
from sparsed.models.llada_moe import KNOWN, STACKED, is_moe, moe_values

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
_LLADA_SIZES = (
    "d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "mlp_ratio", "embedding_size", "vocab_size",
    "max_sequence_length", "rms_norm_eps", "weight_tying", "rope_full_precision",
)  # fmt: skip
_PLAIN = ("llama", "qwen2", "qwen3")
_CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
# model_type in config.json → (family, transformers' class).
_TYPES = {
    "llada": ("llada", "llama"),
    "Dream": ("dream", "qwen2"),
    "dream": ("dream", "qwen2"),
    "illada": ("illada", "llama"),
    **{prefix + kind: (kind, kind) for kind in _PLAIN for prefix in ("", "a2d-")},
}
_DEFAULTS = {"llada": LLADA_DEFAULTS, "dream": DREAM_DEFAULTS, "illada": ILLADA_DEFAULTS, "llama": GENERIC_DEFAULTS}
# What our own object "sparsed" may say: of which types, the sampler's settings last.
SETTINGS: dict[str, tuple[type, ...]] = {
    "steps": (int,), "gen_length": (int,), "block_length": (int,), "algorithm": (str,), "temperature": (int, float),
}  # fmt: skip
_ABOUT = {"mask_token": (str,), "label": (str,), "trained_length": (int,), **SETTINGS}


@dataclass(frozen=True)
class Checkpoint:
    """What a config.json says.

    family: "llada", "illada", "llada_moe", "dream", "llama", "qwen2" or "qwen3". config: transformers' own config
    for the class named `network`, bidirectional. keys: regular expression → replacement, applied to the names of
    the weights. stacked: the same for weights of which transformers by itself makes one. shift: position i is
    predicted by the logits of position i − 1 (Dream). float32_rotation: queries and keys are rotated in float32
    whatever the dtype of the weights (LLaDA). mask_id: of the mask token, if the config gives it. usual_mask_id:
    the family's, where neither its config nor its tokenizer names one. end_ids: end and padding tokens that it
    gives. trained_length: positions seen in training, in tokens. defaults: the family's published sampler, with
    what the config says of it. notes: sentences on what it says to no effect. about: the object "sparsed", our own
    remarks.
    """

    family: str
    network: str
    config: PreTrainedConfig
    keys: dict[str, str] = field(default_factory=dict)
    stacked: dict[str, str] = field(default_factory=dict)
    shift: bool = False
    float32_rotation: bool = False
    mask_id: int | None = None
    usual_mask_id: int | None = None
    end_ids: tuple[int, ...] = ()
    trained_length: int = 0
    defaults: SamplerConfig = GENERIC_DEFAULTS
    notes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json holds. Raises FileNotFoundError without one, LoadError where it is no JSON object."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"The model folder {folder} has no config.json.")
    return read_json(folder / CONFIG)


def recognise(raw: dict[str, Any], where: str, rope_factor: float = 1.0) -> Checkpoint:
    """The checkpoint that a parsed config.json describes. where: how to call it in messages. rope_factor: see
    `sparsed.load`.

    Raises LoadError for an unknown model_type, or a LLaDA variant that is no Llama.
    """
    family, backbone = _family(raw, where)
    check_quantisation(raw, where)
    check_network(raw, where)
    check_rope(raw, where)
    readers = {"llada": _llama_values, "llada_moe": moe_values, "illada": illada_values}
    values = readers.get(family, _as_it_is)(raw, where)
    config = _config(backbone, values, where)
    stretch(config.rope_parameters, rope_factor, where)
    check_windows(raw, getattr(config, "layer_types", None), where)
    config.is_causal = False
    config.use_cache = False
    ends = [raw.get("eos_token_id"), raw.get("pad_token_id")]
    about = _about(raw.get("sparsed"), where)
    if family == "llada":
        own = {*_LLADA_ONLY, *_LLADA_SIZES, *LLADA_HARMLESS}
    elif family in ("llada_moe", "illada"):
        own = set(KNOWN if family == "llada_moe" else ILLADA_KNOWN)
    else:
        # transformers reads a Qwen2's head_dim too, which is no field of its config.
        own = {"head_dim", *(field.name for field in fields(config))}
    return Checkpoint(
        family=family,
        network=f"{_CLASSES[backbone]}ForCausalLM",
        config=config,
        keys=LLADA_KEYS if family == "llada" else {},
        stacked=STACKED if family == "llada_moe" else {},
        shift=family == "dream",
        float32_rotation=family == "llada" and raw.get("rope_full_precision", True) is not False,
        mask_id=token_id(raw.get("mask_token_id")),
        usual_mask_id=ILLADA_MASK if family == "illada" else None,
        end_ids=token_ids(*ends),
        trained_length=_trained_length(family, about, int(config.max_position_embeddings)),
        defaults=_defaults(family, about, where),
        notes=tuple(unknown(raw, own | CHECKED, where)),
        about=about,
    )


def describe(folder: Path, name: str) -> ModelSpec:
    """What a folder is, before it is loaded: a catalogue's row for it, read from config.json alone, without torch and
    transformers. parameters: 0, they are not counted. Raises what reading config.json does, and LoadError for one that
    cannot be of a model known here.
    """
    raw, where = read_config(folder), f"config.json of {name}"
    family, _ = _family(raw, where)
    about = _about(raw.get("sparsed"), where)
    positions = raw.get("max_sequence_length" if family == "llada" else "max_position_embeddings")
    length = _trained_length(family, about, positions if isinstance(positions, int) else 0)
    label = about.get("label", name)
    return ModelSpec(name, label, str(folder), family, _defaults(family, about, where), length, 0, bundled=True)


def _family(raw: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The family, and transformers' class of its networks."""
    check_kind(raw, where)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        known = ", ".join(name for name in _TYPES if name != "dream")
        raise LoadError(
            f"{where} says model_type {kind!r}, which is no diffusion language model known here; known are {known}."
        )
    return ("llada_moe", "qwen3_moe") if kind == "llada" and is_moe(raw) else _TYPES[kind]


def _as_it_is(raw: dict[str, Any], where: str) -> dict[str, Any]:
    return raw


def _trained_length(family: str, about: Mapping[str, Any], positions: int) -> int:
    """Positions seen in training, of so many that the config names. Dream's names those of its autoregressive
    ancestor.
    """
    told: int = about.get("trained_length", min(positions, DREAM_LENGTH) if family == "dream" else positions)
    return told


def _defaults(family: str, about: Mapping[str, Any], where: str) -> SamplerConfig:
    settings = {key: about[key] for key in SETTINGS if key in about}
    try:
        defaults = replace(_DEFAULTS.get(family, LLADA_DEFAULTS), **settings)
        defaults.resolve(defaults)
    except ValueError as error:
        raise LoadError(f"{where} gives a sampler under 'sparsed' that cannot be: {reason(error)}.") from error
    return defaults


def _config(backbone: str, values: dict[str, Any], where: str) -> PreTrainedConfig:
    import transformers

    # dtype is decided when loading; the rest says what the checkpoint is, not how the network looks.
    apart = ("model_type", "architectures", "auto_map", "sparsed", "transformers_version", "dtype", "torch_dtype")
    # transformers fills in the objects that it is given.
    kept = {key: deepcopy(value) for key, value in values.items() if key not in apart}
    try:
        config: PreTrainedConfig = getattr(transformers, f"{_CLASSES[backbone]}Config")(**kept)
    except Exception as error:  # transformers' checks raise several kinds, and others fail on the way to them
        raise LoadError(f"{where} does not describe a {_CLASSES[backbone]} network: {reason(error)}.") from error
    return config


def _llama_values(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """A Llama's config values from LLaDA's config.json."""
    check_only(raw, _LLADA_ONLY, "LLaDA", where)
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
            **{name: raw[name] for name in ("rope_scaling", "rope_parameters") if raw.get(name)},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{where} is not a complete LLaDA config ({type(error).__name__}: {error}).") from error


def _about(remarks: Any, where: str) -> dict[str, Any]:
    """Our own remarks in a config.json, each of its type. Raises LoadError."""
    if remarks is None:
        return {}
    if not isinstance(remarks, dict):
        raise LoadError(f"{where} must hold an object under 'sparsed', not {remarks!r}.")
    for name, value in remarks.items():
        kinds = _ABOUT.get(name)
        if kinds is None:
            raise LoadError(f"{where} says sparsed.{name}, which is not known; known are {', '.join(_ABOUT)}.")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise LoadError(f"{where} says sparsed.{name} {value!r}, which is no {kinds[-1].__name__}.")
    if remarks.get("trained_length", 1) < 1:
        raise LoadError(f"{where} says sparsed.trained_length {remarks['trained_length']}; it must be 1 or more.")
    return remarks


def token_ids(*values: Any) -> tuple[int, ...]:
    """The token ids among values that may be ids, lists of them, or anything else; each once."""
    flat = [i for value in values for i in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(i for i in map(token_id, flat) if i is not None))


def token_id(value: Any) -> int | None:
    """The value, if it can be a token's id."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
