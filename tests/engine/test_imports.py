"""What importing the engine pulls in. Each test looks from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def modules_after(code: str) -> set[str]:
    """The top-level packages that are imported once `code` has run."""
    script = (
        f"{code}\nimport sys, json\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    loaded = modules_after("import sparsed; sparsed.SparseDConfig(); sparsed.SamplerConfig(); dir(sparsed)")
    assert "sparsed" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "gradio", "plotly", "app"}


def test_using_the_engine_never_imports_the_page() -> None:
    loaded = modules_after("import sparsed; sparsed.load; sparsed.denoise; sparsed.Pattern; sparsed.generate")
    assert "torch" in loaded
    assert not loaded & {"gradio", "plotly", "app"}


def test_the_command_line_is_light_until_a_command_runs() -> None:
    loaded = modules_after("import sparsed.__main__")
    assert not loaded & {"torch", "transformers", "gradio", "plotly"}


def test_every_public_name_exists_and_others_do_not() -> None:
    import sparsed

    for name in sparsed.__all__:
        assert getattr(sparsed, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        sparsed.missing  # noqa: B018
