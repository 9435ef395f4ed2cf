"""A directory that nobody else can change, and its files, accessed only through descriptors.

Somebody with write access to a parent directory could replace it between two system calls, and make root's daemon write
or remove other files. So every directory of the path is opened by name in its parent, without following links, and
checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from ktaskfs.errors import TargetError

_ABOVE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ITSELF: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class PrivateDirectory:
    """The directory ``path``, created (0700) if missing. ``fd`` is its descriptor, until ``close``.

    Raises TargetError (EPERM) unless it belongs to this user and only this user may write to it, and each parent
    belongs to this user or root, and is not writable by others; a sticky one (/tmp) may be, if the next belongs to this
    user or root.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = _open(path)
        except OSError as error:
            raise TargetError.from_os(error, f"state directory {path}") from error

    def close(self) -> None:
        """Close the descriptor; the directory stays."""
        os.close(self.fd)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of the file ``name``, made with mode 0600 if ``flags`` have O_CREAT.

        Raises OSError; EPERM unless it is a regular file of this user.
        """
        fd = os.open(name, flags | _FILE, 0o600, dir_fd=self.fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(fd)
            raise PermissionError(errno.EPERM, "not a regular file of this user", name)
        return fd

    def names(self) -> list[str]:
        """The names in the directory. Raises OSError."""
        return os.listdir(self.fd)

    def is_ours(self, name: str) -> bool:
        """Whether ``name`` is a regular file of this user."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()

    def rename(self, old: str, new: str) -> None:
        """Rename a file, replacing ``new``. Raises OSError."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one of that name. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)


def _open(path: str) -> int:
    names = [name for name in path.split("/") if name]
    at = os.open("/", _ABOVE if names else _ITSELF)
    trusted = {os.geteuid(), 0, os.fstat(at).st_uid}  # in a user namespace the host's root, who owns /, is not 0
    try:
        for number, name in enumerate(names, 1):
            above, last = at, number == len(names)
            at = _enter(above, name, last=last)
            try:
                _check_above(os.fstat(above), os.fstat(at), trusted, "/" + "/".join(names[: number - 1]))
            finally:
                os.close(above)
        found = os.fstat(at)
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
            message = f"state directory {path}: it must be yours, and nobody else may be able to write to it"
            raise TargetError(message, errno=errno.EPERM)
    except BaseException:
        os.close(at)
        raise
    return at


def _enter(above: int, name: str, *, last: bool) -> int:
    with contextlib.suppress(FileExistsError):
        if not _exists(above, name):
            os.mkdir(name, 0o700 if last else 0o755, dir_fd=above)
    if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return os.open(name, _ITSELF if last else _ABOVE, dir_fd=above)


def _exists(above: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _check_above(above: os.stat_result, entry: os.stat_result, trusted: set[int], path: str) -> None:
    open_to_others = above.st_mode & _OTHERS
    sticky = above.st_mode & stat.S_ISVTX and entry.st_uid in trusted
    if above.st_uid not in trusted or (open_to_others and not sticky):
        message = f"state directory: others can replace it, because they can write to {path}"
        raise TargetError(message, errno=errno.EPERM)
