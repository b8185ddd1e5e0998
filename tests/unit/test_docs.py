"""README, CONTRIBUTING, docs/ and the code's own comments name files, links, commands and options that are there."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
import tokenize
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from app.tools.deploy import SPACE

ROOT = Path(__file__).parents[2]
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
# The changes name what was, too.
TODAY = [page for page in PAGES if page != "CHANGELOG.md"]
WITH_COMMANDS = ("sparsed", "sparsed.training")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
FILE = re.compile(r"(?<![\w/.@-])(?:app|sparsed|assets|prompts|docs|tests)/[\w/.*-]*[\w/*]")
COMMAND = re.compile(r"(?:^|[\s(])(?:python|launch.*?|torchrun.*?) -m ([\w.]+)(.*)")
NAME = re.compile(r"(?<![\w./-])(?:sparsed|app)(?:\.(?!py\b)[A-Za-z_]\w*)+")
# A comment of a script or a stylesheet.
SAID = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--\w[\w-]*")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    return FENCE.sub("", text(page))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: str) -> list[str]:
    """The lines of fenced blocks (continued ones joined, comments and pipes cut off) and the code in the text."""
    lines = "\n".join(FENCE.findall(text(page))).replace("\\\n", " ").splitlines()
    spans = [" ".join(span.split()) for span in CODE.findall(prose(page))]
    return [line.split(" # ")[0].rstrip() for line in [*lines, *spans]]


@cache
def usage(module: str, *subcommand: str) -> str:
    """What `python -m module subcommand --help` prints."""
    said = io.StringIO()
    with patch.object(sys, "argv", [module, *subcommand, "--help"]), contextlib.redirect_stdout(said):
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert not end.value.code, f"{module} {subcommand}"
    return said.getvalue()


def there(name: str) -> bool:
    """Is a module, or a name of a module, by its dotted path?"""
    head, _, last = name.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):
        if find_spec(name) is not None:
            return True
    return bool(head) and there(head) and hasattr(import_module(head), last)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere_on_github_and_on_a_space(page: str) -> None:
    wrong = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path if path else ROOT / page).resolve()
        sent = target.is_relative_to(ROOT) and target.relative_to(ROOT).parts[0] in SPACE
        if "://" not in link and not (sent and target.is_file() and (not anchor or anchor in anchors(target))):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", TODAY)
def test_every_path_and_every_name_exists(page: str) -> None:
    assert not [path for path in FILE.findall(text(page)) if not any(ROOT.glob(path))]
    spans = [re.sub(r"from ([\w.]+) import (\w+)", r"\1.\2", span) for span in CODE.findall(prose(page))]
    names = {name for span in spans for name in NAME.findall(span)}
    assert not [name for name in names if not there(name)]


def said(file: Path) -> str:
    """The docstrings and comments of a file of ours."""
    source = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return "\n".join(SAID.findall(source))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = (tokenize.COMMENT, tokenize.STRING)
    return "\n".join(token.string for token in tokens if token.type in kept and token.string.startswith(("#", '"""')))


def test_every_path_and_every_name_in_docstrings_and_comments_exists() -> None:
    parts = [path for part in ("app", "sparsed", "assets/page") for path in (ROOT / part).rglob("*")]
    texts = {path: said(path) for path in parts if path.suffix in (".py", ".js", ".css")}
    paths = {(path, name) for path, of in texts.items() for name in FILE.findall(of)}
    names = {(path, name) for path, of in texts.items() for name in NAME.findall(of)}
    assert len(paths) > 20 and len(names) > 20
    gone = {name for name in {name for _, name in paths} if not any(ROOT.glob(name))}
    gone |= {name for name in {name for _, name in names} if not there(name)}
    assert [(str(path.relative_to(ROOT)), name) for path, name in sorted(paths | names) if name in gone] == []


# A command that a test has imported already is run once more.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("page", TODAY)
def test_every_command_exists_with_the_options_given(page: str) -> None:
    wrong = []
    for line in commands(page):
        for module, rest in COMMAND.findall(line):
            words = rest.split()
            if not there(module):
                wrong.append(line)
            elif module.split(".")[0] in ("sparsed", "app") and words:
                named = words[:1] if module in WITH_COMMANDS and "|" not in rest and words[0][0] != "-" else []
                shown = usage(module, *named, *(["run"] if named == ["lm_eval"] else []))
                if not set(OPTION.findall(rest)) <= set(OPTION.findall(shown)):
                    wrong.append(line)
    assert not wrong


def test_the_options_in_the_tables_of_generate_are_its_own() -> None:
    given = {option for span in CODE.findall(prose("docs/command-line.md")) for option in OPTION.findall(span)}
    assert len(given) > 25
    assert given <= set(OPTION.findall(usage("sparsed", "generate")))


def test_readme_is_short() -> None:
    _, front, body = text("README.md").split("---\n", 2)
    assert front.startswith("title:") and len(body.splitlines()) <= 150


def test_the_index_names_every_page() -> None:
    assert {"README.md", *LINK.findall(text("docs/README.md"))} >= {page.removeprefix("docs/") for page in DOCS}


def test_the_map_is_of_this_tree() -> None:
    """Every file and folder of the map exists, and every folder of the two packages is in it."""
    block = FENCE.findall(text("docs/architecture.md").partition("\n## The map\n")[2])[0]
    named: set[Path] = set()
    above: list[Path] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        listed = re.match(r"(?:[\w.]+(?:/|\.py) +)+", line.strip() + " ")
        assert listed, line
        places = [(above[depth - 1] if depth else ROOT) / name for name in listed[0].split()]
        above[depth:] = [places[0]]
        named |= set(places)
    assert not [str(path.relative_to(ROOT)) for path in named if not path.exists()]
    packages = {path.parent for package in ("app", "sparsed") for path in (ROOT / package).rglob("*.py")}
    assert not [str(path.relative_to(ROOT)) for path in packages - named]
