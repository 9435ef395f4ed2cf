"""Numbers as people write them: sizes with binary suffixes, plain integers, lists of CPUs and nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NewType

from ktaskfs.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Nid = NewType("Nid", int)
"""The number of a NUMA node."""

SUFFIXES: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
SIZE_MAX: Final = 2**63 - 1
"""The largest offset a file can have (off_t)."""

_NUMBER: Final = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTPEkmgtpe]?)", re.ASCII)
_MAX_DIGITS: Final = 40
"""Longer digit strings are out of every range here; refusing them first keeps int() from quadratic time."""


def parse_int(text: str, *, least: int = 0, most: int = SIZE_MAX) -> int:
    """A decimal or 0x number from ``least`` to ``most``; raises InvalidValue."""
    return _checked(text, _number(text, suffixed=False), least, most)


def parse_size(text: str, *, least: int = 0, most: int = SIZE_MAX) -> int:
    """A number of bytes, with an optional suffix K M G T P E (powers of 1024), as the kernel's memparse.

    Raises InvalidValue for anything else, and outside ``least`` to ``most``.
    """
    return _checked(text, _number(text, suffixed=True), least, most)


def _number(text: str, *, suffixed: bool) -> int:
    kind = "a size (such as 4096, 0x1000 or 64G)" if suffixed else "a number"
    match = _NUMBER.fullmatch(text)
    if match is None or (match[2] and not suffixed):
        negative = text.startswith("-") and _NUMBER.fullmatch(text[1:])
        raise InvalidValue(f"{shown(text)} is negative" if negative else f"{shown(text)} is not {kind}")
    if len(match[1]) > _MAX_DIGITS:
        raise InvalidValue(f"{shown(text)} is too large")
    return int(match[1], 16 if match[1][:2] in ("0x", "0X") else 10) << SUFFIXES[match[2].upper()]


def _checked(text: str, value: int, least: int, most: int) -> int:
    if value < least:
        raise InvalidValue(f"{shown(text)} is below the least value, {least}")
    if value > most:
        raise InvalidValue(f"{shown(text)} is above the greatest value, {most}")
    return value


def shown(text: str) -> str:
    """``text`` as a message may hold it: quoted, shortened, and with nothing that a terminal would act on."""
    return ascii(text if len(text) <= _MAX_DIGITS else text[: _MAX_DIGITS - 3] + "...")


def format_size(number: int) -> str:
    """The shortest exact text that ``parse_size`` reads back: ``64G``, ``1536M``, ``4097``."""
    for suffix, shift in reversed(SUFFIXES.items()):
        if number and shift and number % (1 << shift) == 0:
            return f"{number >> shift}{suffix}"
    return str(number)


def human_size(number: float) -> str:
    """A rounded size for people, with the IEC unit: ``19.4GiB``."""
    for suffix in ("", "K", "M", "G", "T", "P"):
        text = f"{number:.1f}" if suffix else f"{number:.0f}"
        if abs(float(text)) < 1024:  # as rounded: never 1024.0KiB
            return f"{text}{suffix}iB" if suffix else f"{text}B"
        number /= 1024
    return f"{number:.1f}EiB"


@dataclass(frozen=True)
class Units:
    """What an operation's positions count: ``name`` in the plural, ``amount`` writes a number of them for people."""

    name: str
    amount: Callable[[float], str]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def counted(cls, name: str) -> Units:
        """Things that are counted one by one: ``5120pages``."""
        return cls(name, lambda number: f"{number:.0f}{name}")


BYTES: Final = Units("bytes", human_size)
PAGES: Final = Units.counted("pages")
INODES: Final = Units.counted("inodes")


def parse_cpulist(text: str, *, most: int = 4095) -> tuple[int, ...]:
    """The kernel's list format (``0-3,8``), sorted and without repetition; raises InvalidValue.

    The format is described at bitmap_parselist() in lib/bitmap-str.c; strides (``0-9:2/4``) are not read.
    """
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = parse_int(first, most=most)
        high = parse_int(last, most=most) if dash else low
        if high < low:
            raise InvalidValue(f"{shown(part)} runs backwards")
        ranges.append((low, high))
    found: list[int] = []
    for low, high in sorted(ranges):  # each number once, however often it is named: a long line stays cheap
        found.extend(range(max(low, found[-1] + 1 if found else 0), high + 1))
    return tuple(found)


def format_cpulist(numbers: Iterable[int]) -> str:
    """The inverse of ``parse_cpulist``: ``0-3,8``; the empty text for none."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
