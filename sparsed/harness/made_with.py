"""What answers were made with: it stands in the harness's results and in its store of answers (``--use_cache``)."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import hash_args

from sparsed.harness.arguments import Arguments
from sparsed.origin import origin_of
from sparsed.results_folder import differences

if TYPE_CHECKING:
    from sparsed.models.model import Model

_KEY = "sparsed: made with"
_DRAWN = "sparsed: drawn at random"


def made_with(model: Model, arguments: Arguments) -> dict[str, Any]:
    """All that answers depend on beside their requests, as plain values for JSON. Of sampler, attention and cache
    what was asked for: what that is for a request follows from it.
    """
    return {
        **origin_of(model),
        "backend": arguments.backend,
        "dense_backend": arguments.dense_backend,
        "attention": _given(arguments.attention),
        "cache": _given(arguments.cache),
        "sampler": _given(arguments.sampler),
        "defaults": _given(model.defaults),
        "mc_num": arguments.mc_num,
        "is_check_greedy": arguments.is_check_greedy,
        "max_length": arguments.max_length,
        "add_bos_token": arguments.add_bos_token,
        "escape_until": arguments.escape_until,
    }


def claim(store: MutableMapping[str, Any], made: dict[str, Any]) -> None:
    """Says in a store of answers what they are made with, since its keys hold the requests alone, and takes those that
    were drawn at random out of it.

    Raises ValueError where the answers in it were made with something else, or do not say.
    """
    there = store.get(_KEY)
    if there is None and len(store):
        raise ValueError("The answers at --use_cache do not say what they were made with: choose another path.")
    unlike = [] if there is None else differences(there, made)
    if unlike:
        raise ValueError(f"The answers at --use_cache were made otherwise ({', '.join(unlike)}): choose another path.")
    store[_KEY] = made
    for key in store.pop(_DRAWN, ()):
        store.pop(key, None)


def forget_later(store: MutableMapping[str, Any], kind: str, requests: Collection[tuple[object, ...]]) -> None:
    """Says in a store which answers were drawn at random: the harness keeps one for all repeats of a request, which
    would all be equal the next time. It puts them there itself, after this.
    """
    if requests:
        store[_DRAWN] = sorted({*store.get(_DRAWN, ()), *(hash_args(kind, request) for request in requests)})


def _given(config: Any) -> dict[str, Any]:
    """The settings of a config that were given."""
    values = {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "changed"}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
