"""Files of specs for ``ktaskfs run --files``, which runs them line by line."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIX: Final = ".tasks"


class SpecLine(NamedTuple):
    """A line of a file: one spec in words, or JSON with specs that start together. ``place`` is FILE:NUMBER."""

    place: str
    text: str


class SpecFile(NamedTuple):
    """A file of specs. ``is_found``: it comes from a directory, so nobody chose it; a person may name a pipe."""

    path: str
    is_found: bool

    def lines(self) -> list[SpecLine]:
        """Its lines, without empty lines and lines that begin with #.

        Raises TargetError, also for a found file that is not a regular file: a FIFO has no end without a writer.
        """
        try:
            if self.is_found and not stat.S_ISREG(os.stat(self.path).st_mode):
                raise TargetError(f"{self.path} is not a regular file", errno=errno.EINVAL)
            with open(self.path, "rb") as stream:  # decoded like the words of a command line
                texts = [os.fsdecode(line).strip() for line in stream]
        except OSError as error:
            raise TargetError.from_os(error, self.path) from error
        numbered = enumerate(texts, 1)
        return [SpecLine(f"{self.path}:{at}", text) for at, text in numbered if text and not text.startswith("#")]


def spec_files(paths: Sequence[str]) -> Iterator[SpecFile]:
    """The files at ``paths``. A directory stands for its files with SUFFIX that are not hidden, sorted by name.

    A link to /dev/null masks a file, as in tmpfiles.d(5). Raises TargetError for a directory that cannot be read.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield SpecFile(path, is_found=False)
            continue
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise TargetError.from_os(error, path) from error
        chosen = [os.path.join(path, each) for each in names if each.endswith(SUFFIX) and not each.startswith(".")]
        yield from (SpecFile(each, is_found=True) for each in chosen if os.path.realpath(each) != os.devnull)
