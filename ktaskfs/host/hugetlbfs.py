"""The places of huge page files: the mounts of hugetlbfs, and the kernel's internal ones."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host import statx, syscalls
from ktaskfs.host.files import read_file
from ktaskfs.host.hugepages import read_pools
from ktaskfs.units import unescaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ktaskfs.host.kernel import Kernel

DEPTH_MAX: Final = 32
"""Maximum depth of directories."""


class HugetlbfsMount(NamedTuple):
    """A place where a hugetlbfs is mounted in some mount namespace.

    ``device`` is the filesystem's number, and ``whole`` says whether the mount shows all of it. ``least`` is the mount
    option min_size in bytes, 0 without one.
    """

    device: int
    path: str
    whole: bool
    least: int


class Mounts(NamedTuple):
    """The mounts of one mount namespace: those of hugetlbfs, and the devices of all others."""

    hugetlbfs: tuple[HugetlbfsMount, ...]
    others: frozenset[int]


class MountContent(NamedTuple):
    """The contents of a mounted hugetlbfs: its page size, and its files by path."""

    page_size: int
    files: Mapping[str, statx.FileStatus]


def unmounted_devices(kernel: Kernel) -> dict[int, int]:
    """The page size of each internal hugetlbfs of the kernel, by device: memfd, shared memory, anonymous."""
    found = {}
    for pool in read_pools(kernel):
        size = (pool.size.bit_length() - 1) << os.MFD_HUGE_SHIFT
        with contextlib.suppress(OSError):  # a size without such a filesystem
            fd = os.memfd_create("", os.MFD_CLOEXEC | os.MFD_HUGETLB | size)
            found[os.fstat(fd).st_dev] = pool.size
            os.close(fd)
    return found


def read_mounts(kernel: Kernel, process: str) -> Mounts:
    """The mounts in the namespace of ``process``, a name below /proc. proc_pid_mountinfo(5). Raises OSError."""
    hugetlbfs, others = [], set()
    for line in os.fsdecode(read_file(f"{process}/mountinfo", kernel.proc)).split("\n")[:-1]:
        place, _, what = line.partition(" - ")
        _, _, numbers, root, path, *_ = place.split(" ")
        kind, _, options = what.split(" ", 2)
        device = os.makedev(*map(int, numbers.split(":")))
        if kind == "hugetlbfs":
            least = next((int(each[9:]) for each in options.split(",") if each.startswith("min_size=")), 0)
            hugetlbfs.append(HugetlbfsMount(device, unescaped(path), root == "/", least))
        else:
            others.add(device)
    return Mounts(tuple(hugetlbfs), frozenset(others))


def sets_aside(kernel: Kernel, device: int) -> bool:
    """Whether a hugetlbfs of this process's mount namespace has the option min_size. Raises OSError."""
    return any(mount.least for mount in read_mounts(kernel, "self").hugetlbfs if mount.device == device)


def read_content(kernel: Kernel, place: HugetlbfsMount, root: str) -> MountContent | None:
    """The files of ``place``, as far as they can be listed; None if another filesystem is mounted there now.

    ``root`` is the root directory of the mount's namespace, a path below /proc, or "" for this process's own. It
    may hang. Raises OSError.
    """
    fd = os.open(root + place.path, os.O_PATH | os.O_CLOEXEC, dir_fd=kernel.proc)
    try:
        if os.fstat(fd).st_dev != place.device:
            return None
        files = dict(_walk(fd, ".", place.path.rstrip("/"), DEPTH_MAX))
        return MountContent(os.fstatvfs(fd).f_bsize, files)
    finally:
        os.close(fd)


def _walk(above: int, name: str, path: str, depth: int) -> Iterator[tuple[str, statx.FileStatus]]:
    with contextlib.suppress(PermissionError, FileNotFoundError, NotADirectoryError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=above)
        try:
            for each in os.listdir(fd):
                there = f"{path}/{each}"
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    status = statx.file_status(fd, each)
                    if stat.S_ISREG(status.mode):
                        yield there, status
                    elif stat.S_ISDIR(status.mode) and depth:
                        yield from _walk(fd, each, there, depth - 1)
        finally:
            os.close(fd)


def page_size_of(proc: int, path: str) -> int | None:
    """The page size if the file at ``path`` below /proc is of a hugetlbfs. It may hang. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=proc)
    try:
        return os.fstatvfs(fd).f_bsize if syscalls.filesystem_magic(fd) == syscalls.HUGETLBFS_MAGIC else None
    finally:
        os.close(fd)
