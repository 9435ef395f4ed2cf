"""``compare`` of two directories: differences, and files in only one of them."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import Finding
from ktaskfs.host import syscalls
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.presence import data_extents, union
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import PATH, parameter
from ktaskfs.operations.trees._files import (
    FileList,
    Piece,
    TreeParameters,
    Which,
    is_directory,
    list_files,
    require_directory,
    work_on,
)
from ktaskfs.operations.trees._pieces import SMALL_READ, ThreadTurns
from ktaskfs.operations.trees._report import FIRST_OWN_MARK, TreeReport
from ktaskfs.units import BYTES, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 1 << 20
MAX_CHUNK: Final = 8 << 20
"""Bytes, of which each file takes 4 KiB more than it has: up to 2048 empty files, at some 60 µs each."""
PIECE: Final = 256 << 10
"""Bytes read of each file before a comparison, so that both fit a CPU's own cache."""
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of an open if there is no such file: any other leaves that unknown."""
DIFFERS: Final = FIRST_OWN_MARK
MISSING: Final = FIRST_OWN_MARK << 1
OTHER_KIND: Final = FIRST_OWN_MARK << 2
FINDINGS: Final = {DIFFERS: "differs", MISSING: "missing", OTHER_KIND: "kind"}


class CompareParameters(TreeParameters):
    """Two directories."""

    source: str = parameter(PATH, "the directory to compare with")
    path: str = parameter(PATH, "the directory", is_target=True)


class Compare(Operation[CompareParameters]):
    """Walks ``source``, and finds each file in ``path``; the rest is only in ``path``."""

    name = "compare"
    target = "two directories"
    description = (
        "Compare the directory source with the directory path: names, contents of files, targets of links and numbers "
        "of devices, but not modes, times or owners. The result counts and names the differences; the task is done in "
        "both cases, but fails if it could not read something. Zeros that fill the last page of a hugetlbfs file do "
        "not count as a difference."
    )
    units = BYTES
    parameters = CompareParameters
    no_undo = "a comparison changes nothing"
    no_resume = "the result of the finished part is lost"

    def means(self, parameters: Any) -> bool:
        return is_directory(parameters.source) or is_directory(parameters.path)

    def prepare(self, preparation: Preparation[CompareParameters]) -> Plan:
        """Open and list both; raises as ``list_files``, and TargetError (ENOTDIR)."""
        parameters = preparation.parameters
        everything = Which(once=False, everything=True)
        files = list_files(preparation, everything, path=parameters.source)
        others = list_files(preparation, everything)
        require_directory(files.tree, parameters.source, parameters.path)
        require_directory(others.tree, parameters.path, parameters.source)
        comparer = _Comparer(files, others)
        control = preparation.control(comparer.compare, least=MIN_CHUNK, most=MAX_CHUNK)
        nodes = preparation.nodes(work_on(files), 1)
        return preparation.plan(nodes, control, comparer.finish, tree=files.fingerprint)


class _Comparer:
    """The chunk function, and its findings."""

    def __init__(self, files: FileList, others: FileList) -> None:
        self._files = files
        self._others = others
        self._report = TreeReport(files, mounts=others.walk.mounts)
        self._turns = ThreadTurns(SMALL_READ)
        self._buffer = Buffer(2 * PIECE)
        magic = syscalls.filesystem_magic
        self._page = max(
            os.fstatvfs(each.tree.fd).f_bsize if magic(each.tree.fd) == syscalls.HUGETLBFS_MAGIC else 1
            for each in (files, others)
        )

    def compare(self, start: int, end: int) -> None:
        """Compare the files between two positions."""
        self._turns.do(self._files.pieces(start, end), self._compare_piece)

    def _compare_piece(self, piece: Piece) -> None:
        try:
            marks = self._compare(piece)
        except OSError as error:
            if error.errno == errno.EXDEV:
                self._report.pass_over(piece.file)
            else:
                self._report.skip(piece.file, error)
        else:
            self._report.enter(piece, marks=marks, bytes=piece.extent.size)

    def _compare(self, piece: Piece) -> int:
        """The marks of a piece's file."""
        kind, path = self._files.kind(piece.file), self._files.path(piece.file)
        try:
            other = self._others.tree.open(path)
        except OSError as error:
            if error.errno in ABSENT:
                return MISSING
            raise
        try:
            status = os.fstat(other)
            if stat.S_IFMT(status.st_mode) != kind:
                return OTHER_KIND
            if kind == stat.S_IFLNK:
                mine = self._files.tree.open(path)
                try:
                    return 0 if os.readlink("", dir_fd=mine) == os.readlink("", dir_fd=other) else DIFFERS
                finally:
                    os.close(mine)
            if kind in (stat.S_IFBLK, stat.S_IFCHR):
                return 0 if self._files.tree.status(path).st_rdev == status.st_rdev else DIFFERS
            if kind != stat.S_IFREG:
                return 0
        finally:
            os.close(other)
        return self._compare_files(piece, path)

    def _compare_files(self, piece: Piece, path: str) -> int:
        mine = self._files.open_data(piece.file)
        try:
            other = self._others.tree.open_data(self._others.kernel, path)
            try:
                sizes = os.fstat(mine).st_size, os.fstat(other).st_size
                if abs(sizes[0] - sizes[1]) >= self._page:
                    return DIFFERS
                end = max(sizes) if piece.is_last else piece.end
                return 0 if self._same(mine, other, piece.start, end) else DIFFERS
            finally:
                os.close(other)
        finally:
            os.close(mine)

    def _same(self, mine: int, other: int, start: int, end: int) -> bool:
        """Whether both are equal from ``start`` to ``end``; past its end a file has zeros. Holes are not read."""
        buffer = self._buffer
        for run in union(data_extents(mine, start, end), data_extents(other, start, end)):
            for position in range(run.start, run.end, PIECE):
                size = min(PIECE, run.end - position)
                _read(mine, buffer.view[:size], position)
                _read(other, buffer.view[PIECE : PIECE + size], position)
                if not syscalls.same_bytes(buffer.address, buffer.address + PIECE, size):
                    return False
        return True

    def finish(self, outcome: Outcome) -> str:
        """The result; nothing if the task did not finish. Raises Finding as ``Report.require_all``."""
        if outcome.remaining():
            return ""
        extra = self._extra()
        counts = {"bytes": self._report.sums["bytes"]}
        counts |= {what: self._report.marked(mark) for mark, what in FINDINGS.items()} | {"extra": extra.count(1)}
        text = self._report.text(
            counts, header="what path", rows=itertools.chain(self._rows(), self._extra_rows(extra))
        )
        for number, path in self._others.walk.left[:1]:
            words = f"{escaped(path)} in path cannot be read: {os.strerror(number)}"
            raise Finding(words, position=0, result=text, errno=number)
        return self._report.require_all(text, gone=False)

    def _rows(self) -> Iterator[str]:
        for index, marks in self._report.done():
            for mark, what in FINDINGS.items():
                if marks & mark:
                    yield f"{what} {escaped(self._files.path(index))}"

    def _extra(self) -> bytearray:
        """A mark, 1, for each file that is only in ``path``: one directory at a time, because all names need too much
        memory."""
        found, directories = bytearray(len(self._others)), self._files.directories()
        for directory, runs in self._others.directories().items():
            known = {self._files.base(index) for run in directories.get(directory, ()) for index in run}
            for index in itertools.chain(*runs):
                if self._others.base(index) not in known and self._is_absent(self._others.path(index)):
                    found[index] = 1
        return found

    def _is_absent(self, path: str) -> bool:
        """Whether there is no such file in ``source``. The walk finds none in a directory that it could not read."""
        try:
            os.close(self._files.tree.open(path))
        except OSError as error:
            return error.errno in ABSENT
        return False

    def _extra_rows(self, extra: bytearray) -> Iterator[str]:
        return (f"extra {escaped(self._others.path(index))}" for index, is_extra in enumerate(extra) if is_extra)


def _read(fd: int, view: memoryview, position: int) -> None:
    """Fill ``view``; past the end of the file with zeros. Raises OSError."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], position + done)
        if not count:
            view[done:] = bytes(len(view) - done)
            return
        done += count
