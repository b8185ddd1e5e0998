"""The numbers that weights are kept in: those they are computed in, or fewer bits. No torch here: the page asks too."""

from __future__ import annotations

from importlib.util import find_spec
from types import MappingProxyType

from sparsed.models import LoadError

GROUP = 128
"""Neighbouring int4 weights of a row that have one scale and one zero point."""
# Bytes a quantised weight takes, its share of scales included: a row has one of 4 bytes (of some thousand weights); a
# group of int4 one of 2 and a zero point of 1.
QUANTISED = MappingProxyType({"int8": 1.001, "int4": 0.5 + 3 / GROUP, "fp8": 1.001})

_INSTALL = "install it with pip install 'sparsed[quantize]' (in a checkout pip install '.[quantize]')"


def installed() -> bool:
    """Is the library there that quantises?"""
    return find_spec("torchao") is not None


def check_quantize(quantize: str | None) -> str | None:
    """Raises ValueError for another than None and the names of QUANTISED, LoadError where the library is not there."""
    if quantize is None:
        return None
    if quantize not in QUANTISED:
        raise ValueError(f"quantize must be one of {', '.join(QUANTISED)}, or nothing, not {quantize!r}.")
    if not installed():
        raise LoadError(f"quantize={quantize!r} needs torchao, which is not installed: {_INSTALL}.")
    return quantize


def numbers(dtype: str, quantize: str | None) -> str:
    """What weights are in and, where that differs, what is computed in: "bfloat16", "int8 (bfloat16)"."""
    return dtype if quantize is None else f"{quantize} ({dtype})"


def in_numbers(label: str, quantize: str | None) -> str:
    """What a model in fewer bits is called, for people."""
    return label if quantize is None else f"{label} in {quantize}"


def weight_bytes(parameters: int, kept: int, itemsize: int, quantize: str | None) -> int:
    """Bytes of so many weights. kept: how many of them stay in numbers of `itemsize` bytes where the others are
    quantised.
    """
    each = itemsize if quantize is None else QUANTISED[quantize]
    return int((parameters - kept) * each) + kept * itemsize


def unpacked_bytes(weights: int, itemsize: int, quantize: str | None) -> int:
    """Bytes at most of so many weights while they are made numbers of `itemsize` bytes again for a product: those of
    int4 are bytes first, then such numbers thrice (`sparsed.models.packed`); where that is compiled, it is less.
    """
    return weights * (1 + 3 * itemsize) if quantize in ("int8", "int4") else 0
