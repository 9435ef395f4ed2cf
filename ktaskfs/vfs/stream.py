"""Streams: files that are read continuously, like trace_pipe of tracefs.

A stream opened with O_NONBLOCK answers EAGAIN without data, so ``grep -r`` passes it.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ktaskfs.vfs.change import READABLE, Change
from ktaskfs.vfs.inode import Attributes, Caller, File, Look, OpenFile, wants_write
from ktaskfs.vfs.patience import Patience
from ktaskfs.vfs.refusals import AccessDenied, Interrupted, NothingYet
from ktaskfs.vfs.splices import SHOWN_SIZE, Reads, Splices

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.quota import Quota

PATIENCE: Final = 2.0
"""Seconds after which a read without data is answered, with ``idle``, or else with EINTR.

Before the answer its caller cannot be killed. EINTR is the last resort: cat, dd, bash, perl and Python read again, but
for programs with stdio (awk, sed, sort, od) it is an error.
"""


class Stream(ABC):
    """The data of one open of a stream."""

    @abstractmethod
    async def next_chunk(self) -> bytes:
        """The next bytes, of any length. No bytes mean the end, and the last call.

        It returns within about a second; without data it returns something harmless, such as an empty line. Otherwise
        it is cancelled after PATIENCE, or earlier if too many wait; it must not lose data then, and is called again.
        """

    def idle(self) -> bytes:
        """Harmless data for a reader that must not wait longer, such as an empty line; by default nothing."""
        return b""

    def ready(self) -> bool:
        """Whether ``next_chunk`` would return at once, possibly with the end. poll(2) and O_NONBLOCK depend on it."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Called once, when the descriptor is gone."""


class StreamFile(File):
    """A file whose readers each get a separate stream, from open(2) on.

    ``change`` must be notified whenever a stream may be ready, or has ended. All streams of a mount share ``patience``
    and ``splices``. ``quota`` limits the open streams of a user: each waiting reader wakes the event loop once a
    second.
    """

    __slots__ = ("_change", "_open_stream", "_patience", "_quota", "_splices")

    attr_timeout = 0.0
    seekable = False

    def __init__(
        self,
        ino: int,
        attributes: Attributes,
        open_stream: Callable[[Caller], Stream],
        *,
        change: Change | None = None,
        patience: Patience | None = None,
        quota: Quota | None = None,
        splices: Splices | None = None,
    ) -> None:
        super().__init__(ino, attributes)
        self._quota = quota
        self._open_stream = open_stream
        self._change = change
        self._patience = patience or Patience()
        self._splices = splices or Splices()

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        # Always changed: the kernel must not reuse pages that it tried to read for another reader.
        return Look(SHOWN_SIZE, time.time_ns())

    async def open(self, caller: Caller, flags: int) -> OpenStream:
        if wants_write(flags):
            raise AccessDenied("this file cannot be written")
        stream = self._open_stream(caller)
        try:
            if self._quota is not None:
                self._quota.take(caller.uid)
        except BaseException:
            stream.close()
            raise
        reader = Reader(caller.uid, not flags & os.O_NONBLOCK, self._patience, self._quota)
        return OpenStream(stream, reader, self._change, Reads(self.ino, self._splices))


class Reader(NamedTuple):
    """The reader of a stream: its user, whether it waits, and the limits of its reads."""

    uid: int
    blocking: bool
    patience: Patience
    quota: Quota | None


class OpenStream(OpenFile):
    """One reader of a stream."""

    __slots__ = ("_change", "_ended", "_given", "_held", "_lock", "_reader", "_reads", "_stream")

    def __init__(self, stream: Stream, reader: Reader, change: Change | None, reads: Reads) -> None:
        self._stream = stream
        self._reader = reader
        self._change = change
        self._reads = reads
        self._lock = trio.Lock()  # guards _held and _ended during a wait for a chunk
        self._given = 0
        """Bytes that were delivered."""
        self._held = b""
        """Received but undelivered bytes."""
        self._ended = False

    async def read(self, offset: int, size: int) -> bytes:
        self._reads.check(offset, size, self._given)
        with self._reader.patience.wait(self._reader.uid, PATIENCE):
            async with self._lock:
                if not self._held and not self._ended:
                    await self._hold_next()
                return self._give(size)
        idle = b"" if self._ended else self._stream.idle()
        if not idle:
            raise Interrupted("nothing to read yet")
        self._held += idle
        return self._give(size)

    def _give(self, size: int) -> bytes:
        given, self._held = self._held[:size], self._held[size:]
        self._given += len(given)
        return given

    async def _hold_next(self) -> None:
        if not self._reader.blocking and not self._stream.ready():
            raise NothingYet("nothing to read yet")
        chunk = await self._stream.next_chunk()
        self._held += chunk
        self._ended = not chunk

    def poll(self, wake: Callable[[], None] | None) -> int:
        if self._change is not None and wake is not None:
            self._change.await_next(self, wake)
        ready = bool(self._held) or self._ended or self._stream.ready()
        return READABLE | select.POLLPRI if ready else 0

    def release(self) -> None:
        if self._change is not None:
            self._change.forget(self)
        if self._reader.quota is not None:
            self._reader.quota.give_back(self._reader.uid)
        self._stream.close()
