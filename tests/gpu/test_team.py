"""Two processes, each with a GPU of its own, hold one model together: NCCL, fused networks, every sparse backend.

Prints what it compares (-s). How long steps take is measured by `torchrun … -m sparsed bench`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "engine" / "team_script.py"


def scenario(name: str, out: Path, *folders: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SCRIPT), name, str(out),
         *map(str, folders)],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())[name]
    return found


@pytest.fixture(scope="module")
def folders(checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("team")
    checkpoints.write_llada(
        base / "llada", embedding_size=312, mask_predicted=False, d_model=512, n_heads=8, n_kv_heads=8,
        mlp_hidden_size=640,
    )  # fmt: skip
    checkpoints.write_dream(
        base / "dream", num_attention_heads=8, hidden_size=512, num_key_value_heads=4, vocab_size=320,
        intermediate_size=640, mask_predicted=False,
    )  # fmt: skip
    return [base / "llada", base / "dream"]


def test_in_float32_a_team_gives_what_one_gpu_gives(folders: list[Path], tmp_path: Path) -> None:
    found = scenario("equal", tmp_path / "out.json", *folders, ROOT / "assets" / "mini")
    for name, settings in found.items():
        print(f"\n{name}: a process holds {settings['share']:.3f} of it; runs in turns equal: {settings['turns']}")
        for setting, one in settings.items():
            if isinstance(one, dict):
                print(f"  {setting:14} {one}")
                assert one["tokens"] and one["steps"] and one.get("pattern", True) and one.get("probes", True), setting
        assert settings["turns"]


def test_in_bfloat16_every_backend_follows_one_gpu(folders: list[Path], tmp_path: Path) -> None:
    """Sums of two parts are rounded once more, so a close call between two tokens may go the other way."""
    found = scenario("backends", tmp_path / "out.json", *folders)
    for name, one in found.items():
        print(f"{name:16} {one}")
        if isinstance(one, str):
            assert "flash4" in name and "not installed" in one
            continue
        assert one["backend"] == [name.split()[1]] * 2
        assert one["pattern"] > 0.99 and one["first"] > 0.9 and one["tokens"] > 0.9, name
