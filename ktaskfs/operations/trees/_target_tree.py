"""The target directory of a copied tree: everything is created below it, and nothing existing is written to."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError, undo_after
from ktaskfs.host.target import FilesystemType, directory_as_target
from ktaskfs.host.tree import Tree
from ktaskfs.operations.trees._attributes import copied_mode, dress, dress_link, set_size
from ktaskfs.operations.trees._target_checks import require_usable
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = _OLD | os.O_CREAT | os.O_EXCL
_INCOMPLETE: Final = 0o1600
"""The mode of a file that could not be copied as a whole, which otherwise a resume would take for a complete one. A
filesystem without modes, such as vfat, may ignore chmod(2) without an error: there the file is a byte too long."""

_COARSEST_NS: Final = 2_000_000_000
"""Filesystems round times: vfat to two seconds."""


class TargetTree:
    """The directory at ``path``, which ends in no slash, unless it is ``/``. It is made, or is there and empty;
    ``filled``: an earlier run has made files in it.

    ``close`` removes it if it was made and ``keep`` was not called. Raises TargetError (ENOTEMPTY).
    """

    def __init__(self, kernel: Kernel, path: str, *, filled: bool) -> None:
        self._kernel = kernel
        self.path = path
        self.filled = filled
        """Whether an earlier run has made files in it."""
        self.finishing = False
        """Whether all chunks are done. Each file is marked as incomplete until all of it is copied, and takes the place
        of one that an earlier run has left so, or of an empty one: of another one nobody knows whose it is."""
        parent, name = os.path.split(path)
        self._name = name or "."
        self._growing = threading.Lock()  # held while a file of which several threads copy parts is made, or grows
        self.started: set[str] = set()
        """Such files of which this run has opened a part, or an earlier one has copied one; guarded by _growing."""
        self._given_up: dict[str, int] = {}
        """Such files of which a part could not be opened before any other was, with the errno; guarded by _growing."""
        self._incomplete: set[str] = set()
        """Files that this run has marked as incomplete; guarded by _growing."""
        self._owner = os.geteuid()
        """The owner of new files: of vfat, NFS and sshfs perhaps another user."""
        self.made = False
        try:
            self._parent = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError.from_os(error, f"open {path}") from error
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            try:
                os.mkdir(self._name, 0o700, dir_fd=self._parent)
                self.made = True
            except FileExistsError:
                pass
            self.fd = os.open(self._name, _DIRECTORY, dir_fd=self._parent)
            self.kind = directory_as_target(self.fd, self.path)
        except OSError as error:
            raise TargetError.from_os(error, f"open {self.path}") from error
        self._tree = Tree(self.fd, cross_mounts=False)
        if not self.made:
            require_usable(self._kernel, self.kind, empty=not self.filled)
        if self.filled:
            self._find_owner()
        self.is_huge = self.kind.filesystem is FilesystemType.HUGETLBFS

    def _find_owner(self) -> None:
        """Look at a new file, because those of an earlier run are the caller's own, whoever they belong to."""
        name = f".ktaskfs-{os.urandom(8).hex()}"
        try:
            fd = os.open(name, _NEW, 0o600, dir_fd=self.fd)
            try:
                self._owner = os.fstat(fd).st_uid
            finally:
                os.close(fd)
                os.unlink(name, dir_fd=self.fd)
        except OSError as error:
            raise TargetError.from_os(error, f"create a file in {self.path}") from error

    def keep(self) -> None:
        """Something was copied: keep the directory."""
        self.made = False

    def close(self) -> None:
        """Close it, and remove it if nothing was copied. Raises OSError."""
        try:
            if self.made:
                os.rmdir(self._name, dir_fd=self._parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):  # somebody else uses it or has removed it
                raise
        finally:
            if hasattr(self, "fd"):
                os.close(self.fd)
            os.close(self._parent)

    def directory(self, path: str) -> int:
        """A directory below, with all above it, open as O_PATH; made if it is missing. Raises OSError."""
        if not path:
            return os.dup(self.fd)
        try:
            return self._checked(self._tree.open(path))
        except FileNotFoundError:
            pass
        above, name = os.path.split(path)
        parent = self.directory(above)
        try:
            with contextlib.suppress(FileExistsError):  # another thread has just made it
                os.mkdir(name, 0o700, dir_fd=parent)
            return self._checked(os.open(name, _DIRECTORY, dir_fd=parent))
        finally:
            os.close(parent)

    @staticmethod
    def _checked(fd: int) -> int:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return fd

    def file(self, path: str, size: int, *, replace: bool) -> int:
        """A file of the copy, open for writing, and ``size`` bytes long; made if it is missing. Raises OSError.

        ``replace``: all of it is copied, so one that an earlier run completed and made unwritable may be replaced.
        A file of ``started`` that is gone (ENOENT), or shorter (ENXIO), would look complete without its first parts.
        EEXIST for what this task has not made: a file of another task or user, a link to another place, a file with
        several names, and one of the copy itself whose name the filesystem takes for the same (``a`` and ``A``).
        """
        above, name = os.path.split(path)
        parent = self.directory(above)
        try:
            with contextlib.nullcontext() if replace else self._growing:
                if (number := self._given_up.get(path)) is not None:
                    raise OSError(number, os.strerror(number))
                make = replace or path not in self.started
                return self._open_file(path, name, parent, size, make=make, replace=replace)
        finally:
            os.close(parent)

    def _open_file(self, path: str, name: str, parent: int, size: int, *, make: bool, replace: bool) -> int:
        fd, made = self._open_name(name, parent, make=make, replace=replace)
        try:
            status = os.fstat(fd)
            if made:
                self._owner = status.st_uid
            elif not self._is_own(status) or (self.finishing and not self._is_left(status, size)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if self.finishing:
                if not self.mark_incomplete(fd, path, size):
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            elif replace:
                set_size(fd, self._size(size))
            elif path in self.started and status.st_size < self._size(size):  # somebody has cut off parts
                self._mark(fd, path, size)
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            else:
                self._grow(fd, self._size(size))
                self.started.add(path)
        except BaseException as error:
            os.close(fd)
            if made:
                undo_after(error, partial(os.unlink, name, dir_fd=parent))
            raise
        return fd

    def _open_name(self, name: str, parent: int, *, make: bool, replace: bool) -> tuple[int, bool]:
        """A file, and whether it is a new one. Raises OSError."""
        if make:
            try:
                return os.open(name, _NEW, 0o600, dir_fd=parent), True
            except FileExistsError:
                if not self.filled:
                    raise
        return self._open_existing(name, parent, replace=replace)

    def give_up(self, path: str, size: int, number: int) -> bool:
        """A part of a large file could not be opened: refuse its other parts with the same errno.

        False if some of them are there: the file would look complete.
        """
        with self._growing:
            there = path in self.started and number not in (errno.ENOENT, errno.ENXIO)
            if there or (self.filled and not self.lacks(path, stat.S_IFREG, size)):
                return False
            self._given_up[path] = number
            return True

    def _open_existing(self, name: str, parent: int, *, replace: bool) -> tuple[int, bool]:
        """The file, and whether it is a new one in the place of an unwritable one."""
        try:
            return os.open(name, _OLD, dir_fd=parent), False
        except PermissionError:
            if not replace or self.finishing or not self._is_own(os.stat(name, dir_fd=parent, follow_symlinks=False)):
                raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            raise
        os.unlink(name, dir_fd=parent)  # an earlier run completed it, but was killed before it reported that
        return os.open(name, _NEW, 0o600, dir_fd=parent), True

    @staticmethod
    def _grow(fd: int, size: int) -> None:
        """Make the file at least ``size`` bytes long; one that another thread has marked stays longer. Call it with
        ``_growing``."""
        if os.fstat(fd).st_size < size:
            set_size(fd, size)

    def mark_incomplete(self, fd: int, path: str, size: int) -> bool:
        """Mark an open file, which gets ``size`` bytes, and lacks a part, for the end of the task or a resume.

        False if that is impossible.
        """
        with self._growing:
            return self._mark(fd, path, size)

    def _mark(self, fd: int, path: str, size: int) -> bool:
        """As ``mark_incomplete``; call it with ``_growing``."""
        self._incomplete.add(path)
        with contextlib.suppress(OSError):
            os.fchmod(fd, _INCOMPLETE)
        with contextlib.suppress(OSError):
            self._grow(fd, self._size(size) if self._is_marked(os.fstat(fd), size) else size + 1)
        return self._is_marked(os.fstat(fd), size)

    def unmark(self, fd: int, size: int) -> None:
        """The file is complete, but has not yet its own mode and times. Raises OSError."""
        set_size(fd, self._size(size))
        os.fchmod(fd, 0o600)

    def _is_own(self, status: os.stat_result) -> bool:
        return stat.S_ISREG(status.st_mode) and status.st_uid == self._owner and status.st_nlink == 1

    def _is_marked(self, status: os.stat_result, size: int) -> bool:
        return stat.S_IMODE(status.st_mode) == _INCOMPLETE or status.st_size == self._size(size) + 1

    def _is_left(self, status: os.stat_result, size: int) -> bool:
        """Whether an earlier run has left this own file without a part, or without any."""
        return not status.st_size or self._is_marked(status, size)

    def _size(self, size: int) -> int:
        """The size of the copy of a file of ``size`` bytes."""
        return Span(0, size).widened(self.kind.page_size).end if self.is_huge else size

    def remove_incomplete(self, path: str, size: int) -> None:
        """Remove a file that this run, or an earlier one, has marked as incomplete, and nothing else in its place."""
        if self.filled or path in self._incomplete:
            with contextlib.suppress(OSError):  # the result names the file, whatever is there now
                if self._is_marked(self._tree.status(path), size):
                    self.remove(path)

    def remove(self, path: str) -> bool:
        """Remove a file of the copy; whether it is gone."""
        above, name = os.path.split(path)
        try:
            parent = self.directory(above)
            try:
                if not self._is_own(os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    return False
                os.unlink(name, dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError:
            return True
        except OSError:  # the caller reports why it is incomplete
            return False
        return True

    def lacks(self, path: str, kind: int, size: int) -> bool:
        """Whether an earlier run has not copied this entry, of that kind (as S_IFMT) and size."""
        try:
            status = self._tree.status(path)
        except OSError:  # another attempt to copy it reports the error, if there is one
            return True
        if kind != stat.S_IFREG:
            return stat.S_IFMT(status.st_mode) != kind
        complete = status.st_size == self._size(size) and not self._is_marked(status, size)
        return not (self._is_own(status) and complete)

    def dress_file(self, path: str, status: os.stat_result) -> None:
        """Give a complete file mode and times. Raises OSError: EEXIST for a foreign entry."""
        handle = self._tree.open(path)
        try:
            mine = os.fstat(handle)
            if not self._is_own(mine):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            fd = self._kernel.reopen(handle, os.O_RDONLY | os.O_NONBLOCK)
        except PermissionError:  # an earlier run has perhaps made it unreadable
            late = abs(mine.st_mtime_ns - status.st_mtime_ns)
            if stat.S_IMODE(mine.st_mode) != copied_mode(mine, status) or late >= _COARSEST_NS:
                raise
            return
        finally:
            os.close(handle)
        try:
            dress(fd, status)
        finally:
            os.close(fd)

    def link(self, path: str, text: str, status: os.stat_result) -> None:
        """A symbolic link, with its times if they can be set; an equal one may exist. Raises OSError."""
        above, name = os.path.split(path)
        parent = self.directory(above)
        try:
            try:
                os.symlink(text, name, dir_fd=parent)
            except FileExistsError:
                if os.readlink(name, dir_fd=parent) != text:
                    raise
            dress_link(name, parent, status)
        finally:
            os.close(parent)

    def dress_directory(self, path: str, status: os.stat_result) -> None:
        """Give a directory, which is made if it is missing, mode and times. Raises OSError."""
        handle = self.directory(path)
        try:
            fd = self._kernel.reopen(handle, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(handle)
        try:
            dress(fd, status)
        finally:
            os.close(fd)
