"""Denoising: `denoise` gives a run, an iterator of steps; `generate` makes all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import check_backend
from sparsed.batches import apart
from sparsed.config import AttentionConfig, CacheConfig, SamplerConfig, as_attention, check_keys
from sparsed.denoising.own_loop import OwnLoop
from sparsed.denoising.run import Run
from sparsed.denoising.step import Result, Step

if TYPE_CHECKING:
    from sparsed.models.model import Model

__all__ = ["OwnLoop", "Result", "Run", "Step", "denoise", "generate"]


def denoise(
    model: Model,
    prompt: str | list[dict[str, str]] | Tensor,
    *,
    sampler: SamplerConfig | None = None,
    attention: AttentionConfig | Literal["dense"] | None = None,
    cache: CacheConfig | None = None,
    backend: str = "auto",
    dense_backend: str = "auto",
    chat: bool | None = None,
    probe_steps: Iterable[int] = (),
) -> Run:
    """A denoising run over prompt + gen_length masks (with canvas "growing", those of the blocks so far). Nothing is
    computed before the first step is asked for.

    prompt: a string or chat messages, or token ids [length] or [batch, length], used as they are. chat: whether a
    string or messages go through the tokenizer's chat template; None, wherever it has one. sampler: what is None takes
    the model's defaults, by the rules of `SamplerConfig.resolve`; what that changes is the run's first note. attention:
    None is SparseD as published for the length, "dense" full attention throughout. cache: None, every step computes
    every row. backend: "auto" or the name of a
    sparse backend (a dense run does not use it). dense_backend: likewise for dense attention: "sdpa", or on a GPU
    "cudnn", "flash" or "flash4". probe_steps: after each of these steps, counted from 0, the pattern is selected afresh
    for comparison, outside every clock (`Run.probes`).

    Raises ValueError for settings out of range or that do not fit together, an empty prompt, or an unknown
    backend.
    """
    ids = model.encode(prompt, chat)
    if not isinstance(sampler, SamplerConfig | None):
        raise ValueError(f"sampler must be a SamplerConfig, not {sampler!r}.")
    settings = (sampler or SamplerConfig()).resolve(model.defaults)
    dense.check(dense_backend, model.device)
    probes = tuple(probe_steps)
    for step in probes:
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < settings.steps:
            raise ValueError(f"probe_steps must lie between 0 and {settings.steps - 1}, not {step!r}.")
    asked = as_attention(attention)
    if asked.dense and probes:
        raise ValueError("probe_steps need a SparseDConfig: a dense run selects no pattern.")
    if probes and settings.grows:
        raise ValueError("probe_steps compare patterns of one length: leave them out, or take canvas 'fixed'.")
    resolved = asked.resolve(ids.shape[1] + settings.gen_length)
    check_backend(backend, model.device, None if resolved.dense else resolved.block_size)
    if not isinstance(cache, CacheConfig | None):
        raise ValueError(f"cache must be a CacheConfig, not {cache!r}.")
    rows = (cache or CacheConfig()).resolve()
    check_keys(rows, resolved)
    if len(ids) > 1 and (why := apart(settings, resolved, rows)) is not None:
        raise ValueError(f"{why}: give prompts one by one.")
    return Run(model, ids, settings, resolved, backend, probes, dense_backend, rows)


def generate(
    model: Model,
    prompt: str | list[dict[str, str]] | Tensor,
    *,
    sampler: SamplerConfig | None = None,
    attention: AttentionConfig | Literal["dense"] | None = None,
    cache: CacheConfig | None = None,
    backend: str = "auto",
    dense_backend: str = "auto",
    chat: bool | None = None,
) -> Result:
    """`denoise` run to its end; see there for the arguments and what they raise."""
    run = denoise(
        model,
        prompt,
        sampler=sampler,
        attention=attention,
        cache=cache,
        backend=backend,
        dense_backend=dense_backend,
        chat=chat,
    )
    return run.result()
