"""``survey`` of ordinary files: the cached bytes of each."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.host import syscalls
from ktaskfs.host.page_cache import cached_bytes
from ktaskfs.operations.trees._files import FileList, Piece, TreeParameters, Which, is_ordinary
from ktaskfs.operations.trees._pieces import PieceOperation, PieceWork
from ktaskfs.operations.trees._report import FIRST_OWN_MARK
from ktaskfs.units import PAGES, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Preparation

UNKNOWN: Final = FIRST_OWN_MARK
NOT_TOLD: Final = 2**64 - 1
"""Stands for unknown dirty bytes of a file."""


class SurveyParameters(TreeParameters):
    """A directory, or one file."""


class Survey(PieceOperation[SurveyParameters]):
    """cachestat(2), or mincore(2) where that is not to be had, which tells no dirty pages."""

    name = "survey"
    target = "a directory, or a file of a disk"
    description = (
        "Find how much of every regular file under path is in the page cache, and how much of that is dirty; links=1 "
        "also follows links. Reads no data. The result has the sums, then a row for each file."
    )
    units = PAGES
    parameters = SurveyParameters
    which = Which(cost=1, unit=syscalls.page_size())
    memory = True
    # In pages, of which each file takes one more than it has: up to 8192 empty files.
    least, most = 1 << 10, 8 << 10
    no_undo = "a survey changes nothing"
    no_resume = "the earlier part of the table is lost"

    def means(self, parameters: Any) -> bool:
        return is_ordinary(parameters.path)

    def work(self, files: FileList, preparation: Preparation[SurveyParameters]) -> PieceWork:
        return _Surveyor(files)


class _Surveyor(PieceWork):
    """The chunk function, and its findings."""

    def __init__(self, files: FileList) -> None:
        super().__init__(files)
        self._lock = threading.Lock()
        self._resident = array("Q", bytes(8 * len(files)))  # guarded by _lock
        self._dirty = array("Q", bytes(8 * len(files)))  # guarded by _lock

    def piece(self, fd: int, piece: Piece, *, overlay: bool) -> None:
        cached = cached_bytes(fd, piece.start, piece.end, overlay=overlay)
        self.report.enter(piece, marks=UNKNOWN if cached is None else 0, bytes=piece.extent.size)
        if cached is None:
            return
        with self._lock:
            self._resident[piece.file] += cached.resident
            if cached.dirty is None:
                self._dirty[piece.file] = NOT_TOLD
            elif self._dirty[piece.file] != NOT_TOLD:
                self._dirty[piece.file] += cached.dirty

    def finish(self, outcome: Outcome) -> str:
        told = [dirty for dirty in self._dirty if dirty != NOT_TOLD]
        counts = {"bytes": self.report.sums["bytes"], "resident": sum(self._resident), "dirty": sum(told)}
        counts |= {"unknown": self.report.marked(UNKNOWN), "dirty_unknown": len(self._dirty) - len(told)}
        text = self.report.text(counts, header="resident dirty total path", rows=self._rows())
        return self.report.require_some(text, "looked at")

    def _rows(self) -> Iterator[str]:
        for index, marks in self.report.done():
            resident, dirty = str(self._resident[index]), str(self._dirty[index])
            if marks & UNKNOWN:
                resident = dirty = "-"
            elif self._dirty[index] == NOT_TOLD:
                dirty = "-"
            yield f"{resident} {dirty} {self.files.size(index)} {escaped(self.files.path(index))}"
