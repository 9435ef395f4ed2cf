"""Mounts at a path, and unmounting them. Only a child accesses a mount, because the mount may not answer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs import mounts
from ktaskfs.errors import ConfigError
from ktaskfs.units import unescaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO

MOUNTINFO: Final = "/proc/self/mountinfo"
"""The mounts of this namespace; see proc_pid_mountinfo(5)."""
CONNECTIONS: Final = "/sys/fs/fuse/connections"
"""The mount point of fusectl (Documentation/filesystems/fuse/fuse.rst)."""

DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""The errno of a mount whose connection to its server is gone."""
PATIENCE: Final = 5.0
"""Seconds for an answer; this server takes at most about one."""
TURN: Final = 3 * PATIENCE
"""Seconds to wait while another server mounts. A longer lock may be an attempt to prevent the mount."""

log = logging.getLogger(__name__)


class MountedFilesystem(NamedTuple):
    """A filesystem that is mounted: ``major:minor`` of its device, and its type."""

    device: str
    kind: str


def filesystems_at(path: str, otherwise: Sequence[MountedFilesystem] = ()) -> list[MountedFilesystem]:
    """The filesystems mounted at ``path``, the topmost last.

    Returns ``otherwise`` if no descriptor is left.
    """
    try:
        with open(MOUNTINFO, "rb") as file:
            lines = os.fsdecode(file.read()).split("\n")[:-1]
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return list(otherwise)
    found = []
    for line in lines:
        of_mount, _, of_filesystem = line.partition(" - ")
        device, _, at = of_mount.split(" ", 5)[2:5]
        if unescaped(at) == path:
            found.append(MountedFilesystem(device, of_filesystem.split(" ", 1)[0]))
    return found


def mounts_file() -> FileIO:
    """The open table of mounts; poll(2) reports its changes."""
    return open(MOUNTINFO, "rb", buffering=0)


@contextlib.contextmanager
def vacant(path: str, kind: str, *, nonempty: bool, turn: float = TURN) -> Iterator[None]:
    """Within it no other server mounts at ``path``, where no filesystem of ``kind`` is left. Raises ConfigError.

    A server that starts at the same moment waits until this one has mounted, and finds that. Do not enter it when
    threads are running.
    """
    with _alone(os.path.dirname(path), turn):
        require_place(path, kind, nonempty=nonempty)
        clear_place(path, kind, nonempty=nonempty)
        yield


@contextlib.contextmanager
def _alone(directory: str, turn: float) -> Iterator[None]:
    """Hold the lock flock(2) of the ``directory`` above a mount point. What is mounted there may not answer.

    Anybody who may read a directory can lock it. So this waits at most ``turn`` seconds, and goes on without the lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            _lock(fd, turn)
            stack.callback(fcntl.flock, fd, fcntl.LOCK_UN)  # children may have copies of the descriptor
        except OSError as error:  # also if this user may not read it
            log.warning("cannot lock %s: %s", directory, error.strerror)
        yield


def _lock(fd: int, seconds: float) -> None:
    """flock(2). Raises OSError; TimeoutError if somebody else keeps the lock for so long."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        answer = _answer(functools.partial(fcntl.flock, fd, fcntl.LOCK_EX), seconds)
        if answer != 0:
            number = errno.ETIMEDOUT if answer is None else answer
            raise OSError(number, os.strerror(number)) from None


def require_place(path: str, kind: str, *, nonempty: bool) -> None:
    """Refuse a place where a filesystem of ``kind`` can neither be mounted nor replace a dead one.

    Raises ConfigError: ENOENT and the like, EBUSY for a live one, ENOTEMPTY for a directory that is not empty, unless
    ``nonempty``. Do not call it when threads are running.
    """
    there = filesystems_at(path)
    if there and there[-1].kind == kind:
        answer = _answer(functools.partial(os.statvfs, path), PATIENCE)
        if answer not in DEAD:
            alive = "does not answer" if answer is None else "answers"
            raise ConfigError(f"{path}: {kind} is mounted there already, and {alive}", errno=errno.EBUSY)
    else:
        _require_directory(path, nonempty=nonempty)


def _answer(call: Callable[[], object], seconds: float) -> int | None:
    """The result of a system call, 0 or an errno; None without one in time.

    A child calls, in the same process group (see ``cli.mount``), because it can be killed while it waits. A lock that
    it gets belongs to the open file, and so to this process, too.
    """
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            call()
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    pidfd = os.pidfd_open(child)
    try:
        answered, _, _ = select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if answered else None


def _require_directory(path: str, *, nonempty: bool) -> None:
    try:
        names = os.listdir(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", errno=error.errno) from error
    if names and not nonempty:
        text = f"{path}: {os.strerror(errno.ENOTEMPTY)}: the option nonempty mounts over what is there"
        raise ConfigError(text, errno=errno.ENOTEMPTY)


def clear_place(path: str, kind: str, *, nonempty: bool) -> None:
    """Remove mounts of dead servers of ``kind`` at ``path``. Raises ConfigError if nothing can be mounted there.

    Call it after ``require_place``: no server of this mount point is alive. It does not access the old mount, which may
    never answer.
    """
    while (there := filesystems_at(path)) and there[-1].kind == kind:
        abort(there[-1])
        unmount(path)
        if len(filesystems_at(path)) >= len(there):
            raise ConfigError(f"{path}: cannot remove the old mount", errno=errno.EBUSY)
    _require_directory(path, nonempty=nonempty)


def abort(filesystem: MountedFilesystem) -> None:
    """Abort the connection of a FUSE filesystem to its server: all requests fail at once.

    Without a mounted fusectl this needs CAP_SYS_ADMIN. A failure is logged.
    """
    file = f"{filesystem.device.partition(':')[2]}/abort"
    try:
        with contextlib.suppress(FileNotFoundError):  # fusectl is not mounted, or the filesystem is gone
            _write(f"{CONNECTIONS}/{file}", None)
            return
        connections = mounts.mount_nowhere("fusectl")
        try:
            _write(file, connections)
        finally:
            os.close(connections)
    except OSError as error:
        log.warning("cannot abort the connection of the old mount: %s", error.strerror)


def _write(path: str, directory: int | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def unmount(path: str) -> None:
    """Unmount the topmost filesystem at ``path``, served or not. A failure is logged; fusermount3 prints it."""
    if os.geteuid() != 0:
        subprocess.run(["fusermount3", "-u", "-z", path], check=False)
        return
    try:
        mounts.detach(path)
    except OSError as error:
        log.warning("cannot unmount %s: %s", path, error.strerror)
