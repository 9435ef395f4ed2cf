"""The state directory: a small record for each task, beside its page, that outlives the daemon.

A record is JSON with a version, replaced whole by rename(2). One daemon at a time holds the directory's lock. It
lives as long as the boot does (below /run), as huge pages do, so nothing is synced.
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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.progress import NodeProgress, Phase, Snapshot, ThreadProgress, ThreadState
from ktaskfs.tasks.crash_points import nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import UnionType

VERSION: Final = 2
"""Version 1 had ``basis`` in place of ``baseline``."""
_NUMBER: Final = re.compile(r"[0-9]{8,18}", re.ASCII)
_RECORD_NAME: Final = re.compile(_NUMBER.pattern + r"\.json", re.ASCII)
LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What must be known of a task to show it, or to adopt it, after the daemon's death.

    pid, start_time: of its worker, None when there is none; start_time in clock ticks after boot.
    remaining:       the ranges a resumed task was started with, None for a first run.
    base:            units that earlier runs had done.
    baseline:        what they found, see ``operations.base.resume``; None before the first start.
    shape:           slots and ranges of its page.
    final:           the last snapshot of an ended task, and the text of its result.
    """

    task: int
    name: str
    uid: int
    gid: int
    operation: str | None
    parameters: dict[str, str]
    state: str
    created_ns: int
    pid: int | None = None
    start_time: int | None = None
    remaining: list[tuple[int, int, int]] | None = None
    base: int = 0
    baseline: dict[str, Any] | None = None
    shape: tuple[int, int] | None = None
    final: dict[str, Any] | None = None
    result: str = ""


_TYPES: Final[Mapping[str, type | UnionType]] = {
    **dict.fromkeys(("task", "uid", "gid", "created_ns", "base"), int),
    **dict.fromkeys(("name", "state", "result"), str),
    "operation": str | None,
    **dict.fromkeys(("pid", "start_time"), int | None),
    "parameters": dict,
    **dict.fromkeys(("remaining", "shape"), list | None),
    **dict.fromkeys(("baseline", "final"), dict | None),
}
_MOST: Final = 1 << 20
"""Slots, and ranges, that a page never has."""


def _checked(record: Record, task: int) -> Record:
    """``record`` as read for number ``task``; raises ValueError, KeyError, TypeError for what nobody wrote so."""
    for name, kind in _TYPES.items():
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is of the wrong type")
    if record.task != task or (record.pid is not None and record.pid <= 0):
        raise ValueError("a number is out of its range")
    if not all(isinstance(each, str) for each in record.parameters.values()):
        raise TypeError("a parameter is of the wrong type")
    if any(len(each) != 3 or not all(isinstance(part, int) for part in each) for each in record.remaining or ()):
        raise ValueError("remaining is no list of ranges")
    if record.shape is not None and not (len(record.shape) == 2 and all(0 <= each < _MOST for each in record.shape)):
        raise ValueError("shape is no pair of sizes")
    if record.final is not None:
        snapshot_from_json(record.final)
    return record


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    return asdict(snapshot)


def snapshot_from_json(fields: dict[str, Any]) -> Snapshot:
    """The inverse; raises KeyError, TypeError or ValueError for anything else."""
    nodes = tuple(NodeProgress(**each) for each in fields["nodes"])
    threads = tuple(ThreadProgress(**each | {"state": ThreadState(each["state"])}) for each in fields["threads"])
    return Snapshot(**fields | {"phase": Phase(fields["phase"]), "nodes": nodes, "threads": threads})


def make_state_directory(path: str) -> None:
    """Make ``path`` (0700), if it is missing. Raises TargetError, also for one that others may write.

    What stands in there says which processes are ours, to be signalled.
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

    ``step`` is called between any two changes that a successor could see (see ``steps``).
    """

    def __init__(self, path: str, step: Callable[[str], None] = nothing) -> None:
        self.path = path
        self.step = step
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
        data = json.dumps({"version": VERSION} | asdict(record)).encode()
        self.step(f"write the record: {record.state}")
        try:
            fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            self.step("rename the record")
            os.rename(path + ".new", path)
            self.step("the record is written")
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            raise

    def forget(self, task: int) -> None:
        """Remove the record and the page of ``task``. Raises OSError."""
        self.step("remove the record")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(task, "json"))
        self.forget_page(task)

    def forget_page(self, task: int) -> None:
        """Remove the page of ``task``, if there is one; its record stays. Raises OSError."""
        self.step("remove the page")
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

    def records(self) -> Iterator[Record]:
        """Every record that can be read, oldest first; others are set aside as ``*.bad``, with a line in the log."""
        for entry in sorted(os.listdir(self.path)):
            if not _RECORD_NAME.fullmatch(entry):
                continue
            task = int(entry.removesuffix(".json"))
            path = os.path.join(self.path, entry)
            try:
                with open(path, "rb") as file:
                    fields = json.load(file)
                version = fields.pop("version")
                if version == 1:
                    fields["baseline"] = fields.pop("basis")
                elif version != VERSION:
                    raise ValueError("of another version")
                record = _checked(Record(**fields), task)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.set_aside(task, error)
                continue
            yield record

    def set_aside(self, task: int, why: Exception) -> None:
        """Rename a record that cannot be used, and say so in the log. Raises OSError."""
        path = self._path(task, "json")
        LOG.warning("setting aside the record %s: %s", path, why)
        os.rename(path, path + ".bad")
