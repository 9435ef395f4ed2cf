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


@dataclass(frozen=True)
class Tree:
    """Everything below ``fd``, the descriptor of a directory or of one regular file.

    ``cross_mounts``: go into other filesystems that are mounted there. Links are never followed: paths are resolved
    by openat2(2) without any, and never out of the tree.
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
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
        if not self.cross_mounts:
            resolve |= syscalls.RESOLVE_NO_XDEV
        return syscalls.openat2(self.fd, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, resolve)

    def open_regular(self, kernel: Kernel, path: str) -> int:
        """A regular file of the tree, open for reading; raises OSError: EINVAL for what is not one any more."""
        handle = self.open(path)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return kernel.reopen(handle, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(handle)


@dataclass
class Walk:
    """One way through a tree, in the order in which the directories list their entries.

    ``errors`` counts the directories that could not be read, by the errno's name; ``mounts`` those that are left out
    because another filesystem is mounted there.
    """

    kernel: Kernel
    tree: Tree
    errors: Counter[str] = field(default_factory=Counter)
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
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
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
            self.errors[errno.errorcode.get(error.errno or 0, "EIO")] += 1
