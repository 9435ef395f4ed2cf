"""Another process, held by descriptors, and its mappings."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final, Self

from ktaskfs.host import statx, syscalls
from ktaskfs.host.credentials import parse_start_time
from ktaskfs.host.files import list_directory, read_file
from ktaskfs.host.maps import read_areas, read_details

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.maps import Area

NOT_MEMORY: Final = frozenset({"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"})
"""Mappings that the kernel makes for itself."""
_HANDLE: Final = os.O_PATH | os.O_CLOEXEC


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Process:
    """A process that was found by its number once. All further calls are about that one, or fail with ESRCH."""

    def __init__(self, pid: int, directory: int, pidfd: int) -> None:
        self.pid = pid
        self._directory = directory
        self._pidfd = pidfd

    @classmethod
    def find(cls, pid: int) -> Self:
        """Process ``pid`` as the /proc of this process's root shows it.

        Raises OSError: ESRCH if there is none, ENOTSUP if that /proc is missing or of another PID namespace.
        """
        try:
            same = os.readlink("/proc/self") == str(os.getpid())
        except OSError:
            same = False
        if not same:
            raise OSError(errno.ENOTSUP, "your /proc belongs to another pid namespace than ktaskfs")
        try:
            directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        try:
            if syscalls.filesystem_magic(directory) != syscalls.PROC_SUPER_MAGIC:
                raise OSError(errno.ENOTSUP, "your /proc is not procfs")
            pidfd = os.pidfd_open(pid)
            process = cls(pid, directory, pidfd)
            try:
                process.read("stat")  # the directory's process is alive, so the number was still its own
            except BaseException:
                os.close(pidfd)
                raise
        except BaseException:
            os.close(directory)
            raise
        return process

    def open(self, name: str) -> int:
        """A file of its directory in /proc, open for reading; raises OSError."""
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)

    def read(self, name: str) -> str:
        """The text of a file of its directory in /proc; raises OSError."""
        return os.fsdecode(read_file(name, self._directory))

    def began(self) -> int:
        """Its start time, in clock ticks since the boot; proc_pid_stat(5), starttime. Raises OSError."""
        return parse_start_time(read_file("stat", self._directory))

    def areas(self) -> Iterator[Area]:
        """Its mappings, in the order of addresses; raises OSError."""
        return read_areas(self._directory, "maps")

    def huge_areas(self) -> Iterator[int]:
        """The start of each mapping with huge pages of a pool; raises OSError."""
        return (each.start for each in read_details(self._directory, "smaps") if each.is_huge)

    def counts(self, name: str) -> dict[str, int]:
        """The lines ``Key: N kB`` of a file such as ``smaps_rollup``, in bytes; raises OSError."""
        lines = (line.split() for line in self.read(name).splitlines())
        return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[-1] == "kB" and len(words) == 3}

    def mapped_file(self, area: Area) -> int:
        """An O_PATH descriptor of the file behind a mapping, which may have no name.

        The kernel leads to it only a caller with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the first user namespace
        (proc_pid_map_files(5)). Others find it if the process has it open too, or by its name. Raises OSError: EPERM if
        they do not, EACCES for a process that the caller may not look at, ENOENT if the mapping is gone.
        """
        try:
            return os.open(f"map_files/{area.start:x}-{area.end:x}", _HANDLE, dir_fd=self._directory)
        except PermissionError as error:
            if error.errno != errno.EPERM:
                raise
        wanted = area.device, area.inode
        for name in list_directory("fd", self._directory):
            with contextlib.suppress(OSError):  # it was closed
                if statx.file_status(self._directory, f"fd/{name}")[:2] == wanted:
                    return _same(os.open(f"fd/{name}", _HANDLE, dir_fd=self._directory), wanted)
        with contextlib.suppress(OSError):  # it was removed, or renamed, or has never had a name
            if area.name.startswith("/"):
                return _same(os.open(area.name, _HANDLE | os.O_NOFOLLOW), wanted)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def advise(self, start: int, size: int, advice: int) -> None:
        """process_madvise(2) for one range of addresses, in which there is one mapping; raises OSError."""
        range_ = _Iovec(start, size)
        syscalls.numbered("process_madvise", self._pidfd, ctypes.addressof(range_), 1, advice, 0)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._directory)
        os.close(self._pidfd)


def _same(handle: int, wanted: tuple[int, int]) -> int:
    """``handle`` if it is of that device and inode; raises OSError (ENOENT) if it is of another file by now."""
    status = os.fstat(handle)
    if (status.st_dev, status.st_ino) != wanted:
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return handle
