"""Operations on the page cache of a tree, one piece of a file after another."""

from __future__ import annotations

import os
import resource
import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from ktaskfs.host import syscalls
from ktaskfs.host.page_cache import OVERLAYFS_MAGIC
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.trees._files import TreeParameters, Which, list_files, work_on
from ktaskfs.operations.trees._report import TreeReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation
    from ktaskfs.operations.trees._files import FileList, Piece

    Around: TypeAlias = Callable[[Sequence[Piece]], AbstractContextManager[object]]

FEW: Final = 64
"""Pieces that a thread does in one turn: some 2 ms."""
SMALL: Final = 64 << 10
"""Bytes of a small piece, for work that does not read its data."""
SMALL_READ: Final = 8 << 10
"""Bytes of a small piece, for work that reads its data."""
_WAITS: Final = 0.125
"""Turns help only while a thread sleeps less often than this for each piece."""
_TOGETHER: Final = 16
"""Groups of pieces that threads do side by side, between two looks at how often one sleeps."""

P = TypeVar("P", bound=TreeParameters)


class ThreadTurns:
    """Lets only one thread at a time do small pieces, unless that thread sleeps: then other threads help.

    A system call on a small file that is in the cache is shorter than the hand-over of the interpreter's lock, for
    which a second thread asks at each call: two threads took up to 1.7 times as long as one. A thread that waits for a
    disk or a server has voluntary context switches; getrusage(2).

    ``small``: up to this mean size in bytes, the pieces' system calls take longer than the work on their data.
    """

    def __init__(self, small: int = SMALL) -> None:
        self._small = small
        self._turn = threading.Lock()
        self._together = 0  # a decrement that two threads make as one does no harm

    def do(self, pieces: Iterable[Piece], work: Callable[[Piece], None], around: Around = nullcontext) -> None:
        """Call ``work`` for each piece, in a context of ``around`` for some of them. Raises what they raise."""
        left = iter(pieces)
        while few := list(islice(left, FEW)):
            self._do(few, work, around)

    def _do(self, pieces: Sequence[Piece], work: Callable[[Piece], None], around: Around) -> None:
        if self._together or sum(each.end - each.start for each in pieces) > self._small * len(pieces):
            self._together = max(0, self._together - 1)
            with around(pieces):
                for piece in pieces:
                    work(piece)
            return
        with self._turn, around(pieces):
            before = _sleeps()
            for piece in pieces:
                work(piece)
            if _sleeps() - before > _WAITS * len(pieces):
                self._together = _TOGETHER


def _sleeps() -> int:
    """How often the calling thread has slept so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class PieceWork(ABC):
    """The chunk function of a task, and the results for the files."""

    def __init__(self, files: FileList) -> None:
        self.files = files
        self.report = TreeReport(files)
        self._turns = ThreadTurns()
        self._overlay = _is_overlay(files.tree.fd) if files.on_one_device else None  # then each file's own

    def chunk(self, start: int, end: int) -> None:
        """Do the files between two positions."""
        self._turns.do(self.files.pieces(start, end), self._do)

    def _do(self, piece: Piece) -> None:
        try:
            fd = self.files.open(piece.file)
            try:
                self.piece(fd, piece, overlay=_is_overlay(fd) if self._overlay is None else self._overlay)
            finally:
                os.close(fd)
        except OSError as error:
            self.report.skip(piece.file, error)

    @abstractmethod
    def piece(self, fd: int, piece: Piece, *, overlay: bool) -> None:
        """Do one piece of the open file ``fd``, and report it. ``overlay``: the file is on an overlayfs.

        Raises OSError to skip the file.
        """

    @abstractmethod
    def finish(self, outcome: Outcome) -> str:
        """The result; raises Finding as ``Report.require_some``."""


def _is_overlay(fd: int) -> bool:
    return syscalls.filesystem_magic(fd) == OVERLAYFS_MAGIC


class PieceOperation(Operation[P]):
    """An operation whose chunk function is that of a PieceWork.

    ``least`` and ``most`` are the bounds of a chunk, ``memory`` says whether filesystems of memory are taken.
    """

    which: ClassVar[Which] = Which()
    memory: ClassVar[bool] = False
    least: ClassVar[int]
    most: ClassVar[int]

    def prepare(self, preparation: Preparation[P]) -> Plan:
        """Open and list; raises as ``list_files`` and ``work``."""
        files = list_files(preparation, self.which, memory=self.memory)
        work = self.work(files, preparation)
        nodes = preparation.nodes(work_on(files), 1)
        control = preparation.control(work.chunk, least=self.least, most=self.most)
        return preparation.plan(nodes, control, work.finish, tree=files.fingerprint)

    @abstractmethod
    def work(self, files: FileList, preparation: Preparation[P]) -> PieceWork:
        """The work of this operation on the files. Raises KtaskfsError if it is impossible."""
