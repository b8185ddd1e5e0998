"""iLLaDA: what its config.json says, and which Llama that is. Its weights have a Llama's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsed.models import LoadError
from sparsed.models.config_checks import check_only

ILLADA_MASK = 5
"""The published mask token, which neither its config.json nor its tokenizer says to be one."""
# What its config can say that a Llama cannot do, with the only values that are the same model.
_ONLY: dict[str, tuple[Any, ...]] = {
    "layer_norm_eps": (None,),  # a number: LayerNorm instead of RMSNorm
}
_SIZES = (
    "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
# Known: these, those above, and dropout, which only training has.
ILLADA_KNOWN = frozenset(
    {
        *_ONLY, *_SIZES, "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias",
        "tie_word_embeddings", "resid_pdrop", "embd_pdrop",
    }
)  # fmt: skip


def illada_values(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A Llama's config values from iLLaDA's config.json. Raises LoadError for one that is another network."""
    check_only(raw, _ONLY, "iLLaDA", where)
    try:
        sizes = {name: int(raw[name]) for name in _SIZES}
        values = {
            **sizes,
            "num_key_value_heads": int(raw.get("num_key_value_heads") or sizes["num_attention_heads"]),
            "rms_norm_eps": float(raw["rms_norm_eps"]),
            "rope_theta": float(raw["rope_theta"] if "rope_theta" in raw else raw["rope_parameters"]["rope_theta"]),
            "hidden_act": raw.get("hidden_act", "silu"),
            "attention_bias": bool(raw.get("attention_bias", False)),
            "mlp_bias": bool(raw.get("mlp_bias", False)),
            # Tied unless it says otherwise, where a Llama that says nothing is not.
            "tie_word_embeddings": raw.get("tie_word_embeddings") is not False,
            **{name: raw[name] for name in ("rope_scaling", "rope_parameters") if raw.get(name)},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{where} is not a complete iLLaDA config ({type(error).__name__}: {error}).") from error
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if raw.get("head_dim") not in (None, width // heads if heads > 0 else None):
        raise LoadError(
            f"{where} says head_dim {raw['head_dim']!r}: an iLLaDA's is hidden_size / num_attention_heads, here "
            f"{width} / {heads}."
        )
    return values
