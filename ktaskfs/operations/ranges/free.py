"""``free``: free the pages of a range, chunk by chunk, so that nobody waits long for the inode's lock."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host import statx, syscalls
from ktaskfs.host.target import MEMORY, SEAL_SHRINK, Target
from ktaskfs.memory.target_errors import require_unsealed
from ktaskfs.operations.base.guard import GuardedParameters, guard
from ktaskfs.operations.base.parameters import FLAG, parameter
from ktaskfs.operations.ranges._many import GONE, open_many
from ktaskfs.operations.ranges._range import (
    FileParameters,
    RangeOperation,
    open_range_target,
    require_start,
    require_whole_pages,
    stands_for_many,
)
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 64 << 20
MAX_CHUNK: Final = 256 << 20
"""256 MiB of 4 KiB pages take 35 ms, of huge pages 0.1 ms: nobody waits longer for the lock of the inode."""
CHUNKS_MOST: Final = 1 << 18
"""A range of more than 64 TiB has larger chunks: memory cannot have all of its pages, and a chunk takes some 10 µs even
without a page. If the pages of such a range lie close together, one chunk takes longer than 35 ms."""


class FreeParameters(FileParameters, GuardedParameters):
    """A range, and the fate of the file afterwards."""

    shrink: bool = parameter(FLAG, "then truncate the file to offset; the range must reach its end", default=False)
    unlink: bool = parameter(FLAG, "then remove the file; excludes offset and length", default=False)

    def check(self) -> None:
        super().check()
        if self.unlink and self.path is None:
            raise InvalidValue("unlink=1 needs path")


class Free(RangeOperation[FreeParameters]):
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE. Its contents are lost for all mappings, which then read zeros."""

    name = "free"
    description = (
        "Return the pages of the range to the pool or the system; the file keeps its size and reads as zeros there. "
        "Can then shorten or remove the file: only shrink=1 and unlink=1 return huge pages that were reserved for it "
        "but never touched, as after a killed fallocate. path may be a directory on hugetlbfs or a quoted pattern, "
        "for all files of memory there."
    )
    parameters = FreeParameters
    kinds = MEMORY
    past_end = True
    takes_many = takes_many_mapped = True
    no_undo = "the contents of freed pages are lost"

    def prepare(self, preparation: Preparation[FreeParameters]) -> Plan:
        """Open and check; nothing is freed.

        A range with a length may lie past the end of the file, where ``fallocate keep_size=1`` has put pages. Raises
        InvalidValue for one that is not whole pages, and TargetError: EBUSY as ``guard``, EPERM for a sealed file, and
        with ``unlink`` what unlink(2) would say.
        """
        parameters = preparation.parameters
        if stands_for_many(preparation):
            return _prepare_many(preparation)
        length_given = parameters.length is not None and not preparation.resumes  # a resume always knows the length
        if parameters.unlink and (parameters.offset or length_given or parameters.shrink):
            raise InvalidValue("unlink=1 removes the whole file: leave out offset, length and shrink")
        target = preparation.keep(open_range_target(preparation, kinds=self.kinds))
        guard(preparation, target)
        wanted, extent = _extents(parameters, target, rest=preparation.resumes)
        require_unsealed(target, SEAL_SHRINK if parameters.shrink else 0)
        nodes = preparation.nodes(extent, target.page_size)
        name = preparation.keep(_Name(target)) if parameters.unlink else None
        freer = _Freer(target, wanted, name, shrink=parameters.shrink)
        control = preparation.control(freer.free, least=MIN_CHUNK, most=_most(extent), align=target.page_size)
        return preparation.plan(nodes, control, freer.finish)


def _prepare_many(preparation: Preparation[FreeParameters]) -> Plan:
    """Prepare for many whole files; raises the errors for one file, of the first that has one."""
    parameters = preparation.parameters
    if parameters.unlink and parameters.shrink:
        raise InvalidValue("unlink=1 excludes shrink")

    def check(target: Target) -> None:
        guard(preparation, target)
        require_unsealed(target, SEAL_SHRINK if parameters.shrink else 0)
        if parameters.unlink:
            _Name(target).close()

    files = open_many(preparation, check, every_name=parameters.unlink)

    def free(start: int, end: int) -> None:
        for index, target, piece in files.pieces(start, end):
            whole = Span(0, files.files[index].length)
            _Freer(target, whole, None, shrink=False).free(piece.start, piece.end)

    def end_of(target: Target, length: int) -> None:
        if parameters.unlink:
            with contextlib.closing(_Name(target)) as name:
                name.unlink(target)
        elif parameters.shrink:
            _Freer(target, Span(0, length), None, shrink=True).truncate()

    def finish(outcome: Outcome) -> str:
        errors = list[TargetError]()
        for index in range(len(files.files)) if not outcome.remaining() else ():
            try:
                with files.opened(index) as target:
                    if target is not None:
                        end_of(target, files.files[index].length)
            except TargetError as error:  # the others are still removed
                if error.errno not in GONE:
                    errors.append(error)
        if errors:
            errors[0].add_note(f"{len(errors)} of {len(files.files)} files are left")
            raise errors[0]
        return files.text

    nodes = preparation.nodes(files.extent, files.page_size)
    control = preparation.control(free, least=MIN_CHUNK, most=_most(files.extent), align=files.page_size)
    return preparation.plan(nodes, control, finish)


def _most(extent: Span) -> int:
    """The largest chunk of a range, in bytes."""
    return max(MAX_CHUNK, extent.size // CHUNKS_MOST)


def _extents(parameters: FreeParameters, target: Target, *, rest: bool) -> tuple[Span, Span]:
    """The range to the byte, and in whole pages: if it ends with the file, it has the rest of the last page too.

    Raises InvalidValue; TargetError (EBUSY) if what ``shrink=1`` would cut off came after an earlier run.
    """
    size = target.size()
    end = size if parameters.length is None else parameters.offset + parameters.length
    if parameters.length is None:
        require_start(target.path, parameters.offset, size)
    if parameters.shrink and end < size:
        if rest:
            raise _extended(target, size)
        raise InvalidValue(f"shrink=1: the range ends at {end}, before the end of {target.path} ({size} bytes)")
    ends_with_file = end == size or rest  # a resumed range did so in the first run
    extent = Span(parameters.offset, -(-end // target.page_size) * target.page_size if ends_with_file else end)
    require_whole_pages(extent, target.page_size, target.path)
    return Span(parameters.offset, end), extent


def _extended(target: Target, size: int) -> TargetError:
    """The refusal to truncate data of others."""
    return TargetError(f"{target.path} was extended to {size} bytes during the work", errno=errno.EBUSY)


class _Name:
    """The name of an opened file, to be removed when the file is empty. Raises TargetError."""

    def __init__(self, target: Target) -> None:
        parent, self._name = os.path.split(target.path)
        self._path = target.path
        try:
            self._directory = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError.from_os(error, f"open the directory of {target.path}") from error
        try:
            self._require(target)
            if refusal := self._refusal(target):
                raise TargetError(f"unlink {self._path}: {os.strerror(refusal)}", errno=refusal)
        except BaseException:
            self.close()
            raise

    def _refusal(self, target: Target) -> int:
        """The errno that unlink(2) would give, or 0: it must be known before the pages are gone.

        In the order of may_delete and vfs_unlink in fs/namei.c.
        """
        directory, file = os.fstat(self._directory), os.fstat(target.fd)
        around, own = statx.attributes(self._directory), statx.attributes(target.fd)
        if around & statx.STATX_ATTR_IMMUTABLE:
            return errno.EPERM
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._directory, effective_ids=True):
            return errno.EACCES
        others = os.geteuid() not in (file.st_uid, directory.st_uid)
        if directory.st_mode & stat.S_ISVTX and others and not syscalls.capget()[0] >> syscalls.CAP_FOWNER & 1:
            return errno.EPERM
        if around & statx.STATX_ATTR_APPEND or own & (statx.STATX_ATTR_APPEND | statx.STATX_ATTR_IMMUTABLE):
            return errno.EPERM
        return errno.EBUSY if own & statx.STATX_ATTR_MOUNT_ROOT else 0

    def _require(self, target: Target) -> None:
        """Raises InvalidValue for a symbolic link, TargetError unless the name still is the file's."""
        try:
            named = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except OSError as error:
            raise TargetError.from_os(error, f"unlink {self._path}") from error
        if stat.S_ISLNK(named.st_mode):
            raise InvalidValue(f"unlink=1: {self._path} is a link: give the path of the file itself")
        if not os.path.samestat(named, os.fstat(target.fd)):
            raise TargetError(f"{self._path} is now another file, and was not removed", errno=errno.ESTALE)

    def unlink(self, target: Target) -> None:
        """Remove the name if it still belongs to the file; a file that takes the name at this moment is removed
        instead."""
        self._require(target)
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except OSError as error:
            raise TargetError.from_os(error, f"unlink {self._path}") from error

    def close(self) -> None:
        os.close(self._directory)


class _Freer:
    """The chunk function. ``extent`` is the range to the byte."""

    def __init__(self, target: Target, extent: Span, name: _Name | None, *, shrink: bool) -> None:
        self._target = target
        self._extent = extent
        self._name = name
        self._shrink = shrink

    def free(self, start: int, end: int) -> None:
        """Free the pages from ``start`` to ``end``; raises TargetError."""
        if self._target.allocated() == 0:
            return
        # Data appended during the work, even to the last page, is kept; data that arrives at this moment is lost.
        last = min(end, self._extent.end) if self._target.size() > self._extent.end else end
        try:
            syscalls.punch_hole(self._target.fd, start, last)
        except OSError as error:
            raise TargetError.from_os(error, f"free pages of {self._target.path}") from error

    def finish(self, outcome: Outcome) -> str:
        """If everything is free, shorten or remove the file as asked; the result is empty.

        Raises TargetError: EBUSY for a file that was extended (the new part may be somebody's data), ESTALE if the name
        now belongs to another file, ENOENT if it is gone.
        """
        if not outcome.remaining():
            if self._shrink:
                self.truncate()
            if self._name is not None:
                self._name.unlink(self._target)
        return ""

    def truncate(self) -> None:
        """Truncate the file to the start of the range; raises TargetError (EBUSY) if it was extended."""
        size = self._target.size()
        if size > self._extent.end:
            raise _extended(self._target, size)
        if size > self._extent.start:
            try:
                os.ftruncate(self._target.fd, self._extent.start)
            except OSError as error:
                raise TargetError.from_os(error, f"truncate {self._target.path}") from error
