"""A caller whose task begins later, perhaps after the end of its process, perhaps under another daemon."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ktaskfs.errors import TargetError
from ktaskfs.host.credentials import CallerProcess, Identity
from ktaskfs.host.statx import file_status

ROOTS: Final = ("/proc/self/root", "/proc/1/root")
"""The root of most callers: this daemon's, or, if it has its own mount namespace, that of the machine."""
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True)
class KeptCaller:
    """Who a worker is to become later.

    identity: as it was when the caller opened the file.
    root:     the caller's root as (mount, device, inode), None if only its descriptors lead there.
    process:  the process that the spec names, by its number and its start time (None if there was none), because
              numbers are reused; None if the spec names none.
    held:     the caller's descriptors in that case, None in a later daemon.
    """

    identity: Identity
    root: tuple[int, int, int] | None
    process: tuple[int, int | None] | None = None
    held: CallerProcess | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        caller: CallerProcess,
        root: tuple[int, int, int] | None,
        *,
        paths_are_absolute: bool,
        process: tuple[int, int | None] | None = None,
    ) -> KeptCaller:
        """Keep ``caller``, with copies of its descriptors only if needed: for a separate root, or for relative paths.

        ``root`` is from ``common_root``. Raises OSError.
        """
        if root is not None and paths_are_absolute and caller.user_namespace is None:
            return cls(caller.identity, root, process)
        return cls(caller.identity, None, process, caller.copy())

    def open(self) -> CallerProcess:
        """The caller, for a worker to become; takes over ``held``.

        Raises TargetError, ESTALE if its root is lost.
        """
        if self.held is not None:
            return self.held
        try:
            root = None if self.root is None else _open_root(self.root)
            if root is not None:
                try:
                    return CallerProcess(self.identity, root, root).copy()
                finally:
                    os.close(root)
        except OSError as error:
            raise TargetError.from_os(error, "open the root directory of the task's writer") from error
        raise TargetError("the root directory of the task's writer is lost", errno=errno.ESTALE)

    def after_boot(self) -> KeptCaller:
        """The caller after a boot: the process that the spec names is gone."""
        return replace(self, process=None if self.process is None else (self.process[0], None))

    def close(self) -> None:
        """Give it up."""
        if self.held is not None:
            self.held.close()

    def to_fields(self) -> dict[str, Any]:
        """The data for a later daemon, for JSON."""
        return {"identity": self.identity.to_fields(), "root": self.root, "process": self.process}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> KeptCaller:
        """The inverse; raises TypeError, KeyError or ValueError for invalid data."""
        root = fields["root"]
        if root is not None:
            mount, device, inode = map(int, root)
            root = mount, device, inode
        process = fields.get("process")  # older records have none
        if process is not None:
            pid, began = process
            process = int(pid), None if began is None else int(began)
        return cls(Identity.from_fields(fields["identity"]), root, process)


def common_root(caller: CallerProcess) -> tuple[int, int, int] | None:
    """The root of ``caller`` as (mount, device, inode) if it is one of ROOTS, else None. Raises OSError."""
    root = _place(caller.root)
    found = None if root is None else _open_root(root)
    if found is None:
        return None
    os.close(found)
    return root


def _place(directory: int) -> tuple[int, int, int] | None:
    """Mount, device and inode: they identify a directory of a mount of a namespace. None if the inode is unknown."""
    with open(f"/proc/self/fdinfo/{directory}", "rb") as file:
        mount = next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))
    status = file_status(directory, "")
    return (mount, status.device, status.inode) if status.inode else None


def _open_root(place: tuple[int, int, int]) -> int | None:
    """A descriptor of the member of ROOTS at ``place``, or None. Raises OSError."""
    for path in ROOTS:
        try:
            fd = os.open(path, _DIRECTORY)
        except PermissionError:  # of PID 1, for an ordinary user's daemon
            continue
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            if _place(fd) == place:
                stack.pop_all()
                return fd
    return None
