"""Which way through its experts is LLaDA-MoE's fastest: `python tests/evidence/experts.py [--tokens 4096 16384 65536]`.

One layer's router and experts of the published shape, random weights in bfloat16 on random hidden states: every
implementation that transformers has without kernels from the Hub, as it is and as `sparsed.models.fuse` compiles it.
Milliseconds by the device's events; TFLOP/s of the experts' products alone; the largest difference to transformers'
plain loop, over its largest number. Then few tokens, as cached steps have them: launched kernel by kernel, replayed
as a CUDA graph, and what reading the chosen experts' weights once takes. At last the kernels of what a model runs,
longest first. Needs an NVIDIA GPU; about a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sparsed.attention.backends.timing import device_milliseconds  # noqa: E402
from sparsed.bench.few_rows import copy_speed  # noqa: E402
from sparsed.bench.shapes import SHAPES  # noqa: E402
from sparsed.models.families import recognise  # noqa: E402
from sparsed.models.fuse import compiled  # noqa: E402
from sparsed.models.layer import feed_forward  # noqa: E402

FEW = (32, 128)
# With many tokens; batched_mm gathers the weights of each token's experts.
WAYS = ("grouped_mm", "loop", "eager")


class Layer(torch.nn.Module):
    """What `feed_forward` asks of a layer."""

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype) -> None:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        super().__init__()
        with device:
            self.mlp = Qwen3MoeSparseMoeBlock(config).to(dtype)
        for weight in self.parameters():
            torch.nn.init.normal_(weight, std=0.02)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["llada-moe-7b"], default="llada-moe-7b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16_384, 65_536])
    parser.add_argument("--autotune", action="store_true", help="also torch.compile's own grouped kernels (a minute)")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    config = recognise(dict(SHAPES[given.shape]), given.shape).config
    layer = Layer(config, device, torch.bfloat16)
    chosen, width, inner = config.num_experts_per_tok, config.hidden_size, config.moe_intermediate_size
    print(f"torch {torch.__version__}; {given.shape}: top {chosen} of {config.num_experts}, {width} x {inner}")
    fused = compiled(feed_forward)
    print("tokens, milliseconds (TFLOP/s), difference to the plain loop; *: compiled as in a model")
    for tokens in given.tokens:
        hidden = rows(tokens, width, device)
        work = 2 * tokens * chosen * 3 * width * inner
        wanted = of(config, "eager", feed_forward, layer, hidden)
        ways: list[tuple[str, str, Callable[..., Tensor]]] = [(name, name, feed_forward) for name in WAYS]
        ways.insert(1, ("grouped_mm *", "grouped_mm", fused))
        if given.autotune:
            options = {"max_autotune_gemm": True, "emulate_precision_casts": True}
            ways.append(("grouped_mm * autotuned", "grouped_mm", torch.compile(feed_forward, options=options)))
        for label, name, function in ways:
            report(label, device, partial(of, config, name, function, layer, hidden), work, wanted)
    print("few tokens: milliseconds launched, replayed, limit")
    speed = copy_speed(device)
    for tokens in FEW:
        hidden = rows(tokens, width, device)
        hit = len(layer.mlp.gate(hidden)[2].unique())
        limit = 1000 * hit * 3 * width * inner * 2 / speed
        for label, name, function in (("grouped_mm", "grouped_mm", feed_forward), ("grouped_mm *", "grouped_mm", fused),
                                      ("batched_mm", "batched_mm", feed_forward)):  # fmt: skip
            go = partial(of, config, name, function, layer, hidden)
            launched = device_milliseconds(device, go, repeats=9, cold=True)
            replayed = device_milliseconds(device, graph(go).replay, repeats=9, cold=True)
            print(f"  {tokens} {label}: {launched:.3f}, {replayed:.3f}, {limit:.3f} ({hit} experts)", flush=True)
    hidden = rows(given.tokens[-1], width, device)
    go = partial(of, config, "grouped_mm", fused, layer, hidden)
    go()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        go()
        torch.cuda.synchronize()
    print(f"kernels of {given.tokens[-1]} tokens, grouped_mm *")
    for event in sorted(profile.key_averages(), key=lambda one: -one.device_time_total)[:14]:
        print(f"  {event.device_time_total / 1000:8.3f} ms  {event.count} x  {event.key[:90]}")
    return 0


def rows(tokens: int, width: int, device: torch.device) -> Tensor:
    """Hidden states of so many tokens, of a length that a compilation leaves open, as in a model."""
    hidden = torch.randn(1, tokens, width, device=device, dtype=torch.bfloat16)
    torch._dynamo.maybe_mark_dynamic(hidden, 1)
    return hidden


def of(config: Any, name: str, function: Callable[..., Tensor], layer: Layer, hidden: Tensor) -> Tensor:
    """The block's output by one of the ways. "loop": cuBLAS expert after expert, with one wait for the host."""
    if name == "loop":
        from transformers.integrations import moe

        real, moe._can_use_grouped_mm = moe._can_use_grouped_mm, lambda *_: False
        try:
            return of(config, "grouped_mm", function, layer, hidden)
        finally:
            moe._can_use_grouped_mm = real
    config._experts_implementation = name
    return function(layer, hidden)


def report(label: str, device: torch.device, go: Callable[[], Tensor], work: int, wanted: Tensor) -> None:
    start = perf_counter()
    try:
        got = go()
        torch.cuda.synchronize(device)
        first = perf_counter() - start
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        took = device_milliseconds(device, go, repeats=5)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        print(f"  {wanted.shape[1]} {label}: {(str(error).splitlines() or [''])[0]}", flush=True)
        return
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**30
    apart = float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())
    print(
        f"  {wanted.shape[1]} {label}: {took:.2f} ({work / took / 1e9:.0f}), {apart:.1e}, {peak:.1f} GiB more, first "
        f"{first:.1f} s",
        flush=True,
    )


def graph(work: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    made = torch.cuda.CUDAGraph()
    work()
    with torch.cuda.graph(made):
        work()
    return made


if __name__ == "__main__":
    sys.exit(main())
