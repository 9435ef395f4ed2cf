"""The regular files below a directory, found one by one: memory for one path and one open directory a level."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ktaskfs.host.kernel import Kernel

DEPTH_MAX: Final = 200
"""Levels of directories; each keeps a descriptor open, and a process usually has 1024."""


_OPEN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(directory: int, path: str, *, cross_mounts: bool) -> int:
    """An O_PATH descriptor of ``path`` below ``directory``, reached through no link and never out of the directory.

    The last component may itself be a link, which the descriptor then refers to. Raises OSError: EXDEV for a path that
    leads out, or into another mount unless ``cross_mounts``; ELOOP for a link on the way.

    openat2(2) does it in one call. A seccomp filter that looks at open flags refuses that call (systemd's
    RestrictSUIDSGID=: ENOSYS), since it cannot see flags in memory. Then each component is opened by itself.
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
    """As ``open_beneath``, without openat2(2), and ``..`` is always refused (EXDEV).

    Each component is looked up in the directory that is already open, so a rename meanwhile cannot lead elsewhere.
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
            if not cross_mounts and syscalls.is_mount_root(here):
                raise _error(errno.EXDEV)
    except OSError:
        os.close(here)
        raise
    return here


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Tree:
    """Everything below ``fd``, the descriptor of a directory or of one regular file.

    ``cross_mounts``: go into other filesystems that are mounted there. Links are never followed, and no path leads out
    of the tree.
    """

    fd: int
    cross_mounts: bool

    @property
    def is_file(self) -> bool:
        """Whether the tree is one regular file."""
        return stat.S_ISREG(os.fstat(self.fd).st_mode)

    def open(self, path: str) -> int:
        """An O_PATH descriptor of what has that path in the tree; raises OSError: EXDEV for another mount, ELOOP."""
        if path == "." and self.is_file:
            return os.dup(self.fd)
        return open_beneath(self.fd, path, cross_mounts=self.cross_mounts)

    def open_regular(self, kernel: Kernel, path: str) -> int:
        """A regular file of the tree, open for reading; raises OSError: EINVAL for what is not one any more."""
        handle = self.open(path)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _error(errno.EINVAL)
            return kernel.reopen(handle, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(handle)


@dataclass
class Walk:
    """One way through a tree, in the order in which the directories list their entries.

    ``errors`` counts the directories that could not be read, by errno; ``mounts`` counts those left out because another
    filesystem is mounted there.
    """

    kernel: Kernel
    tree: Tree
    errors: Counter[int] = field(default_factory=Counter)
    mounts: int = 0

    def __post_init__(self) -> None:
        self._files = self._walk()

    def __iter__(self) -> Iterator[str]:
        """The paths of the regular files, from the tree's own directory on."""
        return self._files

    def close(self) -> None:
        """Close the directories that are open."""
        self._files.close()

    def _walk(self) -> Generator[str, None, None]:
        if self.tree.is_file:
            yield "."
            return
        yield from self._below("", ".", 1)

    def _below(self, prefix: str, path: str, depth: int) -> Generator[str, None, None]:
        try:
            if depth > DEPTH_MAX:
                raise _error(errno.ENAMETOOLONG)
            entries = self._scan(path)
        except OSError as error:
            self._count(error)
            return
        with entries:
            while True:
                try:
                    entry = next(entries, None)
                except OSError as error:  # the directory cannot be read to its end
                    self._count(error)
                    return
                if entry is None:
                    return
                below = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from self._below(f"{below}/", below, depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    yield below

    def _scan(self, path: str) -> os._ScandirIterator[str]:
        handle = self.tree.open(path)
        try:
            fd = self.kernel.reopen(handle, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(handle)
        try:
            return os.scandir(fd)  # has a descriptor of its own
        finally:
            os.close(fd)

    def _count(self, error: OSError) -> None:
        if error.errno == errno.EXDEV:
            self.mounts += 1
        else:
            self.errors[error.errno or errno.EIO] += 1
