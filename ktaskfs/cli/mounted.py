"""Reads and writes the mounted files, as any program can, and finds the messages in ``info/error_log``."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ktaskfs.errors import DaemonAway, KtaskfsError, Refused, TargetError, errno_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

AWAY: Final = (errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED)
"""The errno of a file whose daemon has died: on a dead mount, on a surviving mount, and at that moment."""
PATIENCE: Final = 5.0
"""Seconds that a command waits for a restarted daemon."""
PAUSE: Final = 0.1
"""Seconds between two tries."""
READ_SIZE: Final = 1 << 16
COMMAND_MAX: Final = 1 << 16
"""Maximum bytes of a command, as in the daemon (ktaskfs.vfs), of which this layer imports nothing."""
ENTRY: Final = re.compile(
    r"^\[[^]]*\] (?P<file>.*?): (?P<errname>[A-Z0-9]+): (?P<message>.*)\n  Command: ", re.MULTILINE
)
"""The beginning of an entry of ``info/error_log``."""


def let_go(fd: int) -> None:
    """Close a file of the mount. The descriptor is free even if close(2) fails because the daemon has died."""
    with contextlib.suppress(OSError):
        os.close(fd)


def in_utf8(text: str) -> str:
    """``text`` as the daemon decodes it, whatever the locale of the command."""
    return os.fsencode(text).decode(errors="surrogateescape")


class Mounted(NamedTuple):
    """A mount of ktaskfs at ``path``. Methods take paths below it.

    They raise DaemonAway if no daemon answers, after ``patience`` seconds if one was there before, and TargetError with
    any other errno of the system. A command is never written twice.
    """

    path: str
    patience: float = PATIENCE

    def open(self, file: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the file."""
        return self._patiently(lambda: self._open(file, flags))

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """The result of ``call``. Waits for the next daemon if an earlier one has ended."""
        end = time.monotonic() + self.patience
        was_there = False
        while True:
            try:
                return call()
            except DaemonAway as error:
                was_there = was_there or error.errno in AWAY  # the next daemon removes a dead mount, and mounts again
                if not was_there or time.monotonic() > end:
                    raise
                time.sleep(PAUSE)

    def _open(self, file: str, flags: int) -> int:
        path = f"{self.path}/{file}"
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if not self.is_there():
                raise self._away(errno.ENOENT) from error
        except OSError as error:
            raise self.failed(error, file) from error
        try:  # the mount may have come between the two looks
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise self.failed(error, file) from error

    def is_there(self) -> bool:
        """Whether a ktaskfs is mounted. Raises DaemonAway if its daemon is dead."""
        try:
            os.stat(f"{self.path}/tasks/control")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failed(error, "tasks/control") from error
        return True

    def owner(self, task: str) -> int | None:
        """The uid of the owner of a task; None if there is none of that name, or it is hidden from the caller."""
        try:
            return self._patiently(lambda: self._owner(task))
        except TargetError:
            return None

    def _owner(self, task: str) -> int:
        try:
            return os.stat(f"{self.path}/tasks/{task}").st_uid
        except OSError as error:
            raise self.failed(error, f"tasks/{task}") from error

    def read(self, file: str) -> str:
        """The whole text of a file that is not a stream, decoded like the arguments of the command (os.fsdecode)."""
        return self._patiently(lambda: self._read_whole(file))

    def _read_whole(self, file: str) -> str:
        fd = self._open(file, os.O_RDONLY)
        try:
            return self._read(fd, file)
        finally:
            let_go(fd)

    def _read(self, fd: int, file: str) -> str:
        pieces: list[bytes] = []
        at = 0
        try:
            while piece := os.pread(fd, READ_SIZE, at):
                pieces.append(piece)
                at += len(piece)
        except OSError as error:
            raise self.failed(error, file) from error
        return os.fsdecode(b"".join(pieces))

    def directories(self, directory: str) -> list[str]:
        """The names of the directories in a directory, sorted."""
        return self._patiently(lambda: self._directories(directory))

    def _directories(self, directory: str) -> list[str]:
        try:
            with os.scandir(f"{self.path}/{directory}/") as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError as error:
            raise (self.failed(error, directory) if self.is_there() else self._away(errno.ENOENT)) from error
        except OSError as error:
            raise self.failed(error, directory) from error

    def write(self, file: str, text: str) -> None:
        """Write one command with one write(2). Also raises Refused."""
        with self._written(self.open(file, os.O_WRONLY), file, text):
            pass

    def start(self, text: str) -> list[str]:
        """Write specs to ``tasks/control``; returns the names of the tasks. Also raises Refused."""
        with self._written(self._open_control(), "tasks/control", text) as fd:
            try:
                return self._read(fd, "tasks/control").split()
            except DaemonAway as error:
                raise self._ended_meanwhile() from error

    def _open_control(self) -> int:
        try:
            return self.open("tasks/control", os.O_RDWR)
        except TargetError as error:
            if error.errno != errno.EACCES:
                raise
            words = f"{error.message}: ktaskfs doctor shows who may start tasks"
            raise TargetError(words, errno=errno.EACCES) from error

    @contextlib.contextmanager
    def _written(self, fd: int, file: str, text: str) -> Iterator[int]:
        """``fd`` after ``text`` was written to it; closes it. Raises Refused, also after the body."""
        try:
            try:
                os.write(fd, os.fsencode(f"{text}\n"))  # the newline says that the command is whole
            except OSError as error:
                raise (self._refusal(error, file, text) or self._ended_meanwhile()) from error
            yield fd
        except BaseException:
            let_go(fd)
            raise
        try:
            os.close(fd)
        except OSError as error:  # the daemon waited for the end of JSON
            refusal = self._refusal(error, file, text)
            if refusal is not None:  # else it has died after its answer, and the tasks go on
                raise refusal from error

    def _refusal(self, error: OSError, file: str, text: str) -> Refused | None:
        """Why the daemon refused ``text``; None if it has ended."""
        number = error.errno or errno.EIO
        refused = self._refused(number, file, text)  # ESTALE is also the errno of a changed target
        if refused is None and number not in AWAY:
            return Refused(f"{file}: {os.strerror(number)}", errno=number)
        return refused

    def _refused(self, number: int, file: str, text: str) -> Refused | None:
        """The last entry of the log that fits: another command of the user may have been refused since."""
        from ktaskfs.units import printable

        try:
            log = in_utf8(self._replace(patience=0).read("info/error_log"))
        except KtaskfsError:  # the message is optional, the errno is the answer
            return None
        written = printable(in_utf8(f"{text[:COMMAND_MAX]}\n"))  # the log has the newline if there is a NUL byte
        found = list(ENTRY.finditer(log))
        for begin, end in zip(reversed(found), [len(log), *(each.start() for each in reversed(found))], strict=False):
            command, _, caret = log[begin.end() : end].partition("\n")
            shift = len("  Command: ")
            if (begin["file"], begin["errname"]) == (file, errno_name(number)) and command in written:
                return Refused(begin["message"], errno=number, command=command, caret=caret[shift:].rstrip("\n"))
        return None

    def failed(self, error: OSError, file: str) -> KtaskfsError:
        """The error of the tree for one of the system about ``file``."""
        if error.errno in AWAY:
            return self._away(error.errno or errno.ENOTCONN)
        return TargetError.from_os(error, f"{self.path}/{file}")

    def _ended_meanwhile(self) -> DaemonAway:
        words = "ended during the command; it may have taken effect: check with ktaskfs ls"
        return DaemonAway(f"the daemon of {self.path} {words}", errno=errno.EIO)

    def _away(self, number: int) -> DaemonAway:
        if number == errno.ENOENT:
            ways = "systemctl start ktaskfs, or ktaskfs mount DIRECTORY; -m or $KTASKFS names another mount"
            return DaemonAway(f"no ktaskfs is mounted on {self.path}: {ways}", errno=number)
        return DaemonAway(f"the daemon of {self.path} does not answer: {os.strerror(number)}", errno=number)
