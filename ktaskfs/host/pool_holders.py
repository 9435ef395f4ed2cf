"""Who holds the huge pages of the machine's pools, as far as this process may see it.

Pages in use: a file's are the blocks that stat(2) tells, private ones are in the page tables of processes. Reserved
pages: of a file, what is mapped of it, less what is in use; of private memory, each area less its pages, in the
oldest process that has it, since its forks have no reservation. What no file of /proc shows remains: files that
are in flight in a socket, and reservations that stayed with a file when its mapping went.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ktaskfs.host.files import list_directory
from ktaskfs.host.huge_files import HugeFile, find_mounted, named
from ktaskfs.host.huge_mappings import (
    ALONE,
    OF_FILE,
    PFN,
    FileId,
    HugeArea,
    HugeProcess,
    Known,
    SeenFile,
    look_at,
    present_pages,
    reserving,
)
from ktaskfs.host.huge_segments import detached_segments, resident_pages
from ktaskfs.host.hugepages import Pool, read_pools
from ktaskfs.host.hugetlbfs import unmounted_devices
from ktaskfs.host.may_hang import answers_in_time
from ktaskfs.span import Span
from ktaskfs.units import SIZE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ktaskfs.host.kernel import Kernel

A = TypeVar("A")
_Areas = Mapping[FileId, Collection[tuple[Sequence[int], HugeArea]]]
"""The areas of each file, each with the processes that have it, the oldest first: forks are together."""
_Pages = Mapping[int, Mapping[HugeArea, Mapping[int, int]]]

PATIENCE: Final = 0.15
"""Seconds that processes which do not answer may delay each of three looks at them."""
BLOCK: Final = 512
"""Bytes in a block of stat(2)."""


class HolderProcess(NamedTuple):
    """A process that holds pages."""

    pid: int
    name: str
    uid: int


class Holding(NamedTuple):
    """Pages of one size that belong together.

    kind:     file, deleted, memfd, sysv, shared (anonymous), private, or mount (what one set aside with min_size=).
    path:     of the file or mount, or another name; empty if it has none.
    used:     pages that were given out.
    reserved: pages that are set aside for it.
    uid:      the owner of the file, or of the first process.
    """

    page_size: int
    kind: str
    path: str
    used: int
    reserved: int
    uid: int
    processes: tuple[HolderProcess, ...] = ()


class HoldersReport(NamedTuple):
    """All holdings, by size of page, the largest first; the pools; and what could not be looked at in time."""

    holdings: tuple[Holding, ...]
    pools: tuple[Pool, ...]
    hung: tuple[str, ...]


def find_holdings(kernel: Kernel, viewer: int) -> HoldersReport:
    """Who holds pages. Paths are as the process ``viewer`` sees them, whose root directory this process has.

    What cannot be read is left out. It may attach SysV segments for a moment if pages are not explained otherwise.
    """
    known = Known(unmounted_devices(kernel))
    unmounted = frozenset(known.page_sizes)
    pids = sorted({int(name) for name in list_directory(".", kernel.proc) if name.isdecimal()} - {os.getpid()})
    mounted = find_mounted(kernel, viewer, pids)
    known.page_sizes.update({device: size for device, (_, size) in mounted.mounts.items()})
    known.others.update(mounted.others - known.page_sizes.keys())
    known.files.update({file: SeenFile(each.path, each.status) for file, each in mounted.files.items()})
    scan = _Scan(kernel, known.page_sizes)
    found = scan.ask(lambda pid: look_at(kernel.proc, pid, known), pids)
    scan.processes = {pid: each for pid, each in sorted(found.items()) if each is not None}
    for file, each in list(known.files.items()):
        page_size = known.page_sizes[file[0]]
        scan.files[file] = mounted.files.get(file) or named(file, each, page_size, unmounted=file[0] in unmounted)
    holdings = scan.holdings()
    for device, (place, page_size) in mounted.mounts.items():
        inside = sum(each.used + each.reserved for each, of in holdings if of == device)
        aside = place.least // page_size - inside
        if aside > 0:
            holdings.append((Holding(page_size, "mount", place.path, 0, aside, 0), device))
    pools = read_pools(kernel)
    report = [each for each, _ in holdings]
    if any(_unexplained(pool, report) > 0 for pool in pools):
        for page_size, segment, used in detached_segments(kernel, known.page_sizes):
            reserved = max(0, -(-segment.size // page_size) - used)
            report.append(Holding(page_size, "sysv", segment.text, used, reserved, segment.uid))
    report.sort(key=lambda each: (each.page_size, -each.used - each.reserved, each.path))
    hung = [*mounted.hung, *(f"{pid}:{scan.name(pid)}" for pid in sorted(scan.hung))]
    return HoldersReport(tuple(report), pools, tuple(hung))


def _unexplained(pool: Pool, holdings: Iterable[Holding]) -> int:
    explained = sum(each.used + each.reserved for each in holdings if each.page_size == pool.size)
    return pool.total - pool.free + pool.reserved - explained


@dataclass(frozen=True)
class _Private:
    """Private areas by file and address: the oldest process that has each, since forks have it too; and all of them."""

    oldest: dict[tuple[FileId, int], tuple[int, HugeArea]] = field(default_factory=dict)
    processes: defaultdict[FileId, set[int]] = field(default_factory=lambda: defaultdict(set))


@dataclass
class _Scan:
    """The finds in processes and mounts, and the way to join them. ``hung`` are processes that do not answer."""

    kernel: Kernel
    page_sizes: Mapping[int, int]
    processes: dict[int, HugeProcess] = field(default_factory=dict)
    files: dict[FileId, HugeFile] = field(default_factory=dict)
    hung: set[int] = field(default_factory=set)

    def ask(self, question: Callable[[int], A], pids: Collection[int]) -> dict[int, A]:
        """The answers by pid; those who do not answer are not asked again."""
        asked = set(pids) - self.hung
        answers = dict(answers_in_time(question, asked, PATIENCE, self.kernel.proc))
        self.hung |= asked - answers.keys()
        return answers

    def name(self, pid: int) -> str:
        """The name of a process that does not answer."""
        try:
            return self.kernel.read_proc(f"{pid}/comm").rstrip("\n")
        except OSError:
            return "?"

    def holdings(self) -> list[tuple[Holding, int]]:
        """The holdings of files and of private memory, each with its device."""
        shared, private = self._areas()
        pages = self._pages(shared)
        used = self._used(shared, pages)
        keeping = self._reserving(private, shared, used)
        holders = defaultdict(list)
        for pid, process in self.processes.items():
            for file in process.files:
                holders[file].append(pid)
        spans = defaultdict[FileId, list[Span]](list)
        for areas in keeping.values():
            for area in areas:
                if area.shared:
                    spans[area.file].append(area.span)
        found = []
        for file, each in self.files.items():
            if each.status is None and not holders[file]:  # the only process with it has ended during the scan
                continue
            whole = Span(0, SIZE_MAX if each.status is None else each.status.size)
            mapped = covered(span.cut(whole) for span in spans[file])
            reserved = max(0, mapped // each.page_size - used[file])
            if used[file] or reserved:
                found.append((self._holding(file, each.kind, each.path, used[file], reserved, holders[file]), file[0]))
        return found + self._private(private, pages, keeping)

    def _areas(self) -> tuple[_Areas, _Private]:
        """The shared areas by file, with the process of each; and the private ones."""
        shared = defaultdict[FileId, list[tuple[Sequence[int], HugeArea]]](list)
        private = _Private()
        for areas, pids in self._groups():
            for area in areas:
                if area.shared:
                    shared[area.file].append((pids, area))
                else:
                    private.oldest.setdefault((area.file, area.start), (pids[0], area))
                    private.processes[area.file].update(pids)
        return shared, private

    def _groups(self) -> list[tuple[tuple[HugeArea, ...], list[int]]]:
        """Processes with the same areas, the oldest first: a loop over the areas of each of many forks takes long."""
        groups: dict[int, tuple[tuple[HugeArea, ...], list[int]]] = {}
        for pid in sorted(self.processes, key=self._age):
            areas = self.processes[pid].areas  # one object for all forks (Known.areas)
            groups.setdefault(id(areas), (areas, []))[1].append(pid)
        return list(groups.values())

    def _age(self, pid: int) -> tuple[int, int]:
        return self.processes[pid].started, pid

    def _pages(self, shared: _Areas) -> dict[int, dict[HugeArea, dict[int, int]]]:
        """The pages of private areas, and of files of which only that can be known; by process and area."""
        unknown = {file for file in shared if self.files[file].status is None}
        wanted = {}
        for areas, pids in self._groups():
            chosen = [area for area in areas if not area.shared or area.file in unknown]
            if chosen:
                wanted.update(dict.fromkeys(pids, chosen))

        def ask(pid: int) -> dict[HugeArea, dict[int, int]]:
            try:
                return present_pages(self.kernel.proc, pid, wanted[pid], self.page_sizes)
            except OSError:
                return {}

        return self.ask(ask, wanted)

    def _used(self, shared: _Areas, pages: _Pages) -> dict[FileId, int]:
        """Pages in use by file."""
        segments = resident_pages(self.kernel, self.page_sizes)
        used = {}
        for file, each in self.files.items():
            if each.status is not None:
                used[file] = each.status.blocks * BLOCK // each.page_size
            elif file in segments:
                used[file] = segments[file]
            else:  # at least those that processes have in their page tables
                used[file] = len(
                    {
                        address - area.start + area.offset
                        for pids, area in shared[file]
                        for pid in pids
                        for address in pages.get(pid, {}).get(area, ())
                    }
                )
        return used

    def _reserving(
        self, private: _Private, shared: _Areas, used: Mapping[FileId, int]
    ) -> defaultdict[int, set[HugeArea]]:
        """The areas of each process for which pages are set aside: asked only where that can make a difference."""
        known = defaultdict[int, set[HugeArea]](set)
        asked = set[int]()

        def ask(pid: int) -> set[HugeArea]:
            try:
                return reserving(self.kernel.proc, pid, self.processes[pid].areas)
            except OSError:
                return set()

        needed = {pid for pid, _ in private.oldest.values()}
        while True:
            for file, areas in shared.items():
                needed |= self._needed(areas, known, asked, used[file] * self.files[file].page_size)
            needed -= asked
            if not needed:
                return known
            asked |= needed
            known.update(self.ask(ask, needed))

    @staticmethod
    def _needed(
        areas: Collection[tuple[Sequence[int], HugeArea]],
        known: Mapping[int, set[HugeArea]],
        asked: Collection[int],
        used: int,
    ) -> set[int]:
        """Processes to ask whether pages of a file are reserved, of which ``used`` bytes are in use."""
        spans: dict[tuple[int, int], int] = {}
        for pids, area in areas:
            pid = next((pid for pid in pids if pid not in asked or area in known.get(pid, ())), None)
            if pid is not None:
                spans.setdefault(area.span, pid)
        needed, reach = set[int](), 0
        if max((end for _, end in spans), default=0) <= used:  # no more is mapped
            return needed
        for (_, end), pid in sorted(spans.items(), key=lambda each: (each[0][0], each[1] not in asked, -each[0][1])):
            if end > reach:
                reach = end
                needed.add(pid)
        return needed - set(asked)

    def _private(
        self, private: _Private, pages: _Pages, keeping: Mapping[int, set[HugeArea]]
    ) -> list[tuple[Holding, int]]:
        used = defaultdict[FileId, set[object]](set)
        counts = Counter[tuple[int, HugeArea]]()
        for pid, areas in pages.items():
            for area, entries in areas.items():
                for address, bits in entries.items():
                    if not (bits & OF_FILE or area.shared):
                        used[area.file].add(bits & PFN or (address, pid if bits & ALONE else None))
                        counts[pid, area] += 1
        reserved = Counter[FileId]()
        for pid, area in private.oldest.values():
            if area in keeping.get(pid, ()):
                page_size = self.files[area.file].page_size
                reserved[area.file] += (area.end - area.start) // page_size - counts[pid, area]
        found = []
        for file, processes in private.processes.items():
            if used[file] or reserved[file]:
                path = "" if self.files[file].kind == "shared" else self.files[file].path
                pids = sorted(processes, key=self._age)
                holding = self._holding(file, "private", path, len(used[file]), reserved[file], pids)
                found.append((holding, file[0]))
        return found

    def _holding(self, file: FileId, kind: str, path: str, used: int, reserved: int, pids: Iterable[int]) -> Holding:
        processes = tuple(
            HolderProcess(each.pid, each.name, each.uid) for each in (self.processes[pid] for pid in pids)
        )
        known = self.files[file]
        of_file = known.status.uid if known.status is not None and kind != "private" else None
        uid = of_file if of_file is not None else processes[0].uid
        return Holding(known.page_size, kind, path, used, reserved, uid, processes)


def covered(spans: Iterable[Span]) -> int:
    """Units that are in any of ``spans``."""
    total, reach = 0, 0
    for span in sorted(spans):
        total += max(0, span.end - max(span.start, reach))
        reach = max(reach, span.end)
    return total
