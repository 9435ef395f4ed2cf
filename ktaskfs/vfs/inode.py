"""Inodes: common attributes of files and directories, and refusals that subclasses override."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.vfs.change import READABLE, WRITABLE
from ktaskfs.vfs.refusals import AccessDenied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT_INO: Final = 1
"""The inode number of the root directory (FUSE_ROOT_ID)."""

FOREVER: Final = 86400.0
"""Seconds for which the kernel may cache static data."""

NEW_TEXT_SIZE: Final = 4096
"""st_size for a user without a text, as for every attribute of sysfs."""

BRIEFLY: Final = 0.01
"""Seconds of caching for several system calls of one program about one name: ``ls -l`` makes three."""


class Caller(NamedTuple):
    """The process that makes a request; for a read or a write, the process that opened the file (``f_cred``).

    ``pid`` is 0 if this process cannot see the caller's pid namespace. It must not decide about rights, because it may
    be reused.
    """

    uid: int
    gid: int
    pid: int


class Attributes(NamedTuple):
    """The attributes in stat(2): permission bits, owner, and one time (ns since the epoch) for all three."""

    mode: int
    uid: int = 0
    gid: int = 0
    time_ns: int = 0


class Look(NamedTuple):
    """The content in stat(2): its size in bytes, and the time of its last change (ns since the epoch).

    The kernel caches pages of the content for splice(2) by all readers, and drops them when one of the two differs.
    """

    size: int
    changed_ns: int


class InodeNumbers:
    """Gives out each inode number once. An inode keeps its number when its object is made again."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = ROOT_INO + 1

    def take(self, count: int = 1) -> int:
        """The first of ``count`` consecutive new numbers."""
        first = self._next
        self._next += count
        return first


class Inode(ABC):
    """A file, a directory or a link.

    Two objects with one number are one inode to the kernel, so inodes may be made for each request.
    ``attributes`` returns those of the constructor. An inode with changing attributes overrides it, and lowers
    ``attr_timeout``, the seconds for which the kernel may cache them (it checks permissions with them).
    """

    __slots__ = ("_attributes", "ino")

    kind: ClassVar[int]
    attr_timeout: float = FOREVER

    def __init__(self, ino: int, attributes: Attributes) -> None:
        self.ino = ino
        self._attributes = attributes

    def attributes(self) -> Attributes:
        """Evaluated at every request for attributes; must not block."""
        return self._attributes

    @property
    def nlink(self) -> int:
        """Number of links; 1 for a directory means that subdirectories are not counted."""
        return 1


class Directory(Inode):
    """A directory. A subclass overrides ``lookup`` and ``names``, and ``mkdir`` and ``rmdir`` if it supports them."""

    __slots__ = ()

    kind = stat.S_IFDIR

    @property
    def entry_timeout(self) -> float:
        """Seconds for which the kernel may cache a name in it. A subclass may have a plain value.

        With the default, 0, every path walk asks again, as needed for names that not every caller may see. BRIEFLY
        suits temporary names.
        """
        return 0.0

    @abstractmethod
    def lookup(self, name: str, caller: Caller) -> Inode | None:
        """The child ``name``, or None if there is none for this caller. Must be O(1) and must not block."""

    @abstractmethod
    def names(self, caller: Caller) -> Sequence[str]:
        """The names of all children that this caller may see now. Each is looked up when it is listed."""

    def find(self, ino: int) -> Inode | None:
        """The inode with this number, below a directory that is not static; None if it does not exist any more.

        The kernel names known inodes by number. Must be O(1) and must not block.
        """
        return None

    def admits(self, ino: int, caller: Caller) -> bool:
        """Whether ``caller`` may open the inode with this number, perhaps without walking its path:

        processes inherit working directories, and pass descriptors. Must not block.
        """
        return True

    async def mkdir(self, name: str, caller: Caller) -> Directory:
        """Make the directory ``name`` and return it; the kernel has checked that the name is free."""
        raise NotPermitted("directories cannot be made here")

    async def rmdir(self, name: str, caller: Caller) -> None:
        """Remove the directory ``name``; the kernel has looked it up and checked the permissions."""
        raise NotPermitted("directories cannot be removed here")


class StaticDirectory(Directory):
    """A directory with constant ``children``."""

    __slots__ = ("children",)

    entry_timeout = FOREVER

    def __init__(self, ino: int, attributes: Attributes, children: Mapping[str, Inode]) -> None:
        super().__init__(ino, attributes)
        self.children = dict(children)

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        return self.children.get(name)

    def names(self, caller: Caller) -> Sequence[str]:
        return list(self.children)

    @property
    def nlink(self) -> int:
        return 2 + sum(isinstance(child, Directory) for child in self.children.values())


class Link(Inode):
    """A symbolic link. ``target`` is evaluated at each use, and may differ between callers."""

    __slots__ = ("target",)

    kind = stat.S_IFLNK

    def __init__(self, ino: int, attributes: Attributes, target: Callable[[Caller], str]) -> None:
        super().__init__(ino, attributes)
        self.target = target


class OpenFile:
    """One open file description. Reads and writes of one description may run at the same time."""

    __slots__ = ()

    async def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes; no bytes mean the end of the file. Must return within about a second."""
        raise AccessDenied("this file cannot be read")

    async def write(self, offset: int, data: bytes) -> int:
        """The number of bytes accepted. Must return within about a second, because the caller cannot be killed
        before."""
        raise AccessDenied("this file cannot be written")

    @property
    def pending(self) -> bool:
        """Whether ``closed`` must be called."""
        return False

    async def closed(self, *, last: bool) -> None:
        """A descriptor was closed, in any process; ``last``: it was the last one.

        An exception becomes the error of that close(2), but nobody gets it for the ``last``. Must return within
        about a second.
        """

    def poll(self, wake: Callable[[], None] | None) -> int:
        """The current poll(2) events.

        Call ``wake`` once, from the event loop, when they may have changed; a later ``wake`` replaces an earlier one,
        and ``release`` drops it.
        """
        return READABLE | WRITABLE

    def release(self) -> None:
        """Called once, after the last close(2) and after every read and write has returned."""


class File(Inode):
    """An inode that can be opened. Its content is the same for all callers, because the kernel caches pages of it.

    Its name is looked up each time, regardless of its directory, so its size is known before the open.
    """

    __slots__ = ()

    kind = stat.S_IFREG
    attr_timeout = BRIEFLY
    seekable: bool = True

    @abstractmethod
    async def look(self, caller: Caller, *, anew: bool) -> Look:
        """The content for ``caller``; the next open reads exactly this.

        Unless ``anew``, it is that of an unread open by ``caller``, if there is one, for fstat(2) after open(2). Must
        not block.
        """

    @abstractmethod
    async def open(self, caller: Caller, flags: int) -> OpenFile:
        """Open it; ``flags`` are those of open(2). The kernel has checked the mode, unless the caller is root."""


def wants_read(flags: int) -> bool:
    """Whether open(2) flags ask for reading."""
    return flags & os.O_ACCMODE != os.O_WRONLY


def wants_write(flags: int) -> bool:
    """Whether open(2) flags ask for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY
