"""The Python examples of README and docs/ run as they stand, each page's one after the other.

Those that ask a page (docs/api.md) are run by tests/app/test_api.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "\n```python\n" in path.read_text()]
HERE = sorted(path.relative_to(ROOT).as_posix() for path in PAGES if path.name != "api.md")


@pytest.mark.parametrize("page", HERE)
def test_the_examples_run(
    page: str,
    examples: Callable[[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(examples(page, "python"), page, "exec"), space)
    assert capsys.readouterr().out


def test_the_pages_with_examples_are_known() -> None:
    assert HERE == ["README.md", "docs/python.md"]
