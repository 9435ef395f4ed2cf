"""The language of ``tasks/control``: one job spec, or one verb, a line.

A spec is ``OPERATION key=value ...``, split into words as the POSIX shell splits them, or one JSON object. Every
error names the place, so that ``info/error_log`` can put a caret under the token that is wrong.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, SpecError
from ktaskfs.operations.base.parameters import TaskParameters, build_parameters
from ktaskfs.tasks.words import BLANKS, WORDS_MAX, Word, end_of_blanks, split_words
from ktaskfs.units import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ktaskfs.operations.base.operation import Operation

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+=,~-]{0,127}", re.ASCII)
"""Names of tasks: safe in a shell, in a table's column and in a metric's label."""
ARRAY_MAX: Final = 4096
"""Characters of a list in a spec that is JSON, as of a cpulist."""


@dataclass(frozen=True)
class Spec:
    """A job spec that has been checked: the operation and its parsed parameters."""

    operation: Operation[Any]
    parameters: TaskParameters


def check_name(name: str) -> str:
    """``name`` if a task may be called that; raises InvalidValue."""
    if NAME.fullmatch(name) is None:
        raise InvalidValue(
            f"{shown(name)} is not a task name: 1 to 128 of A-Z a-z 0-9 _.:@+=,~- that begin with a letter, digit or _"
        )
    return name


def parse_spec(line: str, operations: Mapping[str, Operation[Any]]) -> Spec:
    """Read one job spec, in either form; raises SpecError."""
    operation, words = _from_json(line) if line.lstrip(BLANKS).startswith("{") else _from_words(line)
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
            values[key] = declared[key].kind.parse(word.text)
            if key == "name":
                check_name(word.text)
        except InvalidValue as error:
            raise _wrong(f"{key}: {error.message}", line, word, error.errno) from error
    try:
        parameters: TaskParameters = build_parameters(known.parameters, values)
    except InvalidValue as error:
        raise _wrong(f"{known.name}: {error.message}", line, operation) from error
    return Spec(known, parameters)


def _wrong(message: str, line: str, word: Word, errno: int | None = None) -> SpecError:
    return SpecError(message, line=line, start=word.start, end=word.end, errno=errno)


def _from_words(line: str) -> tuple[Word, dict[str, Word]]:
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


def _from_json(line: str) -> tuple[Word, dict[str, Word]]:
    try:
        json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        start = min(error.pos, len(line) - 1)
        raise SpecError(f"not JSON: {error.msg}", line=line, start=start, end=start + 1) from None
    except (InvalidValue, RecursionError, ValueError):
        raise SpecError("not JSON of one flat object", line=line, start=0, end=len(line)) from None
    words: dict[str, Word] = {}
    for key, value, start, end in _members(line):
        if key in words:
            raise SpecError(f"{shown(key)} is given twice", line=line, start=start, end=end)
        if len(words) == WORDS_MAX:
            raise SpecError(f"the object has more than {WORDS_MAX} members", line=line, start=start, end=end)
        words[key] = Word(_json_text(value, line, start, end), start, end)
    operation = words.pop("op", None)
    if operation is None:
        raise SpecError('the object has no "op"', line=line, start=0, end=len(line))
    return operation, words


def _members(line: str) -> Iterator[tuple[str, Any, int, int]]:
    """Key, value, start and end of each member of the object in ``line``, which is known to be JSON."""
    decoder = json.JSONDecoder()
    at = end_of_blanks(line, line.index("{") + 1)
    while line[at] != "}":
        start = at = end_of_blanks(line, at)
        key, at = decoder.raw_decode(line, at)
        value, end = decoder.raw_decode(line, end_of_blanks(line, end_of_blanks(line, at) + 1))
        yield key, value, start, end
        at = end_of_blanks(line, end)
        if line[at] == ",":
            at += 1


def _json_text(value: Any, line: str, start: int, end: int) -> str:
    """A JSON value as the text that key=value would have; a list of numbers is a cpulist."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and end - start > ARRAY_MAX:
        raise SpecError(f"a list of more than {ARRAY_MAX} characters", line=line, start=start, end=end)
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return ",".join(map(str, value))
    message = "a value is text, a whole number, true, false or a list of numbers"
    raise SpecError(message, line=line, start=start, end=end)


def _refuse_constant(name: str) -> Any:
    raise InvalidValue(f"{name} is not a number")
