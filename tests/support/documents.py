"""The documents of the project: which there are, and the blocks of commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES: Final = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ansible/**/*.md"), *ROOT.glob(".github/**/*.md")]
)
"""Every page of the project; those of bench/ are written by the benchmarks."""
_PART: Final = re.compile(
    r"^(?:#+ (?P<heading>[^\n]*)|```(?P<language>\w*)\n(?P<text>.*?)^```)$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Commands that a reader pastes into a shell: a block marked ``sh``. ``number`` counts those of its page."""

    page: str
    heading: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{'-'.join(self.heading.split()[:3]).lower()}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in its order."""
    found: list[Block] = []
    heading = ""
    for part in _PART.finditer(page.read_text()):
        if part["text"] is None:
            heading = part["heading"]
        elif part["language"] == "sh":
            found.append(Block(page.name, heading, len(found) + 1, part["text"]))
    return found
