"""The layout of the page: one table of fields for the daemon's and the worker's side.

The layout never changes within a boot: a new daemon adopts the pages of workers that an older one started.
"""

from __future__ import annotations

import errno
import functools
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.errors import ERRNO_MAX
from ktaskfs.progress.snapshot import FoundWhy, Phase, ThreadState
from ktaskfs.result import RESULT_MAX
from ktaskfs.span import NO_NODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

WORD: Final = 8
"""Bytes of a word, which is unsigned and in little-endian order."""
MAGIC: Final = int.from_bytes(b"ktaskpg1", "little")
MESSAGE_AT: Final = 64
MESSAGE_BYTES: Final = 1024
_MASK: Final = 2**64 - 1
_PHASES: Final = {int(each): each for each in Phase}
_FOUND_WHY: Final = {int(each): each for each in FoundWhy}
_THREAD_STATES: Final = {int(each): each for each in ThreadState}


class Writer(Enum):
    """The writer of a block."""

    DAEMON = "daemon"
    WORKER = "worker"


class Field(NamedTuple):
    """One word of a block: ``word`` counts from the start of the block.

    ``checked`` converts the number in the word. It accepts any number, because anybody may have written it.
    """

    name: str
    word: int
    signed: bool = False
    checked: Callable[[int], Any] = int

    def value(self, word: int) -> Any:
        """The checked value of a word."""
        return self.checked(word - 2**64 if self.signed and word >> 63 else word)


@dataclass(frozen=True)
class FieldBlock:
    """Fields that stand together, of one ``writer``: ``at`` is the first word, ``words`` is how many one entry takes.

    Ranges, slots and banks have several entries, one after the other. The ``at`` of slots is counted from
    ``Shape.slots_at``, and that of banks from their slot.
    """

    at: int
    words: int
    writer: Writer
    fields: tuple[Field, ...]

    @functools.cached_property
    def _readers(self) -> list[tuple[str, int, Callable[[int], Any] | None]]:
        """Name and word of each field, and what makes its value of the number if that is not the value already."""
        return [
            (each.name, each.word, each.value if each.signed or each.checked is not int else None)
            for each in self.fields
        ]

    def word(self, name: str) -> int:
        """The word of the field ``name`` in the block."""
        return next(field.word for field in self.fields if field.name == name)

    def read(self, words: Sequence[int], at: int) -> dict[str, Any]:
        """The checked values of the entry at word ``at``, by name."""
        return {
            name: words[at + word] if value is None else value(words[at + word]) for name, word, value in self._readers
        }

    def store(self, words: memoryview[int], at: int, **values: int) -> None:
        """The worker stores ``values`` one by one, in the order in which they are given."""
        assert self.writer is Writer.WORKER
        for name, value in values.items():
            words[at + self.word(name)] = value & _MASK

    def packed(self, values: Mapping[str, int]) -> bytes:
        """The fields of a block as bytes for the daemon to write; they follow one another from its first word."""
        assert self.writer is Writer.DAEMON
        return b"".join((values[field.name] & _MASK).to_bytes(WORD, "little") for field in self.fields)


def _phase(number: int) -> Phase:
    return _PHASES.get(number, Phase.FAILED)


def _thread_state(number: int) -> ThreadState:
    return _THREAD_STATES.get(number, ThreadState.ENDED)


def _found_why(number: int) -> FoundWhy:
    return _FOUND_WHY.get(number, FoundWhy.UNKNOWN)


def _errno(number: int) -> int:
    return number if number < ERRNO_MAX else errno.EIO


def _nid(number: int) -> int:
    return max(number, NO_NODE)


def _result_size(number: int) -> int:
    return min(number, RESULT_MAX)


IDENTITY: Final = FieldBlock(0, 8, Writer.DAEMON, (Field("magic", 0), Field("slots", 1), Field("nodes", 2)))
REQUESTS: Final = FieldBlock(
    8,
    24,
    Writer.DAEMON,
    (
        Field("cancel", 0, checked=bool),
        Field("paused", 1, checked=bool),
        Field("threads", 2),
        Field("rate", 3),
        Field("nice", 4, signed=True),
    ),
)
REPORT: Final = FieldBlock(
    32,
    32,
    Writer.WORKER,
    (
        Field("phase", 0, checked=_phase),
        Field("started_ns", 1),
        Field("ended_ns", 2),
        Field("total", 3),
        Field("ranges", 4),
        Field("errno", 5, checked=_errno),
        Field("error_position", 6, signed=True),
        Field("result_size", 7, checked=_result_size),
        Field("undone", 8, checked=bool),
        Field("found", 9),
        Field("found_nid", 10, signed=True, checked=_nid),
        Field("found_why", 11, checked=_found_why),
    ),
)
RANGE: Final = FieldBlock(
    512,
    8,
    Writer.WORKER,
    (
        Field("start", 0),
        Field("size", 1),
        Field("nid", 2, signed=True, checked=_nid),
        Field("position", 3),
    ),
)
SLOT: Final = FieldBlock(
    0,
    16,
    Writer.WORKER,
    (
        Field("sequence", 0),
        Field("state", 1, checked=_thread_state),
        Field("tid", 2),
        Field("nid", 3, signed=True),
        Field("chunks", 4),
        Field("units", 5),
        Field("busy_us", 6),
    ),
)
BANK: Final = FieldBlock(8, 4, Writer.WORKER, (Field("node", 0), Field("start", 1), Field("end", 2)))
"""One chunk in flight. A slot has two banks, at these words of it: sequence number % 2 tells which one counts."""


@dataclass(frozen=True)
class Shape:
    """How many threads and ranges a page has room for."""

    slots: int
    nodes: int

    @functools.cached_property
    def slots_at(self) -> int:
        """The word where the slots begin."""
        return RANGE.at + self.nodes * RANGE.words

    @functools.cached_property
    def words(self) -> int:
        return self.slots_at + self.slots * SLOT.words

    @functools.cached_property
    def size(self) -> int:
        """Bytes, without the result."""
        return self.words * WORD

    def ranges(self, count: int) -> Iterator[int]:
        """The first words of ``count`` ranges, or of as many as there is room for."""
        return iter(range(RANGE.at, RANGE.at + min(count, self.nodes) * RANGE.words, RANGE.words))

    def each_slot(self) -> range:
        """The first word of each slot."""
        return range(self.slots_at, self.words, SLOT.words)
