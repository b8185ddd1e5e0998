"""Which rows a step computes; the keys and values of the others stand in the run's store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sparsed.config.attention import AttentionConfig, ResolvedAttention
from sparsed.config.rows import check_each, check_set, given, setting, whole, word

CACHE_LABELS = {
    "none": "No cache",
    "prefix": "Fast-dLLM, prefix",
    "dual": "Fast-dLLM, dual",
    "delayed": "dKV-Cache",
    "refresh": "Refresh",
}
CACHES = tuple(CACHE_LABELS)
SEEN_KEYS = ("all", "pattern")
# Those that compute every row again after so many steps, and after how many.
_REFRESHING = ("delayed", "refresh")
DEFAULT_CACHE_REFRESH = 8


@dataclass(frozen=True)
class CacheConfig:
    """Which rows a step computes. A step attends over the keys and values of all positions, those of the rows that it
    does not compute as an earlier step left them.

    Raises ValueError for a value out of range, or a setting that the method does not have.
    """

    # "none": every step computes every row. "prefix", "dual": Fast-dLLM (arXiv 2505.22618), "delayed": dKV-Cache, its
    # decode variant (arXiv 2505.15781); "refresh": the generation's rows in each step, every row now and then.
    # `sparsed.cache.policy` has the exact rules.
    method: str = word(CACHES, "which rows a step computes; none: every row in every step", default="none")
    refresh: int | None = setting(
        partial(whole, least=1),
        f"steps from one forward over all rows to the next, of {' and '.join(_REFRESHING)} "
        f"(default {DEFAULT_CACHE_REFRESH})",
        kind=int,
    )
    keys: str | None = word(SEEN_KEYS, "which keys forwards of some rows see: all (default), or the pattern's")

    def __post_init__(self) -> None:
        check_each(CacheConfig, self)
        if self.refresh is not None and self.method not in _REFRESHING:
            raise ValueError(f"The cache {self.method!r} has no refresh: only {' and '.join(_REFRESHING)} have.")
        if self.keys is not None and self.method == "none":
            raise ValueError("keys belongs to a cache: without one, every step computes every row.")

    def resolve(self) -> ResolvedCache:
        """Every field with its own value or the default."""
        usual: dict[str, Any] = {"refresh": DEFAULT_CACHE_REFRESH if self.method in _REFRESHING else 0, "keys": "all"}
        return ResolvedCache(**usual | given(self))


@dataclass(frozen=True)
class ResolvedCache:
    """A cache whose every setting is known. refresh: 0 for a method that has none."""

    method: str = "none"
    refresh: int = 0
    keys: str = "all"

    def __post_init__(self) -> None:
        check_set(self)

    @property
    def none(self) -> bool:
        """Every step computes every row."""
        return self.method == "none"

    @property
    def config(self) -> CacheConfig:
        """What resolves to this."""
        return CacheConfig(self.method, self.refresh or None, None if self.none else self.keys)

    def record(self) -> dict[str, Any]:
        """As plain values for JSON; of no cache, which has no other setting, the method alone."""
        return {"method": "none"} if self.none else asdict(self)


NO_CACHE = ResolvedCache()


def check_keys(cache: CacheConfig | ResolvedCache, attention: AttentionConfig | ResolvedAttention) -> None:
    """Raises ValueError where a cache's keys are those of a pattern, and the attention has none that is kept."""
    if cache.keys == "pattern" and (attention.dense or attention.reuse is False):
        raise ValueError("keys = 'pattern' needs a pattern that is kept: sparse attention with reuse.")
