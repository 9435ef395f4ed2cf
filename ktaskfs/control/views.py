"""``users/``: a view of the tasks for each user. ``tasks`` is a link to the caller's view.

While a system call writes to a file, or lists a directory, the kernel holds the inode's lock. A caller can prolong that
forever, with a buffer that never arrives (userfaultfd(2), or a file of another FUSE filesystem). So no two users share
a writable inode or a changing directory, and no user can enter another's view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.control.holders_file import HoldersFile
from ktaskfs.control.shown_task import VIEW_BITS
from ktaskfs.control.task_directory import inode_of
from ktaskfs.control.task_list import Form
from ktaskfs.control.tasks_directory import TasksDirectory
from ktaskfs.vfs import FOREVER, Attributes, Caller, Directory, Inode, Link, TextFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.control.task_list import TaskList
    from ktaskfs.control.tasks_directory import ShownTasks

UID_MAX: Final = 2**32 - 2
RECENT_MAX: Final = 64
"""Cached views, because every request in a view needs it; making one costs little."""
DIRECTORY: Final = 1
ERROR_LOG: Final = 2
LAST_CMD_STATUS: Final = 5
LAST_TASK: Final = 6
TASK_LIST: Final = 7
TASK_LIST_JSON: Final = 8
HOLDERS: Final = 9
HOLDERS_JSON: Final = 10
"""3 and 4 are the numbers of ``tasks`` and ``tasks/control``."""
TEXTS: Final = {
    "error_log": ERROR_LOG,
    "last_cmd_status": LAST_CMD_STATUS,
    "last_task": LAST_TASK,
    "task_list": TASK_LIST,
    "task_list.json": TASK_LIST_JSON,
    "holders": HOLDERS,
    "holders.json": HOLDERS_JSON,
}
"""The files of a view, which differ between users."""
IN_INFO: Final = {name: name.replace("task_list", "tasks") for name in TEXTS}
"""The names of the links in ``info/`` to these files."""


def own_view(ino: int, attributes: Attributes, path: str) -> Link:
    """A link to ``path``, which has ``%d`` for the caller's uid."""
    return Link(ino, attributes, lambda caller: path % caller.uid)


class UsersDirectory(Directory):
    """A view for each uid. Only root can list it, so nobody else can block it; the list has root's own view."""

    __slots__ = ("_fs", "_recent", "_tasks")

    entry_timeout = FOREVER

    def __init__(self, ino: int, fs: Filesystem, tasks: ShownTasks) -> None:
        super().__init__(ino, fs.attributes(0o711))
        self._fs = fs
        self._tasks = tasks
        self._recent: dict[int, UserDirectory] = {}

    def _view(self, uid: int) -> UserDirectory:
        view = self._recent.get(uid)
        if view is None:
            if len(self._recent) >= RECENT_MAX:
                self._recent.clear()
            view = self._recent[uid] = UserDirectory(uid, self._fs, self._tasks)
        return view

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        # Every uid has one, for every caller: a failed lookup by one caller would drop the name for the others, too.
        canonical = name.isascii() and name.isdecimal() and (name == "0" or not name.startswith("0"))
        return self._view(int(name)) if canonical and len(name) <= 10 and int(name) <= UID_MAX else None

    def names(self, caller: Caller) -> Sequence[str]:
        return [str(caller.uid)]

    def admits(self, ino: int, caller: Caller) -> bool:
        # A process that root started in root's view can have any uid. No lookup is refused, because that would drop
        # the name for the view's user, too.
        if caller.uid in (0, (ino >> VIEW_BITS) - 1):
            return True
        shared = self._tasks.sharing(ino)
        return shared is not None and self._fs.access.may_follow(caller.uid, shared.task.uid)

    def find(self, ino: int) -> Inode | None:
        if (shown := self._tasks.holding(ino)) is not None:
            return inode_of(shown, ino)
        uid = (ino >> VIEW_BITS) - 1
        return self._view(uid).find(ino) if 0 <= uid <= UID_MAX else None


class UserDirectory(Directory):
    """``users/UID/``; only the user and root can enter."""

    __slots__ = ("_names", "_numbers")

    entry_timeout = FOREVER

    def __init__(self, uid: int, fs: Filesystem, tasks: ShownTasks) -> None:
        first = (uid + 1) << VIEW_BITS
        super().__init__(first | DIRECTORY, Attributes(0o500, uid, fs.root.gid, fs.root.time_ns))
        directory = TasksDirectory(first, uid, fs, tasks)
        always: tuple[Inode, ...] = (directory, directory.control, *_texts(uid, first, fs, tasks.listed))
        self._numbers = {each.ino: each for each in always}
        self._names = {"tasks": directory} | {name: self._numbers[first | number] for name, number in TEXTS.items()}

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        return self._names.get(name)

    def names(self, caller: Caller) -> Sequence[str]:
        return list(self._names)

    @property
    def nlink(self) -> int:
        return 3

    def find(self, ino: int) -> Inode | None:
        return self if ino == self.ino else self._numbers.get(ino)


def _texts(uid: int, first: int, fs: Filesystem, listed: TaskList) -> Iterator[TextFile]:
    """The TEXTS of one user. They are no shared files, because the kernel caches pages of each file for splice(2),
    and shows them to the next reader.
    """
    log, user, texts = fs.log, Caller(uid, fs.root.gid, 0), fs.limits.texts
    readable = Attributes(0o400, uid, fs.root.gid, fs.root.time_ns)

    async def clear(caller: Caller, text: str) -> None:
        log.clear(user)

    def last_task(caller: Caller) -> str:
        return "".join(f"{name}\n" for name in fs.service.table.last_task.get(uid, ()))

    writable = readable._replace(mode=0o600)
    yield TextFile(first | ERROR_LOG, writable, lambda caller: log.errors(user), clear, texts=texts, may_be_empty=True)
    yield TextFile(first | LAST_CMD_STATUS, readable, lambda caller: log.status(user), texts=texts)
    yield TextFile(first | LAST_TASK, readable, last_task, texts=texts)
    change = listed.follow(uid)
    yield TextFile(first | TASK_LIST, readable, lambda caller: listed.text(uid, Form.TABLE), change=change, texts=texts)
    yield TextFile(
        first | TASK_LIST_JSON, readable, lambda caller: listed.text(uid, Form.JSON), change=change, texts=texts
    )
    yield HoldersFile(first | HOLDERS, readable, fs, as_json=False)
    yield HoldersFile(first | HOLDERS_JSON, readable, fs, as_json=True)
