"""What importing the engine pulls in. Each test looks from a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
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


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module of ours, whether the import stands inside a function) of a file; those for the type checker left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, inside = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # A name may be a module of a package, or something that a module holds.
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in below]
        yield from ((name, inside) for name in names if name in MODULES)
        waiting += [(child, inside) for child in ast.iter_child_nodes(node)]


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(file): file for part in ("app", "sparsed") for file in (ROOT / part).rglob("*.py")}


def test_no_import_of_the_page_waits_for_a_call() -> None:
    """`gradio app.py` binds the name `app` to the script app.py when the package is already there."""
    late = {name: [other for other, inside in imports(file) if inside] for name, file in MODULES.items()}
    assert any(late.values()), "some imports of the engine wait, for torch"
    assert not [name for name, others in late.items() if any(other.partition(".")[0] == "app" for other in others)]


def test_imports_run_in_no_circle() -> None:
    below = {name: {other for other, _ in imports(file)} - {name, "sparsed", "app"} for name, file in MODULES.items()}
    assert below["app.server.start"] > {"app.finished.run", "sparsed.turns"}
    list(TopologicalSorter(below).static_order())


def test_every_public_name_exists_and_others_do_not() -> None:
    import sparsed

    for name in sparsed.__all__:
        assert getattr(sparsed, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        sparsed.missing  # noqa: B018


def own_late_imports(file: Path) -> Iterator[tuple[int, bool]]:
    """(line, whether a comment there, or above it in its block of imports, says why) of ours inside functions."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    inside = (inner for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS) for inner in ast.walk(node))
    for node in inside:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if {name.partition(".")[0] for name in names} & {"app", "sparsed"}:
            first = node.lineno - 1
            while lines[first - 1].strip().startswith(("from ", "import ", "#")) or not lines[first - 1].strip():
                first -= 1
            yield node.lineno, any("#" in line for line in lines[first : node.lineno])


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_an_import_that_waits_says_why() -> None:
    found = [(name, *one) for name, file in MODULES.items() for one in own_late_imports(file)]
    assert len(found) > 10
    assert [(name, line) for name, line, said in found if not said] == []


def test_no_file_is_longer_than_can_be_read() -> None:
    parts = [path for part in ("app", "sparsed", "assets") for path in (ROOT / part).rglob("*")]
    code = [path for path in [*parts, ROOT / "app.py"] if path.suffix in (".py", ".js", ".css")]
    assert {path.suffix for path in code} == {".py", ".js", ".css"} and len(code) > 100
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def test_the_engine_imports_nothing_of_the_page() -> None:
    for name, file in MODULES.items():
        if name.partition(".")[0] == "sparsed":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            froms = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert not {one.partition(".")[0] for one in froms | plain} & {"app", "gradio", "plotly"}, name
