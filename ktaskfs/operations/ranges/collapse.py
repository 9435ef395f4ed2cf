"""``collapse`` of a file: move its small pages into huge pages."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError, errno_name
from ktaskfs.host.mapping import Mapping
from ktaskfs.host.presence import data_extents
from ktaskfs.host.target import FilesystemType
from ktaskfs.host.transparent import bytes_in_huge_pages, huge_page_size
from ktaskfs.memory.source import Source
from ktaskfs.memory.target_errors import truncated
from ktaskfs.operations.ranges._range import RangeOperation, RangeParameters, resolve_extent
from ktaskfs.result import lines
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

LEAST_BYTES: Final = 16 << 20
MOST_BYTES: Final = 64 << 20
"""Copying and mapping take some 20 ms then."""


class Collapse(RangeOperation[RangeParameters]):
    """madvise(2) with MADV_COLLAPSE on a mapping of the worker's own, for whole huge pages that have data.

    The kernel fills the holes that a huge page has beside its data.
    """

    name = "collapse"
    target = "a file"
    description = (
        "Move the small pages of a tmpfs file into huge pages. The option huge= of its mount must allow them. Only "
        "whole huge pages of the range count; holes stay holes. For a file on a disk this takes a kernel with "
        "CONFIG_READ_ONLY_THP_FOR_FS, and nobody may have the file open for writing. The result has the bytes that "
        "were collapsed, already huge, holes, and left, with the kernel's reason."
    )
    parameters = RangeParameters
    no_undo = "it does not change the contents of the file"

    def prepare(self, preparation: Preparation[RangeParameters]) -> Plan:
        """Open; raises InvalidValue past the end of the file, NotSupported without such pages, TargetError."""
        kernel, parameters = preparation.kernel, preparation.parameters
        huge = huge_page_size(kernel)
        source = preparation.keep(Source(kernel, parameters.path))
        target = source.file
        extent = resolve_extent(parameters, target.size(), may_grow=False)
        start = -(-extent.start // huge) * huge
        whole = Span(start, max(extent.end // huge * huge, start))
        nodes = preparation.nodes(whole, huge)
        collapser = _Collapser(kernel, source, huge)
        control = preparation.control(collapser.collapse, least=LEAST_BYTES, most=MOST_BYTES, align=huge)
        return preparation.plan(nodes, control, collapser.finish)


class _Collapser:
    """The chunk function, and the results for huge pages."""

    def __init__(self, kernel: Kernel, source: Source, huge: int) -> None:
        self._kernel = kernel
        self._source = source
        self._target = source.file
        self._huge = huge
        self._lock = threading.Lock()  # guards the two below
        self._bytes: Counter[str] = Counter()
        self._left: Counter[int] = Counter()

    def collapse(self, start: int, end: int) -> None:
        """Collapse the pages from ``start`` to ``end``; raises TargetError."""
        if self._target.size() < end:
            raise truncated(self._target)
        try:
            if self._target.filesystem is FilesystemType.HUGETLBFS:
                there = sum(each.size for each in self._source.data(start, end))
                self._enter(end - start, Counter(), already=there)
            else:
                self._collapse(start, end)
        except OSError as error:
            if self._target.size() < end:
                raise truncated(self._target) from error
            raise TargetError.from_os(error, f"collapse {self._target.path}") from error

    def _collapse(self, start: int, end: int) -> None:
        """Each huge page is read only where it has data: a read of a hole would fill it."""
        touched = dict[int, int]()
        page = self._target.page_size
        for run in data_extents(self._target.fd, start, end):
            for first in range(run.start - run.start % self._huge, run.end, self._huge):
                touched.setdefault(first, max(run.start - run.start % page, first))
        left = Counter[int]()
        # One page more, or the kernel would make one mapping of this and another thread's, and count for both.
        with Mapping(self._target.fd, start, end - start + page, reserve=False, private=True) as mapping:
            for at in touched.values():
                self._populate(mapping, at)
            already = bytes_in_huge_pages(self._kernel, mapping.address, mapping.address + mapping.length)
            for first in touched:
                try:
                    mapping.collapse(first - start, self._huge)
                except OSError as error:
                    self._require_possible(error)
                    left[error.errno or errno.EIO] += self._huge
        huge = len(touched) * self._huge - left.total()
        self._enter(end - start, left, already=min(already, huge), collapsed=max(huge - already, 0))

    def _populate(self, mapping: Mapping, at: int) -> None:
        """Map a page for reading. Raises OSError."""
        try:
            mapping.populate_read(at - mapping.offset, self._target.page_size)
        except OSError as error:
            if error.errno == errno.EFAULT:  # read(2) says why: a broken disk
                os.pread(self._target.fd, 1, at)
            raise

    def _require_possible(self, error: OSError) -> None:
        if error.errno == errno.EINVAL and self._target.filesystem is FilesystemType.OTHER:
            text = "the kernel makes no huge pages of such a file: it takes CONFIG_READ_ONLY_THP_FOR_FS, and nobody"
            raise TargetError(
                f"{self._target.path}: {text} may have it open for writing", errno=errno.EOPNOTSUPP
            ) from error

    def _enter(self, size: int, left: Counter[int], **found: int) -> None:
        with self._lock:
            self._bytes.update(found)
            self._bytes["holes"] += size - left.total() - sum(found.values())
            self._left.update(left)

    def finish(self, outcome: Outcome) -> str:
        """The result: bytes, and a row for each reason of the kernel."""
        facts = {name: self._bytes[name] for name in ("collapsed", "already", "holes")}
        facts |= {"left": self._left.total()}
        rows = [f"{errno_name(number)} {size}\n" for number, size in sorted(self._left.items())]
        return "".join([lines(facts), "reason bytes\n", *rows])
