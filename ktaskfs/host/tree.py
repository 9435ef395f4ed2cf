"""Walks the regular files below a directory one by one, with memory for one path and one open directory per level.

With links followed, also a number for each directory and for each file with several names.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import TargetError
from ktaskfs.host import statx, syscalls
from ktaskfs.host.files import hides_data

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ktaskfs.host.kernel import Kernel

DEPTH_MAX: Final = 200
"""Maximum depth; each level keeps two descriptors open, and a process usually has 1024."""
LOOK: Final = 1024
"""Entries between two checks whether the walk was given up."""
LEFT_MAX: Final = 1000
"""Maximum unreadable directories that are named."""
LEASE_PATIENCE: Final = 0.5
"""Seconds to wait for a lease on one of many files."""
_OPEN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(directory: int, path: str, *, cross_mounts: bool) -> int:
    """An O_PATH descriptor of ``path`` below ``directory``, without following links or leaving the directory.

    If the last component is a link, the descriptor refers to the link. Raises OSError: EXDEV for a path that leads out,
    or into another mount unless ``cross_mounts``; ELOOP for a link in the path.

    openat2(2) does this in one call. A seccomp filter on open flags refuses that call (systemd's RestrictSUIDSGID=:
    ENOSYS), because it cannot read flags in memory. Then each component is opened separately.
    """
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    if not cross_mounts:
        resolve |= syscalls.RESOLVE_NO_XDEV
    try:
        return syscalls.openat2(directory, path, _OPEN, resolve)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return open_by_components(directory, path, cross_mounts=cross_mounts)


def open_by_components(directory: int, path: str, *, cross_mounts: bool) -> int:
    """Like ``open_beneath``, without openat2(2); ``..`` is always refused (EXDEV).

    Each component is looked up in its open parent, so a rename cannot lead elsewhere.
    """
    if not path:
        raise _error(errno.ENOENT)
    if path.startswith("/"):
        raise _error(errno.EXDEV)
    here = os.dup(directory)
    try:
        for name in path.split("/"):
            mode = os.fstat(here).st_mode
            if stat.S_ISLNK(mode):
                raise _error(errno.ELOOP)
            if not stat.S_ISDIR(mode):
                raise _error(errno.ENOTDIR)
            if name == "..":
                raise _error(errno.EXDEV)
            if name in ("", "."):
                continue
            below = os.open(name, _OPEN, dir_fd=here)
            os.close(here)
            here = below
            if not cross_mounts and statx.is_mount_root(here):
                raise _error(errno.EXDEV)
    except OSError:
        os.close(here)
        raise
    return here


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Tree(NamedTuple):
    """Everything below ``fd``, the descriptor of a directory, of one regular file, or of one block device.

    ``cross_mounts``: enter directories that are mounted there; a file that is mounted on a file is always in the tree,
    as for cp -x, rsync -x and tar --one-file-system. ``links``: follow links, even out of the tree, but not magic links
    of /proc. Otherwise no link is followed, and no path leads out of the tree.
    """

    fd: int
    cross_mounts: bool
    links: bool = False

    @property
    def is_file(self) -> bool:
        """Whether the tree is one regular file or block device."""
        return not stat.S_ISDIR(os.fstat(self.fd).st_mode)

    def status(self, path: str) -> os.stat_result:
        """The status of that path in the tree; raises OSError as ``open``."""
        handle = self.open(path)
        try:
            return os.fstat(handle)
        finally:
            os.close(handle)

    def open(self, path: str) -> int:
        """An O_PATH descriptor of that path in the tree; raises OSError: EXDEV for a mounted directory and all in it,
        ELOOP."""
        if path == "." and self.is_file:
            return os.dup(self.fd)
        try:
            return self._open_inside(path)
        except OSError as error:
            if error.errno != errno.EXDEV or self.cross_mounts:
                raise
        above, name = os.path.split(path)
        directory = self._open_inside(above or ".")
        try:
            handle = os.open(name, _OPEN, dir_fd=directory)
        finally:
            os.close(directory)
        if stat.S_IFMT(os.fstat(handle).st_mode) in (stat.S_IFDIR, stat.S_IFLNK):
            os.close(handle)
            raise _error(errno.EXDEV)
        return handle

    def _open_inside(self, path: str) -> int:
        if not self.links:
            return open_beneath(self.fd, path, cross_mounts=self.cross_mounts)
        handle = _open_following(self.fd, path)
        try:
            if not self.cross_mounts and statx.mount_id(handle) != statx.mount_id(self.fd):
                raise _error(errno.EXDEV)
        except OSError:
            os.close(handle)
            raise
        return handle

    def open_regular(self, kernel: Kernel, path: str) -> int:
        """A regular file of the tree, or its block device, open for reading.

        Raises OSError: EINVAL if it is no longer a regular file, EAGAIN if another process keeps a lease on it.
        """
        handle = self.open(path)
        try:
            if path != "." and not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _error(errno.EINVAL)
            return kernel.reopen_file(handle, os.O_RDONLY | os.O_NOCTTY, patience=LEASE_PATIENCE)
        finally:
            os.close(handle)

    def open_data(self, kernel: Kernel, path: str) -> int:
        """As ``open_regular``, to read all of it. Raises OSError: EOPNOTSUPP for a file that has data but size 0."""
        fd = self.open_regular(kernel, path)
        try:
            if hides_data(fd):
                raise _error(errno.EOPNOTSUPP)
        except OSError:
            os.close(fd)
            raise
        return fd


def _open_following(directory: int, path: str) -> int:
    flags = os.O_PATH | os.O_CLOEXEC
    try:
        return syscalls.openat2(directory, path, flags, syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return os.open(path, flags, dir_fd=directory)


class TreeEntry(NamedTuple):
    """An entry: its directory as a path prefix, its name there, and its status from stat(2)."""

    directory: str
    name: str
    status: os.stat_result


@dataclass
class Walk:
    """One walk through a tree, in the order of the directory listings.

    ``everything``: also directories, each before what is in it, links that are not followed, FIFOs and the like. With
    links followed, a directory is walked once; with ``everything`` further links to it are errors (ELOOP). ``once``:
    the same for files, including those with several names. ``errors`` counts the directories that could not be read, by
    errno, and dangling links; ``left`` names the first of them. ``mounts`` counts skipped mount points.
    """

    kernel: Kernel
    tree: Tree
    once: bool = False
    everything: bool = False
    errors: Counter[int] = field(default_factory=Counter)
    left: list[tuple[int, str]] = field(default_factory=list)
    mounts: int = 0

    def __post_init__(self) -> None:
        self._walked: set[int] = set()
        self._seen: set[int] = set()

    def __iter__(self) -> Iterator[TreeEntry]:
        """The regular files, from the tree's own directory on. Iterate once.

        Raises TargetError if the walk was given up.
        """
        if self.tree.is_file:
            yield TreeEntry("", ".", os.fstat(self.tree.fd))
            return
        yield from self._below("", ".", 1)

    def _below(self, prefix: str, path: str, depth: int) -> Generator[TreeEntry, None, None]:
        try:
            if depth > DEPTH_MAX:
                raise _error(errno.ENAMETOOLONG)
            fd = self._open_directory(path)
        except OSError as error:
            self._count(error, path)
            return
        if fd is None:
            if self.everything:
                self._count(_error(errno.ELOOP), path)
            return
        try:
            yield from self._entries(fd, prefix, path, depth)
        finally:
            os.close(fd)

    def _entries(self, fd: int, prefix: str, path: str, depth: int) -> Generator[TreeEntry, None, None]:
        try:
            entries = os.scandir(fd)  # which has its own descriptor, but stat(2) of an entry uses this one
        except OSError as error:
            self._count(error, path)
            return
        with entries:
            for number in itertools.count(1):
                try:
                    entry = next(entries, None)
                except OSError as error:  # the rest of the directory is unreadable
                    self._count(error, path)
                    return
                if entry is None:
                    return
                if not number % LOOK:
                    self.go_on()
                below = prefix + entry.name
                try:
                    status = self._look_at(below, entry)
                except OSError as error:  # it is gone, or a dangling link
                    self._count(error, below)
                    continue
                if self.everything or (stat.S_ISREG(status.st_mode) and not self._again(status)):
                    yield TreeEntry(prefix, entry.name, status)
                if stat.S_ISDIR(status.st_mode):
                    yield from self._below(f"{below}/", below, depth + 1)

    def _look_at(self, path: str, entry: os.DirEntry[str]) -> os.stat_result:
        """The status of an entry from stat(2)."""
        status = entry.stat(follow_symlinks=False)
        return self.tree.status(path) if self.tree.links and stat.S_ISLNK(status.st_mode) else status

    def _again(self, status: os.stat_result) -> bool:
        """Whether the file has been found before, by another name."""
        if not self.once or not (self.tree.links or status.st_nlink > 1):
            return False
        return not _added(self._seen, status)

    def _open_directory(self, path: str) -> int | None:
        """A directory, open for reading; None if it was already walked through a link."""
        self.go_on()
        handle = self.tree.open(path)
        try:
            if self.tree.links and not _added(self._walked, os.fstat(handle)):
                return None
            return self.kernel.reopen(handle, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(handle)

    def go_on(self) -> None:
        """Raises TargetError, ECANCELED, if nobody waits for the walk any more."""
        if self.kernel.abandoned():
            raise TargetError("the walk through the tree was given up", errno=errno.ECANCELED)

    def _count(self, error: OSError, path: str) -> None:
        if error.errno == errno.EXDEV:
            self.mounts += 1
            return
        number = error.errno or errno.EIO
        self.errors[number] += 1
        if len(self.left) < LEFT_MAX:
            self.left.append((number, path))


def _added(known: set[int], status: os.stat_result) -> bool:
    """Enter a file or directory, as one number, which takes half of the memory of a tuple; False if it is in."""
    number = status.st_dev << 64 | status.st_ino
    if number in known:
        return False
    known.add(number)
    return True
