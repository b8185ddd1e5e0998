"""The options of the command lines that set a sampler, an attention or a cache: one for each field of the configs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import Field, fields, replace
from typing import Any

from sparsed.config import FULL_ATTENTION, PRESETS, AttentionConfig, CacheConfig, SamplerConfig
from sparsed.models.numbers import QUANTISED

# The rows of the configs by name.
SAMPLER = {row.name: row for row in fields(SamplerConfig)}
ATTENTION = {row.name: row for row in fields(AttentionConfig)}
# Those of the cache by the option's name: "cache", "cache_refresh" …
CACHE = {"cache" if row.name == "method" else f"cache_{row.name}": row for row in fields(CacheConfig)}
_METAVARS = {int: "N", float: "X", bool: "yes|no"}


def add_sampler_options(parser: argparse._ActionsContainer) -> None:
    """--steps, --gen-length …; what is not given is None, the model's default. Ranges are checked by the config."""
    _add(parser, SAMPLER)


def add_attention_options(parser: argparse._ActionsContainer, without: Collection[str] = ()) -> None:
    """--method, --skip …, but for those `without`; what is not given is None, as above."""
    _add(parser, {name: row for name, row in ATTENTION.items() if name not in without})


def add_preset_option(parser: argparse._ActionsContainer) -> None:
    """--preset: what the options of attention that are not given are, one of PRESETS."""
    parser.add_argument(
        "--preset", choices=list(PRESETS), default=next(iter(PRESETS)), help="what is not said otherwise: SparseD as "
        "published (default), or as recommended here: --generation-rows full --skip 0 --select 0.2",
    )  # fmt: skip


def add_cache_options(parser: argparse._ActionsContainer, several: bool = False) -> None:
    """--cache, --cache-refresh …; what is not given is None, as above. several: --cache takes a list of methods."""
    _add(parser, CACHE, lists={"cache"} if several else ())


def add_rope_factor(parser: argparse._ActionsContainer) -> None:
    """--rope-factor; not given it is None, as published."""
    parser.add_argument(
        "--rope-factor",
        "--rope_factor",
        type=float,
        metavar="X",
        help="multiply the base of the rotary positions, for lengths beyond the trained one (published for LLaDA: 4 at "
        "8k, 14 at 16k, 31 at 24k)",
    )


def add_quantize(parser: argparse._ActionsContainer, several: bool = False) -> None:
    """--quantize; not given it is None: weights in the dtype. several: a list, of which "none" is None."""
    parser.add_argument(
        "--quantize",
        nargs="+" if several else None,
        choices=[*(["none"] if several else []), *QUANTISED],
        help="keep the layers' weights in fewer bits (needs the extra \"quantize\"); fp8: Ada, Hopper or later",
    )


def sampler_of(options: argparse.Namespace) -> SamplerConfig:
    """Raises ValueError for a value out of range."""
    return SamplerConfig(**_given(options, SAMPLER))


def attention_of(options: argparse.Namespace) -> AttentionConfig:
    """What is given, and the rest as `add_preset_option` says. Full attention needs no other setting, and leaves those
    given unread, which `without_effect` can say. Raises ValueError as above.
    """
    given = _given(options, ATTENTION)
    usual = PRESETS[getattr(options, "preset", next(iter(PRESETS)))]
    return FULL_ATTENTION if given.get("method") == "dense" else replace(usual, **given)


def cache_of(options: argparse.Namespace) -> CacheConfig:
    """Raises ValueError as above."""
    return CacheConfig(**{CACHE[name].name: value for name, value in _given(options, CACHE).items()})


def caches_of(options: argparse.Namespace) -> list[CacheConfig]:
    """Of `several` caches, each with those of the other settings that it has; "none" is none of them. Raises ValueError
    as above.
    """
    found = []
    for method in dict.fromkeys(options.cache or ()):
        refresh = options.cache_refresh if CacheConfig(method).resolve().refresh else None
        if method != "none":
            found.append(CacheConfig(method, refresh, options.cache_keys))
    return found


def given_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> set[str]:
    """The names of the options whose values are not their defaults."""
    named = {action.dest for action in parser._actions} - {"help"}
    return {name for name in named if getattr(options, name, None) != parser.get_default(name)}


def without_effect(given: Collection[str], names: Collection[str], why: str) -> list[str]:
    """The sentence about those of the options `given`, by name, that are among `names` and change nothing; none, none.
    """
    found = sorted(f"--{name.replace('_', '-')}" for name in given if name in names)
    return [f"{', '.join(found)} without effect: {why}"] if found else []


def reader(setting: Field[Any]) -> Callable[[str], Any]:
    """What makes a setting's value of a word of the command line; it raises ValueError for what is none."""
    kind = setting.metadata["kind"]
    return yes_or_no if kind is bool else kind


def yes_or_no(word: str) -> bool:
    if word not in ("yes", "no"):
        raise ValueError(f"{word!r} is neither yes nor no.")
    return word == "yes"


def _add(
    parser: argparse._ActionsContainer, settings: Mapping[str, Field[Any]], lists: Collection[str] = ()
) -> None:
    for name, row in settings.items():
        # Both spellings: the public SparseD commands have underscores.
        names = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}", *row.metadata["also"]])
        choices, metavar = row.metadata.get("choices"), _METAVARS.get(row.metadata["kind"])
        action = "append" if "many" in row.metadata else "store"
        parser.add_argument(
            *names,
            action=action,
            nargs="+" if name in lists else None,
            type=reader(row),
            choices=choices,
            metavar=metavar,
            help=row.metadata["help"],
        )


def _given(options: argparse.Namespace, settings: Iterable[str]) -> dict[str, Any]:
    given = {name: value for name in settings if (value := getattr(options, name, None)) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
