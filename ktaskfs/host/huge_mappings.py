"""The huge pages of a process: files open and mapped, and private memory. proc_pid_maps(5), proc_pid_fd(5)."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.host import maps, page_table, statx
from ktaskfs.host.credentials import parse_start_time
from ktaskfs.host.files import list_directory, read_file
from ktaskfs.host.hugetlbfs import page_size_of
from ktaskfs.host.page_table import PageTable
from ktaskfs.span import Span

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

FileId = tuple[int, int, str]
"""Device, inode and, of a SysV segment, the IPC namespace: the inode there is the segment's number."""

SYSV: Final = "/SYSV"
"""The prefix of the kernel's names of SysV segments."""
PRESENT: Final = 1 << 63
OF_FILE: Final = 1 << 61
"""This bit is set for a page of a file or of shared memory, and clear for private memory."""
ALONE: Final = 1 << 56
"""Nobody else has the page mapped."""
PFN: Final = (1 << 55) - 1
"""Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)."""


class HugeArea(NamedTuple):
    """A part of a process's memory that has huge pages: addresses, and the offset in the file."""

    start: int
    end: int
    offset: int
    shared: bool
    file: FileId

    @property
    def span(self) -> Span:
        """The mapped range of the file, in bytes."""
        return Span(self.offset, self.offset + self.end - self.start)


class SeenFile(NamedTuple):
    """A file of huge pages as a process has it: the kernel's name for it, and what stat(2) says, if that is known."""

    name: str
    status: statx.FileStatus | None


class HugeProcess(NamedTuple):
    """A process that has files of huge pages open or mapped. ``started`` is in clock ticks since boot."""

    pid: int
    name: str
    uid: int
    started: int
    areas: tuple[HugeArea, ...]
    files: Set[FileId]


class HugeAreas(NamedTuple):
    """The areas of a process that have huge pages, and one of each file with its name."""

    areas: tuple[HugeArea, ...]
    names: dict[FileId, tuple[HugeArea, str]]


@dataclass
class Known:
    """Facts learned from the processes examined so far.

    page_sizes: of each filesystem of huge pages, by device.
    others:     devices that are none.
    files:      of huge pages, as some process has them.
    areas:      by the lines of /proc/PID/maps and the IPC namespace: forks have the same ones.
    """

    page_sizes: dict[int, int]
    others: set[int] = field(default_factory=set)
    files: dict[FileId, SeenFile] = field(default_factory=dict)
    areas: dict[tuple[bytes, str], HugeAreas] = field(default_factory=dict)
    _patterns: dict[int, re.Pattern[bytes]] = field(default_factory=dict)

    def lines(self, text: bytes) -> bytes:
        """The lines of a /proc/PID/maps that are not of a device in ``others``."""
        others = frozenset(self.others)
        pattern = self._patterns.get(len(others))  # none ever leaves the set
        if pattern is None:
            pattern = self._patterns[len(others)] = maps.all_except([*others, 0])  # 0: of no file
        return b"".join(pattern.findall(text))


def look_at(proc: int, pid: int, known: Known) -> HugeProcess | None:
    """The huge pages of the process; None if it has none, has ended, or may not be looked at. It may hang.

    What is met for the first time is entered in ``known``.
    """
    try:
        areas, names = huge_areas_of(proc, str(pid), known)
        files = set(names)
        for file, opened in _opened(proc, pid, known):
            files.add(file)
            known.files[file] = opened
        for file, (area, name) in names.items():
            if file not in known.files:
                known.files[file] = SeenFile(name, _mapped_status(proc, pid, area))
        if not files:
            return None
        status = dict(line.partition(b":")[::2] for line in read_file(f"{pid}/status", proc).splitlines())
        uid = int(status[b"Uid"].split()[1])
        started = parse_start_time(read_file(f"{pid}/stat", proc))
    except (OSError, NotPermitted):
        return None
    return HugeProcess(pid, os.fsdecode(status[b"Name"].strip()), uid, started, areas, files)


def huge_areas_of(proc: int, process: str, known: Known) -> HugeAreas:
    """The areas of ``process``, a name below /proc, that have huge pages. It may hang. Raises OSError."""
    lines = known.lines(read_file(f"{process}/maps", proc))
    namespace = os.readlink(f"{process}/ns/ipc", dir_fd=proc) if SYSV.encode() in lines else ""
    found = known.areas.get((lines, namespace))
    if found is None:
        mapped = list(maps.parse_areas(lines.splitlines(keepends=True)))
        _learn_devices(proc, process, mapped, known)
        found = known.areas[lines, namespace] = _huge_areas(mapped, namespace, known)
    return found


def _learn_devices(proc: int, process: str, mapped: Iterable[maps.Area], known: Known) -> None:
    """Enter the devices that no mount has, such as those of a mount that was detached."""
    new = {each.device for each in mapped} - known.page_sizes.keys() - known.others
    if not new:
        return
    sizes = {each.start: each.page_size for each in maps.read_details(proc, f"{process}/smaps") if each.is_huge}
    known.page_sizes.update(
        (each.device, sizes[each.start]) for each in mapped if each.device in new and each.start in sizes
    )
    known.others.update(new - known.page_sizes.keys())


def _huge_areas(mapped: Iterable[maps.Area], namespace: str, known: Known) -> HugeAreas:
    areas, names = [], dict[FileId, tuple[HugeArea, str]]()
    for each in mapped:
        if each.device in known.page_sizes:
            file = (each.device, each.inode, namespace if each.name.startswith(SYSV) else "")
            area = HugeArea(each.start, each.end, each.offset, each.is_shared, file)
            areas.append(area)
            names.setdefault(file, (area, each.name))
    return HugeAreas(tuple(areas), names)


def _mapped_status(proc: int, pid: int, area: HugeArea) -> statx.FileStatus | None:
    """The stat(2) of a mapped file; None without the capability to ask (CAP_CHECKPOINT_RESTORE)."""
    with contextlib.suppress(OSError):
        status = statx.file_status(proc, f"{pid}/map_files/{area.start:x}-{area.end:x}")
        return status if status.inode else None
    return None


def _opened(proc: int, pid: int, known: Known) -> Iterator[tuple[FileId, SeenFile]]:
    for fd in list_directory(f"{pid}/fd", proc):
        path = f"{pid}/fd/{fd}"
        with contextlib.suppress(OSError):  # it was closed
            name = os.readlink(path, dir_fd=proc)
            if not name.startswith("/"):
                continue
            status = statx.file_status(proc, path)
            device = status.device
            if device not in known.others and device not in known.page_sizes:
                size = page_size_of(proc, path)
                if size is not None:
                    known.page_sizes[device] = size
            if device in known.page_sizes:
                yield (device, status.inode, ""), SeenFile(name, status)


def reserving(proc: int, pid: int, areas: Iterable[HugeArea]) -> set[HugeArea]:
    """The areas of the process for which the kernel has set pages aside. It may hang. Raises OSError."""
    keeping = {each.start for each in maps.read_details(proc, f"{pid}/smaps") if each.reserves}
    return {area for area in areas if area.start in keeping}


def present_pages(
    proc: int, pid: int, areas: Iterable[HugeArea], page_sizes: Mapping[int, int]
) -> dict[HugeArea, dict[int, int]]:
    """The entry of pagemap of each huge page that the process has in ``areas``, by address. It may hang.

    The number of the page (PFN) is 0 without CAP_SYS_ADMIN. ``page_sizes`` are by device. Raises OSError.
    """
    found: dict[HugeArea, dict[int, int]] = {}
    table = PageTable(os.open(f"{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc))
    with contextlib.closing(table):
        for neighbours in _neighbours(areas):
            for area, address, entry in _entries(table, neighbours, page_sizes):
                found.setdefault(area, {})[address] = entry
    return found


def _neighbours(areas: Iterable[HugeArea]) -> Iterator[list[HugeArea]]:
    """The areas, in the order of addresses, in groups without a gap."""
    group: list[HugeArea] = []
    for area in areas:
        if group and group[-1].end != area.start:
            yield group
            group = []
        group.append(area)
    if group:
        yield group


def _entries(
    table: PageTable, areas: Sequence[HugeArea], page_sizes: Mapping[int, int]
) -> Iterator[tuple[HugeArea, int, int]]:
    """Each present page of neighbours: its area, its address, its entry. Raises OSError."""
    runs = [Span(areas[0].start, areas[-1].end)]
    if table.tells_huge:  # one call for all, most of which may be missing
        runs = [Span(each.start, each.end) for each in table.runs(*runs[0]) if each.categories & page_table.PRESENT]
    starts = [each.start for each in areas]
    for address, end in runs:
        for area in areas[bisect_right(starts, address) - 1 : bisect_left(starts, end)]:
            step = page_sizes[area.file[0]]
            for page in range(max(address, area.start), min(end, area.end), step):
                if (entry := table.entry(page)) & PRESENT:
                    yield area, page, entry
