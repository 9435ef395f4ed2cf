"""``collapse`` of a process: move its small pages into huge pages."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, NotSupported, TargetError, errno_name
from ktaskfs.host import syscalls
from ktaskfs.host.process_memory import NOT_MEMORY
from ktaskfs.host.transparent import COUNTS, huge_page_size
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.processes import areas_of, open_process
from ktaskfs.operations.processes._mappings import Addresses, ProcessParameters, process_ended
from ktaskfs.result import lines
from ktaskfs.span import Span
from ktaskfs.units import BYTES

if TYPE_CHECKING:
    from ktaskfs.host.maps import Area
    from ktaskfs.host.process_memory import Process
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MOST_BYTES: Final = 64 << 20
"""Bytes of one call: the process's own mmap(2) waits for it, some 17 ms."""
LEAST_BYTES: Final = 16 << 20


class CollapseParameters(ProcessParameters):
    """A process, and which of its mappings."""


class Collapse(Operation[CollapseParameters]):
    """process_madvise(2) with MADV_COLLAPSE, for whole huge pages of one mapping at a time.

    A position is a byte of the chosen mappings, which are laid end to end. Contents do not change.
    """

    name = "collapse"
    target = "a process"
    description = (
        "Move a process's small pages, anonymous or shared, into huge pages. The caller needs CAP_SYS_NICE and the "
        "right to look at the process (ptrace(2)). The result has the bytes in huge pages, and the other bytes with "
        "the kernel's reason."
    )
    units = BYTES
    parameters = CollapseParameters
    no_undo = "it does not change the contents of the memory"
    no_resume = "the process may have changed its mappings"

    def means(self, parameters: Any) -> bool:
        return parameters.pid is not None

    def prepare(self, preparation: Preparation[CollapseParameters]) -> Plan:
        """Find the mappings; raises TargetError (ESRCH, EACCES, EPERM), NotSupported, or InvalidValue without any."""
        parameters = preparation.parameters
        huge = huge_page_size(preparation.kernel)
        process = preparation.keep(open_process(parameters.pid))
        _require_possible(process)
        areas = areas_of(process, parameters.mapping)
        chosen = areas if parameters.mapping is not None else filter(_is_memory, areas)
        ranges = [Span(-(-each.start // huge) * huge, each.end // huge * huge) for each in chosen]
        addresses = Addresses([each for each in ranges if each.size > 0])
        if not len(addresses):
            raise InvalidValue(f"process {process.pid} has no memory there that a huge page fits")
        collapser = _Collapser(process, addresses, huge)
        nodes = preparation.nodes(addresses.whole, huge)
        control = preparation.control(collapser.collapse, least=LEAST_BYTES, most=MOST_BYTES, align=huge)
        return preparation.plan(nodes, control, collapser.finish)


def _require_possible(process: Process) -> None:
    """Raises TargetError or NotSupported, with the setting or the right that is missing."""
    try:
        process.advise(0, 0, syscalls.MADV_COLLAPSE)
    except OSError as error:
        if error.errno == errno.EPERM and not syscalls.capget()[0] >> syscalls.CAP_SYS_NICE & 1:
            text = f"collapse memory of process {process.pid}: you need CAP_SYS_NICE"
            raise TargetError(text, errno=errno.EPERM) from error
        if error.errno in (errno.ENOSYS, errno.EINVAL):
            raise NotSupported("collapsing the memory of another process takes Linux 6.1") from error
        raise TargetError.from_os(error, f"collapse memory of process {process.pid}") from error
    if "THP_enabled:\t0" in process.read("status"):
        raise NotSupported(f"process {process.pid} has no transparent huge pages: prctl(2), PR_SET_THP_DISABLE")


def _is_memory(area: Area) -> bool:
    """Whether it is writable memory without a file on a disk: private, or shared (tmpfs, memfd, SysV)."""
    return "w" in area.permissions and area.name not in NOT_MEMORY and not (area.inode and os.major(area.device))


class _Collapser:
    """The chunk function, and the results for huge pages."""

    def __init__(self, process: Process, addresses: Addresses, huge: int) -> None:
        self._process = process
        self._addresses = addresses
        self._huge = huge
        self._before = self._in_huge_pages()
        self._lock = threading.Lock()  # guards the counts
        self._counts: Counter[int] = Counter()
        """Huge pages, by errno; 0 is collapsed."""

    def collapse(self, start: int, end: int) -> None:
        """Collapse the memory at positions ``start`` to ``end``; raises TargetError if the process ended."""
        for _, addresses in self._addresses.pieces(start, end):
            counts = self._collapse(addresses.start, addresses.size)
            with self._lock:
                self._counts += counts

    def _collapse(self, address: int, size: int) -> Counter[int]:
        if not self._try(address, size):
            return Counter({0: size // self._huge})
        return Counter(self._try(at, self._huge) for at in range(address, address + size, self._huge))

    def _try(self, address: int, size: int) -> int:
        """The errno of one call, which the kernel returns if any huge page of the range failed; 0 on success."""
        try:
            self._process.advise(address, size, syscalls.MADV_COLLAPSE)
        except ProcessLookupError as error:
            raise process_ended(self._process) from error
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _in_huge_pages(self) -> int | None:
        """Bytes of the whole process in huge pages; None if it has ended."""
        try:
            counts = self._process.counts("smaps_rollup")
        except OSError:
            return None
        return sum(counts.get(name, 0) for name in COUNTS)

    def finish(self, outcome: Outcome) -> str:
        """The result: bytes, and a row for each reason of the kernel."""
        left = {number: pages * self._huge for number, pages in sorted(self._counts.items()) if number}
        after = self._in_huge_pages()
        facts = {
            "mappings": len(self._addresses),
            "collapsed": self._counts[0] * self._huge,
            "left": sum(left.values()),
            "huge_before": "-" if self._before is None else self._before,
            "huge_after": "-" if after is None else after,
        }
        rows = [f"{errno_name(number)} {size}\n" for number, size in left.items()]
        return "".join([lines(facts), "reason bytes\n", *rows])
