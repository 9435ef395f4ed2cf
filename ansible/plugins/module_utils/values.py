# Copyright (c) 2026, The ktaskfs authors
# SPDX-License-Identifier: MIT
"""Values of parameters: converts them from YAML to the text of a spec, and compares them by their meaning."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
NUMBER = re.compile(r"(0x[0-9a-f]+|[0-9]+)(?:([KMGTPE])(?:iB?)?)?", re.ASCII | re.IGNORECASE)
TURNS_BACK = re.compile(r"(^|/)\.\.(/|$)")
"""A path whose meaning depends on links: only the kernel can shorten it."""
YES = ("1", "yes", "on", "true")
NO = ("0", "no", "off", "false")


def as_text(value: Any, kind: str) -> str:
    """Returns a value of YAML as text of a spec; ``kind`` is the type in ``operations/NAME/parameters``."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return ",".join(as_text(each, kind) for each in value)
    if kind == "mode" and isinstance(value, int):
        return f"{value:04o}"  # YAML reads 0600 without quotes as an octal number
    text = str(value)
    if kind == "0/1" and text.lower() in YES + NO:
        return str(int(text.lower() in YES))
    return text


def alike(one: str, other: str, kind: str) -> bool:
    """Whether two texts of a parameter mean the same."""
    return one == other or _meaning(one, kind) == _meaning(other, kind)


def _meaning(text: str, kind: str) -> object:
    kinds = kind.split("|")
    if not {"size", "number", "pid", "address"}.isdisjoint(kinds):
        return number(text)
    if kind == "cpulist":
        return _cpus(text)
    if kind == "path":
        return text if TURNS_BACK.search(text) else os.path.abspath(text)
    if kind == "hex":
        return text.lower().removeprefix("0x")
    if kind == "mode" and re.fullmatch("[0-7]+", text):
        return int(text, 8)
    return text


def number(text: str) -> int | str:
    """Returns the number of a size, a count or an address; the text itself if it is none of them.

    A suffix K M G T P E is a power of 1024.
    """
    match = NUMBER.fullmatch(text)
    if match is None:
        return text
    digits, suffix = match[1].lower(), (match[2] or "").upper()
    return int(digits, 16 if digits.startswith("0x") else 10) << SHIFTS[suffix]


def _cpus(text: str) -> object:
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip(), re.ASCII)
        if match is None:
            return text
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def is_default(text: str, default: str) -> bool:
    """Whether the text of a task's file means that its parameter was not given; ``A|B`` means A or B."""
    return text in ("-", default) or text in default.split("|")


def given(params: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, str]:
    """Returns the parameters as texts of a spec, without those that are null."""
    return {key: as_text(value, kinds.get(key, "")) for key, value in params.items() if value is not None}
