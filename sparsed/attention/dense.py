"""Dense attention: the fastest that torch has on this device."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Bidirectional attention over all keys.

    q: [batch, query_heads, length, head_dim]; k, v: [batch, key_heads, length, head_dim], query_heads a
    multiple of key_heads. Returns [batch, query_heads, length, head_dim] in v's dtype.
    """
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
