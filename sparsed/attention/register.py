"""How transformers' attention modules reach a run's attention state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparsed.attention.state import AttentionState

NAME = "sparsed"


def sparsed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sparsed_state: AttentionState | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [batch, heads, length, head_dim] in, [batch, length, heads,
    head_dim] out.

    Without a state (a forward outside a run) it is dense and bidirectional.
    """
    if attention_mask is not None:
        raise ValueError("SparseD attention takes no attention mask: every token sees the whole sequence.")
    state = sparsed_state if sparsed_state is not None else AttentionState()
    layer: int = module.layer_idx  # type: ignore[assignment]
    return state.attend(layer, query, key, value, scaling).transpose(1, 2), None


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """transformers' mask interface: there is no mask; padding, which would need one, is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("SparseD attention takes no padding: rows of a batch must have the same length.")


def register() -> None:
    """Makes attn_implementation="sparsed" known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, sparsed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
