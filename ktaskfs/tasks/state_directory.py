"""The state directory: for each task a page and a small record, which outlive the daemon.

A record is versioned JSON, replaced as a whole by rename(2). One daemon at a time holds the directory's lock. The
directory usually lasts until the next boot (below /run), like huge pages, so nothing is synced. If it lasts longer, no
worker of a record lives: the lock has the id of the boot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.host.files import read_file
from ktaskfs.progress import create_page
from ktaskfs.tasks.crash_points import pass_on
from ktaskfs.tasks.record import record_from_json
from ktaskfs.tasks.task import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.progress import Requests, Shape
    from ktaskfs.tasks.private_directory import PrivateDirectory
    from ktaskfs.tasks.record import Record

_NUMBER: Final = re.compile(r"[0-9]{8,18}", re.ASCII)
_RECORD_NAME: Final = re.compile(rf"({_NUMBER.pattern})\.json", re.ASCII)
_PAGE_NAME: Final = re.compile(rf"({_NUMBER.pattern})\.page", re.ASCII)
_HALF_NAME: Final = re.compile(rf"({_NUMBER.pattern})\.json\.new", re.ASCII)
_LOCK: Final = "lock"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
"""random(4): another text after each boot."""
_SESSION: Final = "session"
_OF_DAEMON: Final = frozenset({_LOCK, _SESSION, f"{_SESSION}.new", "log", "log.old"})
"""Files of a directory without tasks; the command makes the logs."""
_UNUSABLE: Final = (
    ArithmeticError,
    AttributeError,
    KtaskfsError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""The errors of reading a record with arbitrary contents."""
LOG: Final = logging.getLogger(__name__)


class StateDirectory:
    """The records and pages in ``directory``, which is locked, and closed with this object.

    The records name the processes that the daemon may signal. Raises KtaskfsError (EBUSY if another
    daemon has it). ``crash_point`` is called between any two changes that the next daemon could see
    (see ``crash_points``).

    boot: the current boot, as in ``History``.
    """

    def __init__(self, directory: PrivateDirectory, crash_point: Callable[[str], None] = pass_on) -> None:
        self.path = directory.path
        self.crash_point = crash_point
        self._directory = directory
        try:
            self._boot = read_file(_BOOT_ID)
            self.boot = self._boot.decode().strip()
            self._lock = directory.open(_LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            directory.close()
            raise TargetError.from_os(error, f"state directory {self.path}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(self._lock).st_nlink == 0  # its daemon is at ``remove_unused``
            # Empty: it is new, or of an older version.
            self._is_of_this_boot = os.pread(self._lock, len(self._boot) + 1, 0) in (b"", self._boot)
        except BlockingIOError:
            held = True
        if held:
            self.close()
            message = f"another ktaskfs is using the state directory {self.path}"
            raise KtaskfsError(message, errno=errno.EBUSY)

    def close(self) -> None:
        """Release the lock, and close the directory."""
        os.close(self._lock)
        self._directory.close()

    def remove_unused(self) -> None:
        """Remove the directory if it has no record, and no foreign files. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # somebody has removed the directory
            if set(self._directory.names()) <= _OF_DAEMON:
                for name in _OF_DAEMON:
                    self._directory.remove(name)
                os.rmdir(self.path)

    def begin_boot(self) -> None:
        """Note that all records are of this boot, from now on. Raises OSError if they were of an earlier one."""
        try:
            os.pwrite(self._lock, self._boot, 0)
            os.ftruncate(self._lock, len(self._boot))
        except OSError as error:  # on a full filesystem the file stays empty
            if not self._is_of_this_boot:
                raise
            LOG.error("cannot write to the lock of the state directory %s: %s", self.path, error.strerror)

    def session(self) -> str:
        """The last text of ``remember_session``; empty if none. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), os.fdopen(self._directory.open(_SESSION, os.O_RDONLY)) as file:
            return file.read()
        return ""

    def remember_session(self, text: str) -> None:
        """Store the session data for the next daemon at this mount. Raises OSError."""
        fd = self._directory.open(f"{_SESSION}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        self._directory.rename(f"{_SESSION}.new", _SESSION)

    def create_page(self, task: int, shape: Shape, requests: Requests) -> int:
        """A descriptor of a new page for ``task``, replacing an old one. Raises OSError."""
        self.forget_page(task)
        return create_page(_name(task, "page"), shape, requests, dir_fd=self._directory.fd)

    def open_page(self, task: int) -> int:
        """A descriptor of the page of ``task``. Raises OSError."""
        return self._directory.open(_name(task, "page"), os.O_RDWR)

    def write(self, record: Record) -> None:
        """Replace the record of a task. On OSError the old one stays."""
        name = _name(record.origin.number, "json")
        data = json.dumps(record.to_json()).encode()
        self.crash_point(f"write the record: {record.state}")
        try:
            fd = self._directory.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            self.crash_point("rename the record")
            self._directory.rename(f"{name}.new", name)
            self.crash_point("the record is written")
        except OSError:
            with contextlib.suppress(OSError):
                self._directory.remove(f"{name}.new")
            raise

    def forget(self, task: int) -> None:
        """Remove the record and the page of ``task``. Raises OSError."""
        self.crash_point("remove the record")
        self._directory.remove(_name(task, "json"))
        self.forget_page(task)

    def forget_queued(self, task: int) -> None:
        """Remove the record of ``task`` if the next daemon would queue the task by it. Raises OSError."""
        name = _name(task, "json")
        try:
            with os.fdopen(self._directory.open(name, os.O_RDONLY), "rb") as file:
                queued = json.load(file)["state"] == State.QUEUED
        except (FileNotFoundError, LookupError, TypeError, ValueError):  # the next daemon reads no record from it
            return
        if queued:
            self._directory.remove(name)

    def forget_page(self, task: int) -> None:
        """Remove the page of ``task``, if there is one; its record stays. Raises OSError."""
        self.crash_point("remove the page")
        self._directory.remove(_name(task, "page"))

    def highest_number(self) -> int:
        """The highest number of a file here, 0 if there is none."""
        numbers = (entry.partition(".")[0] for entry in self._directory.names())
        return max((int(each) for each in numbers if _NUMBER.fullmatch(each)), default=0)

    def sweep_pages(self) -> None:
        """Remove pages without a record, whose tasks never began, and partial records. Raises OSError."""
        names = set(self._directory.names())
        for name in names:
            page = _PAGE_NAME.fullmatch(name)
            unused = f"{page[1]}.json" not in names if page else _HALF_NAME.fullmatch(name)
            if unused and self._directory.is_ours(name):
                self._directory.remove(name)

    def records(self, operations: Mapping[str, SpecWord]) -> Iterator[Record]:
        """Every readable record, oldest first, without the processes of an earlier boot; others are renamed to
        ``*.bad`` and logged.

        ``operations`` are those of this daemon.
        """
        for entry in sorted(self._directory.names()):
            if not _RECORD_NAME.fullmatch(entry):
                continue
            task = int(entry.removesuffix(".json"))
            try:
                with os.fdopen(self._directory.open(entry, os.O_RDONLY), "rb") as file:
                    record = record_from_json(json.load(file), task, operations)
            except _UNUSABLE as error:
                self.set_aside(task, error)
                continue
            yield record if self._is_of_this_boot else record.after_boot()

    def set_aside(self, task: int, why: Exception) -> None:
        """Rename an unusable record, and log it. Raises OSError."""
        name = _name(task, "json")
        LOG.warning("setting aside the record %s: %s", os.path.join(self.path, name), why)
        self._directory.rename(name, f"{name}.bad")


def _name(task: int, suffix: str) -> str:
    return f"{task:08d}.{suffix}"
