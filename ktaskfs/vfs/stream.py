"""Streams: files that are read on and on, as trace_pipe, whatever the offset."""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.vfs.change import READABLE, Change
from ktaskfs.vfs.errors import AccessDenied, Interrupted, NothingYet
from ktaskfs.vfs.node import Attributes, Caller, File, OpenFile, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE: Final = 1.0
"""Seconds after which a read is answered even if there is nothing: until then its caller cannot be killed."""


class Stream(ABC):
    """What one opening of a stream reads."""

    @abstractmethod
    async def next_chunk(self) -> bytes:
        """The next bytes, of any length; nothing is the end, after which it is not asked again.

        It should return within a second. It is cancelled after that, must lose nothing then, and is called again.
        """

    def ready(self) -> bool:
        """Whether ``next_chunk`` would return at once; poll(2) and O_NONBLOCK go by it."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Called once, when the descriptor is gone."""


class StreamFile(File):
    """A file whose readers each get a stream of their own, from the moment of opening.

    ``change`` must be notified whenever some stream may have become ready, or have ended.
    """

    __slots__ = ("_change", "_open_stream")

    def __init__(
        self,
        ino: int,
        attributes: Attributes,
        open_stream: Callable[[Caller], Stream],
        *,
        change: Change | None = None,
    ) -> None:
        super().__init__(ino, attributes)
        self._open_stream = open_stream
        self._change = change

    async def open(self, caller: Caller, flags: int) -> OpenStream:
        if wants_write(flags):
            raise AccessDenied("this file cannot be written")
        return OpenStream(self._open_stream(caller), blocking=not flags & os.O_NONBLOCK, change=self._change)


class OpenStream(OpenFile):
    """One reader of a stream; keeps what did not fit into the reader's buffer."""

    __slots__ = ("_blocking", "_change", "_ended", "_left", "_lock", "_stream")

    nonseekable = True

    def __init__(self, stream: Stream, *, blocking: bool, change: Change | None) -> None:
        self._stream = stream
        self._blocking = blocking
        self._change = change
        self._lock = trio.Lock()  # over _left and _ended while a chunk is awaited
        self._left = b""
        self._ended = False

    async def read(self, offset: int, size: int) -> bytes:
        with trio.move_on_after(PATIENCE):
            async with self._lock:
                if not self._left and not self._ended:
                    if not self._blocking and not self._stream.ready():
                        raise NothingYet("nothing to read yet")
                    self._left = await self._stream.next_chunk()
                    self._ended = not self._left
                given, self._left = self._left[:size], self._left[size:]
                return given
        raise Interrupted("nothing to read yet")

    def poll(self, wake: Callable[[], None] | None) -> int:
        if self._change is not None and wake is not None:
            self._change.await_next(self, wake)
        ready = self._left or self._ended or self._stream.ready()
        return READABLE | select.POLLPRI if ready else 0

    def release(self) -> None:
        if self._change is not None:
            self._change.forget(self)
        self._stream.close()
