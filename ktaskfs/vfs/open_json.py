"""JSON that a shell writes line by line: is a command whole?

The JSON of a command is flat objects, and lists of them.
"""

from __future__ import annotations

import re
from typing import Final

_BODY: Final = rb'(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*'
"""The inside of a string, without line breaks. Not possessive: with a possessive repeat around it, Python 3.11.2 also
takes a quote that is not closed."""
_STRING: Final = re.compile(rb'"%b"' % _BODY)
_WHOLE_STRINGS: Final = re.compile(rb'(?:[^"]++|"%b")*' % _BODY)
_OPEN_STRING: Final = re.compile(rb'"%b(\\?)' % _BODY)
_OTHER_COMMAND: Final = re.compile(rb"^[ \t]*+[A-Za-z]", re.MULTILINE)
"""A verb or an operation at the beginning of a line, where JSON of a command has no letter."""
_MIDDLE_OF_LINE: Final = b":"
OBJECTS: Final = 1
LISTS: Final = 2
"""How many may be open at the same time: a list of numbers, in an object, in a list."""


class OpenJson:
    """Counts the brackets of a command as its text arrives. It looks at each byte once, and holds none."""

    __slots__ = ("_before", "_is_json", "_lists", "_objects")

    def __init__(self) -> None:
        self._before = b""
        """A short stand-in for the text so far: empty at the beginning of a line, else an open string or a colon."""
        self._is_json = True
        self._objects = 0
        self._lists = 0

    def goes_on(self, data: bytes) -> bool:
        """Whether the command is not closed after ``data``; False, too, if it can no longer become JSON."""
        text = self._before + data
        object_in_object = self._objects > 0 and text.lstrip().startswith(b"{")
        matched = _WHOLE_STRINGS.match(text)
        assert matched is not None
        text, rest = text[: matched.end()], text[matched.end() :]
        opened = _OPEN_STRING.fullmatch(rest)
        other_command = object_in_object or _OTHER_COMMAND.search(text) is not None
        self._is_json &= not other_command and (opened is not None or not rest)
        if opened is not None:
            self._before = b'"' + opened[1]
        else:
            self._before = b"" if data.endswith(b"\n") else _MIDDLE_OF_LINE
        outside = _STRING.sub(b"", text)
        self._objects += outside.count(b"{") - outside.count(b"}")
        self._lists += outside.count(b"[") - outside.count(b"]")
        fits = 0 <= self._objects <= OBJECTS and 0 <= self._lists <= LISTS
        return self._is_json and fits and self._objects + self._lists > 0


def begins_json(command: bytes) -> bool:
    """Whether a command that begins with these bytes is meant as JSON."""
    return command.lstrip()[:1] in (b"{", b"[")
