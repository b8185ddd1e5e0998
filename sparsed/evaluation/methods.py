"""How an answer is made: attention, cache, and the settings of the sampler that an ablation varies. The ablations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sparsed.config import (
    CACHES,
    FULL_ATTENTION,
    METHODS,
    AttentionConfig,
    CacheConfig,
    ResolvedSampler,
    SamplerConfig,
    check_keys,
)
from sparsed.options import ATTENTION, CACHE, SAMPLER, reader

VARIED = ("steps", "block_length", "threshold")
"""The sampler's settings that a method may have of its own; the others are a folder's."""
_OF_ATTENTION = {name: row for name, row in ATTENTION.items() if name != "method"}
_OF_CACHE = {name: row for name, row in CACHE.items() if name != "cache"}
_SETTINGS = {**_OF_CACHE, **_OF_ATTENTION, **{name: SAMPLER[name] for name in VARIED}}
_CACHES = tuple(name for name in CACHES if name != "none")

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
    # Each with full attention and with SparseD; and with the pattern's keys instead of all.
    "cache": tuple(
        f"{attention}+{cache}{keys}"
        for attention, keys in (("dense", ""), ("sparsed", ""), ("sparsed", ":cache_keys=pattern"))
        for cache in _CACHES
    ),
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
        name: the one way to write it: "dense", "sparsed:skip=0,select=0.1", "dense+dual:threshold=0.9".
        attention: its attention, every setting its own or the plan's.
        sampler: the settings of the sampler that are its own; the rest is None.
        cache: its cache, which a plan has none of.
    """

    name: str
    attention: AttentionConfig
    sampler: SamplerConfig = SamplerConfig()
    cache: CacheConfig = CacheConfig()

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
    """A method as it is written on the command line: one of METHODS, after a plus a cache, after a colon settings of
    its own.

    "sparsed:skip=0", "sliding_window:select=0.1,reuse=no", "sparsed:steps=96,block_length=32", "dense:threshold=0.9",
    "sparsed+refresh:cache_refresh=4,select=0.1": those of the cache, those of attention, which "dense" has none of, and
    those of the sampler in VARIED. What is not given is the cache's default, `base`'s, and the plan's. Raises
    ValueError for anything else.
    """
    head, colon, said = method.partition(":")
    name, plus, cache_name = head.partition("+")
    if name not in METHODS:
        raise ValueError(f"Method {method!r} is unknown; choose from {', '.join(METHODS)}.")
    if plus and cache_name not in _CACHES:
        raise ValueError(f"Method {method!r}: the cache {cache_name!r} is unknown; choose from {', '.join(_CACHES)}.")
    allowed = [*(_OF_CACHE if plus else ()), *(() if name == "dense" else _OF_ATTENTION), *VARIED]
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
                f"Method {method!r}: {key} belongs to sparse attention; full attention takes {', '.join(allowed)}."
            )
        if not plus and key in _OF_CACHE:
            raise ValueError(f"Method {method!r}: {key} belongs to a cache, as in {name}+refresh:{key}={value}.")
        try:
            values[key] = reader(_SETTINGS[key])(value)
        except (KeyError, ValueError):
            raise ValueError(
                f"Method {method!r}: {part!r} is no setting; write one of {', '.join(allowed)} as name=value."
            ) from None
    sampler = SamplerConfig(**{key: values[key] for key in VARIED if key in values})
    given = {key: values[key] for key in _OF_ATTENTION if key in values}
    attention = FULL_ATTENTION if name == "dense" else replace(base, method=name, **given)
    try:
        cache = CacheConfig(
            cache_name or "none", **{row.name: values[key] for key, row in _OF_CACHE.items() if key in values}
        )
        check_keys(cache, attention)
    except ValueError as error:
        raise ValueError(f"Method {method!r}, its cache: {error}") from None
    written = ",".join(f"{key}={_written(values[key])}" for key in _SETTINGS if key in values)
    return Method(":".join(filter(None, [head, written])), attention, sampler, cache)


class Parts(NamedTuple):
    """What a method's name says: its attention and its cache, both by name, and settings of its own as written."""

    attention: str
    cache: str
    own: dict[str, str]


def parts_of(method: str) -> Parts:
    """Of a name as `Method` has it."""
    head, _, said = method.partition(":")
    attention, _, cache = head.partition("+")
    return Parts(attention, cache or "none", dict(part.split("=", 1) for part in said.split(",")) if said else {})


def own_settings(method: str) -> dict[str, str]:
    """The settings that a method's name says, as they are written there."""
    return parts_of(method).own


def samples_apart(method: str) -> bool:
    """Whether the method of this name has settings of the sampler of its own."""
    return not own_settings(method).keys().isdisjoint(VARIED)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).removesuffix(".0")
