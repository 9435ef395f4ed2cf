"""Numbers as people write them: sizes with binary suffixes, plain integers, lists of CPUs and nodes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple, NewType

from ktaskfs.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Nid = NewType("Nid", int)
"""The number of a NUMA node."""

SUFFIXES: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
SIZE_MAX: Final = 2**63 - 1
"""The largest offset a file can have (off_t)."""

_DIGITS: Final = "0[xX][0-9a-fA-F]+|[0-9]+"
_NUMBER: Final = re.compile(rf"({_DIGITS})(?:([KMGTPE])(?:iB?)?)?", re.ASCII | re.IGNORECASE)
_RANGE: Final = rf"(?:{_DIGITS})(?:-(?:{_DIGITS}))?"
_LIST: Final = re.compile(rf"{_RANGE}(?:,{_RANGE})*", re.ASCII)
_DECIMAL: Final = re.compile(r"([0-9]+)([KMGTPE])B", re.ASCII | re.IGNORECASE)
"""``2MB`` is ambiguous: two million, or 2 MiB."""
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
_FRACTION: Final = re.compile(r"([0-9]*)\.([0-9]*)(?:([KMGTPE])(?:i?B?)?)?", re.ASCII | re.IGNORECASE)
_MAX_DIGITS: Final = 40
"""Longer numbers are out of every range; refusing them first avoids the quadratic time of int()."""


def parse_int(text: str, *, least: int = 0, most: int = SIZE_MAX) -> int:
    """A decimal or 0x number from ``least`` to ``most``; raises InvalidValue."""
    return _checked(text, _number(text, suffixed=False), least, most)


def parse_size(text: str, *, least: int = 0, most: int = SIZE_MAX) -> int:
    """A number of bytes. A suffix K M G T P E stands for a power of 1024, and so does Ki or KiB, as elsewhere.

    Raises InvalidValue for anything else, and outside ``least`` to ``most``. For KB and fractions the message
    suggests the correct form.
    """
    return _checked(text, _number(text, suffixed=True), least, most)


def _number(text: str, *, suffixed: bool) -> int:
    kind = "a size (such as 4096, 0x1000, 64G or 64GiB)" if suffixed else "a number"
    match = _NUMBER.fullmatch(text)
    if match is None or (match[2] and not suffixed):
        negative = text.startswith("-") and _NUMBER.fullmatch(text[1:])
        hint = _size_hint(text) if suffixed and len(text) <= _MAX_DIGITS else ""
        raise InvalidValue(f"{shown(text)} is negative" if negative else f"{shown(text)} is not {kind}{hint}")
    if len(match[1]) > _MAX_DIGITS:
        raise InvalidValue(f"{shown(text)} is too large")
    return int(match[1], 16 if match[1][:2] in ("0x", "0X") else 10) << SUFFIXES[(match[2] or "").upper()]


def _size_hint(text: str) -> str:
    """A suggestion for a size with an obvious meaning."""
    if decimal := _DECIMAL.fullmatch(text):
        number, suffix = decimal[1], decimal[2].upper()
        return f": {suffix}B has powers of 1000 or of 1024; write {number}{suffix} or {number}{suffix}iB for 1024"
    fraction = _FRACTION.fullmatch(text)
    if fraction is None or not (fraction[1] or fraction[2]):
        return ""
    shift = SUFFIXES[(fraction[3] or "").upper()]
    size, rest = divmod(int(fraction[1] + fraction[2]) << shift, 10 ** len(fraction[2]))
    if rest and shift > 10:  # not even whole bytes: rounded to the next smaller unit
        size = size >> shift - 10 << shift - 10
    return f": fractions are not allowed; write {format_size(size)}"


def _checked(text: str, value: int, least: int, most: int) -> int:
    if value < least:
        raise InvalidValue(f"{shown(text)} is below the minimum, {least}")
    if value > most:
        raise InvalidValue(f"{shown(text)} is above the maximum, {most}")
    return value


def shown(text: str) -> str:
    """``text`` for a message: quoted, shortened, without terminal escapes."""
    return ascii(text if len(text) <= _MAX_DIGITS else text[: _MAX_DIGITS - 3] + "...")


def printable(text: str) -> str:
    """``text`` for people: unprintable characters, which may be terminal escapes, in octal.

    Bytes of a path that are not UTF-8 count as such (surrogateescape). Printable text stays as it is, so that a message
    can pass through several processes that do not trust each other.
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else _octal(each) for each in text)


def escaped(name: str) -> str:
    """A path or another name for a table, a list or a log: ``printable``, and reversible.

    Backslashes are in octal, too. The kernel shows paths in this way (seq_path()).
    """
    return printable(name.replace("\\", "\\134"))


def unescaped(text: str) -> str:
    """The name that ``escaped``, or the kernel, shows as ``text``."""
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), os.fsencode(text)))


def _octal(character: str) -> str:
    try:
        return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
    except UnicodeEncodeError:  # half a surrogate pair, which no file name has
        return "?"


def format_size(number: int) -> str:
    """The shortest exact text for ``parse_size``: ``64G``, ``1536M``, ``4097``."""
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


def compared_sizes(one: int, other: int) -> tuple[str, str]:
    """Two sizes for a sentence that compares them: as ``human_size``, or exact if they would look alike."""
    texts = human_size(one), human_size(other)
    return texts if texts[0] != texts[1] else (format_size(one), format_size(other))


class Units(NamedTuple):
    """The unit of an operation's positions: ``name`` in the plural.

    amount: formats a number of units for people, who may want it rounded: ``40.0MiB``, ``5120pages``.
    exact:  formats it exactly: ``40M``, ``5120 pages``.
    """

    name: str
    amount: Callable[[float], str]
    exact: Callable[[int], str]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def counted(cls, name: str) -> Units:
        """Countable things."""
        return cls(name, lambda number: f"{number:.0f}{name}", lambda number: f"{number} {name}")


BYTES: Final = Units("bytes", human_size, format_size)
PAGES: Final = Units.counted("pages")


def parse_cpulist(text: str, *, most: int = 4095) -> tuple[int, ...]:
    """The kernel's list format (``0-3,8``), sorted and without repetition; raises InvalidValue.

    The format is described at bitmap_parselist() in lib/bitmap-str.c; strides (``0-9:2/4``) are not supported.
    """
    if _LIST.fullmatch(text) is None:
        raise InvalidValue(f"{shown(text)} is not a list of numbers (such as 0-3,8)")
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = parse_int(first, most=most)
        high = parse_int(last, most=most) if dash else low
        if high < low:
            raise InvalidValue(f"{shown(part)} runs backwards")
        ranges.append((low, high))
    found: list[int] = []
    for low, high in sorted(ranges):  # each number once, so a long line stays cheap
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


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned with spaces, a header line first."""
    lines = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )
