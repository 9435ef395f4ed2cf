"""Size, mode and times of what is copied. Each function that changes a file raises OSError."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

_PERMISSIONS: Final = 0o1777
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_NO_LINK_TIMES: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of a filesystem that has no times of links. sshfs sets those of the file that the link leads to, as for cp -a:
it may be missing, or belong to somebody else."""


def set_size(fd: int, size: int) -> None:
    """As ftruncate(2), which a server of FUSE may lack; a write makes a file longer there."""
    now = os.fstat(fd).st_size
    if now == size:
        return
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP) or size < now:
            raise
        os.pwrite(fd, b"\0", size - 1)


def dress(fd: int, status: os.stat_result) -> None:
    """Give a file mode and times of its original; set-id bits only if the owners are the same."""
    try:
        os.utime(fd, ns=_times(status))
    finally:
        os.fchmod(fd, copied_mode(os.fstat(fd), status))


def dress_link(name: str, directory: int, status: os.stat_result) -> None:
    """Give a symbolic link the times of its original, if they can be set."""
    try:
        os.utime(name, ns=_times(status), dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK_TIMES:
            raise


def copied_mode(mine: os.stat_result, status: os.stat_result) -> int:
    """The mode of a file for the copy of another one."""
    same = (mine.st_uid, mine.st_gid) == (status.st_uid, status.st_gid)
    return stat.S_IMODE(status.st_mode) & (_PERMISSIONS | (_SET_ID if same else 0))


def _times(status: os.stat_result) -> tuple[int, int]:
    return status.st_atime_ns, status.st_mtime_ns
