"""Opening the file a task works on, as the caller, without ever opening anything but a regular file.

A FIFO would block, a device would act. So a path is first opened with O_PATH, which does nothing to the file;
once fstat(2) has shown a regular file, that very file is opened for use through /proc/self/fd, with the kernel's
ordinary checks. The path is looked up once: replacing it meanwhile changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.holders import mark

if TYPE_CHECKING:
    from collections.abc import Collection

    from ktaskfs.host.kernel import Kernel

SEAL_SHRINK: Final = 0x0002
SEAL_GROW: Final = 0x0004
SEAL_WRITE: Final = 0x0008
SEAL_FUTURE_WRITE: Final = 0x0010
_CREATE_TRIES: Final = 8
_LEASE_TRIES: Final = 50
_LEASE_PAUSE: Final = 0.01
_OWN_DESCRIPTORS: Final = re.compile(r"/proc/(self|thread-self)(/|$)|/dev/(fd(/|$)|std(in|out|err)$)")


class FilesystemType(Enum):
    """The filesystem a file is on, as far as it matters here; the value is its name for messages."""

    HUGETLBFS = "hugetlbfs"
    TMPFS = "tmpfs"
    OTHER = "another filesystem"


MEMORY: Final = frozenset({FilesystemType.HUGETLBFS, FilesystemType.TMPFS})
"""Filesystems whose files are memory."""
_BY_MAGIC: Final = {syscalls.HUGETLBFS_MAGIC: FilesystemType.HUGETLBFS, syscalls.TMPFS_MAGIC: FilesystemType.TMPFS}


@dataclass(frozen=True)
class Target:
    """An open regular file.

    ``page_size`` is the unit in which it is allocated: the huge page of hugetlbfs, an ordinary page elsewhere.
    ``directory`` and ``name`` are set for a file that ``open_target`` created.
    """

    fd: int
    path: str
    filesystem: FilesystemType
    page_size: int
    directory: int | None = None
    name: str = ""

    @property
    def created(self) -> bool:
        """Whether the file did not exist before."""
        return self.directory is not None

    def size(self) -> int:
        """The file's size now, in bytes."""
        return os.fstat(self.fd).st_size

    def allocated(self) -> int:
        """Bytes the file has pages for now, wherever they lie."""
        return os.fstat(self.fd).st_blocks * 512

    def seals(self) -> int:
        """The seals of fcntl(2), 0 for a file that cannot have any."""
        try:
            return fcntl.fcntl(self.fd, fcntl.F_GET_SEALS)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.fd)
        if self.directory is not None:
            os.close(self.directory)


def open_target(
    kernel: Kernel, path: str, *, kinds: Collection[FilesystemType], write: bool = True, create: int | None = None
) -> Target:
    """Open ``path`` for reading and, unless ``write`` is false, writing.

    ``create`` is the mode of a file to make if there is none (the umask applies); only on a filesystem of ``kinds``.
    The file is marked as one that a worker uses (``host.holders``), unless it is only read from a disk.
    A memfd is reached as /proc/PID/fd/N. Raises TargetError with the system's own errno (EISDIR for a directory,
    EINVAL for a FIFO, socket or device), NotSupported for a filesystem not of ``kinds`` and for files of procfs, and
    InvalidValue for names such as /proc/self/fd/N, which would mean the worker's own descriptors; a symbolic link to
    one is not noticed.
    """
    if _OWN_DESCRIPTORS.match(re.sub("^/+", "/", os.path.normpath(path))):
        raise InvalidValue(f"{path} would be the worker's own: write /proc/PID/fd/N with the number of your process")
    try:
        for attempt in range(_CREATE_TRIES):
            try:
                return _open_existing(kernel, path, kinds, write)
            except FileNotFoundError:
                if create is None or attempt == _CREATE_TRIES - 1:
                    raise
            try:
                return _create(path, kinds, create)
            except FileExistsError:  # somebody else made it just now, or it is a link to nothing: ENOENT in the end
                continue
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    raise AssertionError("the last attempt returns or raises")


def _open_existing(kernel: Kernel, path: str, kinds: Collection[FilesystemType], write: bool) -> Target:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _require_regular(handle, path)
        filesystem = _filesystem_of(handle, path, kinds)
        fd = _reopen(kernel, handle, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOCTTY | os.O_NONBLOCK)
    finally:
        os.close(handle)
    if write or filesystem in MEMORY:
        mark(fd)
    return Target(fd, path, filesystem, _page_size(fd, filesystem))


def _reopen(kernel: Kernel, handle: int, flags: int) -> int:
    """Wait a little for a lease to be given back: another worker takes one to see whether it is alone at the file."""
    for _ in range(_LEASE_TRIES):
        with contextlib.suppress(BlockingIOError):
            return kernel.reopen(handle, flags)
        time.sleep(_LEASE_PAUSE)
    return kernel.reopen(handle, flags)


def _create(path: str, kinds: Collection[FilesystemType], mode: int) -> Target:
    parent, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    directory = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        filesystem = _filesystem_of(directory, path, kinds)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=directory)
    except BaseException:
        os.close(directory)
        raise
    mark(fd)
    return Target(fd, path, filesystem, _page_size(fd, filesystem), directory, name)


def _require_regular(handle: int, path: str) -> None:
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode):
        raise TargetError(f"open {path}: {os.strerror(errno.EISDIR)}", errno=errno.EISDIR)
    if not stat.S_ISREG(mode):
        raise TargetError(f"{path} is not a regular file", errno=errno.EINVAL)


def _filesystem_of(handle: int, path: str, kinds: Collection[FilesystemType]) -> FilesystemType:
    magic = syscalls.filesystem_magic(handle)
    if magic == syscalls.PROC_SUPER_MAGIC:  # a link can lead to the worker's own /proc, where more may show
        raise NotSupported(f"{path} is a file of /proc, which is no memory")
    filesystem = _BY_MAGIC.get(magic, FilesystemType.OTHER)
    if filesystem not in kinds:
        names = " or ".join(sorted(each.value for each in kinds))
        raise NotSupported(f"{path} is on {filesystem.value}: this works on {names} only")
    return filesystem


def _page_size(fd: int, filesystem: FilesystemType) -> int:
    """hugetlbfs gives its huge page as the block size; tmpfs allocates ordinary pages, or several at once."""
    return os.fstatvfs(fd).f_bsize if filesystem is FilesystemType.HUGETLBFS else syscalls.page_size()
