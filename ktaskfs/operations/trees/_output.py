"""``out=FILE``: a result that may be longer than a task keeps, written as the caller."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

from ktaskfs.errors import TargetError
from ktaskfs.host.target import AbsentTarget, FilesystemType, open_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ktaskfs.host.target import Target
    from ktaskfs.operations.base.plan import Preparation
    from ktaskfs.span import Node


class Output:
    """A new file, which is removed by ``close`` unless it was written: the task was refused, or ended early."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._written = False

    def write(self, lines: Iterable[bytes]) -> None:
        """Write all of it. Raises TargetError."""
        try:
            with os.fdopen(os.dup(self._target.fd), "wb", buffering=1 << 20) as file:
                file.writelines(lines)
        except OSError as error:
            raise TargetError.from_os(error, f"write {self._target.path}") from error
        self._written = True

    def close(self) -> None:
        """Close it; remove it unless it was written."""
        if not self._written:
            with contextlib.suppress(OSError):  # somebody may have removed it
                os.unlink(self._target.name, dir_fd=self._target.directory)
        self._target.close()


def make_output(
    preparation: Preparation[Any],
    path: str,
    nodes: Sequence[Node],
    told: Callable[[], Mapping[str, object]] | None = None,
) -> Output:
    """Make the file at once, so that the start fails if it cannot be; with plan=1 it is not made.

    ``told`` as for ``before_changes``, where there is more to tell than that the file is made. Raises TargetError,
    EEXIST if there is one.
    """
    look = preparation.parameters.plan
    target = open_target(preparation.kernel, path, kinds=frozenset(FilesystemType), create=0o666, look=look)
    if not target.created and not isinstance(target, AbsentTarget):
        target.close()
        raise TargetError(f"{path} exists already; out must be a new file", errno=errno.EEXIST)
    if look:
        preparation.keep(target)
    preparation.before_changes(nodes, told or (lambda: {"creates": path}))
    return preparation.keep(Output(target))
