"""What hatch asks when it builds the package. Dependencies stand in requirements.txt alone: a Space installs that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGE = "# The page:"


class Dependencies(MetadataHookInterface):
    """Above the comment PAGE, requirements.txt lists what the engine needs, below it the extra "app"."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the dynamic fields. Raises ValueError if requirements.txt has no such comment."""
        text = (Path(self.root) / "requirements.txt").read_text(encoding="utf-8")
        engine, found, page = text.partition(PAGE)
        if not found:
            raise ValueError(f"requirements.txt has no comment that begins with {PAGE!r}.")
        metadata["dependencies"] = _listed(engine)
        metadata["optional-dependencies"] = {"app": _listed(page.partition("\n")[2]), **self.config["extras"]}


def _listed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]
