"""Job specs that are JSON: objects, each a spec, and lists of them. Positions are kept for the caret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, SpecError
from ktaskfs.tasks.words import BLANKS, WORDS_MAX, Word, end_of_blanks
from ktaskfs.units import shown

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

ARRAY_MAX: Final = 4096
"""Characters of a list in a spec, as of a cpulist."""


def objects_of_value(text: str, at: int) -> Generator[str, None, int]:
    """Each object of the JSON object, or list of objects, at ``at``; returns the end. Raises SpecError."""
    if text[at] == "{":
        return (yield from _object(text, at))
    at = end_of_blanks(text, at + 1)
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        if text[at : at + 1] != "{":
            raise _not_json(text, at, "a list of specs has objects, and ] at its end")
        at = end_of_blanks(text, (yield from _object(text, at)))
        match text[at : at + 1]:
            case "]":
                return at + 1
            case ",":
                at = end_of_blanks(text, at + 1)
            case _:
                raise _not_json(text, at, "expecting , or ] after an object of a list")


def _object(text: str, at: int) -> Generator[str, None, int]:
    end = _decoded(text, at)[1]
    yield text[at:end]
    return end


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The value at ``at``, and its end. Raises SpecError."""
    try:
        return json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _not_json(text, error.pos, error.msg) from None
    except (InvalidValue, RecursionError, ValueError):
        raise SpecError("not JSON of one flat object", line=text, start=at, end=len(text)) from None


def _not_json(text: str, at: int, why: str) -> SpecError:
    last = len(text.rstrip(BLANKS)) - 1
    ends_early = at > last or why.startswith("Unterminated string")
    start = min(at, last)
    return SpecError("the JSON ends early" if ends_early else f"not JSON: {why}", line=text, start=start, end=start + 1)


def words_of_object(text: str) -> tuple[Word, dict[str, Word]]:
    """The operation, and the other members by key, of the object that ``text`` consists of. Raises SpecError."""
    begin = end_of_blanks(text, 0)
    end = end_of_blanks(text, _decoded(text, begin)[1])
    if end < len(text):
        raise _not_json(text, end, "Extra data")
    words: dict[str, Word] = {}
    for key, value, start, end in _members(text, begin):
        if key in words:
            raise SpecError(f"{shown(key)} is given twice", line=text, start=start, end=end)
        if len(words) == WORDS_MAX:
            raise SpecError(f"the object has more than {WORDS_MAX} members", line=text, start=start, end=end)
        words[key] = Word(_value_text(value, text, start, end), start, end)
    operation = words.pop("op", None)
    if operation is None:
        raise SpecError('the object has no "op"', line=text, start=0, end=len(text))
    return operation, words


def _members(text: str, begin: int) -> Iterator[tuple[str, Any, int, int]]:
    """Key, value, start and end of each member of the valid JSON object at ``begin``."""
    decoder = json.JSONDecoder()
    at = end_of_blanks(text, begin + 1)
    while text[at] != "}":
        start = at = end_of_blanks(text, at)
        key, at = decoder.raw_decode(text, at)
        value, end = decoder.raw_decode(text, end_of_blanks(text, end_of_blanks(text, at) + 1))
        yield key, value, start, end
        at = end_of_blanks(text, end)
        if text[at] == ",":
            at += 1


def _value_text(value: Any, text: str, start: int, end: int) -> str:
    """A JSON value as text for key=value; a list of numbers is a cpulist."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and end - start > ARRAY_MAX:
        raise SpecError(f"a list of more than {ARRAY_MAX} characters", line=text, start=start, end=end)
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return ",".join(map(str, value))
    message = "a value is text, a whole number, true, false or a list of numbers"
    raise SpecError(message, line=text, start=start, end=end)


def _refuse_constant(name: str) -> Any:
    raise InvalidValue(f"{name} is not a number")
