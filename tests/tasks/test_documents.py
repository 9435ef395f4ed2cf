"""The commands that the documents show are commands that the parser takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ktaskfs.control.manual import manual
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.spec import Spec, parse_spec

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = find_operations()
SHOWN = re.compile(r"""echo '([a-z]+ [^']*=[^']*)' > (?:\S*/)?tasks/control""")
JSON = re.compile(r"""`(\{"op": [^`]*\})`""")


def commands() -> list[tuple[str, str]]:
    """Every job spec that a document shows, with the document's name."""
    texts = {path.name: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    texts["README in the mount"] = manual(OPERATIONS)
    return [(name, spec) for name, text in texts.items() for spec in SHOWN.findall(text) + JSON.findall(text)]


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_command_in_a_document(document: str, command: str) -> None:
    assert isinstance(parse_spec(command, OPERATIONS), Spec)


def test_there_are_such_commands() -> None:
    assert len([name for name, _ in commands() if name == "README.md"]) >= 10


def test_the_readme_names_every_operation() -> None:
    text = (ROOT / "README.md").read_text()
    missing = {name for name in OPERATIONS if not re.search(rf"\b{name}\b", text)}
    assert missing <= {"checksum", "evict", "migrate"}, "operations that no recipe shows"


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
