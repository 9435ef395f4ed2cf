"""Files of specs for ``ktaskfs run --files``, which runs them line by line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIX: Final = ".tasks"


class SpecLine(NamedTuple):
    """A line of a file: one spec in words, or JSON with specs that start together. ``place`` is FILE:NUMBER."""

    place: str
    text: str


def spec_files(paths: Sequence[str]) -> Iterator[str]:
    """The files at ``paths``. A directory stands for its files with SUFFIX that are not hidden, sorted by name.

    Raises TargetError for a directory that cannot be read.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise TargetError.from_os(error, path) from error
        yield from (os.path.join(path, each) for each in names if each.endswith(SUFFIX) and not each.startswith("."))


def read_lines(path: str) -> list[SpecLine]:
    """The lines of a file, without empty lines and lines that begin with #. Raises TargetError."""
    try:
        with open(path, "rb") as stream:  # decoded like the words of a command line
            texts = [os.fsdecode(line).strip() for line in stream]
    except OSError as error:
        raise TargetError.from_os(error, path) from error
    numbered = enumerate(texts, 1)
    return [SpecLine(f"{path}:{number}", text) for number, text in numbered if text and not text.startswith("#")]
