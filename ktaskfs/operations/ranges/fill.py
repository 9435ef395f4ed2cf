"""``fill``: overwrite the existing pages of a file of memory with a repeated pattern, in place; ``verify`` checks
it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ktaskfs.errors import TargetError
from ktaskfs.host.target import MEMORY
from ktaskfs.operations.ranges._overwrite import Content, OverwriteParameters, prepare_overwrite
from ktaskfs.operations.ranges._pattern import PatternParameters, memory_file, repeated
from ktaskfs.operations.ranges._range import RangeOperation

if TYPE_CHECKING:
    from ktaskfs.operations.base.plan import Plan, Preparation


class FillParameters(PatternParameters, OverwriteParameters):
    """A range, and its new content."""


class Fill(RangeOperation[FillParameters]):
    """Like ``clear``, from a file in memory with the pattern some hundred times.

    Holes stay holes, as with ``clear``: to test fresh memory, allocate it first, with ``fallocate``.
    """

    name = "fill"
    description = (
        "Overwrite existing pages with a repeated pattern, in place: no page is allocated, and holes stay holes. "
        "Together with verify it tests memory. The result has the bytes written; after a resume, those of the last "
        "run. path may be a directory on hugetlbfs or a quoted pattern, for all files of memory there."
    )
    parameters = FillParameters
    kinds = MEMORY
    takes_many = takes_many_mapped = True
    no_undo = "overwritten data is lost"

    def prepare(self, preparation: Preparation[FillParameters]) -> Plan:
        """Open and map; raises InvalidValue past the end of the file, NotSupported where holes hide."""
        block = repeated(preparation.parameters.pattern)
        try:
            fd = memory_file(block)
        except OSError as error:
            raise TargetError.from_os(error, "keep the pattern in memory") from error
        preparation.callback(os.close, fd)
        content = Content(fd, len(block), block)
        return prepare_overwrite(preparation, content, report=lambda written: f"written {written}\n")
