"""Opens the target of a task, as the caller, and never opens anything but a regular file:

a FIFO would block, a device would act. So a path is first opened with O_PATH, which does nothing to the file;
once fstat(2) has shown a regular file, the same file is opened through /proc/self/fd, with the kernel's ordinary
checks. The path is looked up once, so a replacement has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.holders import mark
from ktaskfs.units import SIZE_MAX

if TYPE_CHECKING:
    from collections.abc import Collection

    from ktaskfs.host.kernel import Kernel

SEAL_SHRINK: Final = 0x0002
SEAL_GROW: Final = 0x0004
SEAL_WRITE: Final = 0x0008
SEAL_FUTURE_WRITE: Final = 0x0010
_CREATE_TRIES: Final = 8
_OWN_DESCRIPTORS: Final = re.compile(r"/proc/(self|thread-self)(/|$)|/dev/(fd(/|$)|std(in|out|err)$)")


class FilesystemType(Enum):
    """The kind of a file's filesystem; the value is its name for messages."""

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
        return size_of(self.fd)

    def allocated(self) -> int:
        """Bytes of the file's existing pages, anywhere."""
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


class AbsentTarget(Target):
    """A file that could be created. ``fd`` is its directory's, for facts about the filesystem."""

    def size(self) -> int:
        return 0

    def allocated(self) -> int:
        return 0

    def seals(self) -> int:
        return 0


def open_target(
    kernel: Kernel,
    path: str,
    *,
    kinds: Collection[FilesystemType],
    write: bool = True,
    create: int | None = None,
    leave_absent: bool = False,
    handle: int | None = None,
) -> Target:
    """Open ``path`` for reading and, unless ``write`` is false, writing.

    ``handle`` is an O_PATH descriptor of the file, if it is already known: then ``path`` is its name for messages.

    ``create`` is the mode of a new file if it is missing (the umask applies); only on a filesystem of ``kinds``. With
    ``leave_absent`` an AbsentTarget is returned instead of a new file. The file is marked as in use by a worker
    (``host.holders``), unless it is only read from a disk. A block device can be read (``write`` false), as a file of
    another filesystem. A memfd is reached as /proc/PID/fd/N. Raises TargetError with the system's own errno (EISDIR for
    a directory, EINVAL for a FIFO, socket or device, ETXTBSY for writing to a swap file, EAGAIN for a lease that
    another process keeps), NotSupported for a filesystem not of ``kinds`` and for files of procfs, and InvalidValue for
    names such as /proc/self/fd/N, which would mean the worker's own descriptors; a symbolic link to one is not noticed.
    """
    refuse_own_descriptors(path)
    try:
        for attempt in range(_CREATE_TRIES):
            try:
                found = os.open(path, os.O_PATH | os.O_CLOEXEC) if handle is None else os.dup(handle)
                return _open_existing(kernel, found, path, kinds, write)
            except FileNotFoundError:
                if create is None or attempt == _CREATE_TRIES - 1:
                    raise
            try:
                return _absent(path, kinds) if leave_absent else _create(path, kinds, create)
            except FileExistsError:  # somebody else has just made it, or it is a dangling link: ENOENT in the end
                continue
    except OSError as error:
        raise TargetError.from_os(error, f"open {path}") from error
    raise AssertionError("the last attempt returns or raises")


def size_of(fd: int) -> int:
    """Bytes of a file that is open, or of a block device that is open for reading, which fstat(2) does not report."""
    status = os.fstat(fd)
    return os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else status.st_size


def time_of_change(status: os.stat_result) -> int:
    """When a file was written to, in ns; 0 for a block device, whose time udev changes without a write, and a write
    through another node does not."""
    return 0 if stat.S_ISBLK(status.st_mode) else status.st_mtime_ns


def refuse_own_descriptors(path: str) -> None:
    """Raises InvalidValue for a name of one of the worker's descriptors."""
    if _OWN_DESCRIPTORS.match(re.sub("^/+", "/", os.path.normpath(path))):
        raise InvalidValue(f"{path} would be the worker's own: write your process's number, as in /proc/PID/fd/N")


def _open_existing(kernel: Kernel, handle: int, path: str, kinds: Collection[FilesystemType], write: bool) -> Target:
    """Closes ``handle``."""
    try:
        device = not write and stat.S_ISBLK(os.fstat(handle).st_mode) and FilesystemType.OTHER in kinds
        if not device:
            _require_regular(handle, path)
        filesystem = FilesystemType.OTHER if device else _filesystem_of(handle, path, kinds)
        fd = _reopen(kernel, handle, path, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOCTTY)
    finally:
        os.close(handle)
    if write and filesystem is FilesystemType.OTHER and _is_swap_file(fd):
        os.close(fd)
        raise TargetError(f"{path} is in use as swap space", errno=errno.ETXTBSY)
    if write or filesystem in MEMORY:
        mark(fd)
    return Target(fd, path, filesystem, _page_size(fd, filesystem))


def _reopen(kernel: Kernel, handle: int, path: str, flags: int) -> int:
    try:
        return kernel.reopen_file(handle, flags)
    except BlockingIOError as error:
        text = f"open {path}: another process holds a lease on it"
        raise TargetError(text, errno=errno.EAGAIN) from error


def _open_directory(path: str) -> tuple[int, str]:
    """The directory of a new file, and its name there."""
    parent, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), name


def _absent(path: str, kinds: Collection[FilesystemType]) -> Target:
    """Whether ``_create`` would succeed."""
    directory, name = _open_directory(path)
    try:
        filesystem = _filesystem_of(directory, path, kinds)
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=directory, follow_symlinks=False)
            raise FileExistsError  # just made, or a dangling link
        require_creatable(directory, filesystem)
    except BaseException:
        os.close(directory)
        raise
    return AbsentTarget(directory, path, filesystem, _page_size(directory, filesystem))


def require_creatable(directory: int, filesystem: FilesystemType) -> None:
    """Make a file without a name, because modes say nothing of inodes, quotas, labels, attributes and id mappings.

    The modes decide where there are no such files, as on NFS and vfat, and on hugetlbfs, where such a file would change
    the times of the directory. Raises OSError.
    """
    if filesystem is not FilesystemType.HUGETLBFS:
        try:
            os.close(os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory))
            return
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True):
        read_only = os.fstatvfs(directory).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number))


def _create(path: str, kinds: Collection[FilesystemType], mode: int) -> Target:
    directory, name = _open_directory(path)
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
    if magic == syscalls.PROC_SUPER_MAGIC:  # a link can lead to the worker's own /proc, which may show more
        raise NotSupported(f"{path} is a file of /proc, not of memory")
    filesystem = _BY_MAGIC.get(magic, FilesystemType.OTHER)
    if filesystem not in kinds:
        names = " or ".join(sorted(each.value for each in kinds))
        raise NotSupported(f"{path} is on {filesystem.value}: this works on {names} only")
    return filesystem


def directory_as_target(fd: int, path: str) -> AbsentTarget:
    """Stands for the files that could be made in an open directory."""
    filesystem = _BY_MAGIC.get(syscalls.filesystem_magic(fd), FilesystemType.OTHER)
    return AbsentTarget(fd, path, filesystem, _page_size(fd, filesystem))


def _is_swap_file(fd: int) -> bool:
    """Whether the file, open for writing, is swap space: every write then fails with ETXTBSY.

    vfs_fallocate() in fs/open.c checks that, for every filesystem, before it refuses a range past the largest offset.
    """
    try:
        syscalls.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, SIZE_MAX, 1)
    except OSError as error:
        return error.errno == errno.ETXTBSY
    raise AssertionError("no file has a byte at offset 2^63 - 1")


def _page_size(fd: int, filesystem: FilesystemType) -> int:
    """hugetlbfs reports its huge page as the block size; tmpfs allocates ordinary pages, or several at once."""
    return os.fstatvfs(fd).f_bsize if filesystem is FilesystemType.HUGETLBFS else syscalls.page_size()
