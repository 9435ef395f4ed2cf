"""Splits a line into words as the POSIX shell does, in time linear in its length."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS_MAX: Final = 256
"""Maximum words in one line. No operation has nearly as many parameters; each costs the event loop some
microseconds."""

QUOTES_MAX: Final = 8192
"""Maximum quotes and backslashes in one line: two paths of PATH_MAX with every character escaped."""

BLANKS: Final = " \t\r\n"
"""White space to the shell and to JSON."""
_BLANKS: Final = re.compile(rf"[{BLANKS}]*+")
_PIECE: Final = re.compile(
    r"""(?P<plain>[^ \t\r\n'"\\]++)
      | '(?P<single>[^']*+)'
      | "(?P<double>[^"\\]*+(?:\\.[^"\\]*+)*+)"
      | \\(?P<escaped>.)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE_IN_DOUBLE: Final = re.compile(r"\\([\"\\])")
"""In double quotes a backslash stands for itself except before these two; ``$`` and the backquote are ordinary
characters."""


class Word(NamedTuple):
    """A token and its position in the line, in characters; ``end`` is exclusive."""

    text: str
    start: int
    end: int


def split_words(line: str) -> list[Word]:
    """The words of ``line``, without their quotes.

    Raises SpecError for an open quotation or escape, and for more than WORDS_MAX words or QUOTES_MAX
    quotes and backslashes, so that no line takes more than some milliseconds.
    """
    if sum(map(line.count, "'\"\\")) > QUOTES_MAX:
        raise SpecError(
            f"the line has more than {QUOTES_MAX} quotes and backslashes", line=line, start=0, end=len(line)
        )
    words: list[Word] = []
    for word in _words(line):
        if len(words) == WORDS_MAX:
            raise SpecError(f"the line has more than {WORDS_MAX} words", line=line, start=word.start, end=word.end)
        words.append(word)
    return words


def _words(line: str) -> Iterator[Word]:
    at = end_of_blanks(line, 0)
    while at < len(line):
        start, pieces = at, []
        while piece := _PIECE.match(line, at):
            pieces.append(_text(piece))
            at = piece.end()
        if at < len(line) and end_of_blanks(line, at) == at:
            raise SpecError("a quotation or an escape is not closed", line=line, start=start, end=len(line))
        yield Word("".join(pieces), start, at)
        at = end_of_blanks(line, at)


def _text(piece: re.Match[str]) -> str:
    text = piece[piece.lastgroup or 0]
    return _ESCAPE_IN_DOUBLE.sub(r"\1", text) if piece.lastgroup == "double" else text


def end_of_blanks(line: str, at: int) -> int:
    """The end of the white space at ``at``; ``at`` if there is none."""
    match = _BLANKS.match(line, at)
    assert match is not None
    return match.end()
