"""The language of ``tasks/control``: one job spec, or one verb, per line.

A spec is ``OPERATION key=value ...``, split into words as the POSIX shell splits them, or one JSON object, which may
take several lines. Every error has the position, for the caret in ``info/error_log``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, SpecError
from ktaskfs.operations.base.parameters import TaskParameters, build_parameters, format_parameters
from ktaskfs.tasks.json_spec import objects_of_value, words_of_object
from ktaskfs.tasks.words import BLANKS, Word, end_of_blanks, split_words
from ktaskfs.units import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ktaskfs.errors import KtaskfsError
    from ktaskfs.operations.base.operation import SpecWord

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+=,~-]{0,127}", re.ASCII)
"""Names of tasks: safe in a shell, in a table's column and in a metric's label."""


@dataclass(frozen=True)
class Spec:
    """A checked job spec: the operation, its parsed parameters, the names of those given, and the original text."""

    operation: SpecWord
    parameters: TaskParameters
    given: frozenset[str] = field(compare=False)
    text: str = field(compare=False)

    @property
    def texts(self) -> dict[str, str]:
        """The given parameters, as canonical text."""
        return {name: text for name, text in format_parameters(self.parameters).items() if name in self.given}

    def refused(self, error: KtaskfsError, number: int, count: int) -> SpecError:
        """``error`` for spec ``number`` of ``count`` in one write."""
        line = self.text.partition("\n")[0]
        message = f"spec {number} of {count}: {error.message}"
        return SpecError(message, line=line, start=0, end=0, errno=error.errno)


def check_name(name: str) -> str:
    """``name`` if it is a valid task name; raises InvalidValue."""
    if NAME.fullmatch(name) is None:
        raise InvalidValue(
            f"{shown(name)} is not a task name: 1 to 128 of A-Z a-z 0-9 _.:@+=,~- that begin with a letter, digit or _"
        )
    return name


def split_specs(text: str) -> Iterator[str]:
    """The unparsed job specs in ``text``: non-empty lines, JSON objects, and objects in JSON lists.

    Raises SpecError for invalid JSON, or text after it on the line.
    """
    try:
        yield from _split(text)
    except SpecError as error:
        raise _on_its_line(error) from error


def _split(text: str) -> Iterator[str]:
    at = end_of_blanks(text, 0)
    while at < len(text):
        if text[at] not in "{[":
            end = _end_of_line(text, at)
            yield text[at:end]
        else:
            end = yield from objects_of_value(text, at)
            after = end_of_blanks(text, end)
            if after < len(text) and "\n" not in text[end:after]:
                raise SpecError("not JSON: Extra data", line=text, start=after, end=after + 1)
        at = end_of_blanks(text, end)


def _on_its_line(error: SpecError) -> SpecError:
    """``error`` with the line of the command where the token begins."""
    text = error.line
    begin = text.rfind("\n", 0, error.start) + 1
    line = text[begin : _end_of_line(text, error.start)]
    start = max(min(error.start - begin, len(line) - 1), 0)
    end = max(min(error.end - begin, len(line)), start + 1)
    return SpecError(error.message, line=line, start=start, end=end, errno=error.errno)


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def parse_spec(text: str, operations: Mapping[str, SpecWord]) -> Spec:
    """Read one job spec, in either form; raises SpecError."""
    try:
        return _parse(text, operations)
    except SpecError as error:
        raise _on_its_line(error) from error


def _parse(line: str, operations: Mapping[str, SpecWord]) -> Spec:
    operation, words = words_of_object(line) if line.lstrip(BLANKS).startswith("{") else _from_words(line)
    known = operations.get(operation.text)
    if known is None:
        raise _wrong(f"unknown operation {shown(operation.text)}; there are {', '.join(operations)}", line, operation)
    declared = {each.name: each for each in known.declared}
    values: dict[str, Any] = {}
    for key, word in words.items():
        if key not in declared:
            message = f"{known.name} has no parameter {shown(key)}; it takes {', '.join(declared)}"
            raise _wrong(message, line, word)
        try:
            if key == "name":  # first: names are shorter than other words
                check_name(word.text)
            values[key] = declared[key].kind.parse(word.text)
        except InvalidValue as error:
            raise _wrong(f"{key}: {error.message}", line, word, error.errno) from error
    try:
        parameters: TaskParameters = build_parameters(known.parameters, values)
    except InvalidValue as error:
        raise _wrong(f"{known.name}: {error.message}", line, operation) from error
    return Spec(known, parameters, frozenset(values), line)


def _wrong(message: str, line: str, word: Word, errno: int | None = None) -> SpecError:
    return SpecError(message, line=line, start=word.start, end=word.end, errno=errno)


def _from_words(line: str) -> tuple[Word, dict[str, Word]]:
    if line.lstrip(BLANKS).startswith("#"):
        text = "a line that begins with # is no spec; only ktaskfs run --files leaves such lines out"
        raise SpecError(text, line=line, start=0, end=len(line))
    words = split_words(line)
    if not words:
        raise SpecError("the spec is empty", line=line, start=0, end=len(line))
    operation = words[0]
    values: dict[str, Word] = {}
    for word in words[1:]:
        key, equals, value = word.text.partition("=")
        if not equals:
            raise _wrong(f"{shown(word.text)} is not of the form key=value", line, word)
        if key in values:
            raise _wrong(f"{shown(key)} is given twice", line, word)
        values[key] = Word(value, word.start, word.end)
    return operation, values
