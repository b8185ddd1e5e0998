"""Models in fewer bits, as rows of the list of their own: "llada-8b-instruct@int4"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sparsed.models.catalogue import ModelSpec
from sparsed.models.numbers import QUANTISED, in_numbers, installed

# What the list offers where a model does not fit as it is, the most bits first. (fp8 is as large as int8, and not for
# every GPU.)
OFFERED = ("int8", "int4")
_MARK = "@"


def in_fewer_bits(name: str, spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    """A row of the list, and those of the same model in fewer bits, the most of them first; none where it cannot be
    quantised, or the library for it is not installed.
    """
    yield name, spec
    for kind in QUANTISED if spec.kept is not None and installed() else ():
        row = in_bits(name, kind)
        yield row, quantised(row, spec, kind)


def quantised(row: str, spec: ModelSpec, kind: str) -> ModelSpec:
    """The row of that name, of a model in these numbers."""
    return replace(spec, name=row, label=in_numbers(spec.label, kind), quantize=kind)


def in_bits(name: str, kind: str) -> str:
    """The name of a model's row in these numbers."""
    return f"{name}{_MARK}{kind}"


def without_bits(name: str) -> str:
    """The name of the model that a row is of, as `sparsed.load` takes it."""
    return name if bits_of(name) is None else name.rpartition(_MARK)[0]


def bits_of(name: str) -> str | None:
    """The numbers of fewer bits that a row's name says, None for none."""
    kind = name.rpartition(_MARK)[2]
    return kind if kind in QUANTISED and kind != name else None
