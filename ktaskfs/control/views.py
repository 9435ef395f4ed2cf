"""``users/``: a view of the tasks for each user. ``tasks`` is a link to the caller's own.

While a system call writes to a file, or lists a directory, the kernel holds the inode's lock. A caller can make that
last for ever, with a buffer that never arrives (userfaultfd(2), or a file of another FUSE filesystem). So no two users
share an inode that can be written, or a directory that can change; and no user gets into another's view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.control.tasks_directory import TasksDirectory
from ktaskfs.vfs import FOREVER, Attributes, Caller, Directory, Inode, Link, TextFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.control.tasks_directory import ShownTasks

UID_MAX: Final = 2**32 - 2
VIEW_BITS: Final = 32
"""An inode number of a view is ``uid + 1`` above this many bits, and below them what it is in the view."""
DIRECTORY: Final = 1
ERROR_LOG: Final = 2


def own_view(ino: int, attributes: Attributes, path: str) -> Link:
    """A link to ``path``, which has ``%d`` for the caller's uid."""
    return Link(ino, attributes, lambda caller: path % caller.uid)


class UsersDirectory(Directory):
    """A view for each uid. Nobody but root can list it, and so make it wait; root finds the caller's own view."""

    __slots__ = ("_fs", "_tasks")

    entry_timeout = FOREVER

    def __init__(self, ino: int, fs: Filesystem, tasks: ShownTasks) -> None:
        super().__init__(ino, fs.attributes(0o711))
        self._fs = fs
        self._tasks = tasks

    def _view(self, uid: int) -> UserDirectory:
        return UserDirectory(uid, self._fs, self._tasks)

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        # Every uid has one, for every caller: to find none for one caller would take the name from the others, too.
        canonical = name.isascii() and name.isdecimal() and (name == "0" or not name.startswith("0"))
        return self._view(int(name)) if canonical and len(name) <= 10 and int(name) <= UID_MAX else None

    def entries(self, caller: Caller) -> Iterable[tuple[str, Inode]]:
        return [(str(caller.uid), self._view(caller.uid))]

    def admits(self, ino: int, caller: Caller) -> bool:
        # A process that root started in root's view is in it with any uid. No lookup is refused: that would take the
        # name from the view's user, too.
        return caller.uid in (0, (ino >> VIEW_BITS) - 1)

    def find(self, ino: int) -> Inode | None:
        uid = (ino >> VIEW_BITS) - 1
        return self._view(uid).find(ino) if 0 <= uid <= UID_MAX else None


class UserDirectory(Directory):
    """``users/UID/``. It is made anew at each request, as everything below it; only the user and root get in."""

    __slots__ = ("_fs", "_tasks", "_uid")

    entry_timeout = FOREVER

    def __init__(self, uid: int, fs: Filesystem, tasks: ShownTasks) -> None:
        self._uid = uid
        super().__init__(self._number(DIRECTORY), Attributes(0o500, uid, fs.root.gid, fs.root.time_ns))
        self._fs = fs
        self._tasks = tasks

    def _number(self, local: int) -> int:
        return (self._uid + 1) << VIEW_BITS | local

    def _tasks_directory(self) -> TasksDirectory:
        return TasksDirectory(self._number(0), self._uid, self._fs, self._tasks)

    def _error_log(self) -> TextFile:
        log, user = self._fs.log, Caller(self._uid, self._fs.root.gid, 0)

        async def clear(caller: Caller, text: str) -> None:
            log.clear(user)

        attributes = Attributes(0o600, self._uid, self._fs.root.gid, self._fs.root.time_ns)
        return TextFile(
            self._number(ERROR_LOG),
            attributes,
            lambda caller: log.errors(user),
            clear,
            texts=self._fs.limits.texts,
        )

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        if name == "tasks":
            return self._tasks_directory()
        return self._error_log() if name == "error_log" else None

    def entries(self, caller: Caller) -> Iterable[tuple[str, Inode]]:
        return [("tasks", self._tasks_directory()), ("error_log", self._error_log())]

    @property
    def nlink(self) -> int:
        return 3

    def find(self, ino: int) -> Inode | None:
        if ino == self.ino:
            return self
        return self._error_log() if ino == self._number(ERROR_LOG) else self._tasks_directory().find(ino)
