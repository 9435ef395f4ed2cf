"""The mount itself. pyfuse3 keeps its state in its module: one session for each process, and only here."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pyfuse3

from ktaskfs.errors import KtaskfsError
from ktaskfs.fuse.operations import TreeOperations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ktaskfs.vfs import Directory

MAX_REQUESTS: Final = 4096
"""Requests served at the same time; each blocked reader of a stream is one. For each, libfuse holds 1 MiB of address
space, and 10 KiB are in use (measured). Beyond that, requests wait until one of the readers has had its second."""


_SAID_MAX: Final = 4096
"""Bytes of libfuse's words that are kept."""


class MountFailed(KtaskfsError):
    """The mount could not be made, for the reason that libfuse or fusermount3 gave (EPERM)."""

    default_errno = errno.EPERM


class Session:
    """A mounted tree. The mount answers while ``serve`` runs."""

    def __init__(self, operations: TreeOperations) -> None:
        self._operations = operations

    @property
    def known_nodes(self) -> int:
        """Nodes that the kernel remembers, the root included."""
        return self._operations.known_nodes

    @property
    def open_handles(self) -> int:
        """Open files and directories."""
        return self._operations.open_handles

    async def serve(self) -> None:
        """Answer requests; returns after umount(8) or ``terminate``, when the last request was answered."""
        await pyfuse3.main(max_tasks=MAX_REQUESTS)

    def terminate(self) -> None:
        """Have ``serve`` return, within the second that a blocked reader may take; call it from its event loop."""
        pyfuse3.terminate()


@contextmanager
def mounted(root: Directory, mountpoint: str, *, name: str, options: Iterable[str] = ()) -> Iterator[Session]:
    """Mount ``root``; at the end unmount it, unless that has been done, and release all that is open.

    The mount shows as type ``fuse.NAME`` of ``NAME``. ``options`` are further ones of mount.fuse3(8), such as
    ``allow_other``. ``mountpoint`` may be ``/dev/fd/N``: a /dev/fuse descriptor that somebody else has mounted,
    with options of his own, and will unmount. Raises MountFailed.
    """
    operations = TreeOperations(root)
    with _stderr_text() as said:
        try:
            pyfuse3.init(operations, mountpoint, {f"fsname={name}", f"subtype={name}", "default_permissions", *options})
        except RuntimeError as error:
            raise MountFailed(f"cannot mount at {mountpoint}: {said() or error}") from error
    try:
        yield Session(operations)
    finally:
        # Before the session is destroyed, for the poll handles of open files point into it.
        operations.close()
        pyfuse3.close()


@contextmanager
def _stderr_text() -> Iterator[Callable[[], str]]:
    """Have what C code and its children write to standard error kept, and handed out as one line by the function.

    That is where libfuse says why; what nobody asks for goes to standard error at the end.
    """
    kept = os.memfd_create("stderr")
    asked = False

    def text() -> str:
        nonlocal asked
        asked = True
        return "; ".join(os.pread(kept, _SAID_MAX, 0).decode(errors="replace").split("\n")).strip("; ")

    ours = os.dup(2)
    os.dup2(kept, 2)
    try:
        yield text
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        if not asked:
            os.write(2, os.pread(kept, _SAID_MAX, 0))
        os.close(kept)
