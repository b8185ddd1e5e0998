"""Offsets into long sequences pass 2³¹: Triton's kernels multiply strides in 64 bits, whatever fits into 32 here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "sparsed" / "attention" / "backends"

pytest.importorskip("triton")


def read(cache: Path, *arguments: str) -> list[str]:
    """The findings of wide_indices.py, in a process in which kernels are compiled, not interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, str(Path(__file__).with_name("wide_indices.py")), *arguments]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *found, last = done.stdout.splitlines()
    assert last == "5 kernels read"
    return found


def test_strides_are_multiplied_in_64_bits(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_kernels_in_32_bits_are_found(tmp_path: Path) -> None:
    """The same without a word of 64 bits: every stride, and every large tensor that is not read by strides alone."""
    for name in ("triton_kernels.py", "few_rows_kernels.py"):
        text = (KERNELS / name).read_text("utf-8").replace(".to(tl.int64)", "")
        (tmp_path / name).write_text(text.replace("sparsed.attention.backends.triton_kernels", "triton_kernels"))
    found = read(tmp_path / "cache", str(tmp_path))
    told = {tuple(line.split(": ")[:2]) for line in found}
    strides = {f"{x}_{axis}" for x in "qk" for axis in ("batch", "head", "row")}
    assert {("block_means", name) for name in (*strides, "Lse", "Out", "Q", "K")} <= told
    assert {("block_sparse_forward", name) for name in (*strides, "v_row", "o_row", "Index", "Out")} <= told
    assert {("attend_stretch", name) for name in (*strides, "v_head", "Mixed", "Top")} <= told
    assert {("attend_listed_stretch", name) for name in (*strides, "Index", "Mixed")} <= told
    assert {("merge_stretches", name) for name in ("Mixed", "Out")} <= told
