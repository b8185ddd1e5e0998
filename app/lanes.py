"""What lanes there are: how the lanes of a race are made, named and told apart.

To add one, extend `lanes_for` and OFFERED. Everything else maps over the lanes that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sparsed.config import FULL_ATTENTION, METHOD_LABELS, AttentionConfig, Phase, SparseDConfig, phases_of

# So many can be told apart by their styles.
MOST_LANES = 5
# Keys stand in records, links and programs: these stay. Of two lanes of a kind the later one takes the next key that is
# free, its method at last.
_KEYS = {"dense": "dense", "sparsed": "sparse"}
_OTHER = "baseline"
# The keys of the lanes that the page and the API offer, in their order; after the first each has a pattern.
OFFERED = ("dense", "sparse", _OTHER)
# What a third lane may be → what it is called where it is chosen: a baseline's method, or SparseD with the other
# generation rows than SparseD's own lane.
OTHER_ROWS = "full_rows"
THIRD = {
    OTHER_ROWS: "SparseD, full generation rows (ours)",
    **{name: label for name, label in METHOD_LABELS.items() if name not in _KEYS},
}


def additions(attention: AttentionConfig) -> tuple[str, ...]:
    """What an attention has that the paper's has not, in words; nothing for the paper's."""
    full = ("full generation rows",) if attention.generation_rows == "full" else ()
    return (*full, f"refresh {attention.refresh}") if attention.refresh else full


def label_of(attention: AttentionConfig) -> str:
    """What a lane of this attention is called: "SparseD", "SparseD, full generation rows, refresh 8"."""
    return ", ".join((METHOD_LABELS[attention.method], *additions(attention)))


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
    cache: None = None
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
        proper = any(letter.isupper() for letter in self.label[1:])
        return self.label if proper else self.label[:1].lower() + self.label[1:]

    @property
    def method(self) -> str:
        """What its method is called, whatever is added to it."""
        return METHOD_LABELS[self.attention.method]

    @property
    def whose(self) -> str:
        """Whether it is the paper's SparseD or has something of ours; "" for full attention and baselines."""
        if additions(self.attention):
            return "ours"
        return "the paper’s" if self.attention.method == "sparsed" else ""

    def resolve(self, length: int) -> LaneSpec:
        """The lane with every setting set, for a sequence of so many tokens."""
        return replace(self, attention=self.attention.resolve(length))

    def phases(self, steps: int, blocks: int) -> tuple[Phase, ...]:
        """The phase of each of so many steps in so many semi-autoregressive blocks, as planned. (With a threshold there
        may be fewer, and blocks that are done early move fresh selections.)
        """
        attention = self.attention.resolve(0)  # no length changes what matters here
        return phases_of(steps, attention.skip, attention.selection, attention.refresh, steps // blocks)

    def switch_step(self, steps: int, blocks: int = 1) -> int | None:
        """Its first sparse step of so many, counted from 0; None if it never becomes sparse."""
        planned = self.phases(steps, blocks)
        return planned.index("sparse") if "sparse" in planned else None


def lanes_of(attentions: Iterable[AttentionConfig]) -> tuple[LaneSpec, ...]:
    """Lanes with these attentions, in this order. Raises ValueError for more than MOST_LANES."""
    lanes: dict[str, LaneSpec] = {}
    for style, attention in enumerate(attentions, start=1):
        if style > MOST_LANES:
            raise ValueError(f"A race has {MOST_LANES} lanes at most.")
        method = attention.method
        names = (_KEYS.get(method, _OTHER), _OTHER, method, f"{method}-{style}")
        key = next(name for name in names if name not in lanes)
        label = label_of(attention)
        if any(lane.label == label for lane in lanes.values()):
            label += f" ({style})"
        lanes[key] = LaneSpec(key, label, attention, None, style)
    return tuple(lanes.values())


def lanes_for(attention: AttentionConfig, third: str | None = None) -> tuple[LaneSpec, ...]:
    """The lanes of a request: full attention, SparseD with these settings, and a third lane (one of THIRD), if any.

    A baseline differs from SparseD's lane in its method alone. OTHER_ROWS: SparseD with full generation rows, or the
    paper's where the visitor's own has them already.
    """
    others: list[AttentionConfig] = []
    if third == OTHER_ROWS and attention.generation_rows == "full":
        others = [replace(attention, generation_rows="pattern", refresh=0)]
    elif third == OTHER_ROWS:
        others = [replace(attention, generation_rows="full")]
    elif third:
        others = [replace(attention, method=third)]
    return lanes_of([FULL_ATTENTION, attention, *others])


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


def pair(lanes: Sequence[LaneSpec]) -> tuple[LaneSpec, ...]:
    """What a comparison of prompt lengths runs: the reference and the headline's lane."""
    return tuple(lane for lane in (reference(lanes), headline(lanes)) if lane is not None)


# The two lanes with the settings that the paper publishes.
PAIR = lanes_for(SparseDConfig())
