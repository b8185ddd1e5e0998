"""Compiles the Triton kernels for NVIDIA GPUs, which need not be there: run by test_triton.py, as a program of its own,
because kernels are either interpreted or compiled in one process.

Each kernel as it is called for the first choice of tiles, once for each generation whose code differs. Prints a JSON
object for each: its bytes of shared memory, and how often the code copies while it computes, multiplies as Hopper does,
and gives warps registers of their own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout

from sparsed.attention.backends import few_rows, few_rows_kernels, gluon_kernels, triton_kernels
from sparsed.attention.backends import triton as backend

GENERATIONS = (80, 90, 100, 120)
WHOLE_NUMBERS = {"Index": "i32", "Count": "i32", "Rows": "i64"}


def compiled(
    kernel: Any, capability: int, values: dict[str, Any], dtype: str, described: dict[str, str],
    source: Any = ASTSource, aligned: bool = False, numbers: tuple[str, ...] = ("Q", "K", "V", "Out"), **options: int,
) -> None:  # fmt: skip
    """values: constants. described: what comes through descriptors, and their tiles. aligned: pointers and strides at
    multiples of 16, as Triton finds out when it compiles for a call. numbers: what is of `dtype`.
    """
    signature: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in values:
            signature[name] = "constexpr"
        elif name in described:
            signature[name] = f"tensordesc<{dtype}{described[name]}>"
        elif name[0].isupper():
            signature[name] = "*" + (dtype if name in numbers else WHOLE_NUMBERS.get(name, "fp32"))
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    attributes = {
        places[name]: [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind[0] == "*" or name.endswith(("_batch", "_head", "_row"))
    }
    made = source(
        fn=kernel, signature=signature, constexprs={places[name]: value for name, value in values.items()},
        attrs=attributes if aligned else None,
    )  # fmt: skip
    done = triton.compile(made, target=GPUTarget("cuda", capability, 32), options=options)
    assert done.asm["cubin"]
    code = done.asm["ptx"]
    print(json.dumps({
        "kernel": kernel.fn.__name__, "capability": capability, "block": values.get("BLOCK"), "m": values.get("M"),
        "dtype": dtype, "dim": values["D"], "shared": done.metadata.shared, "copies": code.count("cp.async"),
        "products": code.count("wgmma.mma_async"), "registers": code.count("setmaxnreg"),
    }))  # fmt: skip


def of_all_rows(capability: int, block: int) -> None:
    tiles = backend._ATTENTION[block][0]
    values = {"BLOCK": block, "M": tiles.m, "N": tiles.n, "D": 128, "STAGES": tiles.stages}
    tma = capability >= 90 and tiles.n <= block
    shapes = {"Q": f"[1, 1, {tiles.m}, 128]", **dict.fromkeys("KV", f"[1, 1, {tiles.n}, 128]")} if tma else {}
    compiled(triton_kernels.block_sparse_forward, capability, values | {"TMA": tma}, "bf16", shapes,
             num_warps=tiles.warps)  # fmt: skip
    tiles, tma = backend._IMPORTANCE[block][0], capability >= 90
    values = {"BLOCK": block, "M": tiles.m, "N": tiles.n, "D": 128, "STAGES": tiles.stages, "GROUP": backend._GROUP}
    shapes = {"Q": f"[1, 1, {tiles.m}, 128]", "K": f"[1, 1, {tiles.n}, 128]"} if tma else {}
    compiled(triton_kernels.block_means, capability, values | {"TMA": tma}, "bf16", shapes, numbers=("Q", "K"),
             num_warps=tiles.warps)  # fmt: skip


def of_few_rows(kernel: Any, capability: int, dtype: str, tiles: backend.Tiles, **more: int) -> None:
    tma = capability >= 90
    values = {"M": tiles.m, "N": tiles.n, "D": 128, "STAGES": tiles.stages, "TMA": tma, **more}
    shapes = dict.fromkeys("KV", f"[1, 1, {tiles.n}, 128]") if tma else {}
    compiled(kernel, capability, values, dtype, shapes, aligned=True, num_warps=tiles.warps)


def on_hopper(dtype: str, dim: int) -> None:
    tiles = backend._HOPPER
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    shapes = {name: f"[1, 1, {rows}, {dim}],{layout!r}" for name, rows in zip("QKV", (tiles.m // 2, tiles.n, tiles.n))}
    compiled(
        gluon_kernels.warp_specialized_forward, 90, {"N": tiles.n, "D": dim, "STAGES": tiles.stages}, dtype, shapes,
        GluonASTSource, num_warps=tiles.warps, maxnreg=gluon_kernels.REGISTERS,
    )  # fmt: skip


def main() -> int:
    for dtype, dim in (("bf16", 128), ("fp16", 64)):
        on_hopper(dtype, dim)
    for capability in GENERATIONS:
        of_all_rows(capability, 128)
        of_few_rows(few_rows_kernels.attend_stretch, capability, "bf16", few_rows._TILES[128][0])
        listed = backend.few_tiles(torch.bfloat16, 128, 128)
        of_few_rows(few_rows_kernels.attend_listed_stretch, capability, "bf16", listed, BLOCK=128)
    of_all_rows(90, 32)
    # Few rows, and numbers of 32 bits, are multiplied alike by all; keys come through pointers, or descriptors.
    for capability in (80, 90):
        of_few_rows(few_rows_kernels.attend_stretch, capability, "bf16", few_rows._TILES[16][0])
        of_few_rows(few_rows_kernels.attend_stretch, capability, "fp32", few_rows._FLOAT32[32])
    compiled(few_rows_kernels.merge_stretches, 80, {"S": backend.MERGED, "D": 128}, "bf16", {}, aligned=True,
             numbers=("Out",))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
