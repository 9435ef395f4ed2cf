"""Scans of the holders of huge pages: a process with the caller's identity makes each, and it is kept for a second."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, TargetError, WorkerLost
from ktaskfs.host.statx import file_status
from ktaskfs.quota import Quota
from ktaskfs.tasks.taken_over import taken_over
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.context import TaskContext

MAX_AGE: Final = 1.0
"""Seconds for which a scan is kept, for all callers with the same rights."""
OF_ONE_MAX: Final = 2
"""Maximum scans of one user, running or kept."""
IN_ALL_MAX: Final = 16
TIMEOUT: Final = 10.0
"""Seconds after which a scanning process is killed; on a large machine a scan may take longer than a request may."""
ANSWER_MAX: Final = 1 << 20
_PIECE: Final = 1 << 16


class TooManyLooks(KtaskfsError):
    """The caller, or all users together, are at the limit of scans (EAGAIN)."""

    default_errno = errno.EAGAIN


@dataclass
class _KeptLook:
    over: trio.Event = field(default_factory=trio.Event)
    found: protocol.Found | KtaskfsError | None = None


class Looks:
    """The scans of one daemon, on the trio thread."""

    def __init__(self, context: TaskContext) -> None:
        self._launcher = context.launcher
        self._nursery = context.nursery
        self._settings = context.table.settings
        self._looks: dict[object, _KeptLook] = {}
        """By the rights of their callers, while they are fresh."""
        self._quota = Quota("scans of the pools", each=OF_ONE_MAX, total=IN_ALL_MAX, refusal=TooManyLooks)

    async def find(self, caller: CallerProcess, deadline: float) -> protocol.Found:
        """The holders that ``caller`` may see, at most MAX_AGE old; closes the caller's descriptors.

        Raises KtaskfsError: TooManyLooks, the error of the scan, or ETIMEDOUT if it is unfinished at ``deadline``
        (trio's clock): the scan then goes on, for the next request.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(caller.close)
            key = _rights(caller)
            look = self._looks.get(key)
            if look is None:
                self._quota.take(caller.identity.uid)
                look = self._looks[key] = _KeptLook()
                self._nursery.start_soon(self._carry_out, key, look, caller)
                undo.pop_all()
        with trio.move_on_at(deadline):
            await look.over.wait()
        if isinstance(look.found, KtaskfsError):
            raise look.found
        if look.found is None:
            raise TargetError("the scan of all processes takes longer than a second: read again", errno=errno.ETIMEDOUT)
        return look.found

    async def _carry_out(self, key: object, look: _KeptLook, caller: CallerProcess) -> None:
        uid = caller.identity.uid
        try:
            with trio.move_on_after(TIMEOUT):
                look.found = await self._made(caller)
            if look.found is None:
                look.found = WorkerLost(f"the scan took longer than {TIMEOUT:.0f} s", errno=errno.ETIMEDOUT)
        except KtaskfsError as error:
            look.found = error
        finally:
            caller.close()
            look.over.set()
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep(MAX_AGE)
            del self._looks[key]
            self._quota.give_back(uid)

    async def _made(self, caller: CallerProcess) -> protocol.Found:
        """Let a process scan. Raises KtaskfsError."""
        reader, writer = _pipe()
        async with trio.lowlevel.FdStream(reader) as answer:
            try:
                request = protocol.LookRequest(taken_over(caller.identity, self._settings).to_fields())
                child = await self._launcher.fork(request, [writer, *caller.descriptors])
            finally:
                os.close(writer)
            try:
                data = await _read(answer)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # a label may forbid it
                    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
                os.close(child.pidfd)
                self._nursery.start_soon(self._launcher.exit_status, child.ticket)
        try:
            message = protocol.decode(data)
        except (ValueError, TypeError, KeyError) as error:
            raise WorkerLost("the scanning process died or sent an invalid answer") from error
        if isinstance(message, protocol.WorkerRefused):
            raise message.error()
        if not isinstance(message, protocol.Found):
            raise WorkerLost("the scanning process sent an invalid answer")
        return message


async def _read(answer: trio.lowlevel.FdStream) -> bytes:
    data = bytearray()
    while len(data) < ANSWER_MAX and (piece := await answer.receive_some(_PIECE)):
        data += piece
    return bytes(data)


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise TargetError.from_os(error, "make a pipe to the scanning process") from error


def _rights(caller: CallerProcess) -> object:
    """The key of a caller's rights: equal for processes that see the same."""
    of = caller.identity
    root = file_status(caller.root, "")[:2]
    namespace = None if caller.user_namespace is None else os.fstat(caller.user_namespace).st_ino
    return of.uid, of.gid, tuple(of.groups), of.capabilities, of.label, root, namespace
