"""app.py as torchrun starts it, with functions that fail when the file FAIL says so (tests/engine/team_script.py)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engine")]

from team_script import sabotage  # noqa: E402

if __name__ == "__main__":
    sabotage()
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
