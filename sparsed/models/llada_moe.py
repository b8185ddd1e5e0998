"""LLaDA-MoE: what its config.json says, which transformers' Qwen3-MoE is; and its experts, which that class stacks.

Its model_type is LLaDA's; what it is follows from its architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsed.models import LoadError
from sparsed.models.config_checks import check_only
from sparsed.models.coverage import check_coverage

# A stored weight's name → that of the weight that transformers stacks it into, with all experts of a layer.
STACKED = {
    r"\.mlp\.experts\.\d+\.(?:gate|up)_proj\.weight$": ".mlp.experts.gate_up_proj",
    r"\.mlp\.experts\.\d+\.down_proj\.weight$": ".mlp.experts.down_proj",
}
# What its config can say that a Qwen3-MoE cannot do, with the only values that are the same model. (The public code
# never divides the weights of the chosen experts by their sum, whatever norm_topk_prob says.)
_ONLY: dict[str, tuple[Any, ...]] = {
    "qk_layernorm": (True,),
    "moe_router_score_function": ("softmax", None),
    "norm_topk_prob": (False, None),
    "moe_router_enable_expert_bias": (False, None),
    "routed_scaling_factor": (1, None),
    "shared_expert_intermediate_size": (None, 0),
    "router_num_group": (None, 1),
    "router_topk_group": (None, 1),
    "clip_qkv": (None,),
}
_SIZES = (
    "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "max_position_embeddings", "num_experts",
    "num_experts_per_tok",
)  # fmt: skip
# Known: these, those above, and what says nothing of a network whose every layer has experts.
KNOWN = frozenset(
    {
        *_ONLY, *_SIZES, "num_key_value_heads", "expert_intermediate_size", "intermediate_size", "moe_layer_freq",
        "dense_intermediate_size", "hidden_act", "rms_norm_eps", "attention_bias", "tie_word_embeddings",
        "output_router_logits", "router_aux_loss_coef",
    }
)  # fmt: skip


def is_moe(raw: Mapping[str, Any]) -> bool:
    """Is a LLaDA's parsed config.json one with experts?"""
    named = raw.get("architectures")
    return bool(raw.get("num_experts")) or (isinstance(named, list) and any("MoE" in str(name) for name in named))


def moe_values(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A Qwen3-MoE's config values from LLaDA-MoE's config.json. Raises LoadError for one that is another network."""
    check_only(raw, _ONLY, "LLaDA-MoE", where)
    layers = raw.get("moe_layer_freq")
    if layers not in (None, [], 1) and (not isinstance(layers, list) or set(map(str, layers)) != {"1"}):
        raise LoadError(f"{where} says moe_layer_freq {layers!r}: only experts in every layer can be run here.")
    try:
        sizes = {name: int(raw[name]) for name in _SIZES}
        width = int(raw["expert_intermediate_size"])
        values = {
            **sizes,
            "num_key_value_heads": int(raw.get("num_key_value_heads") or sizes["num_attention_heads"]),
            "moe_intermediate_size": width,
            # No layer has an MLP without experts: this is what a position goes through.
            "intermediate_size": width * sizes["num_experts_per_tok"],
            "rms_norm_eps": float(raw.get("rms_norm_eps", 1e-5)),
            "rope_theta": float(raw["rope_theta"]),
            "hidden_act": raw.get("hidden_act", "silu"),
            "attention_bias": bool(raw.get("attention_bias", False)),
            "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
            "norm_topk_prob": False,
            **{name: raw[name] for name in ("rope_scaling", "rope_parameters") if raw.get(name)},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{where} is not a complete LLaDA-MoE config ({type(error).__name__}: {error}).") from error
    if not 1 <= sizes["num_experts_per_tok"] <= sizes["num_experts"]:
        raise LoadError(
            f"{where} says num_experts_per_tok {sizes['num_experts_per_tok']}; it must be from 1 to num_experts, "
            f"{sizes['num_experts']}."
        )
    return values


def idle_parameters(network: Any) -> int:
    """How many weights a token does not go through: those of the experts that are not chosen for it."""
    config = network.config
    experts = getattr(config, "num_experts", 0)
    if not experts:
        return 0
    each = 3 * config.hidden_size * config.moe_intermediate_size
    return int(config.num_hidden_layers * (experts - config.num_experts_per_tok) * each)


def check_experts(weights: Sequence[tuple[str, str, list[int]]], config: Any, folder: Path) -> None:
    """Raises LoadError where the experts among stored weights (file, name, shape) are not all that the config has, no
    more, and each of its shape: transformers stacks those that it finds, in the order of their numbers.
    """
    outward = [config.moe_intermediate_size, config.hidden_size]
    shapes = {"gate": outward, "up": outward, "down": outward[::-1]}
    wanted = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": shape
        for layer in range(config.num_hidden_layers)
        for expert in range(config.num_experts)
        for part, shape in shapes.items()
    }
    there = {name: shape for _, name, shape in weights if re.search(r"\.mlp\.experts\.", name)}
    check_coverage(
        {
            "missing": wanted.keys() - there.keys(),
            "of another shape": {name for name in wanted.keys() & there.keys() if wanted[name] != there[name]},
            "left over": there.keys() - wanted.keys(),
        },
        folder,
    )
