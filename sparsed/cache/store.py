"""Keys and values of all positions, where a step computes some of them."""

from __future__ import annotations

from torch import Tensor

from sparsed.cache.rows import Rows


class RowStore:
    """The keys and values that one run's forwards computed last, of every position of every layer.

    in_place: a layer's keep their place in memory, once there are some; else a forward over all rows brings new ones.
    """

    def __init__(self, in_place: bool = False) -> None:
        self._in_place = in_place
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes(self) -> int:
        """What it holds; beforehand `sparsed.cache.size` tells it."""
        return sum(kept.numel() * kept.element_size() for layer in self._layers.values() for kept in layer)

    def put(self, layer: int, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Remembers keys and values [batch, key_heads, n, head_dim] of rows; returns those of all positions, [batch,
        key_heads, length, head_dim].

        Those of all rows are kept without a copy (`in_place`: the first ones), and later ones written into them.
        Raises ValueError for some rows of a layer before all of them.
        """
        positions = rows.on(keys.device)
        if positions is None and self._in_place and layer in self._layers:
            for whole, fresh in zip(self._layers[layer], (keys, values)):
                whole.copy_(fresh)
        elif positions is None:
            self._layers[layer] = keys, values
        elif layer not in self._layers:
            raise ValueError("Only after a forward over all rows can another one compute some of them.")
        else:
            places = positions.expand(len(keys), -1)[:, None, :, None].expand_as(keys)
            for whole, part in zip(self._layers[layer], (keys, values)):
                whole.scatter_(2, places, part)
        return self._layers[layer]
