"""What a run costs: seconds and bytes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.lanes import LaneSpec, PlannedStep
from sparsed.attention.layout import BlockLayout
from sparsed.cache.size import store_bytes
from sparsed.turns import seat

# Gathering key blocks costs something on top of the share of the scores that is computed.
GATHER_OVERHEAD = 1.25
# The select step computes the attention scores twice more (it is to be no slower than two dense attentions).
SELECT_ATTENTIONS = 2.0
# A sampler's work on one row of logits: five float64 copies beside them, or their sorting; bytes per entry.
LOGIT_BYTES = 42
# Bytes of importances, of their order, and of what is made of them on the way; of a pair of blocks.
RANKED_BYTES = 16
# Bytes that libraries keep for themselves beside a run: workspaces of products, freed memory that is not given back.
LIBRARIES = 96 * 2**20
GIB = 2**30
# The part of the free memory that a race may take.
MEMORY_SHARE = 0.9
# Seconds of a dense step from which on lanes run at the same time where they can. Shorter steps are spent launching
# kernels from Python, where two threads of one process hold each other up, and no clock would be honest. Measured on
# two H200, 2 to 4 ms a step: more than 3 % of a step of 110 ms, at most 0.6 % of one of 600 ms.
SHORTEST_TOGETHER = 0.150


@dataclass(frozen=True)
class Shape:
    """The sizes of a network that decide its cost. weight_bytes: all weights, as they are kept. number_bytes: bytes of
    one activation. vocabulary: entries of one row of logits. processes: that share the heads and the MLP's columns
    among them; weight_bytes, and what follows from all this, are those of one process. key_heads: that query heads
    share in groups; 0: each has its own. parameters: weights that a token goes through, where these are not all, or
    where they are kept in other numbers than activations; else 0. experts: that a token goes through; 0: it has one
    MLP. unpacked: bytes of the largest weight while it is made numbers again for its product; 0 where none is.
    """

    layers: int
    hidden: int
    heads: int
    head_dim: int
    intermediate: int
    weight_bytes: int
    number_bytes: int
    vocabulary: int = 0
    processes: int = 1
    key_heads: int = 0
    parameters: int = 0
    experts: int = 0
    unpacked: int = 0

    def kept(self, length: int, rows: int = 1) -> int:
        """Bytes of the keys and values that one run with a cache keeps in one process."""
        return store_bytes(
            length,
            layers=self.layers,
            key_heads=-(-(self.key_heads or self.heads) // self.processes),
            head_dim=self.head_dim,
            number_bytes=self.number_bytes,
            rows=rows,
        )

    @property
    def linear_flops(self) -> float:
        """Floating point operations per token outside attention (two per weight)."""
        return 2.0 * (self.parameters or self.weight_bytes / self.number_bytes)

    @property
    def pair_flops(self) -> float:
        """Floating point operations per (query, key) pair, all layers: q·k and probability·v."""
        return 4.0 * self.layers * self.heads * self.head_dim / self.processes


@dataclass(frozen=True)
class Speed:
    """Seconds per token and per (query, key) pair of one dense step on this machine."""

    per_token: float
    per_pair: float

    def step(self, length: int, rows: int | None = None) -> float:
        """Seconds of one dense denoising step over `length` tokens that computes so many rows (None: all)."""
        computed = length if rows is None else rows
        return computed * (self.per_token + self.per_pair * length)


@dataclass(frozen=True)
class Estimate:
    """What a race costs."""

    # Seconds of each lane by its key, the reference first.
    lanes: Mapping[str, float]
    # The peak in bytes beside the weights, of the device that needs most.
    memory: int
    # How many the lanes have (`sparsed.turns.seat`).
    devices: int = 1
    # Of the memory, the keys and values that caches keep.
    kept: int = 0

    @property
    def seconds(self) -> float:
        """The whole race."""
        return together(tuple(self.lanes.values()), self.devices)


def together(seconds: Sequence[float], devices: int) -> float:
    """What lanes of so many seconds take in all: those of one device take turns, devices run at the same time."""
    loads = [0.0] * devices
    for lane, spent in enumerate(seconds):
        loads[seat(lane, devices)] += spent
    return max(loads)


def lanes_take_turns(environment: Mapping[str, str] | None = None) -> bool:
    """Must the lanes take turns, however many GPUs there are? The variable SPARSED_LANES says so: "turns", or "auto",
    which is the default.

    Raises ValueError for another value.
    """
    values = os.environ if environment is None else environment
    text = values.get("SPARSED_LANES", "").strip()
    if text not in ("", "auto", "turns"):
        raise ValueError(f"SPARSED_LANES is {text[:40]!r}; it must be 'auto' or 'turns'.")
    return text == "turns"


def fit_speed(measured: Sequence[tuple[int, float]], shape: Shape) -> Speed:
    """The speed behind measured dense steps, given as (tokens, seconds).

    One point, or two that contradict the model (a negative part, because the clock jitters): all operations
    are taken to run at the speed of the longest point. Raises ValueError without a point.
    """
    if not measured:
        raise ValueError("There is no measured step; at least one is needed.")
    points = sorted(measured)
    (short, a), (long, b) = points[0], points[-1]
    if long > short:
        per_pair = (b / long - a / short) / (long - short)
        per_token = a / short - per_pair * short
        if per_pair > 0 and per_token > 0:
            return Speed(per_token, per_pair)
    per_flop = b / (shape.linear_flops * long + shape.pair_flops * long**2)
    return Speed(shape.linear_flops * per_flop, shape.pair_flops * per_flop)


def memory_needed(
    shape: Shape, length: int, block_size: int, predicted: int = 0, rows: int = 1, kept: float = 1.0, caches: int = 0
) -> int:
    """Peak bytes of a race over `length` tokens beside the weights, which are in memory already: what a layer holds at
    once or the logits of `predicted` positions, the patterns, what caches keep.

    rows: sequences in one forward. kept: the share of the block pairs that patterns keep, summed over the lanes of the
    device. caches: lanes of it that have one. Lanes never run at the same time, so of everything else the largest
    counts.
    """
    heads, inner = (-(-size // shape.processes) for size in (shape.heads, shape.intermediate))
    queries = heads * shape.head_dim
    keys = -(-(shape.key_heads or shape.heads) // shape.processes) * shape.head_dim
    pairs = heads * (-(-length // block_size)) ** 2
    # Numbers a token. A layer holds its input, queries, keys, values and what attention saw of them to its end.
    held = shape.hidden + 2 * queries + 2 * keys
    attending = length * held * shape.number_bytes + pairs * RANKED_BYTES + 4 * length * block_size
    # Queries are rotated in float32, with three more of their size.
    rotating = length * ((held + shape.hidden - queries) * shape.number_bytes + 16 * queries)
    feeding = length * (held + (2 + shape.experts) * shape.hidden + 3 * inner) * shape.number_bytes
    working = max(attending, rotating, feeding, predicted * shape.vocabulary * LOGIT_BYTES)
    patterns = int(kept * 4 * shape.layers * pairs)
    return LIBRARIES + shape.unpacked + rows * (working + patterns) + caches * shape.kept(length, rows)


def estimate(
    shape: Shape,
    speed: Speed,
    *,
    lanes: Sequence[LaneSpec],
    length: int,
    steps: int,
    blocks: int = 1,
    gen_length: int = 0,
    rows: int = 1,
    devices: int = 1,
    grows: bool = False,
) -> Estimate:
    """Time and memory of a race over `length` tokens (prompt and generation together).

    steps: of each lane, at most. blocks: semi-autoregressive ones, of equal length; the logits of one are held.
    gen_length: generated tokens.
    rows: sequences in one forward, 2 with classifier-free guidance. devices: how many the lanes have. grows: blocks are
    appended one by one; every step is taken for one over the whole length.
    """
    planned = {lane.key: lane.plan(steps, blocks, gen_length, grows) for lane in lanes}
    seconds = {lane.key: rows * lane_seconds(lane, planned[lane.key], speed, length, gen_length) for lane in lanes}
    memory, kept = peak(shape, lanes, length, gen_length // blocks, rows, devices)
    return Estimate(seconds, memory, devices, kept)


def peak(
    shape: Shape, lanes: Sequence[LaneSpec], length: int, predicted: int = 0, rows: int = 1, devices: int = 1
) -> tuple[int, int]:
    """Bytes beside the weights of the device that needs most, and how many of them caches keep; as `memory_needed`."""
    settings = [lane.attention.resolve(length) for lane in lanes]
    size = min(attention.block_size for attention in settings)
    # Each device holds the patterns and caches of its own lanes.
    kept, caches = [0.0] * devices, [0] * devices
    for number, (lane, attention) in enumerate(zip(lanes, settings)):
        kept[seat(number, devices)] += 0 if attention.dense else attention.select
        caches[seat(number, devices)] += lane.cache is not None
    memory, most = max(
        (memory_needed(shape, length, size, predicted, rows, *held), held[1]) for held in zip(kept, caches)
    )
    return memory, most * shape.kept(length, rows)


def lane_seconds(
    lane: LaneSpec, steps: Sequence[PlannedStep], speed: Speed, length: int, gen_length: int
) -> float:
    """What these steps of a lane take, for one sequence of `length` tokens."""
    settings = lane.attention.resolve(length)
    attention = speed.per_pair * length**2
    sparse = min(1.0, GATHER_OVERHEAD * settings.select)
    if settings.generation_rows == "full":
        layout = BlockLayout(length, length - gen_length, settings.block_size)
        full = 1 - layout.start_of_last(layout.generation_query_blocks) / length
        sparse = full + (1 - full) * sparse
    # What a full step takes beside a dense one. Steps of some rows see all keys.
    more = {"dense": 0.0, "select": SELECT_ATTENTIONS * attention, "sparse": (sparse - 1) * attention}
    return sum(
        count * (speed.step(length, step.rows) + (more[step.phase] if step.rows is None else 0.0))
        for step, count in Counter(steps).items()
    )


def about(seconds: float) -> str:
    """A rough time in words: "under 1 s", "about 8 s", "about 2 min", "about 1 h 25 min"."""
    if seconds < 1:
        return "under 1 s"
    return f"about {span(seconds)}"


def span(seconds: float) -> str:
    """A time in round numbers: "8 s", "25 s", "2 min", "45 min", "1 h 25 min"."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 57.5:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 570:
        return f"{max(1, round(seconds / 60))} min"
    minutes = 5 * round(seconds / 300)
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if rest else f"{hours} h"
