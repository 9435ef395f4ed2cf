"""The mappings of a process: the lines of /proc/PID/maps. proc_pid_maps(5)."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_START: Final = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .*$", re.MULTILINE)
_KERNEL_PAGE: Final = re.compile(rb"^KernelPageSize: +([0-9]+) kB$", re.MULTILINE)
_FLAGS: Final = re.compile(rb"^VmFlags:(.*)$", re.MULTILINE)
_EXCEPT: Final = rb"(?:^[^ ]+ [^ ]+ [^ ]+ (?!(?:%s) ).*\n)+"


class Area(NamedTuple):
    """One mapping, with what its line says: addresses, ``end`` exclusive, the file behind it and where it begins there.

    ``permissions`` is such as ``rw-p``; ``inode`` is 0 and ``name`` empty, or in brackets, for memory without a file.
    A SysV segment has its own number for an inode, which may be 0.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    name: str

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def is_shared(self) -> bool:
        """Whether writes to the mapping go into the file."""
        return self.permissions.endswith("s")


def read_areas(directory: int, path: str) -> Iterator[Area]:
    """The mappings in the file ``path``, a ``maps`` of /proc. Raises OSError. The process can make it hang."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        yield from parse_areas(file)


def parse_areas(lines: Iterable[bytes]) -> Iterator[Area]:
    """The mapping of each line."""
    for line in lines:
        addresses, permissions, offset, device, inode, *name = line.split(None, 5)
        start, end = (int(each, 16) for each in addresses.split(b"-"))
        major, minor = (int(each, 16) for each in device.split(b":"))
        # The kernel escapes newlines alone.
        text = os.fsdecode(name[0].rstrip(b"\n").replace(b"\\012", b"\n")) if name else ""
        yield Area(start, end, permissions.decode(), int(offset, 16), os.makedev(major, minor), int(inode), text)


class Details(NamedTuple):
    """A mapping in /proc/PID/smaps: its start, its page size in bytes, and the kernel's flags."""

    start: int
    page_size: int
    flags: list[bytes]

    @property
    def is_huge(self) -> bool:
        """Whether the mapping has huge pages of a pool."""
        return b"ht" in self.flags

    @property
    def reserves(self) -> bool:
        """Whether the kernel has reserved pages for the mapping."""
        return b"nr" not in self.flags


def read_details(directory: int, path: str) -> Iterator[Details]:
    """The mappings in the file ``path``, an ``smaps`` of /proc; proc_pid_smaps(5). Raises OSError. May hang."""
    text = read_file(path, directory)
    starts, sizes, flags = _START.findall(text), _KERNEL_PAGE.findall(text), _FLAGS.findall(text)
    for start, size, words in zip(starts, sizes, flags, strict=True):
        yield Details(int(start, 16), int(size) << 10, words.split())


def all_except(devices: Iterable[int]) -> re.Pattern[bytes]:
    """Matches the runs of lines that are not of these devices."""
    texts = (b"%02x:%02x" % (os.major(each), os.minor(each)) for each in devices)
    return re.compile(_EXCEPT % b"|".join(texts), re.MULTILINE)
