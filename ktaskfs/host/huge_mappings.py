"""What a process has of huge pages: files open and mapped, and private memory. proc_pid_maps(5), proc_pid_fd(5)."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.host import statx, syscalls
from ktaskfs.host.credentials import parse_start_time
from ktaskfs.host.files import list_directory, read_file
from ktaskfs.host.hugetlbfs import page_size_of
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Set

FileId = tuple[int, int, str]
"""Device, inode and, of a SysV segment, the IPC namespace: the inode there is the segment's number."""

_LINE: Final = rb"^([0-9a-f]+)-([0-9a-f]+) ...([ps]) ([0-9a-f]+) (%s) ([0-9]+) *(.*)$"
_UNKNOWN: Final = rb"^\S+ \S+ \S+ (?!(?:%s) )(\S+)"
_AREA: Final = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .*$", re.MULTILINE)
_KERNEL_PAGE: Final = re.compile(rb"^KernelPageSize: +([0-9]+) kB$", re.MULTILINE)
_FLAGS: Final = re.compile(rb"^VmFlags:(.*)$", re.MULTILINE)
_ENTRY: Final = struct.Struct("=Q")
NO_RESERVE: Final = b"nr"
HUGETLB: Final = b"ht"
SYSV: Final = "/SYSV"
"""How the kernel's names of SysV segments begin."""
PRESENT: Final = 1 << 63
OF_FILE: Final = 1 << 61
"""Of a file, or of shared memory: private memory has it clear."""
ALONE: Final = 1 << 56
"""Nobody else has the page mapped."""
PFN: Final = (1 << 55) - 1
"""Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)."""


class Area(NamedTuple):
    """A part of a process's memory that has huge pages: addresses, and the offset in the file."""

    start: int
    end: int
    offset: int
    shared: bool
    file: FileId

    @property
    def span(self) -> Span:
        """What it has of the file, in bytes."""
        return Span(self.offset, self.offset + self.end - self.start)


@dataclass(frozen=True)
class SeenFile:
    """A file of huge pages as a process has it: the kernel's name for it, and what stat(2) says, if that is known."""

    name: str
    status: statx.FileStatus | None


@dataclass(frozen=True)
class HugeProcess:
    """A process that has files of huge pages open or mapped. ``started`` is in clock ticks since boot."""

    pid: int
    name: str
    uid: int
    started: int
    areas: tuple[Area, ...]
    files: Set[FileId]


@dataclass
class Devices:
    """Filesystems by device: the size of page of those of huge pages, and the others that are known."""

    page_sizes: dict[int, int]
    others: set[int] = field(default_factory=set)

    def pattern(self) -> re.Pattern[bytes]:
        """Matches lines of /proc/PID/maps that are of a hugetlbfs."""
        return re.compile(_LINE % b"|".join(map(_device_text, list(self.page_sizes))), re.MULTILINE)


def _device_text(device: int) -> bytes:
    return b"%02x:%02x" % (os.major(device), os.minor(device))


def look_at(proc: int, pid: int, devices: Devices, seen: dict[FileId, SeenFile]) -> HugeProcess | None:
    """What the process has; None if it has none, has ended, or may not be looked at. It may hang.

    Devices and files that are met for the first time are entered in ``devices`` and ``seen``.
    """
    try:
        maps = read_file(f"{pid}/maps", proc)
        _new_devices(proc, pid, maps, devices)
        files = set()
        for file, opened in _opened(proc, pid, devices):
            files.add(file)
            seen[file] = opened
        areas, names = areas_of(proc, str(pid), maps, devices)
        for file, (area, name) in names.items():
            files.add(file)
            if file not in seen:
                seen[file] = SeenFile(name, _mapped_status(proc, pid, area))
        if not files:
            return None
        status = dict(line.partition(b":")[::2] for line in read_file(f"{pid}/status", proc).splitlines())
        uid = int(status[b"Uid"].split()[1])
        started = parse_start_time(read_file(f"{pid}/stat", proc))
    except (OSError, NotPermitted):
        return None
    return HugeProcess(pid, os.fsdecode(status[b"Name"].strip()), uid, started, tuple(areas), files)


def _new_devices(proc: int, pid: int, maps: bytes, devices: Devices) -> None:
    """Enter the devices in ``maps`` that no mount has, such as those of a mount that was detached."""
    known = [*devices.page_sizes, *devices.others, 0]  # 0: of no file
    unknown = re.compile(_UNKNOWN % b"|".join(map(_device_text, known)), re.MULTILINE)
    new = {_device(text) for text in set(unknown.findall(maps))}
    if not new:
        return
    sizes = {start: size for start, size, flags in _details(proc, pid) if HUGETLB in flags}
    for line in maps.splitlines():
        addresses, _, _, text, _ = line.split(None, 4)
        size = sizes.get(int(addresses.partition(b"-")[0], 16))
        if size is not None and _device(text) in new:
            devices.page_sizes[_device(text)] = size
    devices.others.update(new - devices.page_sizes.keys())


def areas_of(
    proc: int, process: str, maps: bytes, devices: Devices
) -> tuple[list[Area], dict[FileId, tuple[Area, str]]]:
    """The areas of huge pages in the text of /proc/PID/maps of ``process``; and one of each file, with its name.

    Raises OSError.
    """
    namespace = ""
    areas, names = [], {}
    files: dict[tuple[bytes, bytes], FileId] = {}  # most areas are of few files
    for start, end, kind, offset, device, inode, name in devices.pattern().findall(maps):
        file = files.get((device, inode))
        is_new = file is None
        if file is None:
            text = os.fsdecode(name)
            if text.startswith(SYSV) and not namespace:
                namespace = os.readlink(f"{process}/ns/ipc", dir_fd=proc)
            file = files[device, inode] = (_device(device), int(inode), namespace if text.startswith(SYSV) else "")
        area = Area(int(start, 16), int(end, 16), int(offset, 16), kind == b"s", file)
        areas.append(area)
        if is_new:
            names[file] = area, text
    return areas, names


def _device(text: bytes) -> int:
    major, _, minor = text.partition(b":")
    return os.makedev(int(major, 16), int(minor, 16))


def _details(proc: int, pid: int) -> Iterator[tuple[int, int, list[bytes]]]:
    """Start, size of page and flags of each area. proc_pid_smaps(5). Raises OSError."""
    text = read_file(f"{pid}/smaps", proc)
    starts, sizes, flags = _AREA.findall(text), _KERNEL_PAGE.findall(text), _FLAGS.findall(text)
    for start, size, words in zip(starts, sizes, flags, strict=True):
        yield int(start, 16), int(size) << 10, words.split()


def _mapped_status(proc: int, pid: int, area: Area) -> statx.FileStatus | None:
    """What stat(2) says of a mapped file; None without the capability to ask (CAP_CHECKPOINT_RESTORE)."""
    with contextlib.suppress(OSError):
        status = statx.file_status(proc, f"{pid}/map_files/{area.start:x}-{area.end:x}")
        return status if status.inode else None
    return None


def _opened(proc: int, pid: int, devices: Devices) -> Iterator[tuple[FileId, SeenFile]]:
    for fd in list_directory(f"{pid}/fd", proc):
        path = f"{pid}/fd/{fd}"
        with contextlib.suppress(OSError):  # it was closed
            name = os.readlink(path, dir_fd=proc)
            if not name.startswith("/"):
                continue
            status = statx.file_status(proc, path)
            device = status.device
            if device not in devices.others and device not in devices.page_sizes:
                size = page_size_of(proc, path)
                if size is not None:
                    devices.page_sizes[device] = size
            if device in devices.page_sizes:
                yield (device, status.inode, ""), SeenFile(name, status)


def reserving(proc: int, pid: int, areas: Iterable[Area]) -> set[Area]:
    """Those of the process's areas for which the kernel has set pages aside. It may hang. Raises OSError."""
    flags = {start: words for start, _, words in _details(proc, pid)}
    return {area for area in areas if NO_RESERVE not in flags.get(area.start, [NO_RESERVE])}


def present_pages(
    proc: int, pid: int, areas: Iterable[Area], page_sizes: Mapping[int, int]
) -> dict[Area, dict[int, int]]:
    """The entry of pagemap of each huge page that the process has in ``areas``, by address. It may hang.

    The number of the page (PFN) is 0 without CAP_SYS_ADMIN. ``page_sizes`` are by device. Raises OSError.
    """
    found = {}
    page, pread, unpack = syscalls.page_size(), os.pread, _ENTRY.unpack  # there may be very many
    fd = os.open(f"{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        for area in areas:
            present = {}
            for address in range(area.start, area.end, page_sizes[area.file[0]]):
                entry = pread(fd, 8, address // page * 8)
                if entry and (bits := unpack(entry)[0]) & PRESENT:
                    present[address] = bits
            if present:
                found[area] = present
    finally:
        os.close(fd)
    return found
