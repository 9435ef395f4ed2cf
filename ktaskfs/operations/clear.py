"""``clear``: write zeros over what a file of memory has, in place. No page is freed and none is allocated."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import GuardedRange, data_extents, is_present
from ktaskfs.host.syscalls import page_size
from ktaskfs.host.target import MEMORY, Kind, Target, open_target
from ktaskfs.ktask import Control
from ktaskfs.operations.extent import Extent, chunk_sizes, make_nodes, resolve_extent, windows
from ktaskfs.operations.operation import Operation, Plan, Range
from ktaskfs.operations.parameters import RangeParameters
from ktaskfs.operations.trouble import page_unavailable, require_unsealed, truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.kernel import Kernel

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""Zeroing runs at 20 GiB/s a thread: chunks of 64 MiB take 3 ms, those of 16 MiB were a tenth slower."""
ALIGN: Final = 2 << 20
"""Where chunks end: within a gigantic page too, at what a processor maps as one."""
TMPFS_WINDOW: Final = 4 << 20
"""Bytes of tmpfs mapped at a time; while they are mapped they count as the worker's resident memory."""


@dataclass(frozen=True, kw_only=True)
class ClearParameters(RangeParameters):
    """A range, by default to the end of the file."""


class Clear(Operation[ClearParameters]):
    """The kernel copies from /dev/zero into a mapping where a HoleGuard makes it stop at holes."""

    name = "clear"
    description = (
        "Write zeros over what is there, in place: no page is freed, and a hole stays a hole. "
        "Several threads share even one gigantic page."
    )
    units = "bytes"
    parameters = ClearParameters

    def prepare(self, kernel: Kernel, parameters: ClearParameters, remaining: Sequence[Range] | None) -> Plan:
        """Open and map; raises InvalidValue past the end of the file, NotSupported for undo and where holes hide."""
        if parameters.undo:
            raise NotSupported("undo=1: what was overwritten with zeros cannot be brought back")
        target = open_target(kernel, parameters.path, kinds=MEMORY)
        try:
            extent = resolve_extent(parameters, target.size(), may_grow=False)
            require_unsealed(target, 0)
            nodes = make_nodes(kernel, extent, parameters.nodes, target.page_size, remaining)
            clearer = _clearer(kernel.zero, target, extent)
        except BaseException:
            target.close()
            raise
        sizes = chunk_sizes(parameters.chunk, least=MIN_CHUNK, most=MAX_CHUNK, align=min(target.page_size, ALIGN))
        control = Control(clearer.clear, min_chunk_size=sizes.least, max_chunk_size=sizes.most, align=sizes.align)
        return Plan(nodes=nodes, control=control, abort=clearer.close, finish=clearer.finish)


def _clearer(zero: int, target: Target, extent: Extent) -> _Clearer:
    guard = _guard(target)
    pages = None
    if target.kind is Kind.HUGETLBFS:
        whole = extent.widened(target.page_size)
        try:
            pages = GuardedRange(target.fd, whole.start, whole.end, target.page_size, guard)
        except OSError as error:
            if guard is not None:
                guard.close()
            raise TargetError.from_os(error, f"map {target.path}") from error
    return _Clearer(zero, target, guard, pages)


def _guard(target: Target) -> HoleGuard | None:
    """A guard; None where none is allowed (a seccomp filter) and the file has no holes to be guarded."""
    try:
        return HoleGuard()
    except OSError as error:
        if target.allocated() >= target.size():
            return None
        raise NotSupported(
            f"{target.path} has holes, and without userfaultfd ({error.strerror}) they would be filled"
        ) from error


class _Clearer:
    """The chunk function and what it holds open. ``pages`` is set for hugetlbfs."""

    def __init__(self, zero: int, target: Target, guard: HoleGuard | None, pages: GuardedRange | None) -> None:
        self._zero = zero
        self._target = target
        self._guard = guard
        self._pages = pages

    def clear(self, start: int, end: int) -> None:
        """Zero the bytes from ``start`` to ``end`` that exist; raises TargetError."""
        if self._target.size() < end:
            raise truncated(self._target)
        if self._target.allocated() == 0:
            return
        try:
            if self._pages is None:
                self._clear_tmpfs(start, end)
            else:
                with self._pages.window(start, end) as mapping:
                    self._zero_guarded(mapping, start, end)
        except OSError as error:
            raise page_unavailable(self._target, error, end) from error

    def _clear_tmpfs(self, start: int, end: int) -> None:
        """By extents of data, window by window. Populating first maps many pages in one call."""
        for data, hole in data_extents(self._target.fd, start, end):
            for window in windows(data, hole, TMPFS_WINDOW):
                mapped = window.widened(page_size())
                with Mapping(self._target.fd, mapped.start, mapped.size, reserve=False) as mapping:
                    if self._guard is not None:
                        self._guard.guard(mapping)
                        self._try_populate(mapping)
                    self._zero_guarded(mapping, window.start, window.end)
        if self._target.size() < end:
            raise truncated(self._target)

    def _try_populate(self, mapping: Mapping) -> None:
        try:
            mapping.populate_write(0, mapping.length)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            # A page that was punched out just now: zeroing finds it again, and passes over it.

    def _zero_guarded(self, mapping: Mapping, start: int, end: int) -> None:
        position = start
        while position < end:
            try:
                position += mapping.readv_into(self._zero, None, position - mapping.offset, end - position)
            except OSError as error:
                if error.errno != errno.EFAULT or self._guard is None:
                    raise
                position = self._skip_hole(mapping, position, end)

    def _skip_hole(self, mapping: Mapping, position: int, end: int) -> int:
        """The next page that exists, or ``end``: page by page, where a poisoned page raises and a hole does not."""
        size = self._target.page_size
        while position < end and not is_present(mapping, position, size):
            position += size - position % size
        if self._target.size() < min(position, end):
            raise truncated(self._target)
        return min(position, end)

    def finish(self) -> str:
        """Close everything; there is nothing to report."""
        self.close()
        return ""

    def close(self) -> None:
        """Close everything; the file is as it was."""
        if self._pages is not None:
            self._pages.close()
        if self._guard is not None:
            self._guard.close()
        self._target.close()
