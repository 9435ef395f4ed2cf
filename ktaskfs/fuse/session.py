"""The mount itself. pyfuse3 keeps its state in its module: one session for each process, and only here."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.fuse.buffers import give_back_what_is_freed
from ktaskfs.fuse.device import DEVICE
from ktaskfs.fuse.mountpoint import MountedFilesystem, filesystems_at, mounts_file, unmount
from ktaskfs.fuse.negotiation import Agreement, negotiate
from ktaskfs.fuse.operations import TreeOperations
from ktaskfs.fuse.pollers import wake_all
from ktaskfs.fuse.turns import IN_ALL_MAX as WAITING_FOR_TURN_MAX
from ktaskfs.fuse.turns import Turns
from ktaskfs.vfs.patience import IN_ALL_MAX as WAITING_READS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ktaskfs.vfs import Directory

MAX_REQUESTS: Final = WAITING_FOR_TURN_MAX + WAITING_READS_MAX + 128
"""Maximum pending requests: those that wait for their turn, blocked readers of streams, and some more.

For each, libfuse has 1 MiB of address space; 10 KiB are in use (measured), and after a large write as much as
``negotiation`` allows, until the request is answered.
"""

END_OF_SOCKET: Final = "short read on fuse device"
"""libfuse's message at the end of ``negotiate``."""
DESCRIPTOR: Final = "/dev/fd/"
DEV_FUSE: Final = os.makedev(10, 229)
"""/dev/fuse (Documentation/admin-guide/devices.txt)."""

log = logging.getLogger(__name__)

GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ECONNABORTED})
"""The errno of /dev/fuse when the mount was unmounted before the kernel had an answer."""
_SAID_MAX: Final = 4096
"""Maximum bytes of libfuse's messages."""


class MountFailed(KtaskfsError):
    """The mount failed, with the message of libfuse or fusermount3 (EPERM)."""

    default_errno = errno.EPERM


TICK: Final = 2.0
"""Maximum seconds that the event loop sleeps in a read of /dev/fuse. An idle daemon wakes at this interval."""


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

    def __init__(
        self, operations: TreeOperations, device: int, filesystem: MountedFilesystem | None, *, own: bool
    ) -> None:
        """``device`` is the open /dev/fuse, ``filesystem`` the mount that it serves, None if invisible to this
        process. ``own``: this process has made the mount."""
        self._operations = operations
        self._device = device
        self._filesystem = filesystem
        self._own = own
        self._pins: list[int] = []
        self._serving = False
        self._told = False

    @property
    def static_names(self) -> list[str]:
        """The paths of all static inodes, below the root."""
        return self._operations.static_names

    @property
    def seen(self) -> bool:
        """Whether this process sees the mount, and so notices its end."""
        return self._filesystem is not None

    @property
    def open_handles(self) -> int:
        """Open files and directories."""
        return self._operations.open_handles

    def hold(self, pins: Iterable[int]) -> None:
        """Close the descriptors ``pins`` at the end of the mount. They must not make it busy."""
        self._pins += pins

    def close(self) -> None:
        """Release all open files, and close the descriptors given to ``hold``."""
        # Before pyfuse3 destroys its session, because the poll handles of open files point into it.
        self._operations.close()
        while self._pins:
            os.close(self._pins.pop())

    async def serve(self, earlier: str = "", remember: Callable[[str], object] = str) -> None:
        """Answer requests; returns after umount(8) or ``terminate``, when pending requests are answered.

        The mount ends when it is gone from this mount namespace, even if files in it are open, or another namespace has
        it: remaining users get ENOTCONN when the session is closed.

        ``earlier`` is the text that an earlier server of this mount passed to ``remember``, so that this one can take
        over. Files opened there then fail with ESTALE. Raises CannotTakeOver.

        Call it on the main thread. It uses SIGALRM.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._terminate_when_cancelled)
            if self._filesystem is not None:
                nursery.start_soon(self._terminate_when_gone, self._filesystem)
            with trio.CancelScope(shield=True), _woken():
                with _stderr_text() as said:
                    try:
                        agreement = await negotiate(self._device, self._operations.digest, Agreement.from_text(earlier))
                    except OSError as error:
                        if not self._own or error.errno not in GONE:
                            raise
                        said()
                        nursery.cancel_scope.cancel()
                        return
                    others = said().replace(END_OF_SOCKET, "").strip("; ")
                if others:
                    log.warning("%s", others)
                self._count_openings(agreement, remember)
                if not self._told:
                    self._serving = True
                    async with trio.open_nursery() as turns:
                        turns.start_soon(self._operations.turns.run)
                        if agreement.opened:
                            turns.start_soon(wake_all, self._device, agreement.opened)
                        await pyfuse3.main(max_tasks=MAX_REQUESTS)
                        turns.cancel_scope.cancel()
                self._serving = False
            nursery.cancel_scope.cancel()

    def _count_openings(self, agreement: Agreement, remember: Callable[[str], object]) -> None:
        openings = self._operations.openings
        openings.remember = lambda bound: remember(agreement._replace(opened=bound).to_text())
        openings.begin(agreement.opened)

    async def _terminate_when_cancelled(self) -> None:
        """All requests are answered, even when the nursery is cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            self.terminate()

    async def _terminate_when_gone(self, filesystem: MountedFilesystem) -> None:
        await until_gone(filesystem)
        self.terminate()

    def terminate(self) -> None:
        """Make ``serve`` return within a second, the maximum of a blocked reader. Call it from the event loop.

        Before ``serve``, it makes that return at once. After ``serve``, even after the unmount, it does nothing.
        """
        self._told = True
        if self._serving:
            pyfuse3.terminate()


async def until_gone(filesystem: MountedFilesystem) -> None:
    """Return when ``filesystem`` is not mounted anywhere in this mount namespace.

    It may still be mounted in others, which a user can make and keep. A moved or covered mount counts as mounted.
    """
    device = filesystem.device.encode()
    with mounts_file() as mounts, select.epoll() as changes:
        # trio only waits for EPOLLIN, which is always set here.
        changes.register(mounts, select.EPOLLPRI | select.EPOLLERR)
        gone = False
        while not gone:
            async with trio.open_nursery() as nursery:
                # The kernel reports a change once. The start of a wait takes that report away, so look only then.
                await nursery.start(_until_changed, changes)
                mounts.seek(0)
                # Not anywhere in the line: a user chooses the source of a mount.
                lines = mounts.readall().split(b"\n")[:-1]
                gone = all(line.split(b" ", 3)[2] != device for line in lines)
                if gone:
                    nursery.cancel_scope.cancel()


async def _until_changed(changes: select.epoll, task_status: trio.TaskStatus[None]) -> None:
    """Started when it waits."""
    task_status.started()  # the next checkpoint is the wait itself
    await trio.lowlevel.wait_readable(changes.fileno())
    changes.poll(0)


def _devices() -> set[int]:
    """The descriptors of /dev/fuse that this process has."""
    found = set()
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if os.fstat(int(each)).st_rdev == DEV_FUSE:
                found.add(int(each))
    return found


def _require_mounted(device: str) -> None:
    """Raise MountFailed unless ``device``, a /dev/fd/N, is a mounted /dev/fuse: libfuse would only fail later."""
    fd = int(device.removeprefix(DESCRIPTOR))
    try:
        if os.fstat(fd).st_rdev != DEV_FUSE:
            raise MountFailed(f"cannot serve {device}: it is not /dev/fuse")
        os.read(fd, 1)  # never enough for a request: EINVAL, and nothing is taken
    except OSError as error:
        if error.errno == errno.EPERM:
            raise MountFailed(f"cannot serve {device}: it is not mounted") from None
        if error.errno != errno.EINVAL:
            raise MountFailed(f"cannot serve {device}: {error.strerror}") from error


@contextmanager
def mounted(
    root: Directory,
    mountpoint: str,
    *,
    name: str,
    options: Iterable[str] = (),
    device: str | None = None,
) -> Iterator[Session]:
    """Mount ``root``. At the end unmount it, if still mounted, and release all open files.

    The mount shows as type ``fuse.NAME`` of ``NAME``. ``options`` are more options of mount.fuse3(8), such as
    ``allow_other``. ``device`` is ``/dev/fd/N`` for a /dev/fuse that another process has mounted on ``mountpoint``,
    perhaps in another mount namespace, with options of its own, and will unmount. Raises MountFailed.
    """
    if device is not None:
        _require_mounted(device)
    before = _devices()
    give_back_what_is_freed()
    unread = select.poll()
    operations = TreeOperations(root, Turns(functools.partial(unread.poll, 0)))
    with _stderr_text() as said, _signals_later():
        try:
            all_options = {f"fsname={name}", f"subtype={name}", "default_permissions", *options}
            pyfuse3.init(operations, device or mountpoint, all_options)
        except RuntimeError as error:
            way = "" if os.access(DEVICE, os.R_OK | os.W_OK) else "; ktaskfs doctor says why"
            raise MountFailed(f"cannot mount at {device or mountpoint}: {said() or error}{way}") from error
    (served,) = [int(device.removeprefix(DESCRIPTOR))] if device is not None else _devices() - before
    unread.register(served, select.POLLIN)
    seen = filesystems_at(mountpoint)[-1:]
    ours = [each for each in seen if each.kind == f"fuse.{name}"]
    session = Session(operations, served, ours[0] if ours else None, own=device is None)
    try:
        yield session
    finally:
        session.close()
        if device is not None:
            pyfuse3.close(unmount=False)  # close its copy of the descriptor; the mounting process unmounts
        else:
            _unmount(mountpoint, ours)


def _unmount(mountpoint: str, ours: list[MountedFilesystem]) -> None:
    there = still_there = filesystems_at(mountpoint, ours)
    if os.geteuid() == 0:
        pyfuse3.close(unmount=False)  # libfuse 3.17 would run umount(8), which fails without descriptors
    else:
        pyfuse3.close(unmount=there[-1:] == ours)  # by path, so only if this mount is the topmost
        # libfuse leaves a mount whose connection was aborted, by umount -f or fusectl.
        still_there = filesystems_at(mountpoint)
    if ours and ours[0] in there[:-1]:
        log.warning("another mount covers %s: the rest of this mount lies below it", mountpoint)
    elif ours and still_there[-1:] == ours:
        unmount(mountpoint)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold back the daemon's signals: one would interrupt libfuse's wait for mount(8), and the mount would fail."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stderr_text() -> Iterator[Callable[[], str]]:
    """Capture standard error of C code and its children; the function returns it as one line.

    libfuse writes its errors there. Text that is not fetched goes to standard error at the end.
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
