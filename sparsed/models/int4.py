"""A linear layer whose weights are kept in 4 bits.

torchao's own int4 layers multiply with kernels made for a few rows (6 to 13 times slower than bfloat16 in batches, its
issue 3496), and a denoising step computes thousands. So torchao quantises here, and the weights are made numbers again
just before a usual product: a read of 4 bits and a write of 16 for each, which torch.compile makes one kernel of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sparsed.models.numbers import GROUP

SMALLEST_GROUP = GROUP // 4


class Int4Linear(nn.Module):
    """x · Wᵀ + bias for weights W [out, in] that are (nibble − zero) · scale, each group of a row with its own.

    packed: uint8 [out, in / 2], the even column in the low 4 bits. scale: [out, in / group] in the numbers that are
    computed in. zero: uint8 of the same shape, 0 to 15. group: 128, or the half or a quarter, what divides the columns.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """Quantises weight [out, in], round to nearest: a group's scale is (max − min) / 15, with 0 among its weights.
        in: a multiple of SMALLEST_GROUP.
        """
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.group = next(size for size in (GROUP, GROUP // 2, SMALLEST_GROUP) if self.in_features % size == 0)
        block = (1, self.group)
        scale, zero = choose_qparams_affine(
            weight, MappingType.ASYMMETRIC, block, torch.uint8, 0, 15, zero_point_dtype=torch.uint8
        )
        shape = self.out_features, self.in_features // self.group
        found = quantize_affine(weight, block, scale, zero, torch.uint8, 0, 15).view(self.out_features, -1, 2)
        self.packed = _fixed(found[..., 0] | (found[..., 1] << 4))
        self.scale, self.zero = _fixed(scale.view(shape)), _fixed(zero.view(shape))
        self.bias = bias

    def weights(self) -> Tensor:
        """The weights that the product uses, [out, in] in the scale's numbers: each rounded once."""
        shifts = 4 * torch.arange(2, dtype=torch.uint8, device=self.packed.device)
        nibbles = (self.packed[..., None] >> shifts) & 15
        groups = nibbles.view(self.out_features, -1, self.group).to(self.scale.dtype)
        whole = (groups - self.zero[..., None].to(self.scale.dtype)) * self.scale[..., None]
        return whole.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] of x [..., in]."""
        return linear(x, self.weights(), self.bias)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=False)
