"""Which products of Triton's kernels are made in 32 bits: run by test_wide_indices.py, as a program of its own.

Compiles each kernel for an NVIDIA GPU, which need not be there, and reads Triton's intermediate code. Prints a line for
each stride that is multiplied, and for each offset into a tensor as large as queries or importances, in fewer than 64
bits. Argument: a folder whose modules are taken in place of the package's kernels.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

POINTERS = {"Q": "*bf16", "K": "*bf16", "V": "*bf16", "Index": "*i32", "Count": "*i32", "Rows": "*i64"}
# Those whose offsets may pass 2³¹ elements.
LARGE = ("Q", "K", "V", "Out", "Lse", "Mixed", "Top", "Total", "Index")
TILES = {"M": 64, "N": 64, "D": 64, "TMA": False, "STAGES": 2}
KERNELS: dict[str, dict[str, dict[str, Any]]] = {
    "triton_kernels": {
        "block_sparse_forward": TILES | {"BLOCK": 64},
        "block_means": TILES | {"BLOCK": 64, "GROUP": 8},
    },
    "few_rows_kernels": {
        "attend_stretch": TILES,
        "attend_listed_stretch": TILES | {"BLOCK": 64},
        "merge_stretches": {"S": 8, "D": 64},
    },
}


def code_of(kernel: Any, constants: dict[str, Any]) -> str:
    """Triton's intermediate code, functions inlined."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        usual = "fp32" if name == "scale" else "*fp32" if name[0].isupper() else "i32"
        return POINTERS.get(name, usual)

    source = ASTSource(kernel, {name: kind(name) for name in kernel.arg_names}, constants)
    return str(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ttir"])


def narrow(code: str) -> Iterator[str]:
    """What is not made in 64 bits."""
    arguments = re.search(r"tt\.func public @\w+\((.*)\) attributes", code).group(1)  # type: ignore[union-attr]
    given = re.findall(r"%(\w+): (!tt\.ptr|i32)", arguments)
    lines = [line.strip() for line in code.splitlines() if " = " in line]

    def users(value: str) -> Iterator[tuple[str, str]]:
        """Each operation on a value, or on a tensor that repeats it: its name and its line."""
        for line in lines:
            made, _, rest = line.partition(" = ")
            if re.search(rf"%{re.escape(value)}(?![\w#])", rest):
                operation = rest.split(" ")[0]
                if operation == "tt.splat":
                    yield from users(made.removeprefix("%").split(":")[0].strip())
                else:
                    yield operation, line

    for name, kind in given:
        if kind == "i32" and name.endswith(("_batch", "_head", "_row")) and name != "rows_batch":
            found = list(users(name))
            assert found, f"{name} is used"
            yield from (f"{name}: {line}" for operation, line in found if operation != "arith.extsi")
        elif name in LARGE:
            found = [line for operation, line in users(name) if operation == "tt.addptr"]
            assert found, f"{name} is used"
            yield from (f"{name}: {line}" for line in found if not re.search(r", (tensor<[\dx]+x)?i64", line))


def main() -> int:
    if len(sys.argv) > 1:
        sys.path.insert(0, sys.argv[1])
    count = 0
    for module, kernels in KERNELS.items():
        place = module if len(sys.argv) > 1 else f"sparsed.attention.backends.{module}"
        for name, constants in kernels.items():
            count += 1
            for line in narrow(code_of(getattr(import_module(place), name), constants)):
                print(f"{name}: {line}")
    print(f"{count} kernels read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
