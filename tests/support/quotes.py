"""The program's words in pages: lines of output, and messages in backquotes or quotation marks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from ktaskfs.control.manual import manual
from ktaskfs.operations.base.registry import find_operations
from tests.support.daemon import ROOT
from tests.support.documents import PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

GENERATED: Final = {"command.md"}
"""Pages that are the program's own output."""
_BLOCK: Final = re.compile(
    r"^```(?:text)?\n(?P<fenced>(?:.*\n)*?)```$"
    r"|(?P<indented>(?:^ {4}.*\n)(?:^ {4}.*\n|^\n(?= {4}))*)"
    r"|^\.EX\n(?P<example>(?:.*\n)*?)\.EE$",
    re.MULTILINE,
)
_FENCED: Final = re.compile(r"^```\w*\n(?:.*\n)*?```$", re.MULTILINE)
_PASTED: Final = re.compile(r"^```sh\n((?:.*\n)*?)```$", re.MULTILINE)
_PROMPTED: Final = re.compile(r"^ {4}[#$] ([a-z][\w-]*) ", re.MULTILINE)
_FIRST: Final = re.compile(r"^([a-z][\w-]*) ", re.MULTILINE)
_PROMPT: Final = re.compile(r"[#$] ")
_LOG: Final = re.compile(r"^ *(?:task [\w-]+|error|ktaskfs|[a-z]+ \(\d+\)): ", re.MULTILINE)
_SPAN: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_MARKED: Final = re.compile(r'"([^"]+)"')
_MESSAGE: Final = re.compile(
    r"(?:[\w/ ]+: )?(?:[A-Z][a-z]+|[a-z]+ [a-z\d/(.%][a-z\d/),.'%-]*)(?: [a-z\d/(.%][a-z\d/),.'%-]*)+"
)
"""Words without the marks of a command, and without names in capitals that stand for a value: at least three, or two if
the first has a capital."""
_OTHERS: Final = frozenset({"chmod", "from", "mount", "promtool", "python", "ssh"})
"""Commands that no block has."""
FOREIGN: Final = frozenset({"failed to open /dev/fuse", "connect to host hv200 port 22"})
"""Words of libfuse and ssh."""


@dataclass(frozen=True)
class Quote:
    """A line of output, or a message within a sentence, and its page."""

    page: str
    text: str


def quotes() -> Iterator[Quote]:
    """All quotes of all pages."""
    for path in PAGES:
        if path.name not in GENERATED:
            yield from _of(str(path.relative_to(ROOT)), path.read_text(), _SPAN)
    for path in sorted(ROOT.glob("docs/man/*.in")):
        yield from _of(str(path.relative_to(ROOT)), path.read_text().replace("\\-", "-"), None)
    for path in sorted(ROOT.glob("docs/abi/[a-z]*")):
        yield from _of(str(path.relative_to(ROOT)), path.read_text(), _MARKED)
    yield from _of("README of the mount", manual(find_operations()), _MARKED)


def _of(page: str, text: str, marks: re.Pattern[str] | None) -> Iterator[Quote]:
    for found in _BLOCK.finditer(text):
        for line in output("".join(each for each in found.groups() if each)):
            yield Quote(page, line)
    if marks is not None:
        for found in marks.finditer(_FENCED.sub("", text)):
            said = " ".join(found[1].split())
            if is_message(said):
                yield Quote(page, said)


def output(block: str) -> list[str]:
    """The messages of a block: lines between commands with a prompt, or all lines of a log. Tables have no colon."""
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    typed = any(_PROMPT.match(line) for line in lines)
    if not typed and not _LOG.search(block):
        return []
    found, continued = [], False
    for line in lines:
        typed = bool(_PROMPT.match(line)) or (typed and continued)
        continued = line.endswith("\\")
        if not typed and re.search("[:;] ", line):
            found.append(line[max(0, line.find("ktaskfs: ")) :])
    return found


def is_message(text: str) -> bool:
    """Whether a text in marks is a sentence of ktaskfs or of the C library, and not a command, a name or a value."""
    return bool(_MESSAGE.fullmatch(text)) and text.split(maxsplit=1)[0] not in programs()


@cache
def programs() -> frozenset[str]:
    """The commands of all blocks, after a prompt or at the beginning of a line to paste."""
    texts = [path.read_text() for path in PAGES]
    typed = [word for text in texts for word in _PROMPTED.findall(text)]
    typed += [word for text in texts for block in _PASTED.findall(text) for word in _FIRST.findall(block)]
    return _OTHERS | set(typed)
