"""What a request may ask for on this machine, and the sentence that says no.

A dense denoising step over L tokens takes about `per_token`·L + `per_pair`·L² seconds: the linear layers grow
with the length, attention with its square. Two short steps measured when the model is loaded give both
numbers for this machine; everything here is arithmetic on them. Estimates are meant to be right within a
factor of about two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsed.turns import seat

# Gathering key blocks costs something on top of the share of the scores that is computed.
GATHER_OVERHEAD = 1.25
# The select step computes the attention scores twice more (issue: "not slower than two dense attentions").
SELECT_ATTENTIONS = 2.0
# A sampler's work on one row of logits: float32 and float64 copies, noise, sorting; bytes per entry.
LOGIT_BYTES = 32
GIB = 2**30
# The longest race where strangers share a machine, and where the GPU is borrowed from a pool.
PUBLIC_MINUTES, BORROWED_MINUTES = 5, 2
# Seconds of a dense step from which on lanes run at the same time where they can. Shorter steps are spent launching
# kernels from Python, where two threads of one process hold each other up, and no clock would be honest. Measured on
# two H200, 2 to 4 ms a step: more than 3 % of a step of 110 ms, at most 0.6 % of one of 600 ms.
SHORTEST_TOGETHER = 0.150


@dataclass(frozen=True)
class Shape:
    """The sizes of a network that decide its cost. weight_bytes: all weights. number_bytes: bytes of one
    activation. vocabulary: entries of one row of logits. processes: that share the heads and the MLP's columns among
    them; weight_bytes, and what follows from all this, are those of one process.
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

    @property
    def linear_flops(self) -> float:
        """Floating point operations per token outside attention (two per weight)."""
        return 2.0 * self.weight_bytes / self.number_bytes

    @property
    def pair_flops(self) -> float:
        """Floating point operations per (query, key) pair, all layers: q·k and probability·v."""
        return 4.0 * self.layers * self.heads * self.head_dim / self.processes


@dataclass(frozen=True)
class Speed:
    """Seconds per token and per (query, key) pair of one dense step on this machine."""

    per_token: float
    per_pair: float

    def step(self, length: int) -> float:
        """Seconds of one dense denoising step over `length` tokens."""
        return self.per_token * length + self.per_pair * length**2


@dataclass(frozen=True)
class Estimate:
    """Seconds of each lane of a race, and the peak of memory in bytes beside the weights. baseline_seconds: of the
    third lane, 0 where there is none. devices: how many the lanes have (`sparsed.turns.seat`); memory is that of the
    one that needs most.
    """

    dense_seconds: float
    sparse_seconds: float
    memory: int
    baseline_seconds: float = 0.0
    devices: int = 1

    @property
    def gain(self) -> float:
        """How many times faster SparseD is."""
        return self.dense_seconds / self.sparse_seconds

    @property
    def seconds(self) -> float:
        """The whole race."""
        return together((self.dense_seconds, self.sparse_seconds, self.baseline_seconds), self.devices)


def together(seconds: Sequence[float], devices: int) -> float:
    """What lanes of so many seconds take in all: those of one device take turns, devices run at the same time."""
    loads = [0.0] * devices
    for lane, spent in enumerate(seconds):
        loads[seat(lane, devices)] += spent
    return max(loads)


@dataclass(frozen=True)
class Limits:
    """max_seconds: the longest race. max_tokens: prompt and generation together. memory: bytes free on the
    device that is used, the model being loaded; None if unknown.

    memory_share: the part of the free memory that a race may take.

    max_waiting: runs in the line for the device, the one that goes on included. public: strangers come here.
    """

    max_seconds: float = 3600.0
    max_tokens: int = 66_560
    memory: int | None = None
    memory_share: float = 0.9
    max_waiting: int = 32
    public: bool = False

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Limits:
        """The limits of this machine. The variables SPARSED_MAX_MINUTES, SPARSED_MAX_TOKENS, SPARSED_MAX_WAITING and
        SPARSED_PUBLIC override the defaults; a Hugging Face Space, which sets SPACE_ID, is public.

        Raises ValueError when a variable is not a number in its range.
        """
        values = os.environ if environment is None else environment
        public = bool(_number(values, "SPARSED_PUBLIC", int("SPACE_ID" in values), (0, 1)))
        minutes = BORROWED_MINUTES if borrowed(values) else PUBLIC_MINUTES if public else 60
        return cls(
            max_seconds=60 * _number(values, "SPARSED_MAX_MINUTES", minutes),
            max_tokens=int(_number(values, "SPARSED_MAX_TOKENS", 66_560, (64, 1e9))),
            max_waiting=int(_number(values, "SPARSED_MAX_WAITING", 32, (1, 1e6))),
            public=public,
        )

    def announced(self, estimated: Estimate | None) -> float:
        """Seconds after which a race is ended, whatever it has reached. Estimates are right within a factor of two, and
        a short race may wait for a busy machine.
        """
        most = 2 * self.max_seconds
        return most if estimated is None else min(most, max(3 * estimated.seconds, estimated.seconds + 60))


def borrowed(environment: Mapping[str, str] | None = None) -> bool:
    """Does this process run on a ZeroGPU Space, which lends a GPU for one race at a time?"""
    values = os.environ if environment is None else environment
    return values.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


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


def _number(
    environment: Mapping[str, str], name: str, default: float, allowed: tuple[float, float] | None = None
) -> float:
    """The number in a variable. allowed: from, to; None for any above 0."""
    text = environment.get(name, "").strip()
    if not text:
        return default
    said = "a number above 0" if allowed is None else f"a number from {allowed[0]:,.0f} to {allowed[1]:,.0f}"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text[:40]!r}; it must be {said}.") from None
    inside = 0 < value < float("inf") if allowed is None else allowed[0] <= value <= allowed[1]
    if not inside:
        raise ValueError(f"{name} is {text[:40]!r}; it must be {said}.")
    return value


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
    shape: Shape, length: int, block_size: int, gen_length: int = 0, rows: int = 1, patterns: int = 1
) -> int:
    """Peak bytes of a race over `length` tokens beside the weights, which are in memory already: one layer's
    activations, the logits of `gen_length` positions, the block mask and importances.

    rows: sequences in one forward. patterns: lanes of the device that keep one. These never run at the same time, so of
    everything but the patterns the largest counts.
    """
    heads = -(-shape.heads // shape.processes)
    width = 8 * shape.hidden + 3 * -(-shape.intermediate // shape.processes) + 6 * heads * shape.head_dim
    activations = length * width * max(shape.number_bytes, 4)
    blocks = -(-length // block_size)
    # float32 importances of one layer, its sort, and the kept indices of all layers; plus the rows of one
    # query block.
    pattern = heads * blocks * blocks * 16 + patterns * shape.layers * heads * blocks * blocks * 4
    attention = heads * block_size * length * 4 * 2
    logits = gen_length * shape.vocabulary * LOGIT_BYTES
    return rows * (activations + pattern + attention + logits)


def estimate(
    shape: Shape,
    speed: Speed,
    *,
    length: int,
    steps: int,
    switch_step: int | None,
    density: float,
    block_size: int,
    gen_length: int = 0,
    rows: int = 1,
    baseline: bool = False,
    devices: int = 1,
) -> Estimate:
    """Time and memory of a race over `length` tokens (prompt and generation together).

    switch_step: the first sparse step counted from 0, None when the sparse lane never switches. density: the
    share of key blocks kept. gen_length: positions whose logits are held. rows: sequences in one forward, 2
    with classifier-free guidance. baseline: there is a third lane, with another pattern of the same density. devices:
    how many the lanes have.
    """
    dense = steps * rows * speed.step(length)
    sparse = dense
    if switch_step is not None:
        attention = rows * speed.per_pair * length**2
        saved = attention * (1 - min(1.0, GATHER_OVERHEAD * density))
        sparse = dense - (steps - switch_step) * saved + SELECT_ATTENTIONS * attention
    # With a device of its own each lane keeps one pattern at most.
    patterns = 2 if baseline and devices < 3 else 1
    memory = memory_needed(shape, length, block_size, gen_length, rows, patterns)
    return Estimate(dense, sparse, memory, sparse if baseline else 0.0, devices)


def reason(estimated: Estimate | None, limits: Limits, *, length: int) -> str:
    """In a few words why a race over `length` tokens may not run here; empty when it may."""
    if length > limits.max_tokens:
        return f"more than {limits.max_tokens:,} tokens"
    if estimated is None:
        return ""
    if limits.memory is not None and estimated.memory > limits.memory_share * limits.memory:
        return f"{estimated.memory / GIB:.1f} GiB of memory"
    if estimated.seconds > limits.max_seconds:
        return about(estimated.seconds)
    return ""


def refusal(estimated: Estimate | None, limits: Limits, *, length: int, steps: int) -> str | None:
    """Why this race may not run here, and which knob to turn; None when it may.

    estimated: None while this machine's speed is not known; then only the length is checked.
    """
    if not reason(estimated, limits, length=length):
        return None
    if length > limits.max_tokens or estimated is None:
        return (
            f"{length:,} tokens are more than this page takes ({limits.max_tokens:,}). Choose a shorter prompt length, "
            "or shorten your text."
        )
    if limits.memory is not None and estimated.memory > limits.memory_share * limits.memory:
        return (
            f"{length:,} tokens would need about {estimated.memory / GIB:.1f} GiB of memory beside the model; "
            f"{limits.memory / GIB:.1f} GiB are free here. Choose a shorter prompt length."
        )
    fewer = int(steps * limits.max_seconds / estimated.seconds)
    knob = f", or {fewer} steps or fewer" if fewer >= 8 else ""
    knob += ", or no third lane" if estimated.baseline_seconds else ""
    # What a stranger cannot turn is no knob.
    owner = "" if limits.public else " (SPARSED_MAX_MINUTES moves the limit)"
    return (
        f"{length:,} tokens in {steps} steps would take {about(estimated.seconds)} on this machine; the limit is "
        f"{span(limits.max_seconds)}. Choose a shorter prompt length{knob}{owner}."
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
