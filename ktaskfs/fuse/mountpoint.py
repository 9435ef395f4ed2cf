"""Mounts at a path, and unmounting them. Only a child accesses a mount, because the mount may not answer."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs import mounts
from ktaskfs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO

MOUNTINFO: Final = "/proc/self/mountinfo"
"""The mounts of this namespace; see proc_pid_mountinfo(5)."""
CONNECTIONS: Final = "/sys/fs/fuse/connections"
"""The mount point of fusectl (Documentation/filesystems/fuse/fuse.rst)."""

DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""The errno of a mount whose connection to its server is gone."""
PATIENCE: Final = 5.0
"""Seconds for an answer; this server takes at most about one."""
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")

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
            lines = file.readlines()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return list(otherwise)
    wanted = os.fsencode(path)
    found = []
    for line in lines:
        of_mount, _, of_filesystem = line.partition(b" - ")
        device, _, at = of_mount.split(b" ", 5)[2:5]
        if _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), at) == wanted:
            found.append(MountedFilesystem(device.decode(), of_filesystem.split(b" ", 1)[0].decode()))
    return found


def mounts_file() -> FileIO:
    """The open table of mounts; poll(2) reports its changes."""
    return open(MOUNTINFO, "rb", buffering=0)


def require_place(path: str, kind: str, *, nonempty: bool) -> None:
    """Refuse a place where a filesystem of ``kind`` can neither be mounted nor replace a dead one.

    Raises ConfigError: ENOENT and the like, EBUSY for a live one, ENOTEMPTY for a directory that is not empty, unless
    ``nonempty``. Do not call it when threads are running.
    """
    there = filesystems_at(path)
    if there and there[-1].kind == kind:
        answer = _look(path)
        if answer not in DEAD:
            alive = "does not answer" if answer is None else "answers"
            raise ConfigError(f"{path}: {kind} is mounted there already, and {alive}", errno=errno.EBUSY)
    else:
        _require_directory(path, nonempty=nonempty)


def _look(path: str) -> int | None:
    """The result of statfs(2) at ``path``, 0 or an errno; None without an answer in time.

    A child asks, in the same process group (see ``cli.mount``), because it can be killed while it waits.
    """
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            os.statvfs(path)
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    pidfd = os.pidfd_open(child)
    try:
        answered, _, _ = select.select([pidfd], [], [], PATIENCE)
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

    Call it after ``require_place``, or under a service manager, which runs one server at a time: no server of this
    mount point is alive. It does not access the old mount, which may never answer.
    """
    while (there := filesystems_at(path)) and there[-1].kind == kind:
        abort(there[-1])
        detach(path)
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


def detach(path: str) -> None:
    """Unmount the topmost filesystem at ``path``, served or not. A failure is logged; fusermount3 prints it."""
    if os.geteuid() != 0:
        subprocess.run(["fusermount3", "-u", "-z", path], check=False)
        return
    try:
        mounts.detach(path)
    except OSError as error:
        log.warning("cannot unmount %s: %s", path, error.strerror)
