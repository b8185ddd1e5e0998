"""fp8's numbers by their definition, for tests on a CPU and on a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def e4m3(x: float) -> float:
    """The nearest of fp8's numbers: three bits behind the first, the least of which is 2⁻⁹; ties to even."""
    if x == 0:
        return 0.0
    step = 2.0 ** (max(math.floor(math.log2(abs(x))), -6) - 3)
    return min(max(round(x / step) * step, -448.0), 448.0)


def scaled(x: float, largest: float, shift: float = 0.0) -> float:
    """What fp8 makes of x where the largest of its row is 448 steps. A step is kept as a bfloat16."""
    step = float(torch.tensor(largest / 448, dtype=torch.float64).to(torch.bfloat16))
    return e4m3(x / step * (1 + shift)) * step


def check_fp8(weight: Tensor, got: Tensor) -> None:
    """What a product with unit vectors gives for float64 weights [out, in], in bfloat16. At the border of two of fp8's
    numbers one may be the other.
    """
    one = scaled(1.0, 1.0)
    for row, found in zip(weight.tolist(), got.tolist()):
        largest = max(abs(x) for x in row)
        for x, y in zip(row, found):
            near = [one * scaled(x, largest, shift) for shift in (-1e-5, 0, 1e-5)]
            assert min(abs(y - value) for value in near) <= 2**-8 * abs(y) + 1e-9
