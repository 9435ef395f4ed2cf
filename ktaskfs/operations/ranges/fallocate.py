"""``fallocate``: allocate and zero the missing pages of a range of a file of memory.

fallocate(2) does this for hugetlbfs under the lock of the inode, one thread at a time. Populating a shared mapping
needs no such lock (madvise(2), MADV_POPULATE_WRITE), and mapping it reserves all the missing pages at once.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.host.mapping import Mapping
from ktaskfs.host.target import MEMORY, SEAL_GROW, AbsentTarget, FilesystemType
from ktaskfs.ktask import NO_NODE, LinuxMachine
from ktaskfs.ktask.machine import place_on_node
from ktaskfs.memory.growth import Growth
from ktaskfs.memory.room import (
    missing_bytes,
    require_file_size,
    require_group_pages,
    require_pool,
    require_reservable,
    require_space,
    too_few_pages,
)
from ktaskfs.memory.target_errors import page_unavailable, require_unsealed
from ktaskfs.memory.whereabouts import node_of_new_pages
from ktaskfs.operations.base.parameters import FLAG, OCTAL, parameter
from ktaskfs.operations.ranges._allocators import Allocator, NoPages, PagesPastEnd, ReservedPages, TmpfsPages
from ktaskfs.operations.ranges._many import ManyFiles, open_many
from ktaskfs.operations.ranges._range import (
    FileParameters,
    RangeOperation,
    is_mapped,
    open_range_target,
    require_right_place,
    require_whole_pages,
    resolve_extent,
)
from ktaskfs.operations.ranges._undo import Undo
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""A thread zeroes 2 MiB pages at about 9 GiB/s: 64 MiB take 7 ms; below 16 MiB the calls begin to show."""


class FallocateParameters(FileParameters):
    """A range, the file's mode, and whether it grows."""

    mode: int = parameter(OCTAL, "permissions of a file that is created (the umask applies)", default=0o600)
    keep_size: bool = parameter(FLAG, "keep the file's size, even with pages past its end", default=False)


class Fallocate(RangeOperation[FallocateParameters]):
    """Reserve in ``prepare``, populate in the chunks.

    Reserved but unpopulated pages of hugetlbfs (a cancelled task) are released: memory/set_aside.py.
    """

    name = "fallocate"
    description = (
        "Allocate and zero the missing pages of the range. Creates and extends the file. Reserves all huge pages "
        "before it touches the first. undo=1 frees only pages that read as zeros; the result has the bytes of pages "
        "that others have written to and that were kept. A task that ends early returns untouched reserved pages to "
        "the pool, unless others have the file open: then the result has reserved BYTES."
    )
    parameters = FallocateParameters
    kinds = MEMORY
    creates = past_end = True
    takes_many_mapped = True

    def prepare(self, preparation: Preparation[FallocateParameters]) -> Plan:
        """Open or create, check, reserve, extend.

        Raises OutOfHugePages, OutOfSpace, InvalidValue for a range that is not whole pages, and TargetError: EPERM
        for a sealed file, EFBIG past the caller's RLIMIT_FSIZE, ENOMEM for more tmpfs than available memory.
        """
        kernel, parameters = preparation.kernel, preparation.parameters
        if preparation.files is not None:
            return _prepare_many(preparation)
        target = preparation.keep(
            open_range_target(preparation, kinds=self.kinds, create=parameters.mode, leave_absent=parameters.plan)
        )
        growth = Growth(kernel, target)
        preparation.callback(growth.take_back)
        require_right_place(target)
        wanted = _wanted(parameters, growth, rest=preparation.resumes)
        grows = wanted.size > growth.old_size or wanted.past_end
        require_unsealed(target, SEAL_GROW if grows else 0)
        nodes = preparation.nodes(wanted.extent, target.page_size)
        if [node.nid for node in nodes] == [NO_NODE] and not preparation.resumes:
            nodes = (replace(nodes[0], nid=node_of_new_pages(kernel, target, wanted.extent)),)
        if parameters.undo and wanted.past_end and not growth.is_empty():
            raise NotSupported(f"undo=1: {target.path} has pages past its end, and its filesystem does not say which")
        undoable = parameters.undo and not isinstance(target, AbsentTarget)  # which has no pages, in a plan
        undo = preparation.keep(Undo(target, wanted.extent)) if undoable else None
        preparation.before_changes(nodes, lambda: _told(kernel, growth, wanted, mapped=is_mapped(parameters)))
        with _near(nodes[-1].nid if nodes else NO_NODE):  # extending tmpfs allocates the last page
            made = _make_room(kernel, growth, wanted)
        if undo is not None:
            undo.add(made)
        allocator = preparation.keep(_open_allocator(growth, wanted))
        filler = _Filler(growth, allocator, undo, wanted)
        control = preparation.control(
            filler.fill,
            least=MIN_CHUNK,
            most=MAX_CHUNK,
            align=growth.block(),  # undo frees what its chunk lacked, so no huge page of tmpfs may be in two chunks
            undo_func=None if undo is None else undo.take_back,
        )
        return preparation.plan(nodes, control, filler.finish)


def _prepare_many(preparation: Preparation[FallocateParameters]) -> Plan:
    """A plan for several whole files of huge pages that a process shares. They keep their sizes. Raises as ``prepare``.

    Pages reserved for them stay reserved if the task ends early: they belong to the process while it maps the files.
    """
    kernel, parameters = preparation.kernel, preparation.parameters
    if parameters.undo or parameters.keep_size:
        word = "undo" if parameters.undo else "keep_size"
        raise InvalidValue(f"{word}=1 works on one file, but the process shares several")
    missing = list[int]()

    def check(target: Target) -> None:
        require_unsealed(target, 0)
        missing.append(missing_bytes(target, Span(0, target.size()).widened(target.page_size)))

    files = open_many(preparation, check)
    nodes = preparation.nodes(files.extent, files.page_size)
    # Before the first reservation: if a later one is refused, earlier ones stay with their files.
    told = _told_of_many(kernel, files, sum(missing))
    preparation.before_changes(nodes, lambda: told)
    pages = [preparation.keep(_reserved(kernel, files, index)) for index in range(len(files.files))]

    def fill(start: int, end: int) -> None:
        for index, part in files.line.pieces(start, end):
            try:
                pages[index].populate(part.start, part.end)
            except OSError as error:
                with files.opened(index) as target:
                    if target is None:
                        raise TargetError.from_os(error, f"allocate {files.files[index].path}") from error
                    raise page_unavailable(kernel, target, error, part.end) from error

    control = preparation.control(fill, least=MIN_CHUNK, most=MAX_CHUNK, align=files.page_size)
    return preparation.plan(nodes, control, lambda outcome: files.text)


def _told_of_many(kernel: Kernel, files: ManyFiles, missing: int) -> dict[str, object]:
    """As ``_told``, for several files that a process maps. Raises TargetError, OutOfHugePages, OutOfSpace."""
    if files.files:  # none is left if the process has just unmapped them
        with files.opened(0) as target:
            if target is not None:
                pages = (missing + target.allocated()) // target.page_size
                try:
                    require_pool(kernel, target, pages, promised=True)
                except OSError as error:
                    raise TargetError.from_os(error, f"allocate {target.path}") from error
    return {"files": len(files.files), "allocates": missing}


def _reserved(kernel: Kernel, files: ManyFiles, index: int) -> Allocator:
    """Reserve the missing pages of a file, unless it is gone or empty. Raises as ``prepare``."""
    with files.opened(index) as target:
        size = files.files[index].size
        if target is None or not size:
            return NoPages()
        try:
            require_group_pages(kernel, target, size // files.page_size)
            return ReservedPages(Mapping(target.fd, 0, size, reserve=True))
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise too_few_pages(kernel, target, size // files.page_size) from error
            raise TargetError.from_os(error, f"allocate {target.path}") from error


class _Wanted(NamedTuple):
    """The range in whole pages, the size that the file is to have, and whether some pages lie past its last one."""

    extent: Span
    size: int
    past_end: bool


def _wanted(parameters: FallocateParameters, growth: Growth, *, rest: bool) -> _Wanted:
    """The meaning of the parameters for the file. Raises InvalidValue.

    A range to the end of the file, or, for a ``rest``, to where that was in the first run, has all of its last page,
    and leaves the size as it is.
    """
    page = growth.target.page_size
    extent = resolve_extent(parameters, growth.old_size, may_grow=True)
    size = growth.old_size if parameters.keep_size else max(extent.end, growth.old_size)
    if parameters.length is None or rest:
        extent = Span(extent.start, Span(0, extent.end).widened(page).end)
    require_whole_pages(extent, page, parameters.path)
    return _Wanted(extent, size, extent.end > Span(0, size).widened(page).end)


def _told(kernel: Kernel, growth: Growth, wanted: _Wanted, *, mapped: bool) -> dict[str, object]:
    """The lines of a plan, if there is room; raises as ``prepare``.

    A process has reserved most pages of ``mapped`` memory; the kernel does not report which.
    """
    target, extent = growth.target, wanted.extent
    try:
        require_file_size(target, extent.end if wanted.past_end else wanted.size)
        missing = missing_bytes(target, extent)
        if target.filesystem is FilesystemType.TMPFS:
            require_space(kernel, target, extent)
        elif mapped:
            require_pool(kernel, target, extent.size // target.page_size, promised=True)
        else:
            require_reservable(kernel, target, missing // target.page_size)
        return growth.changes(wanted.size) | {"allocates": missing}
    except OSError as error:
        raise TargetError.from_os(error, f"allocate {target.path}") from error


@contextlib.contextmanager
def _near(nid: int) -> Iterator[None]:
    """Allocate this thread's memory on a node within this context, like the threads of the task."""
    if nid == NO_NODE:
        yield
        return
    machine = LinuxMachine()
    before = machine.placement()
    machine.place(place_on_node(before, nid, frozenset()))
    try:
        yield
    finally:
        machine.place(before)


def _make_room(kernel: Kernel, growth: Growth, wanted: _Wanted) -> Span:
    """Check that there is room, and extend tmpfs; returns what that has allocated. Raises as ``prepare``."""
    target, extent = growth.target, wanted.extent
    nothing = Span(extent.end, extent.end)
    try:
        if wanted.past_end:
            require_file_size(target, extent.end)
        if target.filesystem is FilesystemType.TMPFS:
            require_space(kernel, target, extent)
            return nothing if wanted.past_end else growth.extend(wanted.size)
        if wanted.past_end:
            # A reservation past the end of the file would outlive a task that never starts.
            require_pool(kernel, target, extent.size // target.page_size, promised=False)
    except OSError as error:
        raise TargetError.from_os(error, f"allocate {target.path}") from error
    return nothing


def _open_allocator(growth: Growth, wanted: _Wanted) -> Allocator:
    """The allocator for a file that has room; for hugetlbfs it reserves all pages. Raises as ``prepare``."""
    target = growth.target
    try:
        if wanted.past_end:
            return PagesPastEnd(target)
        if target.filesystem is FilesystemType.TMPFS:
            return TmpfsPages(target, wanted.extent)
        return ReservedPages(growth.reserve(wanted.extent))
    except OSError as error:
        raise TargetError.from_os(error, f"allocate {target.path}") from error


class _Filler:
    """The chunk function."""

    def __init__(self, growth: Growth, allocator: Allocator, undo: Undo | None, wanted: _Wanted) -> None:
        self._growth = growth
        self._allocator = allocator
        self._undo = undo
        self._end = min(wanted.size, wanted.extent.end)  # a file that ends earlier was truncated

    def fill(self, start: int, end: int) -> None:
        """Allocate the missing pages from ``start`` to ``end``; raises TargetError."""
        try:
            if self._undo is not None:
                self._undo.record(start, end)
            with self._growth.room.taking(end - start, lambda: missing_bytes(self._growth.target, Span(start, end))):
                self._allocator.populate(start, end)
        except OSError as error:
            raise self._growth.page_unavailable(error, self._end) from error

    def finish(self, outcome: Outcome) -> str:
        """Keep the file, unless everything was undone, and release the reservation of unfinished ranges.

        The result is empty, or has ``kept BYTES`` of pages that undo kept because others had written to them, and
        ``reserved BYTES`` of huge pages that stay reserved until the file is truncated or removed.
        """
        if self._undo is None or outcome.units_done:
            self._growth.keep()
        elif not self._growth.target.created:  # a new file is removed when it is closed
            self._growth.take_back()
            self._growth.keep()
        kept, freed = (0, None) if self._undo is None else (self._undo.kept, self._undo.freed)
        left = self._growth.give_back((Span(node.start, node.end) for node in outcome.remaining()), freed)
        return "".join(f"{name} {size}\n" for name, size in (("kept", kept), ("reserved", left)) if size)
