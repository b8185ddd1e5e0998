"""What lanes there are: how the lanes of a race are made, named and told apart.

A lane has an attention (which keys a query sees) and a cache (which rows a step computes). To offer one more, add its
row to `_FURTHER`. Everything else maps over the lanes that it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat

from sparsed.config import (
    CACHE_LABELS,
    DEFAULT_CACHE_REFRESH,
    FULL_ATTENTION,
    LONG_SEQUENCE,
    METHOD_LABELS,
    NO_CACHE,
    RECOMMENDED,
    AttentionConfig,
    CacheConfig,
    Phase,
    ResolvedAttention,
    ResolvedCache,
    ResolvedSampler,
    SparseDConfig,
    phases_of,
)

# So many can be told apart by their styles.
MOST_LANES = 6
# Keys stand in records, links and programs: these stay. Of two lanes without a cache the later one takes the next key
# that is free, its method at last; with a cache the key is "method+cache".
_KEYS = {"dense": "dense", "sparsed": "sparse"}
_OTHER = "baseline"
# SparseD as recommended; as published where SparseD's own lane is that already.
AS_RECOMMENDED = "recommended"
# SparseD with the other generation rows than SparseD's own lane.
OTHER_ROWS = "full_rows"
# The lanes that may stand beside full attention and SparseD, in the order of a race: a baseline's method, or a method
# and a cache.
_FURTHER = (
    AS_RECOMMENDED, OTHER_ROWS, *(name for name in METHOD_LABELS if name not in _KEYS),
    "dense+delayed", "dense+prefix", "dense+dual", "dense+refresh",
    "sparsed+delayed", "sparsed+prefix", "sparsed+dual", "sparsed+refresh",
)  # fmt: skip
MOST_FURTHER = MOST_LANES - len(_KEYS)


@dataclass(frozen=True)
class PlannedStep:
    """What a step of a lane is to do. rows: how many positions it computes; None: all."""

    phase: Phase
    rows: int | None = None


def additions(attention: AttentionConfig) -> tuple[str, ...]:
    """What an attention has that the paper's has not, in words; nothing for the paper's."""
    full = ("full generation rows",) if attention.generation_rows == "full" else ()
    return (*full, f"refresh {attention.refresh}") if attention.refresh else full


def label_of(attention: AttentionConfig, cache: ResolvedCache = NO_CACHE) -> str:
    """What a lane is called: "SparseD", "SparseD, recommended", "SparseD, full generation rows, refresh 8", "SparseD +
    Fast-dLLM, dual". Of a cache, what is not as usual too: "SparseD + dKV-Cache, every 4, pattern's keys".
    """
    added = ("recommended",) if is_recommended(attention) else additions(attention)
    label = ", ".join((METHOD_LABELS[attention.method], *added))
    if cache.none:
        return label
    every = (f"every {cache.refresh}",) if cache.refresh not in (0, DEFAULT_CACHE_REFRESH) else ()
    keys = ("pattern’s keys",) if cache.keys == "pattern" else ()
    return f"{label} + {', '.join((CACHE_LABELS[cache.method], *every, *keys))}"


def is_recommended(attention: AttentionConfig) -> bool:
    """Is it the setting that is recommended here, for short sequences or for long ones?"""
    if attention.method != RECOMMENDED.method:
        return False
    # Two settings change no answer.
    asked = replace(attention, keep_importance=False, on_no_gain="sparse")
    return any(asked.resolve(length) == RECOMMENDED.resolve(length) for length in (0, LONG_SEQUENCE))


@dataclass(frozen=True)
class LaneSpec:
    """A lane of a race, before it is run."""

    # Names it in a race, in a record and for programs.
    key: str
    # What it is called.
    label: str
    # Which keys a query sees.
    attention: AttentionConfig
    # Which rows a step computes; None: every row.
    cache: ResolvedCache | None = None
    # Its place in the palette, from 1 (assets/page/colours.css, app/figures/palette.py).
    style: int = 1
    # Steps after which a pattern is selected afresh, outside the clock, for comparison.
    probe_steps: tuple[int, ...] = ()

    @property
    def full(self) -> bool:
        """Is it what others are compared with: full attention, and no cache?"""
        return self.attention.dense and self.cache is None

    @property
    def name(self) -> str:
        """Its label within a sentence."""
        first = self.label.split(" + ")[0]
        proper = any(letter.isupper() for letter in first[1:])
        return self.label if proper else self.label[:1].lower() + self.label[1:]

    @property
    def method(self) -> str:
        """What its method is called, whatever is added to it."""
        return METHOD_LABELS[self.attention.method]

    @property
    def whose(self) -> str:
        """Whose it is, in a few words; "" for full attention and baselines."""
        if additions(self.attention) or (self.cache is not None and self.cache.method == "refresh"):
            return "ours"
        if self.cache is not None:
            return "as published" if self.attention.dense else "our combination"
        return "the paper’s" if self.attention.method == "sparsed" else ""

    def resolve(self, length: int) -> LaneSpec:
        """The lane with every setting set, for a sequence of so many tokens."""
        return replace(self, attention=self.attention.resolve(length))

    def plan(
        self, steps: int, blocks: int, gen_length: int = 0, grows: bool = False
    ) -> tuple[PlannedStep, ...]:
        """Each of so many steps in so many semi-autoregressive blocks, as planned. (With a threshold there may be
        fewer, and blocks that are done early move fresh selections and full steps.) gen_length: generated tokens, which
        a lane with a cache needs. grows: each block is appended when the one before is done.
        """
        attention = self.attention.resolve(0)  # no length changes what matters here
        if self.cache is not None:
            return _planned(attention, self.cache, steps, blocks, gen_length, grows)
        phases = phases_of(steps, attention.skip, attention.selection, attention.refresh, blocks, grows)
        return tuple(PlannedStep(phase) for phase in phases)

    def phases(self, steps: int, blocks: int, gen_length: int = 0, grows: bool = False) -> tuple[Phase, ...]:
        """The phases of the `plan`."""
        return tuple(step.phase for step in self.plan(steps, blocks, gen_length, grows))

    def switch_step(self, steps: int, blocks: int = 1, gen_length: int = 0, grows: bool = False) -> int | None:
        """Its first sparse step of so many, counted from 0; None if it never becomes sparse."""
        planned = self.phases(steps, blocks, gen_length, grows)
        return planned.index("sparse") if "sparse" in planned else None


@lru_cache(maxsize=256)
def _planned(
    attention: ResolvedAttention, cache: ResolvedCache, steps: int, blocks: int, gen_length: int, grows: bool
) -> tuple[PlannedStep, ...]:
    """The plan of a lane with a cache; many estimates ask for the same one."""
    # Needs torch, which is in memory by the time that a lane with a cache is asked for.
    from sparsed.denoising.plan import plan_of

    # The planner asks for nothing else of a sampler, and with a threshold a step is planned to commit one token.
    sampler = ResolvedSampler(
        steps=steps, gen_length=gen_length, block_length=gen_length // blocks, algorithm="low_confidence",
        temperature=0.0, seed=0, canvas="growing" if grows else "fixed",
    )  # fmt: skip
    made = plan_of(sampler, attention, cache, prompt_length=1)
    return tuple(PlannedStep(step.phase, None if step.rows == step.length else step.rows) for step in made)


def lanes_of(
    attentions: Iterable[AttentionConfig], caches: Iterable[ResolvedCache] = repeat(NO_CACHE)
) -> tuple[LaneSpec, ...]:
    """Lanes with these attentions and caches, in this order. Raises ValueError for more than MOST_LANES."""
    lanes: dict[str, LaneSpec] = {}
    for style, (attention, cache) in enumerate(zip(attentions, caches), start=1):
        if style > MOST_LANES:
            raise ValueError(f"A race has {MOST_LANES} lanes at most.")
        method = attention.method if cache.none else f"{attention.method}+{cache.method}"
        names = (_KEYS.get(method, _OTHER), _OTHER) if cache.none else ()
        key = next(name for name in (*names, method, f"{method}-{style}") if name not in lanes)
        label = label_of(attention, cache)
        if any(lane.label == label for lane in lanes.values()):
            label += f" ({style})"
        lanes[key] = LaneSpec(key, label, attention, None if cache.none else cache, style)
    return tuple(lanes.values())


@dataclass(frozen=True)
class CacheSettings:
    """What `CacheConfig` calls refresh and keys, of the lanes with a cache, as far as theirs has them."""

    cache_refresh: int = DEFAULT_CACHE_REFRESH
    cache_keys: str = "all"

    def of(self, method: str, dense: bool) -> ResolvedCache:
        """The cache of a lane, which is full attention's or not."""
        usual = CacheConfig(method).resolve()
        return replace(usual, refresh=usual.refresh and self.cache_refresh, keys="all" if dense else self.cache_keys)


USUAL_CACHES = CacheSettings()


def lanes_for(
    attention: AttentionConfig, further: Collection[str] = (), settings: CacheSettings = USUAL_CACHES
) -> tuple[LaneSpec, ...]:
    """The lanes of a request: full attention, SparseD with these settings, and further ones (of FURTHER), in the order
    of that table. Raises ValueError for more than MOST_LANES.
    """
    more = [_further(name, attention, settings) for name in _FURTHER if name in further]
    attentions, caches = zip((FULL_ATTENTION, NO_CACHE), (attention, NO_CACHE), *more)
    return lanes_of(attentions, caches)


def _further(
    name: str, own: AttentionConfig, settings: CacheSettings = USUAL_CACHES
) -> tuple[AttentionConfig, ResolvedCache]:
    """A lane of `_FURTHER` beside SparseD's own, from which it differs in its method or its cache alone; but that of
    AS_RECOMMENDED in every setting of its own. OTHER_ROWS: full generation rows, or the paper's where the visitor's own
    has full ones already.
    """
    if name == AS_RECOMMENDED:
        made = SparseDConfig() if is_recommended(own) else RECOMMENDED
        return replace(made, keep_importance=own.keep_importance, on_no_gain=own.on_no_gain), NO_CACHE
    if name == OTHER_ROWS and own.generation_rows == "full":
        return replace(own, generation_rows="pattern", refresh=0), NO_CACHE
    if name == OTHER_ROWS:
        return replace(own, generation_rows="full"), NO_CACHE
    method, _, cache = name.partition("+")
    attention = FULL_ATTENTION if method == "dense" else replace(own, method=method)
    return attention, settings.of(cache, attention.dense) if cache else NO_CACHE


def idle_caches(lanes: Iterable[LaneSpec]) -> dict[str, str]:
    """The `CacheSettings` that none of these lanes has, as a request calls them → why."""
    cached = [(lane.attention, lane.cache) for lane in lanes if lane.cache is not None]
    found = {}
    if not any(cache.refresh for _, cache in cached):
        found["cache_refresh"] = "No lane has dKV-Cache or a refresh of all rows."
    if all(attention.dense for attention, _ in cached):
        found["cache_keys"] = "No lane has SparseD and a cache."
    return found


def reference(lanes: Sequence[LaneSpec]) -> LaneSpec | None:
    """The lane that the others are compared with: the first, if it is full attention."""
    return lanes[0] if lanes and lanes[0].full else None


def headline(lanes: Iterable[LaneSpec]) -> LaneSpec | None:
    """The lane whose speed-up and agreement are the large numbers: SparseD's."""
    return next((lane for lane in lanes if lane.attention.method == "sparsed" and lane.cache is None), None)


def watched(lanes: Iterable[LaneSpec], keep_importance: bool, probe_steps: Iterable[int]) -> tuple[LaneSpec, ...]:
    """The same lanes; the headline's keeps its importances, or not, and is probed after these steps."""
    given = tuple(lanes)
    large = headline(given)
    if large is None:
        return given
    attention = replace(large.attention, keep_importance=keep_importance)
    seen = replace(large, attention=attention, probe_steps=tuple(probe_steps))
    return tuple(seen if lane is large else lane for lane in given)


# The two lanes with the settings that the paper publishes.
PAIR = lanes_for(SparseDConfig())
# Further lanes → what they are called where they are chosen.
FURTHER = {
    name: " · ".join(filter(None, (lane.label, lane.whose)))
    for name in _FURTHER
    for lane in lanes_for(SparseDConfig(), (name,))[2:]
}
# Choices of further lanes that say something together, by what a button says.
PRESETS: dict[str, tuple[str, ...]] = {
    "SparseD against full attention": (),
    "SparseD, published and recommended": (AS_RECOMMENDED,),
    "SparseD + cache": ("sparsed+refresh",),
    "The paper’s table": ("sliding_window", "streaming_llm", "dense+delayed", "dense+dual"),
}
