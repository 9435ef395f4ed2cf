"""Streams: files that are read on and on, as trace_pipe of tracefs.

A stream opened with O_NONBLOCK answers EAGAIN when it has nothing, which is how ``grep -r`` gets past it.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
"""Seconds after which a read is answered if its stream has not given anything: with ``idle``, or else with EINTR.

Until a read is answered its caller cannot be killed. EINTR is the last resort: cat, dd, bash, perl and Python just
read again, but for programs that read through stdio (awk, sed, sort, od) it is an error.
"""


class Stream(ABC):
    """What one opening of a stream reads."""

    @abstractmethod
    async def next_chunk(self) -> bytes:
        """The next bytes, of any length. No bytes are the end, and it is not called again after that.

        It returns within about a second; a stream that has nothing returns something harmless, such as an empty line.
        If it does not return, it is cancelled after PATIENCE, or earlier where too many wait; it must lose nothing
        then, and is called again.
        """

    def idle(self) -> bytes:
        """Something harmless for a reader who must not wait longer, such as an empty line; by default nothing."""
        return b""

    def ready(self) -> bool:
        """Whether ``next_chunk`` would return at once, also with the end. poll(2) and O_NONBLOCK depend on it."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Called once, when the descriptor is gone."""


class StreamFile(File):
    """A file whose readers each get a stream of their own, from the moment of opening.

    ``change`` must be notified whenever some stream may have become ready, or have ended. ``patience`` and ``splices``
    are what all streams of a mount share. ``quota`` limits how many streams a user has open: each reader that waits
    wakes the event loop once a second.
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
        # Always changed: pages that the kernel tried to read for another reader must not be tried again.
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


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a stream: a user, who waits for it or does not, and what limits the user's reads."""

    uid: int
    blocking: bool
    patience: Patience
    quota: Quota | None


class OpenStream(OpenFile):
    """One reader of a stream."""

    __slots__ = ("_change", "_ended", "_held", "_lock", "_reader", "_reads", "_stream")

    def __init__(self, stream: Stream, reader: Reader, change: Change | None, reads: Reads) -> None:
        self._stream = stream
        self._reader = reader
        self._change = change
        self._reads = reads
        self._lock = trio.Lock()  # over _held and _ended while a chunk is awaited
        self._held = b""
        """What has come and was not given yet."""
        self._ended = False

    async def read(self, offset: int, size: int) -> bytes:
        self._reads.check(offset, size)
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
