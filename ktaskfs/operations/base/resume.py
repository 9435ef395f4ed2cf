"""The check that a resumed task has the files of its earlier run.

A new file, or one that is too short, lacks the earlier work, so the rest would not complete it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ktaskfs.errors import TargetError
from ktaskfs.host import statx
from ktaskfs.host.process_memory import Process
from ktaskfs.operations.base.parameters import PATH, PID, Kind, TaskParameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


T = TypeVar("T")

FILES_MAX: Final = 8
NAME_MAX: Final = 64
NUMBER_MAX: Final = 2**64 - 1
"""The caller controls the worker, so only a short baseline is kept. No operation has so many paths."""


class FileState(NamedTuple):
    """Device, inode and time of birth (ns, 0 where the filesystem keeps none) of a file, and its size in bytes."""

    identity: tuple[int, int, int]
    size: int

    @classmethod
    def of(cls, path: str) -> FileState:
        """The file that ``path`` names now. Raises TargetError."""
        try:
            status = os.stat(path)
            # Filesystems reuse inode numbers of removed files (ext4 at once); the time of birth differs.
            return cls((status.st_dev, status.st_ino, statx.birth_time(path)), status.st_size)
        except OSError as error:
            raise TargetError.from_os(error, f"examine {path}") from error


class Baseline(NamedTuple):
    """The state at the start of a run.

    files: the identity of the file or process behind each parameter that is a path or a PID.
    end:   byte of ``path`` at which the range ends; 0 for an operation without a range.
    size:  the bytes of the file up to ``end``.
    total: units to do.
    tree:  the digest of the files that are read, as in ``Plan``; 0 for an operation without one.
    """

    files: Mapping[str, tuple[int, int, int]]
    end: int
    size: int
    total: int
    tree: int = 0

    def require_tree(self, tree: int) -> None:
        """Raises TargetError (ESTALE) unless ``tree``, that of the plan for a resume, is the same."""
        if tree != self.tree:
            text = "files were added, removed or changed since the task began: start a new task"
            raise TargetError(text, errno=errno.ESTALE)

    def require_processes(self, parameters: TaskParameters) -> None:
        """Raises TargetError: ESRCH, ESTALE for another process, to which the number was given meanwhile."""
        for name, pid in values_of(parameters, PID):
            if name in self.files and process_identity(pid) != self.files[name]:
                raise TargetError(
                    f"process {pid} is not the process of the task's start: start a new task", errno=errno.ESTALE
                )

    def require_files(self, parameters: TaskParameters) -> None:
        """Raises TargetError: ENOENT and the like, ESTALE for another file, ENXIO for a file that is too short."""
        for name, path in values_of(parameters, PATH):
            if name not in self.files:  # the path stands for many files
                continue
            now = FileState.of(path)
            if now.identity != self.files[name]:
                raise TargetError(f"{path} is not the file of the task's start: start a new task", errno=errno.ESTALE)
            if name == "path" and now.size < self.size:
                raise TargetError(
                    f"{path} was truncated to {now.size} bytes, so finished work is lost: start a new task",
                    errno=errno.ENXIO,
                )

    @classmethod
    def from_fields(cls, fields: Any) -> Baseline:
        """The inverse of ``_asdict``, through JSON or not; raises ValueError for anything else."""
        try:
            files = {
                str(name): (_number(device), _number(inode), _number(born))
                for name, (device, inode, born) in fields["files"].items()
            }
            baseline = cls(files, *(_number(fields[name]) for name in ("end", "size", "total", "tree")))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("not a baseline") from error
        if len(fields) != 5 or len(files) > FILES_MAX or any(len(name) > NAME_MAX for name in files):
            raise ValueError("more than a baseline")
        return baseline


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise ValueError("no number")
    return value


def identities_of(parameters: TaskParameters) -> dict[str, tuple[int, int, int]]:
    """The identity of the file or process of each parameter that names one. Raises TargetError."""
    found = {name: FileState.of(path).identity for name, path in values_of(parameters, PATH)}
    return found | {name: process_identity(pid) for name, pid in values_of(parameters, PID)}


def process_identity(pid: int) -> tuple[int, int, int]:
    """Number and start time of a process, because numbers are reused. Raises TargetError."""
    try:
        with contextlib.closing(Process.find(pid)) as process:
            return pid, process.began(), 0
    except OSError as error:
        raise TargetError.from_os(error, f"find process {pid}") from error


def values_of(parameters: TaskParameters, kind: Kind[T]) -> Iterator[tuple[str, T]]:
    """Name and value of each parameter of that kind that was given."""
    for each in parameters.declared:
        if each.kind is kind:
            value = getattr(parameters, each.name)
            if value is not None:
                yield each.name, value
