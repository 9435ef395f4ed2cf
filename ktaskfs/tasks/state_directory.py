"""The state directory: a small record for each task, beside its page, that outlives the daemon.

A record is JSON with a version, replaced whole by rename(2). One daemon at a time holds the directory's lock. The
directory lives as long as the boot does (below /run), as huge pages do, so nothing is synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.tasks.crash_points import pass_on
from ktaskfs.tasks.record import record_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.tasks.record import Record

_NUMBER: Final = re.compile(r"[0-9]{8,18}", re.ASCII)
_RECORD_NAME: Final = re.compile(_NUMBER.pattern + r"\.json", re.ASCII)
LOG: Final = logging.getLogger(__name__)


def make_state_directory(path: str) -> None:
    """Make ``path`` (0700), if it is missing. Raises TargetError, also if others may write in it.

    Its records say which processes belong to the daemon, which signals them.
    """
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.stat(path)
    except OSError as error:
        raise TargetError.from_os(error, f"state directory {path}") from error
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = f"state directory {path}: it must be yours, and nobody else may write in it"
        raise TargetError(message, errno=errno.EPERM)


class StateDirectory:
    """The directory ``path``, made if missing and locked. Raises KtaskfsError (EBUSY if another has it).

    ``crash_point`` is called between any two changes that a successor could see (see ``crash_points``).
    """

    def __init__(self, path: str, crash_point: Callable[[str], None] = pass_on) -> None:
        self.path = path
        self.crash_point = crash_point
        make_state_directory(path)
        try:
            self._lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TargetError.from_os(error, f"state directory {path}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise KtaskfsError(f"another ktaskfs is using the state directory {path}", errno=errno.EBUSY) from None

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _path(self, task: int, suffix: str) -> str:
        return os.path.join(self.path, f"{task:08d}.{suffix}")

    def page_path(self, task: int) -> str:
        """Where the page of ``task`` is."""
        return self._path(task, "page")

    def write(self, record: Record) -> None:
        """Replace the record of a task. Raises OSError, and then the old one stands."""
        path = self._path(record.task, "json")
        data = json.dumps(record.to_json()).encode()
        self.crash_point(f"write the record: {record.state}")
        try:
            fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            self.crash_point("rename the record")
            os.rename(path + ".new", path)
            self.crash_point("the record is written")
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            raise

    def forget(self, task: int) -> None:
        """Remove the record and the page of ``task``. Raises OSError."""
        self.crash_point("remove the record")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(task, "json"))
        self.forget_page(task)

    def forget_page(self, task: int) -> None:
        """Remove the page of ``task``, if there is one; its record stays. Raises OSError."""
        self.crash_point("remove the page")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.page_path(task))

    def highest_number(self) -> int:
        """The highest number that any file here has, 0 if there is none."""
        numbers = (entry.partition(".")[0] for entry in os.listdir(self.path))
        return max((int(each) for each in numbers if _NUMBER.fullmatch(each)), default=0)

    def sweep_pages(self) -> None:
        """Remove pages without a record, whose tasks never began, and halves of records. Raises OSError."""
        for entry in os.listdir(self.path):
            page = entry.endswith(".page") and not os.path.exists(os.path.join(self.path, entry[:-4] + "json"))
            if page or entry.endswith(".json.new"):
                os.unlink(os.path.join(self.path, entry))

    def records(self, operations: Mapping[str, Operation[Any]]) -> Iterator[Record]:
        """Every record that can be read, oldest first; others are set aside as ``*.bad``, with a line in the log.

        ``operations`` are those that this daemon knows.
        """
        for entry in sorted(os.listdir(self.path)):
            if not _RECORD_NAME.fullmatch(entry):
                continue
            task = int(entry.removesuffix(".json"))
            try:
                with open(os.path.join(self.path, entry), "rb") as file:
                    record = record_from_json(json.load(file), task, operations)
            except (KtaskfsError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.set_aside(task, error)
                continue
            yield record

    def set_aside(self, task: int, why: Exception) -> None:
        """Rename a record that cannot be used, and say so in the log. Raises OSError."""
        path = self._path(task, "json")
        LOG.warning("setting aside the record %s: %s", path, why)
        os.rename(path, path + ".bad")
