"""``copy`` of a directory: its contents into a new one, on any filesystem, including hugetlbfs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host.target import FilesystemType
from ktaskfs.memory.group_room import GroupRoom
from ktaskfs.memory.tmpfs import with_room
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import FILE, PATH, choice, parameter
from ktaskfs.operations.trees._attributes import dress
from ktaskfs.operations.trees._data import FileData, copy_to_huge_pages
from ktaskfs.operations.trees._files import (
    ALIGN,
    FileList,
    Piece,
    TreeParameters,
    Which,
    is_directory,
    list_files,
    require_directory,
    work_on,
)
from ktaskfs.operations.trees._output import make_output
from ktaskfs.operations.trees._pieces import ThreadTurns
from ktaskfs.operations.trees._report import TreeReport
from ktaskfs.operations.trees._sums import TOOLS, WHOLE_FILE, Sums, list_text
from ktaskfs.operations.trees._target_checks import changes, partly_done, require_apart, require_room, used_up
from ktaskfs.operations.trees._target_tree import TargetTree
from ktaskfs.units import BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation
    from ktaskfs.operations.trees._output import Output
    from ktaskfs.span import Span

MIN_CHUNK: Final = 1 << 20
MAX_CHUNK: Final = 32 << 20
"""Bytes, of which each file takes 16 KiB more than it has: up to 2048 empty files, at some 80 µs each."""
FILE_COST: Final = 16 << 10
SMALL: Final = 128 << 10
"""Bytes of a small file: from 150 KiB on, two threads are as quick as one."""
ONE_THREAD: Final = 32 << 20
"""A file up to so many bytes is copied by one thread, and is a part of a larger file: ``FileData`` says why."""
FATAL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM})
"""Errors that the next file would get, too."""


class CopyParameters(TreeParameters):
    """A directory, and the place of its copy."""

    source: str = parameter(PATH, "the directory to copy")
    path: str = parameter(PATH, "the copy: a new or empty directory", is_target=True)
    digest: str | None = parameter(
        choice(*TOOLS), "make a list of the files in the format of this tool during the copy", default=None
    )
    out: str | None = parameter(FILE, "with digest: a new file for a list that is too long for result", default=None)

    def check(self) -> None:
        if self.out is not None and self.digest is None:
            raise InvalidValue("out needs digest")


class Copy(Operation[CopyParameters]):
    """Files are made with mode 0600 and directories with 0700; each gets its own mode and times when it is complete."""

    name = "copy"
    target = "a directory"
    description = (
        "Copy the contents of the directory source into path, a new or empty directory: files with their holes, "
        "directories, and links as links (links=1 copies their targets). Keeps modes and modification times, but not "
        "owners, hard links, ACLs and extended attributes; skips FIFOs and devices. On hugetlbfs each file has whole "
        "pages. The result has the counts and the skipped files; the task fails if it skips anything but FIFOs and "
        "devices. With digest, the result begins with a list for the tool's -c, and has the rest as comments; with "
        "out, that file has the list."
    )
    units = BYTES
    parameters = CopyParameters
    creates = True
    no_undo = "rm -r removes the copy"

    def resume_refusal(self, parameters: CopyParameters) -> str:
        """A copy can go on, a list of digests cannot."""
        return "the digests of the finished files are lost" if parameters.digest is not None else ""

    def means(self, parameters: Any) -> bool:
        return is_directory(parameters.source) or is_directory(parameters.path)

    def prepare(self, preparation: Preparation[CopyParameters]) -> Plan:
        """List, check for room, make ``path``.

        Raises as ``list_files`` and ``TargetTree``, InvalidValue for a path in the source, OutOfSpace, OutOfHugePages,
        NotSupported for links on hugetlbfs.
        """
        kernel, parameters = preparation.kernel, preparation.parameters
        path = parameters.path.rstrip("/") or "/"
        cost = FILE_COST if parameters.digest is None else WHOLE_FILE
        which = Which(cost, align=ONE_THREAD, once=False, everything=True)
        files = list_files(preparation, which, path=parameters.source)
        require_directory(files.tree, parameters.source, path)
        require_apart(files.tree.fd, path)
        nodes = preparation.nodes(work_on(files), 1)

        def told() -> dict[str, object]:
            return changes(kernel, files, path) | ({"list": parameters.out} if parameters.out else {})

        output = None
        if parameters.out is None:
            preparation.before_changes(nodes, told)
        else:
            output = make_output(preparation, parameters.out, nodes, told)
        target = preparation.keep(TargetTree(kernel, path, filled=preparation.resumes))
        target.started.update(files.path(index) for index in partly_done(files, nodes, target.kind.page_size))
        if not preparation.resumes:
            require_room(kernel, files, target.kind)
        copier = _Copier(kernel, files, target, parameters.digest, output)
        control = preparation.control(copier.copy, least=MIN_CHUNK, most=MAX_CHUNK)
        return preparation.plan(nodes, control, copier.finish, tree=files.fingerprint)


class _Copier:
    """The chunk function, and the results for all files."""

    def __init__(
        self, kernel: Kernel, files: FileList, target: TargetTree, digest: str | None, output: Output | None
    ) -> None:
        self._room = GroupRoom(kernel, target.kind)
        self._files = files
        self._target = target
        self._page = target.kind.page_size
        self._one_thread = max(ONE_THREAD, self._page)
        self._report = TreeReport(files)
        self._turns = ThreadTurns(SMALL)
        self._data = FileData(target.kind)
        self._sums = None if digest is None else Sums(files, digest)
        self._output = output

    def copy(self, start: int, end: int) -> None:
        """Copy the files between two positions. Raises TargetError for errors that the next file would get, too."""
        self._turns.do(self._pieces(start, end), self._do, self._room_for)

    def _room_for(self, pieces: Sequence[Piece]) -> AbstractContextManager[None]:
        at_most = sum(each.extent.widened(self._page).size for each in pieces)
        return self._room.taking(at_most, lambda: sum(self._files.data_bytes(each, self._page) for each in pieces))

    def _do(self, piece: Piece) -> None:
        try:
            if self._target.kind.filesystem is FilesystemType.TMPFS:
                with_room(partial(self._copy, piece))
            else:
                self._copy(piece)
        except OSError as error:
            if error.errno in FATAL:
                reason = used_up(self._files.kernel, self._target.kind, piece.extent.widened(self._page).size, error)
                raise (reason or self._failure(self._files.path(piece.file), error)) from error
            self._report.skip(piece.file, error)

    def _failure(self, path: str, error: OSError, why: str = "") -> TargetError:
        return TargetError.from_os(error, f"copy to {self._target.path}/{path}{why}")

    def _pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The ranges between two positions; with digests, which cannot be combined, the files that begin there."""
        if self._sums is None:
            return self._files.pieces(start, end, self._page)
        return self._files.whole_files(start, end)

    def _copy(self, piece: Piece) -> None:
        kind, path = self._files.kind(piece.file), self._files.path(piece.file)
        if kind == stat.S_IFREG:
            self._copy_file(piece, path)
        elif kind == stat.S_IFDIR:
            os.close(self._target.directory(path))
        elif kind == stat.S_IFLNK:
            self._copy_link(path)
        else:
            self._report.skip_special(piece.file)
            return
        self._report.enter(piece)

    def _copy_link(self, path: str) -> None:
        handle = self._files.tree.open(path)
        try:
            status = os.fstat(handle)
            if not stat.S_ISLNK(status.st_mode):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self._target.link(path, os.readlink("", dir_fd=handle), status)
        finally:
            os.close(handle)

    def _copy_file(self, piece: Piece, path: str) -> None:
        """Raises OSError: EBUSY for a file that has changed since it was found.

        TargetError where no later run could know that a part is missing.
        """
        whole = piece.start == 0 and piece.is_last
        with contextlib.ExitStack() as stack:
            if whole:  # of an unreadable source there is no copy
                source = self._opened(piece.file, stack)
            try:
                target = self._target.file(path, piece.size, replace=whole)
            except OSError as error:
                number = error.errno or errno.EIO
                if whole or number in FATAL or self._target.give_up(path, piece.size, number):
                    raise
                raise self._failure(path, error) from error
            stack.callback(os.close, target)
            try:
                if not whole:
                    source = self._opened(piece.file, stack)
                status = self._copy_piece(source, target, piece)
                os.close(os.dup(target))  # NFS and FUSE report only now what they could not write
                if self._target.finishing:
                    self._target.unmark(target, piece.size)
            except OSError as error:
                known = whole and self._target.remove(path)
                known = known or error.errno in FATAL  # after which a resume repeats the chunk
                if not known and not self._target.mark_incomplete(target, path, piece.size):
                    why = ", where the filesystem keeps no mark of an incomplete file"
                    raise self._failure(path, error, why) from error
                raise
            if whole:
                dress(target, status)

    def _opened(self, index: int, stack: contextlib.ExitStack) -> int:
        source = self._files.open_data(index)
        stack.callback(os.close, source)
        return source

    def _copy_piece(self, source: int, target: int, piece: Piece) -> os.stat_result:
        """Returns the status of the source; raises OSError as ``_copy_file``."""
        if self._sums is None:
            shared = piece.file if piece.size > self._one_thread else None
            self._copy_data(source, target, piece.extent, shared)
        else:
            self._sums.enter(piece.file, self._copy_and_digest(source, target, piece, self._sums.new()))
        status = os.fstat(source)
        if not self._files.is_as_found(piece.file, status):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return status

    def _copy_and_digest(self, source: int, target: int, piece: Piece, digest: Any) -> bytes:
        """Each part is read again when it has been copied: from the page cache."""
        for part in piece.extent.windows(max(ALIGN, self._page)):
            self._copy_data(source, target, part)
            position = part.start
            while position < part.end:
                view = self._data.buffer.view[: part.end - position]
                count = os.preadv(source, [view], position)
                if not count:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                digest.update(view[:count])
                position += count
        found: bytes = digest.digest()
        return found

    def _copy_data(self, source: int, target: int, part: Span, shared: int | None = None) -> None:
        """``shared``: the number of a file of which other threads may copy other parts."""
        if self._target.is_huge:
            copy_to_huge_pages(source, target, part, self._page)
        elif shared is None:
            self._data.copy(source, target, part)
        else:
            self._data.copy_shared(source, target, part, shared)

    def finish(self, outcome: Outcome) -> str:
        """The result, once directories and large files have their modes and times; nothing if the task did not finish.

        Raises Finding as ``Report.require_all``.
        """
        if outcome.units_done or not outcome.remaining():
            self._target.keep()
        if outcome.remaining():
            return ""
        if self._target.filled:
            self._copy_skipped()
        self._remove_incomplete()
        for index in reversed(range(len(self._files))):
            try:
                self._dress(index)
            except OSError as error:
                if error.errno != errno.EXDEV:  # another filesystem is mounted there, which has been counted
                    self._report.skip(index, error)
        try:
            with contextlib.suppress(PermissionError):  # it was there, and belongs to somebody else
                self._dress_directory("")
        except OSError as error:
            self._report.skip_top(error)
        kinds = Counter(self._files.kind(index) for index, _ in self._report.done())
        size = sum(self._files.size(index) for index, _ in self._report.done())
        counts = {"files": kinds[stat.S_IFREG], "bytes": size}
        text = self._report.text(counts | {"directories": kinds[stat.S_IFDIR], "links": kinds[stat.S_IFLNK]})
        if self._sums is not None:
            lines = partial(self._sums.lines, self._report)
            if self._output is None:
                text = list_text(lines(), text)
            else:
                self._output.write(lines, text)
        return self._report.require_all(text, gone=False)

    def _copy_skipped(self) -> None:
        """Copy the files that an earlier run has skipped, or skip them again, so that this result names them.

        Their positions are done, so this is no chunk: only ``kill`` ends it, and no resume repeats it. A file is marked
        as incomplete until all of it is copied.
        """
        self._target.finishing = True
        for index in range(len(self._files)):
            path, kind, size = self._files.path(index), self._files.kind(index), self._files.size(index)
            if not self._report.is_skipped(index) and self._target.lacks(path, kind, size):
                self._turns.do([Piece(index, 0, size, size)], self._do, self._room_for)

    def _remove_incomplete(self) -> None:
        for index in range(len(self._files)):
            if self._report.is_skipped(index) and self._files.kind(index) == stat.S_IFREG:
                self._target.remove_incomplete(self._files.path(index), self._files.size(index))

    def _dress(self, index: int) -> None:
        """The steps after the last piece of a file or directory, perhaps of an earlier run."""
        kind = self._files.kind(index)
        if kind == stat.S_IFDIR:
            self._dress_directory(self._files.path(index))
        elif kind == stat.S_IFREG and not self._report.is_skipped(index):
            if self._files.size(index) <= self._one_thread and not self._target.filled:
                return  # it was complete in one piece, which gave it both
            source = self._files.open(index)
            try:
                status = os.fstat(source)
            finally:
                os.close(source)
            if not self._files.is_as_found(index, status):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self._target.dress_file(self._files.path(index), status)

    def _dress_directory(self, path: str) -> None:
        self._target.dress_directory(path, self._files.tree.status(path or "."))
