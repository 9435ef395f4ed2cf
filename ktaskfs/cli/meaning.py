"""Whether two texts of a parameter mean the same, by the type in ``operations/NAME/parameters``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue
from ktaskfs.units import parse_cpulist, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

TURNS_BACK: Final = re.compile(r"(^|/)\.\.(/|$)")
"""A path whose meaning depends on links: only the kernel can shorten it."""


def alike(one: str, other: str, kind: str) -> bool:
    """Whether the two mean the same.

    The sizes ``64G`` and ``65536M``, the lists ``0-1`` and ``1,0``, and the patterns ``A5`` and ``a5`` do.
    The patterns ``11`` and ``0011`` do not.
    """
    return one == other or _meaning(one, kind) == _meaning(other, kind)


def _meaning(text: str, kind: str) -> object:
    kinds = kind.split("|")
    try:
        return next((read(text) for name, read in _READERS.items() if name in kinds), text)
    except (InvalidValue, ValueError):  # a word instead of a number, such as max
        return text


def _path(text: str) -> str:
    path = text if text.startswith("/") else os.path.join(os.getcwd(), text)
    return path if TURNS_BACK.search(path) else os.path.normpath(path)


_READERS: Final[dict[str, Callable[[str], object]]] = {
    **dict.fromkeys(("size", "number", "pid", "address"), parse_size),
    "cpulist": parse_cpulist,
    "mode": lambda text: int(text, 8),
    "hex": lambda text: text.lower().removeprefix("0x"),
    "path": _path,
}
