"""What pip installs: the wheel of this tree, built once."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import sparsed

ROOT = Path(__file__).parents[2]
PAGE = ("gradio", "plotly")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode("utf-8"))


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def asked(metadata: Message) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def test_the_wheel_carries_the_engine_its_types_and_its_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder, place in (("sparsed", ""), ("assets/mini", "sparsed/_data/"), ("prompts", "sparsed/_data/")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert place + path.relative_to(ROOT).as_posix() in names
    assert "sparsed/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sparsed"}, "nothing but the engine"


def test_the_version_is_the_packages(metadata: Message) -> None:
    assert metadata["Version"] == sparsed.__version__


def test_the_citation_is_of_the_last_version_that_was_released(metadata: Message) -> None:
    """A file of the Citation File Format 1.2: what it must have, and the version and day that CHANGELOG.md has."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert cited["title"] and cited["message"] and cited["abstract"]
    assert all("name" in one or {"family-names", "given-names"} <= set(one) for one in cited["authors"])
    assert {"type", "title", "authors"} <= set(cited["references"][0])
    assert cited["license"] == metadata["License-Expression"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d\S*), (\S+)$", changes, re.MULTILINE)
    assert released[0] == (cited["version"], cited["date-released"].isoformat())
    assert cited["version"] == sparsed.__version__


def test_dependencies_are_those_of_requirements_txt(metadata: Message) -> None:
    listed = requirements("requirements.txt")
    assert {one.name for one in listed} >= {"torch", "transformers", *PAGE}
    engine = {str(one) for one in asked(metadata) if one.marker is None}
    assert engine == {str(one) for one in listed if one.name not in PAGE}
    page = {str(one.specifier) + one.name for one in asked(metadata) if str(one.marker) == 'extra == "app"'}
    assert page == {str(one.specifier) + one.name for one in listed if one.name in PAGE}


def test_extras_ask_for_what_is_tested(metadata: Message) -> None:
    tested = {one.name: one.specifier for one in requirements("requirements-dev.txt")}
    extras = {one.name: one.specifier for one in asked(metadata) if one.marker is not None}
    assert set(metadata.get_all("Provides-Extra", [])) == {"app", "metrics", "flash4", "lm-eval", "quantize"}
    for name in ("prometheus-client", "lm-eval", "torchao"):
        both = [specifier for key, specifier in [*extras.items(), *tested.items()] if key.replace("_", "-") == name]
        assert len(both) == 2 and both[0] == both[1], name
