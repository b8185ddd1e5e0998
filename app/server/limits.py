"""What may be asked of this server, and the sentence that says no."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from app.engine.cost import GIB, MEMORY_SHARE, Estimate, about, span
from app.engine.gpu import gpu_is_borrowed

# The longest race where strangers share a machine, and where the GPU is borrowed from a pool.
PUBLIC_MINUTES, BORROWED_MINUTES = 5, 2


@dataclass(frozen=True)
class Limits:
    """max_seconds: the longest race. max_tokens: prompt and generation together. memory: bytes free on the
    device that is used, the model being loaded; None if unknown.

    memory_share: the part of the free memory that a race may take.

    max_waiting: runs in the line for the device, the one that goes on included. public: strangers come here.
    """

    max_seconds: float = 3600.0
    max_tokens: int = 132_096
    memory: int | None = None
    memory_share: float = MEMORY_SHARE
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
        minutes = BORROWED_MINUTES if gpu_is_borrowed(values) else PUBLIC_MINUTES if public else 60
        return cls(
            max_seconds=60 * _number(values, "SPARSED_MAX_MINUTES", minutes),
            max_tokens=int(_number(values, "SPARSED_MAX_TOKENS", 132_096, (64, 1e9))),
            max_waiting=int(_number(values, "SPARSED_MAX_WAITING", 32, (1, 1e6))),
            public=public,
        )

    def announced(self, estimated: Estimate | None) -> float:
        """Seconds after which a race is ended, whatever it has reached. Estimates are right within a factor of two, and
        a short race may wait for a busy machine.
        """
        most = 2 * self.max_seconds
        return most if estimated is None else min(most, max(3 * estimated.seconds, estimated.seconds + 60))


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
        caches = f", {estimated.kept / GIB:.1f} GiB of it for what caches keep" if estimated.kept else ""
        knob = ", or fewer lanes with a cache" if estimated.kept else ""
        return (
            f"{length:,} tokens would need about {estimated.memory / GIB:.1f} GiB of memory beside the model{caches}; "
            f"{limits.memory / GIB:.1f} GiB are free here. Choose a shorter prompt length{knob}."
        )
    fewer = int(steps * limits.max_seconds / estimated.seconds)
    knob = f", or {fewer} steps or fewer" if fewer >= 8 else ""
    knob += ", or fewer lanes" if len(estimated.lanes) > 2 else ""
    # What a stranger cannot turn is no knob.
    owner = "" if limits.public else " (SPARSED_MAX_MINUTES moves the limit)"
    return (
        f"{length:,} tokens in {steps} steps would take {about(estimated.seconds)} on this machine; the limit is "
        f"{span(limits.max_seconds)}. Choose a shorter prompt length{knob}{owner}."
    )
