"""The refusals of the filesystem itself, with the errno of kernfs (sysfs, cgroup v2) or the VFS."""

from __future__ import annotations

import errno

from ktaskfs.errors import KtaskfsError


class NoSuchEntry(KtaskfsError):
    """The directory has no such name, or not for this caller (ENOENT)."""

    default_errno = errno.ENOENT


class Stale(KtaskfsError):
    """The inode was removed, or belongs to an earlier daemon (ESTALE); its path can be opened again."""

    default_errno = errno.ESTALE


class NotADirectory(KtaskfsError):
    """A directory's operation on something else (ENOTDIR)."""

    default_errno = errno.ENOTDIR


class NotAFile(KtaskfsError):
    """A file's operation on a directory (EISDIR)."""

    default_errno = errno.EISDIR


class NotALink(KtaskfsError):
    """A link's operation on something else (EINVAL)."""


class AccessDenied(KtaskfsError):
    """Nobody can open the file that way, not even root (EACCES)."""

    default_errno = errno.EACCES


class NameTooLong(KtaskfsError):
    """A name of more than NAME_MAX bytes (ENAMETOOLONG)."""

    default_errno = errno.ENAMETOOLONG


class BadWrite(KtaskfsError):
    """A write that is not a command: empty, with a NUL byte, or not at the start of the file (EINVAL)."""


class Incomplete(KtaskfsError):
    """A command whose last piece never came (EINTR)."""

    default_errno = errno.EINTR


class NothingYet(KtaskfsError):
    """A stream opened with O_NONBLOCK has no data now (EAGAIN)."""

    default_errno = errno.EAGAIN


class TooMuchText(KtaskfsError):
    """The open files of a user hold too much text (ENOMEM, as for open(2) without kernel memory)."""

    default_errno = errno.ENOMEM


class NotSpliced(KtaskfsError):
    """splice(2) of a stream (EINVAL, as for files that do not support it)."""


class Interrupted(KtaskfsError):
    """A stream had no data for a while, and its reader may handle signals now (EINTR)."""

    default_errno = errno.EINTR
