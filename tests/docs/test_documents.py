"""The parser takes the commands that the documents show, links lead somewhere, and the reference is up to date."""

from __future__ import annotations

import re
import runpy
import shlex
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.arguments import parser
from ktaskfs.cli.specs import of_words
from ktaskfs.control.manual import manual
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.spec import Spec, parse_spec
from tests.support.daemon import ROOT
from tests.support.documents import PAGES, blocks

if TYPE_CHECKING:
    from pathlib import Path

OPERATIONS = find_operations()
SHOWN = re.compile(r"""echo '([a-z]+ [^']*=[^']*)' > (?:\S*/)?tasks/control""")
JSON = re.compile(r"""`(\{"op": [^`]*\})`""")
RUN = re.compile(r"ktaskfs run (?:[^\n|)&]|\)\))+")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
REFERENCE = ROOT / "docs/reference"
WRONG_ON_PURPOSE = "lenght="


def commands() -> list[tuple[str, str]]:
    """Every job spec that a document shows, with the document's name."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
    texts["README in the mount"] = manual(OPERATIONS)
    found = [(name, spec) for name, text in texts.items() for spec in SHOWN.findall(text) + JSON.findall(text)]
    for page in PAGES:
        for block in blocks(page):
            for command in RUN.findall(block.text):
                words = shlex.split(re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", command), comments=True)
                spec = parser({}).parse_args(words[1:]).spec
                found.append((str(page.relative_to(ROOT)), of_words(spec)))
    return [each for each in found if WRONG_ON_PURPOSE not in each[1]]


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_in_a_document(document: str, command: str) -> None:
    assert isinstance(parse_spec(command, OPERATIONS), Spec)


def test_there_are_such_commands() -> None:
    assert len([name for name, _ in commands() if name == "README.md"]) >= 10
    assert len(commands()) > 50


def test_the_readme_names_every_operation() -> None:
    text = (ROOT / "README.md").read_text()
    assert {name for name in OPERATIONS if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("folder", ["how-to", "reference", "reference/operations", "explanation"])
def test_every_page_is_in_the_list_of_its_folder(folder: str) -> None:
    """Readers of plain Markdown only find pages that a list has."""
    place = ROOT / "docs" / folder
    index = place / "README.md" if (place / "README.md").exists() else place.parent / "README.md"
    listed = {(index.parent / target).resolve() for target in LINK.findall(index.read_text())}
    assert set(place.glob("*.md")) - listed <= {index}


def _words(path: Path, text: str) -> list[str]:
    """The lines of a page, or the words of command.md: argparse of Python 3.13 and later lays out help differently.

    Later versions also write the value of an option once: ``-m, --mount MOUNT``.
    """
    if path.name != "command.md":
        return text.splitlines()
    return re.sub(r"(-\w) [A-Z]+, --", r"\1, --", text).split()


def test_the_reference_says_what_the_declarations_say() -> None:
    made: dict[Path, str] = runpy.run_path(str(REFERENCE / "generate.py"))["pages"]()
    stale = [
        str(path.relative_to(ROOT))
        for path, text in made.items()
        if not path.exists() or _words(path, path.read_text()) != _words(path, text)
    ]
    assert stale == [], "run: .venv/bin/python docs/reference/generate.py"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_page_of_an_operation_says_what_comes_of_it(name: str) -> None:
    """Below the generated part, by hand: the format of the result, and the refusals."""
    page = REFERENCE / f"operations/{name}.md"
    parts = re.split(r"^## (\w+)$", page.read_text(), flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert len(said.get("Result", "")) > 20, f"add a section Result to {page.relative_to(ROOT)}"
    assert len(said.get("Refused", "")) > 20, f"add a section Refused to {page.relative_to(ROOT)}"
