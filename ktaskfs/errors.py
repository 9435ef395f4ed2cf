"""The tree of errors: each has an errno for the system call and a message for people.

Only the FUSE adapter turns them into the errno of a reply; the control layer stores the message for
``info/last_cmd_status``.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


ERRNO_MAX: Final = 4096
"""The end of the kernel's error numbers (MAX_ERRNO + 1)."""
NO_MORE_PROCESSES: Final = "pids.max of the control group, RLIMIT_NPROC or RLIMIT_AS does not allow it"
"""Why no thread or process can be started: the kernel does not say which of them."""


class KtaskfsError(Exception):
    """Base of all errors of ktaskfs.

    ``errno`` is the result of the caller's system call, ``message`` is one sentence without a full stop.
    """

    default_errno: int = errno.EINVAL

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.errno = self.default_errno if errno is None else errno

    @property
    def errname(self) -> str:
        """The symbolic name of the errno, as errno(3) spells it."""
        return errno_name(self.errno)


def undo_after(error: BaseException, undo: Callable[[], object]) -> None:
    """Call ``undo`` after ``error``. If that fails, ``error`` gets a note, and stays the reason."""
    try:
        undo()
    except Exception as failure:
        error.add_note(f"undo failed: {getattr(failure, 'strerror', None) or failure}")


def errno_name(number: int) -> str:
    """``ENOMEM`` for 12; the decimal number without a name in the C library."""
    if number == errno.EOPNOTSUPP:  # on Linux ENOTSUP is the same number, and Python knows it by that name
        return "EOPNOTSUPP"
    return errno.errorcode.get(number, str(number))


class InvalidValue(KtaskfsError):
    """A number, size, list or word that cannot be parsed, or is out of its range (EINVAL)."""


class WrongCommandLine(InvalidValue):
    """Options or words of a command that are wrong, whatever is mounted (EINVAL); the command ends with 2."""


class SpecError(KtaskfsError):
    """A command that cannot be parsed (EINVAL, or the errno of the value's error).

    ``line`` is the command as written; ``start`` and ``end`` are the character offsets of the wrong token,
    for the caret of ``info/error_log``.
    """

    def __init__(self, message: str, *, line: str, start: int, end: int, errno: int | None = None) -> None:
        super().__init__(message, errno=errno)
        self.line = line
        self.start = start
        self.end = end


class NotSupported(KtaskfsError):
    """The filesystem or the kernel cannot do what the operation needs (EOPNOTSUPP)."""

    default_errno = errno.EOPNOTSUPP


class OutOfHugePages(KtaskfsError):
    """The pool has fewer free huge pages than the range needs (ENOMEM); nothing was touched."""

    default_errno = errno.ENOMEM


class OutOfSpace(KtaskfsError):
    """The filesystem has less free space than the range needs (ENOSPC); nothing was touched."""

    default_errno = errno.ENOSPC


class TargetError(KtaskfsError):
    """The system's own answer about a target file, its errno unchanged (ENOENT, EACCES, EISDIR, ELOOP ...)."""

    @classmethod
    def from_os(cls, error: OSError, what: str) -> TargetError:
        """Wrap ``error``; ``what`` says what was tried, for example ``open /dev/hugepages/vm0``."""
        number = error.errno or errno.EIO
        return cls(f"{what}: {os.strerror(number)}", errno=number)


class Finding(KtaskfsError):
    """The work is done, but its finding is a failure (EIO): memory that lost its contents.

    ``result`` is still the text for the task's ``result``, ``position`` the first affected unit.
    """

    default_errno = errno.EIO

    def __init__(self, message: str, *, position: int, result: str, errno: int | None = None) -> None:
        super().__init__(message, errno=errno)
        self.position = position
        self.result = result


class NameTaken(KtaskfsError):
    """A task of that name exists, a write names it twice, or no task can have it (EEXIST)."""

    default_errno = errno.EEXIST


class NoSuchTask(KtaskfsError):
    """No task of that name (ENOENT)."""

    default_errno = errno.ENOENT


class TaskForgotten(KtaskfsError):
    """A file of the task is open, but the task was removed (ENODEV, as in kernfs)."""

    default_errno = errno.ENODEV


class TooManyTasks(KtaskfsError):
    """The caller, or all users together, are at the limit of unfinished tasks (EAGAIN)."""

    default_errno = errno.EAGAIN


class TooManyOpen(KtaskfsError):
    """The caller has too many control files open for writing (EMFILE)."""

    default_errno = errno.EMFILE


class WrongState(KtaskfsError):
    """The verb does not fit the state the task is in (EBUSY)."""

    default_errno = errno.EBUSY


class NotPermitted(KtaskfsError):
    """The caller may not do this (EPERM)."""

    default_errno = errno.EPERM


class TooBig(KtaskfsError):
    """More in one write than a command may hold (E2BIG)."""

    default_errno = errno.E2BIG


class WorkerLost(KtaskfsError):
    """The worker could not be started, or died (EIO)."""

    default_errno = errno.EIO


class Refused(KtaskfsError):
    """The mounted files refused a command, with their errno and message.

    ``command`` is the wrong line, ``caret`` the line below it that points to the token; each may be empty.
    """

    def __init__(self, message: str, *, errno: int, command: str = "", caret: str = "") -> None:
        super().__init__(message, errno=errno)
        self.command = command
        self.caret = caret


class DaemonAway(KtaskfsError):
    """Nobody serves the mounted files now: the daemon has ended, or was never started (ENOTCONN)."""

    default_errno = errno.ENOTCONN


class ConfigError(KtaskfsError):
    """An invalid option of the mount, or line of the configuration file (EINVAL)."""
