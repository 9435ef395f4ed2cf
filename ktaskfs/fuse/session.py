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
"""The errors of a notification after the end of the mount."""

DESCRIPTOR: Final = "/dev/fd/"
DEV_FUSE: Final = os.makedev(10, 229)
"""/dev/fuse (Documentation/admin-guide/devices.txt)."""

log = logging.getLogger(__name__)

_SAID_MAX: Final = 4096
"""Bytes of libfuse's messages that are kept."""


class MountFailed(KtaskfsError):
    """The mount could not be made, for the reason that libfuse or fusermount3 gave (EPERM)."""

    default_errno = errno.EPERM


TICK: Final = 2.0
"""Seconds for which the event loop can sleep in a read of /dev/fuse. An idle daemon wakes as often."""


@contextmanager
def _woken() -> Iterator[None]:
    """Interrupt the main thread, which runs the event loop, every TICK seconds with SIGALRM.

    libfuse reads the request that epoll reported. If its caller was killed in between, the request is gone, and the
    read sleeps until the next request; all timers and all ends of workers wait with it. With a non-blocking descriptor
    pyfuse3 would report a failure, but it repeats a read that a signal interrupted. (To start and stop a timer around
    each turn of the loop costs 4 us a request.)
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
        """Inodes that the kernel remembers, including the root."""
        return self._operations.known_nodes

    @property
    def open_handles(self) -> int:
        """Open files and directories."""
        return self._operations.open_handles

    async def serve(self) -> None:
        """Answer requests; returns after umount(8) or ``terminate``, when the last request was answered.

        Call it on the main thread. It uses SIGALRM meanwhile.
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
        """End the serving in the order that ``_until_told`` keeps, also when the nursery is cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            self.terminate()

    async def _until_told(self) -> None:
        """Follow the invalidations until ``terminate``, and only then let pyfuse3 end.

        A thread that tells the kernel of a name may wait for the directory's lock, and so for the answer to a request.
        It cannot be killed: it must end while requests are still answered, and before the session is destroyed.
        """
        with self._following:
            while True:
                gone = await self._invalidations.take()
                await trio.to_thread.run_sync(_forget_names, gone)
        pyfuse3.terminate()

    def terminate(self) -> None:
        """Have ``serve`` return within the second that a blocked reader may take. Call it from the event loop.

        Called before ``serve`` it has that return at once. After ``serve``, even after the unmount, it does nothing.
        """
        self._following.cancel()


def _forget_names(gone: Sequence[tuple[int, str]]) -> None:
    """Have the kernel forget names, and all that it knows below them. It need not know them.

    It runs in a thread, and ends between two names when it is cancelled.
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
    """Raise MountFailed unless ``mountpoint``, a /dev/fd/N, is a mounted /dev/fuse: libfuse would only fail later."""
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
    """Mount ``root``. At the end unmount it, if it is still mounted, and release all open files.

    The mount shows as type ``fuse.NAME`` of ``NAME``. ``options`` are further ones of mount.fuse3(8), such as
    ``allow_other``. ``mountpoint`` may be ``/dev/fd/N``: a /dev/fuse descriptor that another process has
    mounted, with options of its own, and will unmount. The kernel forgets the names that ``invalidations`` gets.
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
        # Before the session is destroyed: the poll handles of open files point into it.
        operations.close()
        there = filesystems_at(mountpoint, ours)
        pyfuse3.close(unmount=there[-1:] == ours)  # by path, so only if our mount is the uppermost
        if ours and ours[0] in there[:-1]:
            log.warning("something else is mounted on %s: what is left of this mount is below it", mountpoint)
        elif ours and filesystems_at(mountpoint)[-1:] == ours:
            detach(mountpoint)  # the connection was severed, by umount -f or in fusectl: libfuse leaves such a mount


@contextmanager
def _stderr_text() -> Iterator[Callable[[], str]]:
    """Keep what C code and its children write to standard error; the function returns it as one line.

    libfuse writes its reasons there. Text that is not asked for goes to standard error at the end.
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
