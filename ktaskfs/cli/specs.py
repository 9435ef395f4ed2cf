"""Job specs of the command line. They are split as in the daemon, so that a key can be added to each."""

from __future__ import annotations

import errno
import io
import json
import shlex
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.cli.mounted import in_utf8
from ktaskfs.errors import Refused, WrongCommandLine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BLANKS: Final = " \t\r\n"


class CommandSpec(NamedTuple):
    """One job spec: ``text`` as it is sent, ``values`` as texts by key, with the operation as ``op``."""

    text: str
    values: Mapping[str, str]

    @property
    def name(self) -> str | None:
        """The name that it gives the task, if any."""
        return self.values.get("name")

    def adding(self, key: str, value: str | int = 1) -> CommandSpec:
        """The spec with ``key=value`` added. If it already has another value, the daemon refuses it."""
        if self.values.get(key) == str(value):
            return self
        values = {**self.values, key: str(value)}
        if self.text.startswith("{"):
            comma = "," if self.values else ""
            return CommandSpec(f'{self.text[:-1]}{comma}"{key}": {json.dumps(value)}}}', values)
        return CommandSpec(f"{self.text} {key}={shlex.quote(str(value))}", values)

    def named(self) -> CommandSpec:
        """The spec with a name. The same text gets the same name, by which the task is found again."""
        if self.name is not None:
            return self
        digest = zlib.crc32(self.text.encode(errors="surrogateescape"))
        return self.adding("name", f"{self.values.get('op', 'task')}-{digest:08x}")


def of_words(words: Sequence[str]) -> str:
    """One spec of several words of a shell, in JSON if one has a line break; a single word is the whole text.

    Raises WrongCommandLine for several specs.
    """
    if len(words) == 1:
        return words[0]
    if " " in words[0]:
        raise WrongCommandLine("one spec only, in words or as one word; write several to ktaskfs run -, one a line")
    pairs = [("op", "=", words[0]), *(word.partition("=") for word in words[1:])]
    if "\n" not in "".join(words) or not all(equals for _, equals, _ in pairs):
        return shlex.join(words)
    members = (f"{json.dumps(in_utf8(key))}: {json.dumps(in_utf8(value))}" for key, _, value in pairs)
    return f"{{{', '.join(members)}}}"  # the daemon refuses a key that is given twice


def read_specs(text: str) -> list[CommandSpec]:
    """The specs in ``text``. Raises Refused for what cannot be split."""
    try:
        return list(_specs(text))
    except json.JSONDecodeError as error:
        begin = error.doc.rfind("\n", 0, error.pos) + 1
        line, caret = error.doc[begin:].partition("\n")[0], f"{' ' * (error.pos - begin)}^"
        raise Refused(f"not JSON: {error.msg}", errno=errno.EINVAL, command=line, caret=caret) from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"cannot read the spec: {error}", errno=errno.EINVAL) from error


def _specs(text: str) -> Iterator[CommandSpec]:
    rest = text.lstrip(BLANKS)
    while rest:
        if rest[0] in "{[":
            decoder = json.JSONDecoder(object_pairs_hook=_members)
            _, end = decoder.raw_decode(rest)
            value = decoder.decode(in_utf8(rest[:end]))  # json.dumps would keep the locale's letters, not their bytes
            for each in value if isinstance(value, list) else [value]:
                if not isinstance(each, dict):
                    raise ValueError(f"{each!r} is not an object")
                yield CommandSpec(json.dumps(each), {key: _text(member) for key, member in each.items()})
            rest = rest[end:].lstrip(BLANKS)
        else:
            line, _, rest = rest.partition("\n")
            words = _words(line)
            pairs = (word.partition("=") for word in words[1:])
            # Joined anew: after a backslash at its end the line would swallow what is added to it.
            yield CommandSpec(shlex.join(words), {"op": words[0], **{key: value for key, _, value in pairs}})
            rest = rest.lstrip(BLANKS)


def _words(line: str) -> list[str]:
    """Raises Refused for an open quotation or escape, with the caret below its word."""
    stream, words = io.StringIO(line), list[str]()
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    end = 0
    try:
        for word in lexer:
            words.append(word)
            end = stream.tell()
    except ValueError as error:
        size = len(line[end:].lstrip(BLANKS))
        caret = f"{' ' * (len(line) - size)}{'^' * size}"
        text = "a quotation or an escape is not closed"
        raise Refused(text, errno=errno.EINVAL, command=line, caret=caret) from error
    return words


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key is given twice")
    return members


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
