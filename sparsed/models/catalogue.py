"""The models that can be asked for by name. Plain values: reading the catalogue loads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sparsed.config import SHORT_SELECT, SamplerConfig

# For a folder that says nothing about itself.
GENERIC_DEFAULTS = SamplerConfig(
    steps=64, gen_length=64, block_length=64, algorithm="low_confidence", temperature=0.0, seed=0
)


@dataclass(frozen=True)
class ModelSpec:
    """One row of the catalogue.

    name: what a user types. label: what a page shows. folder: the checkpoint's folder inside assets/.
    defaults: the sampler's settings, all set. trained_length: positions seen in training, in tokens.
    short_select: SparseD's default `select` for sequences below 4000 tokens.
    """

    name: str
    label: str
    folder: str
    defaults: SamplerConfig
    trained_length: int
    short_select: float = SHORT_SELECT


CATALOGUE: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mini",
        label="mini (4.5 M parameters, bundled)",
        folder="mini",
        defaults=GENERIC_DEFAULTS,
        trained_length=66_000,
        # Its canvas of 64 tokens is two blocks of 32: with the published 0.5 every query block would lose one of them.
        short_select=0.6,
    ),
)


def find(name: str) -> ModelSpec | None:
    """The row of that name, or None."""
    return next((spec for spec in CATALOGUE if spec.name == name), None)


def names() -> tuple[str, ...]:
    """The names in the catalogue, in order."""
    return tuple(spec.name for spec in CATALOGUE)
