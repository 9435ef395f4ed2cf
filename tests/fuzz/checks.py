"""What must hold of every write to a control file: it is refused in plain words, or says the same in either form."""

from __future__ import annotations

import errno
import json
import os
import re
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.control.command_log import CommandLog
from ktaskfs.errors import InvalidValue, KtaskfsError, SpecError
from ktaskfs.operations.base.parameters import format_parameters, parse_parameters
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.spec import Spec, parse_spec, split_specs
from ktaskfs.tasks.words import BLANKS, QUOTES_MAX
from ktaskfs.vfs import Caller

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.parameters import Kind

OPERATIONS: Final = find_operations()
KINDS: Final = tuple(
    {id(each.kind): each.kind for operation in OPERATIONS.values() for each in operation.declared}.values()
)
ERRNOS: Final = frozenset({errno.EINVAL, errno.ENAMETOOLONG, errno.E2BIG})
"""The possible answers to a text alone, before anybody looks at a file."""
MESSAGE_MAX: Final = 1500
"""Characters of a message: it may list all parameters of an operation."""
SPECS_MAX: Final = 300
"""Specs of one text that are looked at."""
_SPECIAL: Final = re.compile(r"[ \t\r\n'\"\\]")
ANYBODY: Final = Caller(pid=1, uid=1000, gid=1000)


class Checker:
    """Counts what it has seen: ``accepted`` specs, and ``refused`` ones."""

    def __init__(self, operations: Mapping[str, SpecWord] = OPERATIONS) -> None:
        self._operations = operations
        self._log = CommandLog()
        self.accepted = 0
        self.refused = 0

    def check(self, data: bytes) -> None:
        """Take one write to ``tasks/control``, and as ``tasks/NAME/control`` takes it: as one spec.

        Raises AssertionError, or whatever the parser raises that is no error of ktaskfs.
        """
        text = os.fsdecode(data)
        parts = self._parts(text)
        for part in parts if text in parts else [text, *parts[:SPECS_MAX]]:
            try:
                spec = parse_spec(part, self._operations)
            except SpecError as error:
                self.refused += 1
                check_error(error)
                check_place(error, part)
                if self.refused % 4 == 1:
                    self._check_told(error, part)
            else:
                self.accepted += 1
                self._check_canonical(spec)

    def check_value(self, kind: Kind[Any], text: str) -> None:
        """Take one write to a parameter's file: the canonical text means the same, and is a fixed point."""
        try:
            value = kind.parse(text)
        except InvalidValue as error:
            check_error(error)
            return
        again = kind.format(value)
        assert kind.parse(again) == value, f"another value, of {kind.name}: {text!r} as {again!r}"
        assert kind.format(kind.parse(again)) == again, f"no fixed point, of {kind.name}: {again!r}"

    def _parts(self, text: str) -> list[str]:
        """The specs of a write, which lie one behind the other."""
        found: list[str] = []
        try:
            for part in split_specs(text):
                found.append(part)  # noqa: PERF402 -- those before an error are wanted, too
        except SpecError as error:
            check_error(error)
            check_place(error, text)
            self._check_told(error, text)
        place = 0
        for part in found:
            between, place = place, text.index(part, place) + len(part)
            assert not text[between : place - len(part)].strip(BLANKS + "[],"), "a part of the write is left out"
        return found

    def _check_canonical(self, spec: Spec) -> None:
        """The canonical texts are a fixed point, and mean the same as JSON, and as words or in a record."""
        texts = format_parameters(spec.parameters)
        written = json.dumps({"op": spec.operation.name, **texts})
        again = parse_spec(written, self._operations)
        assert again == spec, f"as JSON it is another one: {written}"
        assert format_parameters(again.parameters) == texts, f"no fixed point: {written}"
        line = " ".join([spec.operation.name, *(f"{key}={escaped(value)}" for key, value in texts.items())])
        if self.accepted % 2 and sum(map(line.count, "'\"\\")) <= QUOTES_MAX:  # JSON can say more
            assert parse_spec(line, self._operations) == spec, f"as words it is another one: {line!r}"
        if self.accepted % 2 == 0:  # each of the two takes as long as all else
            assert parse_parameters(spec.operation.parameters, texts) == spec.parameters, f"another one: {texts}"

    def _check_told(self, error: SpecError, text: str) -> None:
        """``info`` can show it: two lines for people, and one with the caret."""
        self._log.refused("tasks/control", ANYBODY, text, error)
        lines = self._log.errors(ANYBODY).splitlines()
        assert 2 <= len(lines) <= 3, lines
        assert all(map(str.isprintable, lines)), lines
        self._log.clear(ANYBODY)


def escaped(text: str) -> str:
    """A word for the shell. shlex.quote takes four quotes for one, which may be more than a line can have."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def check_error(error: KtaskfsError) -> None:
    """It has an errno that suits a text, and one line of printable words."""
    assert error.errno in ERRNOS, f"errno {error.errno}: {error.message}"
    assert error.message.isprintable(), f"not printable: {error.message!r}"
    assert 0 < len(error.message) <= MESSAGE_MAX, f"{len(error.message)} characters: {error.message!r}"


def check_place(error: SpecError, text: str) -> None:
    """``info/error_log`` must be able to put a caret at the position of the error."""
    assert error.line in text.split("\n"), f"not a line of the command: {error.line!r}"
    assert 0 <= error.start <= error.end <= max(len(error.line), 1), (error.start, error.end, error.line)


def check(data: bytes) -> None:
    """``Checker.check``, for a fuzzer that calls a function."""
    Checker().check(data)
