"""``fill``: write a repeated pattern over what a file of memory has, in place; ``verify`` looks at it again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktaskfs.errors import TargetError
from ktaskfs.operations.ranges._overwrite import Content, OverwriteParameters, prepare_overwrite
from ktaskfs.operations.ranges._pattern import PatternParameters, memory_file, repeated
from ktaskfs.operations.ranges._range import RangeOperation

if TYPE_CHECKING:
    from ktaskfs.operations.base.plan import Plan, Preparation


@dataclass(frozen=True, kw_only=True)
class FillParameters(PatternParameters, OverwriteParameters):
    """A range, and what is written all over it."""


class Fill(RangeOperation[FillParameters]):
    """As ``clear``, from a file in memory that holds the pattern some hundred times.

    Holes stay holes, as with ``clear``: to test fresh memory, allocate it first, with ``fallocate``.
    """

    name = "fill"
    description = (
        "Write a repeated pattern over what is there, in place: no page is allocated, and a hole stays a hole. "
        "With verify, a test of the memory. The result says how many bytes were written; "
        "after a resume, by the last run alone."
    )
    parameters = FillParameters
    takes_many = takes_many_mapped = True
    no_undo = "what was overwritten with a pattern cannot be brought back"

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
