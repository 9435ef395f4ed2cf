"""``out=FILE``: a result that may be longer than a task keeps, written as the caller."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import Finding, TargetError
from ktaskfs.host.target import AbsentTarget, FilesystemType, open_target
from ktaskfs.operations.trees._sums import list_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.plan import Preparation
    from ktaskfs.span import Node

_NEW: Final = os.O_WRONLY | os.O_CLOEXEC
_MODE: Final = 0o666
_BUFFER: Final = 1 << 20


class Output:
    """A file that is not there yet. It gets its name when all of it is written: a task that ends early leaves none."""

    def __init__(self, kernel: Kernel, target: AbsentTarget) -> None:
        self._kernel = kernel
        self._path = target.path
        self._directory = target.fd
        self._name = os.path.basename(target.path)

    def write(self, lines: Callable[[], Iterable[bytes]], remarks: str) -> None:
        """Write the whole file.

        Raises Finding, EEXIST if somebody else has made a file of that name; its result then has the lines for which
        there is room, and the ``remarks``.
        """
        try:
            self._write(lines())
        except OSError as error:
            words = f"{TargetError.from_os(error, f'write {self._path}').message}; the result has the lines that fit"
            raise Finding(words, position=0, result=list_text(lines(), remarks), errno=error.errno) from error

    def _write(self, lines: Iterable[bytes]) -> None:
        try:
            fd, named = os.open(".", os.O_TMPFILE | _NEW, _MODE, dir_fd=self._directory), False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # NFS, vfat
                raise
            fd, named = os.open(self._name, os.O_CREAT | os.O_EXCL | _NEW, _MODE, dir_fd=self._directory), True
        made = os.fstat(fd)
        try:
            with os.fdopen(fd, "wb", buffering=_BUFFER) as file:
                file.writelines(lines)
                file.flush()
                if not named:
                    self._kernel.link(fd, self._name, self._directory)
        except BaseException:  # also of close(2), with which NFS reports a full disk
            self._remove(made)
            raise

    def _remove(self, made: os.stat_result) -> None:
        """Remove the file, unless it has no name yet, or its name means another one by now."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._name, dir_fd=self._directory, follow_symlinks=False), made):
                os.unlink(self._name, dir_fd=self._directory)


def make_output(
    preparation: Preparation[Any],
    path: str,
    nodes: Sequence[Node],
    told: Callable[[], Mapping[str, object]] | None = None,
) -> Output:
    """The output of a task. The start fails if there is such a file, or the caller could make none.

    ``told`` as for ``before_changes``, where there is more to tell than that the file is made. Raises TargetError,
    EEXIST if there is one, and NotSupported on hugetlbfs, which has no write(2).
    """
    kinds = frozenset({FilesystemType.TMPFS, FilesystemType.OTHER})
    target = preparation.keep(open_target(preparation.kernel, path, kinds=kinds, create=_MODE, leave_absent=True))
    if not isinstance(target, AbsentTarget):
        raise TargetError(f"{path} exists already; out must be a new file", errno=errno.EEXIST)
    preparation.before_changes(nodes, told or (lambda: {"creates": path}))
    return Output(preparation.kernel, target)
