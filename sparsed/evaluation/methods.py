"""How an answer is made: an attention, and the settings of the sampler that an ablation varies. The ablations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sparsed.config import FULL_ATTENTION, METHODS, AttentionConfig, ResolvedSampler, SamplerConfig
from sparsed.options import ATTENTION, SAMPLER, reader

VARIED = ("steps", "block_length", "threshold")
"""The sampler's settings that a method may have of its own; the others are a folder's."""
_OF_ATTENTION = {name: row for name, row in ATTENTION.items() if name != "method"}
_SETTINGS = {**_OF_ATTENTION, **{name: SAMPLER[name] for name in VARIED}}

ABLATIONS: dict[str, tuple[str, ...]] = {
    "skip": tuple(f"sparsed:skip={skip}" for skip in (0, 0.05, 0.1, 0.2, 0.4)),
    "select": tuple(f"sparsed:select={select}" for select in (0.03, 0.05, 0.1, 0.2, 0.3, 0.5)),
    "block_size": tuple(f"sparsed:block_size={size}" for size in (32, 64, 128)),
    "isolated": ("sparsed:isolated=no",),
    "shared": ("shared",),
    "reuse": ("sparsed:reuse=no",),
    "refresh": tuple(f"sparsed:refresh={steps}" for steps in (4, 8, 16)),
    # Those from which the recommended setting comes.
    "generation_rows": tuple(
        f"sparsed:{skip}{select}generation_rows=full"
        for select in ("", "select=0.05,", "select=0.1,", "select=0.2,")
        for skip in ("", "skip=0,", "skip=0.05,")
    ),
    # So few steps are made that the published skip may leave none sparse: SparseD without it too.
    "threshold": tuple(
        f"{method}threshold={threshold}"
        for method in ("dense:", "sparsed:", "sparsed:skip=0,")
        for threshold in (0.7, 0.8, 0.9, 0.95, 0.99)
    ),
    "steps": tuple(f"{method}:steps={steps}" for method in ("dense", "sparsed") for steps in (12, 24, 48, 96)),
    # In blocks, and the whole generation of mini at once.
    "block_length": tuple(f"{method}:block_length={size}" for method in ("dense", "sparsed") for size in (32, 96)),
    "baselines": ("sliding_window", "streaming_llm", "random"),
}
"""One setting varied at a time, by what is varied; beside them stand full attention and SparseD as published."""


def ablations(groups: Iterable[str]) -> list[str]:
    """The methods of these groups of ABLATIONS, "all" for every one, after full attention and SparseD as published."""
    names = list(groups)
    asked = ABLATIONS if "all" in names else names
    return list(dict.fromkeys(["dense", "sparsed", *(method for group in asked for method in ABLATIONS[group])]))


@dataclass(frozen=True)
class Method:
    """How an answer is made.

    Attributes:
        name: the one way to write it: "dense", "sparsed:skip=0,select=0.1", "dense:threshold=0.9".
        attention: its attention, every setting its own or the plan's.
        sampler: the settings of the sampler that are its own; the rest is None.
    """

    name: str
    attention: AttentionConfig
    sampler: SamplerConfig = SamplerConfig()

    def sampler_in(self, common: SamplerConfig) -> SamplerConfig:
        """The sampler of its runs, where `common` is that of all answers.

        With a threshold of its own, steps are an upper bound, and those of `common` are not meant as one.
        """
        own = {name: value for name in VARIED if (value := getattr(self.sampler, name)) is not None}
        if "threshold" in own and "steps" not in own:
            common = replace(common, steps=None)
        return replace(common, **own)

    def resolve(self, common: SamplerConfig, defaults: ResolvedSampler) -> ResolvedSampler:
        """The sampler of its runs with every setting set. Raises ValueError where its own settings do not fit the
        others, or make the generation longer than that of the other answers.
        """
        usual = common.resolve(defaults)
        try:
            own = self.sampler_in(common).resolve(defaults)
        except ValueError as error:
            raise ValueError(f"Method {self.name!r}: {error}") from None
        if own.gen_length != usual.gen_length:
            raise ValueError(
                f"Method {self.name!r}: {usual.gen_length} tokens, which all answers of this folder have, are no whole "
                f"number of semi-autoregressive blocks of {own.block_length}."
            )
        return own


def parse_method(method: str, base: AttentionConfig) -> Method:
    """A method as it is written on the command line: one of METHODS, with settings of its own after a colon.

    "sparsed:skip=0", "sliding_window:select=0.1,reuse=no", "sparsed:steps=96,block_length=32", "dense:threshold=0.9":
    those of attention, which "dense" has none of, and those of the sampler in VARIED. What is not given is `base`'s,
    and the plan's. Raises ValueError for anything else.
    """
    name, colon, said = method.partition(":")
    if name not in METHODS:
        raise ValueError(f"Method {method!r} is unknown; choose from {', '.join(METHODS)}.")
    allowed = [*VARIED] if name == "dense" else [*_SETTINGS]
    values: dict[str, Any] = {}
    for part in said.split(",") if colon else ():
        key, _, value = part.partition("=")
        if key in values:
            raise ValueError(f"Method {method!r}: {key} stands there twice.")
        if key in SAMPLER and key not in VARIED:
            raise ValueError(
                f"Method {method!r}: {key} is the same for all answers of a folder; give it as "
                f"--{key.replace('_', '-')}."
            )
        if name == "dense" and key in _OF_ATTENTION:
            raise ValueError(
                f"Method {method!r}: {key} belongs to sparse attention; full attention takes {', '.join(VARIED)}."
            )
        try:
            values[key] = reader(_SETTINGS[key])(value)
        except (KeyError, ValueError):
            raise ValueError(
                f"Method {method!r}: {part!r} is no setting; write one of {', '.join(allowed)} as name=value."
            ) from None
    own = {key: values.pop(key) for key in VARIED if key in values}
    attention = FULL_ATTENTION if name == "dense" else replace(base, method=name, **values)
    sampler = SamplerConfig(**own)
    written = [
        f"{key}={_written(getattr(attention if key in values else sampler, key))}"
        for key in _SETTINGS
        if key in values or key in own
    ]
    return Method(":".join([name, *([",".join(written)] if written else [])]), attention, sampler)


def own_settings(method: str) -> dict[str, str]:
    """The settings that a method's name says, as they are written there."""
    said = method.partition(":")[2]
    return dict(part.split("=", 1) for part in said.split(",")) if said else {}


def samples_apart(method: str) -> bool:
    """Whether the method of this name has settings of the sampler of its own."""
    return not own_settings(method).keys().isdisjoint(VARIED)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).removesuffix(".0")
