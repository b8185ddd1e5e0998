"""What a run can be asked for: the sampler's settings and the attention's.

Both configs are frozen and check each value when they are made. A field that is None means "the default"; `resolve`
gives a `ResolvedSampler` or `ResolvedAttention`, where every field is set, and checks what depends on several fields.
No torch here: these are plain values.
"""

from sparsed.config.attention import (
    BLOCK_SIZES,
    DEFAULT_SKIP,
    FULL_ATTENTION,
    GENERATION_ROWS,
    LONG_SEQUENCE,
    METHOD_LABELS,
    METHODS,
    ON_NO_GAIN,
    PRESETS,
    RECOMMENDED,
    SELECTIONS,
    AttentionConfig,
    Phase,
    ResolvedAttention,
    SparseDConfig,
    as_attention,
    phases_of,
    same_importances,
    select_step,
    switch_step,
)
from sparsed.config.cache import (
    CACHE_LABELS,
    CACHES,
    DEFAULT_CACHE_REFRESH,
    NO_CACHE,
    SEEN_KEYS,
    CacheConfig,
    ResolvedCache,
    check_keys,
)
from sparsed.config.sampler import (
    ALGORITHMS,
    DREAM_ALGORITHMS,
    LLADA_ALGORITHMS,
    ResolvedSampler,
    SamplerConfig,
    steps_of_blocks,
)

__all__ = [
    "ALGORITHMS",
    "BLOCK_SIZES",
    "CACHES",
    "CACHE_LABELS",
    "DEFAULT_CACHE_REFRESH",
    "DEFAULT_SKIP",
    "DREAM_ALGORITHMS",
    "FULL_ATTENTION",
    "GENERATION_ROWS",
    "LLADA_ALGORITHMS",
    "LONG_SEQUENCE",
    "METHODS",
    "METHOD_LABELS",
    "NO_CACHE",
    "ON_NO_GAIN",
    "PRESETS",
    "RECOMMENDED",
    "SEEN_KEYS",
    "SELECTIONS",
    "AttentionConfig",
    "CacheConfig",
    "Phase",
    "ResolvedAttention",
    "ResolvedCache",
    "ResolvedSampler",
    "SamplerConfig",
    "SparseDConfig",
    "as_attention",
    "check_keys",
    "phases_of",
    "same_importances",
    "select_step",
    "steps_of_blocks",
    "switch_step",
]
