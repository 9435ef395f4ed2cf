"""The mount itself. pyfuse3 keeps its state in its module: one session for each process, and only here."""

from __future__ import annotations

import errno
import logging
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.fuse.mountpoint import detach, filesystems_at
from ktaskfs.fuse.operations import TreeOperations
from ktaskfs.vfs import Invalidations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ktaskfs.vfs import Directory

MAX_REQUESTS: Final = 4096
"""Requests served at the same time; each blocked reader of a stream is one. For each, libfuse holds 1 MiB of address
space, and 10 KiB are in use (measured). Beyond that, requests wait until one of the readers has had its second."""

GONE: Final = frozenset({errno.ENODEV, errno.ENOTCONN})
"""What a notification meets when the mount has just ended."""

DESCRIPTOR: Final = "/dev/fd/"
DEV_FUSE: Final = os.makedev(10, 229)
"""/dev/fuse (Documentation/admin-guide/devices.txt)."""

log = logging.getLogger(__name__)

_SAID_MAX: Final = 4096
"""Bytes of libfuse's words that are kept."""


class MountFailed(KtaskfsError):
    """The mount could not be made, for the reason that libfuse or fusermount3 gave (EPERM)."""

    default_errno = errno.EPERM


TICK: Final = 2.0
"""Seconds for which the event loop can sleep in a read of /dev/fuse; and so an idle daemon wakes as often."""


@contextmanager
def _woken() -> Iterator[None]:
    """Have the main thread, which runs the event loop, interrupted now and then; it has the use of SIGALRM.

    libfuse reads the request that epoll told of. If whoever made it is killed in between it is not there any more, and
    the read would sleep until the next one comes, with all timers and all ends of workers. Were the descriptor
    non-blocking, pyfuse3 would take that for a failure; a read that a signal interrupts it simply tries again. (To
    start and stop a timer around each turn of the loop costs 4 us a request.)
    """
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Session:
    """A mounted tree. The mount answers while ``serve`` runs."""

    def __init__(self, operations: TreeOperations, invalidations: Invalidations) -> None:
        self._operations = operations
        self._invalidations = invalidations
        self._following = trio.CancelScope()

    @property
    def known_nodes(self) -> int:
        """Nodes that the kernel remembers, the root included."""
        return self._operations.known_nodes

    @property
    def open_handles(self) -> int:
        """Open files and directories."""
        return self._operations.open_handles

    async def serve(self) -> None:
        """Answer requests; returns after umount(8) or ``terminate``, when the last request was answered.

        To be called on the main thread; it has the use of SIGALRM meanwhile.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._terminate_when_cancelled)
            with trio.CancelScope(shield=True), _woken():
                async with trio.open_nursery() as serving:
                    serving.start_soon(self._until_told)
                    await pyfuse3.main(max_tasks=MAX_REQUESTS)
                    serving.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    async def _terminate_when_cancelled(self) -> None:
        """Whatever ends the serving, it ends in the order that ``_until_told`` keeps."""
        try:
            await trio.sleep_forever()
        finally:
            self.terminate()

    async def _until_told(self) -> None:
        """Follow the invalidations until ``terminate``, and only then let pyfuse3 end.

        A thread that tells the kernel of one may wait for the directory's lock, and that for the answer to a
        request: it has to be over while requests are still answered, for nobody can kill it. Nor may it find the
        session destroyed.
        """
        with self._following:
            while True:
                gone = await self._invalidations.take()
                await trio.to_thread.run_sync(_forget_names, gone)
        pyfuse3.terminate()

    def terminate(self) -> None:
        """Have ``serve`` return, within the second that a blocked reader may take; call it from its event loop.

        Before ``serve`` it has that return at once; after it, even after the unmount, it does nothing.
        """
        self._following.cancel()


def _forget_names(gone: Sequence[tuple[int, str]]) -> None:
    """Have the kernel forget names, and what it knows below them; that it does not know one is no matter.

    Runs in a thread, where it ends between two names when it is cancelled.
    """
    for ino, name in gone:
        trio.from_thread.check_cancelled()
        try:
            pyfuse3.invalidate_entry(pyfuse3.InodeT(ino), pyfuse3.FileNameT(os.fsencode(name)))
        except OSError as error:
            if error.errno in GONE:  # the mount has just ended
                return
            if error.errno != errno.ENOENT:
                log.error("the kernel cannot be told that %s is gone: %s", ascii(name), error.strerror)


def _require_mounted(mountpoint: str) -> None:
    """``mountpoint``, /dev/fd/N, must be a /dev/fuse that is mounted, or libfuse fails when it serves; MountFailed."""
    fd = int(mountpoint.removeprefix(DESCRIPTOR))
    try:
        if os.fstat(fd).st_rdev != DEV_FUSE:
            raise MountFailed(f"cannot serve {mountpoint}: it is no /dev/fuse")
        os.read(fd, 1)  # never enough for a request: EINVAL, and nothing is taken
    except OSError as error:
        if error.errno == errno.EPERM:
            raise MountFailed(f"cannot serve {mountpoint}: it is not mounted") from None
        if error.errno != errno.EINVAL:
            raise MountFailed(f"cannot serve {mountpoint}: {error.strerror}") from error


@contextmanager
def mounted(
    root: Directory,
    mountpoint: str,
    *,
    name: str,
    options: Iterable[str] = (),
    invalidations: Invalidations | None = None,
) -> Iterator[Session]:
    """Mount ``root``; at the end unmount it, unless that has been done, and release all that is open.

    The mount shows as type ``fuse.NAME`` of ``NAME``. ``options`` are further ones of mount.fuse3(8), such as
    ``allow_other``. ``mountpoint`` may be ``/dev/fd/N``: a /dev/fuse descriptor that somebody else has mounted,
    with options of his own, and will unmount. Names that are added to ``invalidations`` are forgotten by the kernel.
    Raises MountFailed.
    """
    if mountpoint.startswith(DESCRIPTOR):
        _require_mounted(mountpoint)
    operations = TreeOperations(root)
    with _stderr_text() as said:
        try:
            pyfuse3.init(operations, mountpoint, {f"fsname={name}", f"subtype={name}", "default_permissions", *options})
        except RuntimeError as error:
            raise MountFailed(f"cannot mount at {mountpoint}: {said() or error}") from error
    ours = filesystems_at(mountpoint)[-1:]
    try:
        yield Session(operations, invalidations or Invalidations())
    finally:
        # Before the session is destroyed, for the poll handles of open files point into it.
        operations.close()
        there = filesystems_at(mountpoint, ours)
        pyfuse3.close(unmount=there[-1:] == ours)  # by the path: what somebody has mounted over it is not ours
        if ours and ours[0] in there[:-1]:
            log.warning("something else is mounted on %s: what is left of this mount is below it", mountpoint)
        elif ours and filesystems_at(mountpoint)[-1:] == ours:
            detach(mountpoint)  # the connection was severed, by umount -f or in fusectl: libfuse leaves such a mount


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
