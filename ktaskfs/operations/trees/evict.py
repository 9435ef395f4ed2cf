"""``evict``: write back and drop the cached pages of every regular file below a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls
from ktaskfs.host.page_cache import cached_bytes
from ktaskfs.host.target import size_of
from ktaskfs.operations.trees._files import FileList, Piece, TreeParameters
from ktaskfs.operations.trees._pieces import PieceOperation, PieceWork
from ktaskfs.operations.trees._report import FIRST_OWN_MARK
from ktaskfs.units import BYTES

if TYPE_CHECKING:
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Preparation

STAYED: Final = FIRST_OWN_MARK
UNKNOWN: Final = FIRST_OWN_MARK << 1


class EvictParameters(TreeParameters):
    """A directory, or one file."""


class Evict(PieceOperation[EvictParameters]):
    """Pages that a process has mapped or locked stay (posix_fadvise(2)), so each piece is checked again."""

    name = "evict"
    description = (
        "Write back and drop the cached pages of every regular file under path; links=1 also follows links. The "
        "result has the number of files and bytes, the files with pages that stayed (mapped, locked, or read again), "
        "and the skipped files with reasons; after a resume, those of the last run. The task fails if it evicts no "
        "file and skips some."
    )
    units = BYTES
    parameters = EvictParameters
    # In bytes, of which each file takes 4 KiB more than it has: up to 4096 empty files.
    least, most = 1 << 20, 16 << 20
    no_undo = "the next read brings the pages back"

    def work(self, files: FileList, preparation: Preparation[EvictParameters]) -> PieceWork:
        return _Evictor(files)


class _Evictor(PieceWork):
    """Checks each piece after dropping it."""

    def piece(self, fd: int, piece: Piece, *, overlay: bool) -> None:
        # A file may have grown: its last piece goes to its end.
        end = max(size_of(fd), piece.end) if piece.is_last else piece.end
        length = 0 if piece.is_last else end - piece.start
        # The pages of an overlay's file are the lower file's, which sync_file_range(2) does not reach. fdatasync(2)
        # does, but makes the device flush its cache even for a clean file: 74 µs here instead of 1 µs.
        if overlay:
            os.fdatasync(fd)
        else:
            syscalls.write_back(fd, piece.start, length)
        os.posix_fadvise(fd, piece.start, length, os.POSIX_FADV_DONTNEED)
        cached = cached_bytes(fd, piece.start, end, overlay=overlay)
        if cached is None:
            self.report.enter(piece, marks=UNKNOWN, bytes=end - piece.start)
        else:
            marks = STAYED if cached.resident else 0
            self.report.enter(piece, marks=marks, bytes=end - piece.start, stayed=cached.resident)

    def finish(self, outcome: Outcome) -> str:
        report = self.report
        counts = {"bytes": report.sums["bytes"], "stayed": report.marked(STAYED)}
        counts |= {"stayed_bytes": report.sums["stayed"], "stayed_unknown": report.marked(UNKNOWN)}
        return report.require_some(report.text(counts), "evicted")
