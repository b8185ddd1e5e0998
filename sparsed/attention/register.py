"""How transformers' attention modules reach a run's attention: its pass comes with the forward's keyword arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsed.attention.backends.dense import dense_attention

if TYPE_CHECKING:
    from sparsed.denoising.forward import Pass

NAME = "sparsed"


def sparsed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    pass_: Pass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [batch, heads, n, head_dim] of the computed rows in, [batch, n, heads,
    head_dim] out.

    Without a pass (a forward outside a run) it is dense and bidirectional.
    """
    if attention_mask is not None:
        raise ValueError("SparseD attention takes no attention mask: every token sees the whole sequence.")
    if pass_ is None:
        return dense_attention(query, key, value, scaling).transpose(1, 2), None
    layer: int = module.layer_idx  # type: ignore[assignment]
    return pass_.attend(layer, query, key, value, scaling).transpose(1, 2), None


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """transformers' mask interface: there is no mask; padding, which would need one, is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("SparseD attention takes no padding: rows of a batch must have the same length.")


def register() -> None:
    """Makes attn_implementation="sparsed" known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, sparsed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
