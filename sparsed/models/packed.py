"""Linear layers whose weights are kept in 8 or 4 bits.

torchao quantises. Its own products with such weights are not used: those in int4 are made for a few rows (6 to 13 times
slower than bfloat16 in batches, its issue 3496), and a denoising step computes thousands; those in int8 scale their
sums afterwards, which in float16 are too large. So weights are made numbers again just before a usual product: a read
of 8 or 4 bits and a write of 16 for each, which torch.compile makes one kernel of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sparsed.models.numbers import GROUP

SMALLEST_GROUP = GROUP // 4


class Packed(nn.Module):
    """x · Wᵀ + bias for weights W [out, in] that are kept in fewer bits."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias = bias

    def weights(self) -> Tensor:
        """The weights that the product uses, [out, in] in the numbers of the weight that was quantised."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] of x [..., in]."""
        return linear(x, self.weights(), self.bias)


class Int8Linear(Packed):
    """Weights that are integer · scale. packed: int8 [out, in]. scale: float32 [out, 1]."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Quantises weight [out, in], round to nearest: a row's scale is its largest weight / 127.5."""
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

        super().__init__(weight, bias)
        values, block = weight.float(), (1, self.in_features)
        scale, zero = choose_qparams_affine(values, MappingType.SYMMETRIC, block, torch.int8, -128, 127)
        self.packed = _fixed(quantize_affine(values, block, scale, zero, torch.int8, -128, 127))
        self.scale = _fixed(scale.view(-1, 1))

    def weights(self) -> Tensor:
        return (self.packed * self.scale).to(self.dtype)


class Int4Linear(Packed):
    """Weights that are (nibble − zero) · scale, each group of a row with its own.

    packed: uint8 [out, in / 2], the even column in the low 4 bits. scale: [out, in / group] in the numbers that are
    computed in. zero: uint8 of the same shape, 0 to 15. group: 128, or the half or a quarter, what divides the columns.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Quantises weight [out, in], round to nearest: a group's scale is (max − min) / 15, with 0 among its weights.
        in: a multiple of SMALLEST_GROUP.
        """
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

        super().__init__(weight, bias)
        self.group = next(size for size in (GROUP, GROUP // 2, SMALLEST_GROUP) if self.in_features % size == 0)
        values, block = weight.float(), (1, self.group)
        scale, zero = choose_qparams_affine(
            values, MappingType.ASYMMETRIC, block, torch.uint8, 0, 15, scale_dtype=weight.dtype,
            zero_point_dtype=torch.uint8,
        )  # fmt: skip
        shape = self.out_features, self.in_features // self.group
        found = quantize_affine(values, block, scale, zero, torch.uint8, 0, 15).view(self.out_features, -1, 2)
        self.packed = _fixed(found[..., 0] | (found[..., 1] << 4))
        self.scale, self.zero = _fixed(scale.view(shape)), _fixed(zero.view(shape))

    def weights(self) -> Tensor:
        shifts = 4 * torch.arange(2, dtype=torch.uint8, device=self.packed.device)
        nibbles = (self.packed[..., None] >> shifts) & 15
        groups = nibbles.view(self.out_features, -1, self.group).to(self.dtype)
        # Whole numbers below 16 are exact; the product is rounded once.
        whole = (groups - self.zero[..., None].to(self.dtype)) * self.scale[..., None]
        return whole.view(self.out_features, self.in_features)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=False)
