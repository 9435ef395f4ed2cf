"""Examines the processes behind requests in threads, because that may take long, or forever.

The kernel asks the filesystem whether a root or working directory is still valid (d_weak_revalidate, fs/namei.c), even
for a descriptor with O_PATH, and a dead NFS or 9p server does not answer. For a process in 65536 groups the kernel
needs 20 ms. In a thread this delays only the user of that process.

Their descriptors are closed there, too: if a user has detached the filesystem meanwhile, the last close unmounts it.
That frees all of a tmpfs, and writes to the disk below an overlay.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, NotPermitted, TargetError
from ktaskfs.host.credentials import CallerProcess, close_all, read_caller
from ktaskfs.quota import ROOT
from ktaskfs.user_threads import NoThread, UserThreads, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ktaskfs.vfs import Caller

OF_ONE_MAX: Final = 2
"""Threads for processes of one user. A hanging one takes some 50 KiB."""
OF_ROOT_MAX: Final = 16
IN_ALL_MAX: Final = 64
"""Threads for processes of all users except root."""
PATIENCE: Final = 0.9
"""Seconds for which a request waits for the thread, so that it is answered within a second."""
CLOSING_MAX: Final = 256
"""Unfinished closes of descriptors of a user, beyond which no more are copied."""
UNSEEN: Final = "the daemon cannot see your pid namespace: use this file from outside of it"


class NoLook(KtaskfsError):
    """The process behind a request could not be examined in time (ETIMEDOUT)."""

    default_errno = errno.ETIMEDOUT


class Callers:
    """Finds the processes behind the requests of one mount."""

    def __init__(self, read: Callable[[int, int, int], CallerProcess] = read_caller) -> None:
        """``read`` takes pid, uid and gid, and is called in threads."""
        self._read = read
        self._all = trio.CapacityLimiter(IN_ALL_MAX)
        self._threads = UserThreads(of_one=OF_ONE_MAX, of_root=OF_ROOT_MAX)
        self._closing: Counter[int] = Counter()
        """By uid, the closes of descriptors that have not ended."""

    async def find(self, caller: Caller) -> CallerProcess:
        """The process behind a request, which waits for the answer, so its pid cannot be reused.

        Raises NotPermitted if this daemon cannot see the process, TargetError if it has no descriptor left, NoThread,
        and NoLook.
        """
        if not caller.pid:
            raise NotPermitted(UNSEEN)
        examination = _Examination(functools.partial(self._read, caller.pid, caller.uid, caller.gid))
        trio.lowlevel.spawn_system_task(self._carry_out, examination, caller.uid)
        try:
            with trio.move_on_after(PATIENCE):
                await examination.over.wait()
        except trio.Cancelled:
            examination.drop()
            raise
        found = examination.take()
        if isinstance(found, Exception):
            raise found
        if found is None:
            reasons = "its working directory or root may hang, or this machine has too much to do"
            raise NoLook(f"your process {caller.pid} could not be examined in {PATIENCE} s: {reasons}")
        return found._replace(closing=functools.partial(self._close_soon, caller.uid))

    def copy(self, process: CallerProcess) -> CallerProcess:
        """A copy with its own descriptors.

        Raises TargetError if none are left, and NoLook if too many of its user wait to be closed.
        """
        if self._closing[process.identity.uid] > CLOSING_MAX:
            raise NoLook("working directories of your processes hang while they are closed")
        try:
            return process.copy()
        except OSError as error:
            raise TargetError.from_os(error, "keep your root and working directory") from error

    async def capabilities(self, caller: Caller) -> tuple[int, int]:
        """Effective and permitted capabilities of the process behind a request, none if it cannot be seen.

        Raises TargetError, NoThread and NoLook as ``find``.
        """
        try:
            process = await self.find(caller)
        except NotPermitted:
            return 0, 0
        process.close()
        return process.identity.effective, process.identity.permitted

    async def _carry_out(self, examination: _Examination, uid: int) -> None:
        async with contextlib.AsyncExitStack() as held:
            with examination.queued:
                await held.enter_async_context(self._place(uid))
            if examination.wanted:
                try:
                    await _run_in_thread(examination.run)
                except NoThread as error:  # here it would end the daemon
                    examination.fail(error)
        examination.over.set()

    def _close_soon(self, uid: int, fds: Sequence[int]) -> None:
        self._closing[uid] += 1
        trio.lowlevel.spawn_system_task(self._close, uid, fds)

    async def _close(self, uid: int, fds: Sequence[int]) -> None:
        async with self._place(uid):
            try:
                await _run_in_thread(functools.partial(close_all, fds))
            except NoThread:
                close_all(fds)
        self._closing[uid] -= 1
        if not self._closing[uid]:
            del self._closing[uid]

    @contextlib.asynccontextmanager
    async def _place(self, uid: int) -> AsyncIterator[None]:
        """A place for one thread, which counts until its end, even if nobody waits for it."""
        async with self._threads.of(uid), contextlib.nullcontext() if uid == ROOT else self._all:
            yield


async def _run_in_thread(run: Callable[[], object]) -> None:
    await in_thread(run, limiter=trio.CapacityLimiter(1))


class _Examination:
    """One examination of a process in a thread. ``over`` is set at its end.

    If nobody waits, it leaves its queue, or the later of thread and waiter closes the result. ``queued`` is the wait
    for a place.
    """

    def __init__(self, read: Callable[[], CallerProcess]) -> None:
        self.over = trio.Event()
        self.queued = trio.CancelScope()
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
        """No thread could be started."""
        self._found = error

    def take(self) -> CallerProcess | Exception | None:
        """The result for the waiter; None if there is none yet. Nobody waits for it any more."""
        self.queued.cancel()
        with self._lock:
            self.wanted = False
            return self._found

    def drop(self) -> None:
        """The waiter gave up."""
        if self.take() is not None:
            self._close()

    def _close(self) -> None:
        if isinstance(self._found, CallerProcess):
            self._found.close()
