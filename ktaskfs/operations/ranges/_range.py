"""A range of one file: its parameters, and their meaning for a file of a given size."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from ktaskfs.errors import InvalidValue, NotSupported
from ktaskfs.host import syscalls
from ktaskfs.host.target import FilesystemType, open_target
from ktaskfs.memory.source import Source, require_source_range
from ktaskfs.memory.whereabouts import nodes_of_pages
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import ADDRESS, LENGTH, PATH, PID, SIZE, TaskParameters, parameter
from ktaskfs.operations.base.processes import MappedFiles, map_file, open_mapped, open_process, several, shared_areas
from ktaskfs.operations.base.resume import Baseline, FileState
from ktaskfs.span import Span
from ktaskfs.units import BYTES, PAGES, SIZE_MAX, format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ktaskfs.host.target import Target
    from ktaskfs.operations.base.plan import Preparation
    from ktaskfs.span import Node


class RangeParameters(TaskParameters):
    """The parameters of every operation on a range of one file."""

    path: str = parameter(PATH, "the file", is_target=True)
    offset: int = parameter(SIZE, "first byte of the range", default=0)
    length: int | None = parameter(LENGTH, "bytes in the range (default: to the end of the file)", default=None)

    def check(self) -> None:
        if self.offset + (self.length or 0) > SIZE_MAX:
            raise InvalidValue("offset plus length is past the largest file offset, 2^63 - 1")


class FileParameters(RangeParameters):
    """A range of the file at ``path``, or of one that a process has mapped, which may have no path.

    An operation that is prepared finds ``path`` set in either case.
    """

    path: str = parameter(PATH, "the file", default=None, is_target=True)
    pid: int | None = parameter(
        PID,
        "a process, instead of path: the file behind one of its shared mappings",
        default=None,
        is_target=True,
    )
    mapping: int | None = parameter(
        ADDRESS,
        "with pid: an address in that mapping; the default range is the mapped part (all: the whole file, if the "
        "process shares only one; otherwise each of its files in huge pages)",
        default=None,
    )

    def check(self) -> None:
        super().check()
        if self.pid is None:
            if self.mapping is not None:
                raise InvalidValue("mapping needs pid")
            if self.path is None:
                raise InvalidValue("parameter path is missing")
        elif self.path is not None:
            raise InvalidValue("path and pid both name a file: give only one")


DEVICES: Final = "/dev"
NO_RESUME: Final = "the list of finished files is lost"
NO_RESUME_MAPPED: Final = "the process may have changed its mappings"

P = TypeVar("P", bound=RangeParameters)


class RangeOperation(Operation[P]):
    """An operation whose positions are bytes of ``path``."""

    units = BYTES
    kinds: ClassVar[Collection[FilesystemType]] = frozenset(FilesystemType)
    """The filesystems of the files that it works on."""
    past_end: ClassVar[bool] = False
    """Whether the range may end past the end of ``path``: to make the file longer, or to free the pages there."""
    takes_many: ClassVar[bool] = False
    """Whether ``path`` may be a directory of a hugetlbfs, or a pattern."""
    takes_many_mapped: ClassVar[bool] = False
    """Whether ``pid`` may stand for several files."""

    def locate(self, preparation: Preparation[P]) -> None:
        """The file behind a mapping. Raises TargetError (ESRCH, EACCES, EPERM), NotSupported, InvalidValue."""
        parameters: RangeParameters = preparation.parameters
        if not isinstance(parameters, FileParameters) or parameters.pid is None:
            return
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(contextlib.closing(open_process(parameters.pid)))
            area, *others = areas = shared_areas(process, parameters.mapping)
            if others:
                self._locate_many(preparation, MappedFiles(process, areas))
                preparation.callback(stack.pop_all().close)  # it leads to the files for as long as the task runs
                return
            preparation.file = open_mapped(process, area)
        preparation.callback(os.close, preparation.file)
        offset, length = parameters.offset, parameters.length
        if parameters.mapping is not None and not offset and length is None:
            reaches_end = area.offset + area.size >= os.fstat(preparation.file).st_size
            offset, length = area.offset, None if reaches_end else area.size
        path = map_file(parameters.pid, area)
        preparation.parameters = preparation.parameters._replace(path=path, offset=offset, length=length)

    def _locate_many(self, preparation: Preparation[P], files: MappedFiles) -> None:
        if not self.takes_many_mapped:
            raise several(files.process, files.areas)
        preparation.files = files
        preparation.parameters = preparation.parameters._replace(path=f"/proc/{files.process.pid}/map_files")

    def resume_refusal(self, parameters: P) -> str:
        if is_mapped(parameters):
            return self.no_resume or NO_RESUME_MAPPED
        return NO_RESUME if self.takes_many and is_many(parameters.path) else super().resume_refusal(parameters)

    def baseline(self, parameters: P, nodes: Sequence[Node]) -> Baseline:
        if is_mapped(parameters):
            return super().baseline(parameters, nodes)
        if self.takes_many and is_many(parameters.path):
            return Baseline({}, end=0, size=0, total=sum(node.size for node in nodes))
        found = super().baseline(parameters, nodes)
        size = FileState.of(parameters.path).size
        end = self.end_of_range(parameters, size, nodes)
        return found._replace(end=end, size=min(size, end))

    def end_of_range(self, parameters: P, size: int, nodes: Sequence[Node]) -> int:
        """The end of the range, for a file that now has ``size`` bytes."""
        return max((node.end for node in nodes), default=0)

    def settled(self, parameters: P, baseline: Baseline) -> P:
        """A range to the end of the file keeps its old end."""
        if parameters.length is None and baseline.size > parameters.offset:
            return parameters._replace(length=baseline.size - parameters.offset)
        return parameters


class PageRangeOperation(RangeOperation[P]):
    """An operation whose positions are pages of ``path``; a page that lies partly in the range counts."""

    units = PAGES

    def nodes(self, preparation: Preparation[P], target: Target) -> tuple[Node, ...]:
        """The pages of the range as work. Raises InvalidValue past the end of the file, and as ``make_nodes``."""
        page = target.page_size
        extent = resolve_extent(preparation.parameters, target.size(), may_grow=False).widened(page)
        return preparation.nodes(Span(extent.start // page, extent.end // page), 1)

    def end_of_range(self, parameters: P, size: int, nodes: Sequence[Node]) -> int:
        return size if parameters.length is None else parameters.offset + parameters.length


def nodes_beside_pages(
    preparation: Preparation[P], target: Target, extent: Span, unit: int, shift: int = 0
) -> tuple[Node, ...]:
    """The work on ``extent`` for threads of the NUMA nodes where the pages of ``target`` are, if that can be told.

    A spec with ``nodes`` and the rest of an earlier run keep theirs. The pages are ``shift`` bytes further in the file.
    Raises as ``make_nodes``.
    """
    if not preparation.parameters.nodes and not preparation.resumes:
        found = nodes_of_pages(preparation.kernel, target, extent.shifted(shift), unit)
        if found:
            return tuple(replace(node, start=node.start - shift) for node in found)
    return preparation.nodes(extent, unit)


def is_mapped(parameters: RangeParameters) -> bool:
    """Whether a spec names the file by a mapping of a process."""
    return isinstance(parameters, FileParameters) and parameters.pid is not None


def open_range_target(
    preparation: Preparation[P],
    *,
    kinds: Collection[FilesystemType],
    write: bool = True,
    create: int | None = None,
    leave_absent: bool = False,
) -> Target:
    """The file of a spec, opened with ``open_target``."""
    path, handle = preparation.parameters.path, preparation.file
    return open_target(
        preparation.kernel, path, kinds=kinds, write=write, create=create, leave_absent=leave_absent, handle=handle
    )


def open_range_source(preparation: Preparation[P]) -> Source:
    """Open the range for reading, as a Source."""
    return Source(preparation.kernel, preparation.parameters.path, handle=preparation.file)


def stands_for_many(preparation: Preparation[P]) -> bool:
    """Whether a spec names many files: by ``path`` (``is_many``), or by a process that shares several."""
    return preparation.files is not None or is_many(preparation.parameters.path)


def is_many(path: str) -> bool:
    """Whether ``path`` is a directory of a hugetlbfs, or a pattern as glob(7) has them that is not the name of a file.

    No other directory stands for its files: /dev/shm has semaphores and locks of all users, which nobody holds open.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return stat.S_ISDIR(os.fstat(fd).st_mode) and syscalls.filesystem_magic(fd) == syscalls.HUGETLBFS_MAGIC
        finally:
            os.close(fd)
    except FileNotFoundError:
        return glob.has_magic(path)
    except OSError:  # a later call reports the error
        return False


def resolve_extent(parameters: RangeParameters, size: int, *, may_grow: bool) -> Span:
    """The range of a spec on a file of ``size`` bytes.

    It is empty if it begins where the file ends, as it does in an empty file. Raises InvalidValue for a range past the
    end, unless the operation ``may_grow`` the file: then for an empty one.
    """
    if parameters.length is None:
        if may_grow and parameters.offset >= size:
            where = f"{parameters.path} has {size} bytes, but the range begins at {parameters.offset}"
            raise InvalidValue(f"length is missing: {where}")
        require_start(parameters.path, parameters.offset, size)
    extent = Span(parameters.offset, size if parameters.length is None else parameters.offset + parameters.length)
    if extent.end > size and not may_grow:
        raise InvalidValue(f"the range ends at {extent.end}, past the end of {parameters.path} ({size} bytes)")
    return extent


def require_start(path: str, offset: int, size: int) -> None:
    """Raises InvalidValue if a range begins past the end of a file of ``size`` bytes."""
    if offset > size:
        raise InvalidValue(f"the range begins at {offset}, past the end of {path} ({size} bytes)")


def require_right_place(target: Target) -> None:
    """Raises NotSupported for a file below /dev/hugepages if no hugetlbfs is mounted there: it would have small pages.

    Another directory that lacks its mount is not noticed if it is on a tmpfs.
    """
    place = re.match(f"{DEVICES}/hugepages[^/]*", re.sub("^/+", "/", os.path.normpath(target.path)))
    if place is None or target.filesystem is FilesystemType.HUGETLBFS:
        return
    if os.fstat(target.fd).st_dev == os.stat(DEVICES).st_dev:
        raise NotSupported(f"{target.path} would have small pages: no hugetlbfs is mounted on {place[0]}")


def require_whole_pages(extent: Span, page_size: int, path: str) -> None:
    """Raises InvalidValue unless the extent begins and ends at multiples of ``page_size``."""
    for name, value in (("offset", extent.start), ("length", extent.size)):
        if value % page_size:
            raise InvalidValue(f"{name} {value} is not a multiple of {format_size(page_size)}, the page size of {path}")


def source_length(source: Source, offset: int, parameters: RangeParameters) -> int:
    """The bytes of a spec: ``length``, or up to the end of the source. Raises InvalidValue past its end."""
    if parameters.length is not None:
        require_source_range(source, Span(offset, offset + parameters.length))
        return parameters.length
    size = source.file.size()
    require_start(source.file.path, offset, size)
    return size - offset
