"""Each page of docs/ is in one of four parts, whose README leads to it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ktaskfs.operations.base.registry import find_operations
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
PARTS = ("tutorial", "how-to", "reference", "explanation")


def leads_to(page: Path) -> set[Path]:
    """The files that a page links to."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / link).resolve() for link in links}


def test_no_page_lies_outside_of_the_parts() -> None:
    folders = {page.relative_to(DOCS).parts[0] for page in DOCS.rglob("*.md")}
    assert folders == {*PARTS, "abi"}  # abi is a part of the reference


@pytest.mark.parametrize("part", [part for part in PARTS if part != "tutorial"])
def test_the_page_of_a_part_leads_to_each_of_its_pages(part: str) -> None:
    index = DOCS / part / "README.md"
    assert {index, *(DOCS / part).rglob("*.md")} - leads_to(index) == {index}


def test_the_tutorial_is_one_page() -> None:
    assert [page.name for page in (DOCS / "tutorial").iterdir()] == ["first-steps.md"]


def test_the_page_on_performance_has_each_operation() -> None:
    page = (DOCS / "explanation/performance.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(find_operations())
