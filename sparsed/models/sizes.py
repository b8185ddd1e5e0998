"""The sizes of a network that decide what it costs. No torch here: they are known before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsed.models.model import Model


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network that decide what a forward costs. intermediate: the MLP's inner width, of its three
    matrices. vocabulary: entries of one row of logits. experts: that a position goes through, whose widths
    `intermediate` is the sum of; 0: a layer has one MLP.
    """

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    experts: int = 0

    @classmethod
    def of(cls, model: Model) -> Sizes:
        """Of the whole network, however many processes hold it."""
        config: Any = model.network.config
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            experts=config.num_experts_per_tok if getattr(config, "num_experts", 0) else 0,
        )
