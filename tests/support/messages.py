"""The messages of the program as templates, and whether a text is made of them."""

from __future__ import annotations

import ast
import errno
import os
import re
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Final

from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.task import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HOLE: Final = "\0"
"""Stands for a placeholder in a template."""
_FORMATTED: Final = re.compile(r"%[-.\d]*[sdrifx]|\{\w+\}")
_BETWEEN: Final = re.compile(r"[:;] |\n")
"""Messages are joined with these: each part is looked for alone."""
_NAMES: Final = sorted({*find_operations(), *State, "refused", "unreachable"})
_VALUE: Final = rf"(?:[\w.-]+ \(\d+\)|[^ ]*[^a-z ,:;()'.][^ ]*|(?:{'|'.join(_NAMES)}),?)"
"""A value in the place of a placeholder: NAME (PID), an operation, a state, or a word with more than small letters."""
_VALUES: Final = rf"{_VALUE}(?: {_VALUE})*"
_INSIDE: Final = r"[^ ]*"
_LEFT_OUT: Final = re.compile(r"…|\.\.\.")
_NO_WORDS: Final = re.compile(rf"(?<![^ ])(?:[\w.-]+ \(\d+\)|{'|'.join(_NAMES)})(?![^ ,])")
_WORD: Final = re.compile(r"(?<![^ (,])[a-z][a-z'-]+(?![^ ),.])")
_LEAST: Final = 2
"""Words of a part that is looked for, and of a message within another one."""


def templates_of(source: str) -> Iterator[str]:
    """Each string of a module that is no docstring, with marks in the place of what is filled in."""
    tree = ast.parse(source)
    inner = {id(part) for each in ast.walk(tree) if isinstance(each, ast.JoinedStr) for part in each.values}
    inner |= {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else _HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield _FORMATTED.sub(_HOLE, node.value)
        elif isinstance(node, ast.Tuple) and all(isinstance(each, ast.Constant) for each in node.elts):
            yield " ".join(str(each.value) for each in node.elts if isinstance(each, ast.Constant))


class Messages:
    """All messages of these sources, and those of the C library."""

    def __init__(self, sources: Iterable[str]) -> None:
        whole = {text for source in sources for text in templates_of(source)}
        whole |= {os.strerror(number) for number in errno.errorcode}
        parts = {part.strip() for text in whole for part in _BETWEEN.split(text)}
        self._templates = {part: frozenset(_WORD.findall(part)) for part in parts if _WORD.search(part)}

    def unknown(self, quote: str) -> list[str]:
        """The parts of ``quote`` that no message has; ``...`` stands for words that are left out."""
        parts = [" ".join(part.split()) for each in _BETWEEN.split(quote) for part in _LEFT_OUT.split(each)]
        return [part for part in parts if len(literal_words(part)) >= _LEAST and not self._knows(part)]

    def _knows(self, text: str) -> bool:
        return self._matches(text) or any(self._matches(shorter) for shorter in self._with_a_value(text))

    def _matches(self, text: str, *, whole: bool = False) -> bool:
        wanted = literal_words(text)
        return any(
            wanted <= words and any(pattern.fullmatch(text) for pattern in _patterns(template, whole=whole))
            for template, words in self._templates.items()
        )

    def _with_a_value(self, text: str) -> Iterator[str]:
        """The text with a message inside of it taken for a value of another message."""
        words = text.split()
        for first, last in combinations(range(len(words) + 1), 2):
            part = " ".join(words[first:last])
            if last - first < len(words) and len(literal_words(part)) >= _LEAST and self._matches(part, whole=True):
                yield " ".join([*words[:first], "0", *words[last:]])


def literal_words(text: str) -> frozenset[str]:
    """The words of a quote that can be no value."""
    return frozenset(_WORD.findall(_NO_WORDS.sub("0", text)))


@cache
def _patterns(template: str, *, whole: bool) -> list[re.Pattern[str]]:
    """Patterns for the template, or also for each run of its words."""
    words = [
        _VALUES if word == _HOLE else _INSIDE.join(re.escape(part) for part in word.split(_HOLE))
        for word in template.split(" ")
    ]
    runs = [(0, len(words))] if whole else combinations(range(len(words) + 1), 2)
    return [re.compile(" ".join(words[first:last]).removesuffix(",") + ",?") for first, last in runs]
