"""How much a cache keeps. No torch here: estimates are made without."""

from __future__ import annotations


def store_bytes(length: int, *, layers: int, key_heads: int, head_dim: int, number_bytes: int, rows: int = 1) -> int:
    """Bytes of a `RowStore`: the keys and values of `length` positions in every layer.

    key_heads: of this process, where several hold the model. number_bytes: of one number in the model's dtype. rows:
    sequences of a forward.
    """
    return 2 * rows * layers * key_heads * head_dim * length * number_bytes
