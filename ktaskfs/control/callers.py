"""Looks at the processes behind requests, in threads: such a look may take long, or for ever.

The kernel asks the filesystem whether a root or working directory is still good (d_weak_revalidate, fs/namei.c), also
for a descriptor with O_PATH. A server of NFS or 9p that is gone does not answer. And for a process in 65536 groups the
kernel writes for 20 ms. In a thread neither holds anybody but the user whose process it is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from ktaskfs.errors import KtaskfsError, NotPermitted, TargetError
from ktaskfs.host.credentials import CallerProcess, read_caller
from ktaskfs.quota import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.vfs import Caller

OF_ONE_MAX: Final = 2
"""Threads that look at processes of one user. Each takes some 50 KiB while it hangs."""
OF_ROOT_MAX: Final = 16
IN_ALL_MAX: Final = 64
"""Threads that look at processes of all users but root."""
PATIENCE: Final = 0.9
"""Seconds for which a request waits for the look, so that it is answered within the second."""
UNSEEN: Final = "the daemon cannot see your pid namespace: write from outside of it"


class NoLook(KtaskfsError):
    """The process behind a request could not be looked at in time (ETIMEDOUT)."""

    default_errno = errno.ETIMEDOUT


class Callers:
    """Finds the processes behind the requests of one mount."""

    def __init__(self, read: Callable[[int, int, int], CallerProcess] = read_caller) -> None:
        """``read`` takes pid, uid and gid, and is called in threads."""
        self._read = read
        self._all = trio.CapacityLimiter(IN_ALL_MAX)
        self._users: WeakValueDictionary[int, trio.CapacityLimiter] = WeakValueDictionary()
        """By uid, while processes of that user are looked at."""

    async def find(self, caller: Caller) -> CallerProcess:
        """The process behind a request, while that waits for the answer: its pid cannot be another's by then.

        Raises NotPermitted if this daemon cannot see the process, TargetError if it has no descriptor left, and NoLook.
        """
        if not caller.pid:
            raise NotPermitted(UNSEEN)
        look = _Look(functools.partial(self._read, caller.pid, caller.uid, caller.gid))
        trio.lowlevel.spawn_system_task(self._carry_out, look, caller.uid)
        try:
            with trio.move_on_after(PATIENCE):
                await look.over.wait()
        except trio.Cancelled:
            look.drop()
            raise
        found = look.take()
        if isinstance(found, Exception):
            raise found
        if found is None:
            message = f"process {caller.pid}, the writer, cannot be examined: its working directory or root may hang"
            raise NoLook(message)
        return found

    async def capabilities(self, caller: Caller) -> tuple[int, int]:
        """Effective and permitted capabilities of the process behind a request, none if it cannot be seen.

        Raises TargetError and NoLook as ``find``.
        """
        try:
            process = await self.find(caller)
        except NotPermitted:
            return 0, 0
        process.close()
        return process.identity.effective, process.identity.permitted

    async def _carry_out(self, look: _Look, uid: int) -> None:
        """It holds its place among the threads until the thread has ended, also if nobody waits for it any more."""
        own = self._users.setdefault(uid, trio.CapacityLimiter(OF_ROOT_MAX if uid == ROOT else OF_ONE_MAX))
        async with own, contextlib.nullcontext() if uid == ROOT else self._all:
            if look.wanted:
                try:
                    await trio.to_thread.run_sync(look.run, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
                except RuntimeError:  # a limit on processes: an error here would end the daemon
                    look.fail(TargetError("the daemon cannot start a thread to see your process", errno=errno.EAGAIN))
        look.over.set()


class _Look:
    """One look at a process, which a thread makes. ``over`` is set when it has ended.

    What it found is closed if nobody waits for it any more: by the one of the two who comes last.
    """

    def __init__(self, read: Callable[[], CallerProcess]) -> None:
        self.over = trio.Event()
        self.wanted = True
        self._read = read
        self._lock = threading.Lock()
        self._found: CallerProcess | Exception | None = None

    def run(self) -> None:
        """Called in the thread."""
        try:
            found: CallerProcess | Exception = self._read()
        except Exception as error:  # the waiting request gets it
            found = error
        with self._lock:
            self._found = found
            unwanted = not self.wanted
        if unwanted:
            self._close()

    def fail(self, error: KtaskfsError) -> None:
        """There was no thread."""
        self._found = error

    def take(self) -> CallerProcess | Exception | None:
        """What was found, for the one who waited; None if the thread still looks."""
        with self._lock:
            self.wanted = False
            return self._found

    def drop(self) -> None:
        """Nobody waits for it any more."""
        if self.take() is not None:
            self._close()

    def _close(self) -> None:
        if isinstance(self._found, CallerProcess):
            self._found.close()
