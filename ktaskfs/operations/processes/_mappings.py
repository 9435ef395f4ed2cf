"""The mappings of a process as one sequence of positions, and their parameters in a spec."""

from __future__ import annotations

import errno
import os
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.page_table import PageTable
from ktaskfs.host.process_memory import NOT_MEMORY
from ktaskfs.operations.base.line import Line
from ktaskfs.operations.base.parameters import ADDRESS, PID, TaskParameters, parameter
from ktaskfs.operations.base.processes import areas_of, open_process
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ktaskfs.host.maps import Area
    from ktaskfs.host.process_memory import Process
    from ktaskfs.operations.base.plan import Preparation


class ProcessParameters(TaskParameters):
    """A process, and which of its mappings."""

    pid: int = parameter(PID, "the process", is_target=True)
    mapping: int | None = parameter(ADDRESS, "an address in the mapping to work on (all: every mapping)", default=None)


P = TypeVar("P", bound=ProcessParameters)
T = TypeVar("T")


def process_ended(process: Process) -> TargetError:
    """The error of a chunk whose process has ended."""
    return TargetError(f"process {process.pid} has ended", errno=errno.ESRCH)


class Addresses:
    """Ranges of addresses laid end to end; a position counts units of ``unit`` bytes."""

    def __init__(self, ranges: Sequence[Span], unit: int = 1) -> None:
        self._ranges = ranges
        self._unit = unit
        self._line = Line(list(accumulate(each.size // unit for each in ranges)))

    def __len__(self) -> int:
        return len(self._ranges)

    @property
    def whole(self) -> Span:
        """All positions."""
        return self._line.whole

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, Span]]:
        """The ranges between two positions: the number of each, and the addresses."""
        for index, part in self._line.pieces(start, end):
            first = self._ranges[index].start
            yield index, Span(first + part.start * self._unit, first + part.end * self._unit)


class MappedPages:
    """The pages behind mappings of a process, by position."""

    def __init__(self, process: Process, areas: Sequence[Area], table: PageTable) -> None:
        self.process = process
        self.areas = areas
        self.table = table
        self.page = syscalls.page_size()
        self.addresses = Addresses([Span(each.start, each.end) for each in areas], self.page)

    def each(self, start: int, end: int, verb: str, work: Callable[[int, int], T]) -> Iterator[tuple[int, T]]:
        """The number of each mapping between two positions, and the result of ``work`` for its addresses there.

        The process lives before and afterwards, so its number was not reused. Raises TargetError; its message has
        ``verb``.
        """
        for mapping, addresses in self.addresses.pieces(start, end):
            try:
                self._require_alive()
                found = work(addresses.start, addresses.end)
                self._require_alive()
            except (ProcessLookupError, FileNotFoundError) as error:
                raise process_ended(self.process) from error
            except OSError as error:
                if error.errno == errno.EINVAL:  # its memory is gone: find_mm_struct in mm/migrate.c
                    raise process_ended(self.process) from error
                raise TargetError.from_os(error, f"{verb} pages of process {self.process.pid}") from error
            yield mapping, found

    def _require_alive(self) -> None:
        """Raises OSError: ESRCH also for a zombie, which has no pages."""
        if self.process.read("stat").rpartition(") ")[2][0] in "ZX":
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def open_pages(preparation: Preparation[P]) -> MappedPages:
    """The mappings of the spec. Raises TargetError (ESRCH, EACCES), NotSupported, or InvalidValue without a mapping."""
    process = preparation.keep(open_process(preparation.parameters.pid))
    areas = [each for each in areas_of(process, preparation.parameters.mapping) if each.name not in NOT_MEMORY]
    if not areas:
        raise InvalidValue(f"process {process.pid} has no memory")
    try:
        table = preparation.keep(PageTable(process.open("pagemap")))
    except OSError as error:
        raise TargetError.from_os(error, f"examine the pages of process {process.pid}") from error
    return MappedPages(process, areas, table)
