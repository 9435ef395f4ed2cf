"""``survey`` of ordinary files: the cached bytes of each."""

from __future__ import annotations

import os
import threading
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.host import syscalls
from ktaskfs.host.page_cache import OVERLAYFS_MAGIC, cached_bytes
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.trees._files import FileList, Piece, TreeParameters, Which, is_ordinary, list_files, work_on
from ktaskfs.operations.trees._report import FIRST_OWN_MARK, Report
from ktaskfs.units import PAGES, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 1 << 10
MAX_CHUNK: Final = 8 << 10
"""Pages, of which each file takes one more than it has: up to 8192 empty files, at some 10 µs each."""
UNKNOWN: Final = FIRST_OWN_MARK
NOT_TOLD: Final = 2**64 - 1
"""Stands for unknown dirty bytes of a file."""


@dataclass(frozen=True, kw_only=True)
class SurveyParameters(TreeParameters):
    """A directory, or one file."""


class Survey(Operation[SurveyParameters]):
    """cachestat(2), or else mincore(2), which does not report dirty pages."""

    name = "survey"
    target = "a directory, or a file of a disk"
    description = (
        "Find how much of every regular file under path is in the page cache, and how much of that is dirty; links=1 "
        "also follows links. Reads no data. The result has the sums, then a row for each file."
    )
    units = PAGES
    parameters = SurveyParameters
    no_undo = "a survey changes nothing"
    no_resume = "the earlier part of the table is lost"

    def means(self, parameters: Any) -> bool:
        return is_ordinary(parameters.path)

    def prepare(self, preparation: Preparation[SurveyParameters]) -> Plan:
        """Open and list; raises as ``list_files``."""
        files = list_files(preparation, Which(cost=1, unit=syscalls.page_size()))
        surveyor = _Surveyor(files)
        control = preparation.control(surveyor.survey, least=MIN_CHUNK, most=MAX_CHUNK)
        return preparation.plan(preparation.nodes(work_on(files), 1), control, surveyor.finish, tree=files.fingerprint)


class _Surveyor:
    """The chunk function, and its findings."""

    def __init__(self, files: FileList) -> None:
        self._files = files
        self._report = Report(files)
        self._lock = threading.Lock()
        self._resident = array("Q", bytes(8 * len(files)))  # guarded by _lock
        self._dirty = array("Q", bytes(8 * len(files)))  # guarded by _lock

    def survey(self, start: int, end: int) -> None:
        """Enter the files between two positions. Raises TargetError (ENOSYS) if a filter forbids a call."""
        for piece in self._files.pieces(start, end):
            try:
                self._look_at(piece)
            except OSError as error:
                self._report.skip(piece.file, error)

    def _look_at(self, piece: Piece) -> None:
        fd = self._files.open(piece.file)
        try:
            overlay = syscalls.filesystem_magic(fd) == OVERLAYFS_MAGIC
            cached = cached_bytes(fd, piece.start, piece.end, overlay=overlay)
        finally:
            os.close(fd)
        self._report.enter(piece, marks=UNKNOWN if cached is None else 0, bytes=piece.end - piece.start)
        if cached is None:
            return
        with self._lock:
            self._resident[piece.file] += cached.resident
            if cached.dirty is None:
                self._dirty[piece.file] = NOT_TOLD
            elif self._dirty[piece.file] != NOT_TOLD:
                self._dirty[piece.file] += cached.dirty

    def finish(self, outcome: Outcome) -> str:
        """The result; raises Finding as ``Report.require_some``."""
        told = [dirty for dirty in self._dirty if dirty != NOT_TOLD]
        counts = {"bytes": self._report.sums["bytes"], "resident": sum(self._resident), "dirty": sum(told)}
        counts |= {"unknown": self._report.marked(UNKNOWN), "dirty_unknown": len(self._dirty) - len(told)}
        text = self._report.text(counts, header="resident dirty total path", rows=self._rows())
        return self._report.require_some(text, "looked at")

    def _rows(self) -> Iterator[str]:
        for index, marks in self._report.done():
            resident, dirty = str(self._resident[index]), str(self._dirty[index])
            if marks & UNKNOWN:
                resident = dirty = "-"
            elif self._dirty[index] == NOT_TOLD:
                dirty = "-"
            yield f"{resident} {dirty} {self._files.size(index)} {printable(self._files.path(index))}"
