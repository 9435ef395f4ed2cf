"""The stream ``events``: a line for each change of state of a task, from the moment of opening."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.vfs import Change, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.control.access import Access
    from ktaskfs.control.transitions import Transition
    from ktaskfs.vfs import Caller

BACKLOG: Final = 1024
"""Events kept for a slow reader. The oldest are dropped first, and a line says how many."""

HEARTBEAT: Final = 0.95
"""Seconds without an event until a reader gets an empty line, within the second that a read may take."""

NONE: Final = "-"
"""The state of a task before it was made and after it was removed. No task can have this name."""


class EventFeed:
    """Adds each event to the streams whose readers may follow its task."""

    def __init__(self, access: Access, now_ns: Callable[[], int] = time.time_ns, backlog: int = BACKLOG) -> None:
        self.change = Change()
        """Notified when a stream may have become ready."""
        self._access = access
        self._now_ns = now_ns
        self._backlog = backlog
        self._streams: dict[EventStream, None] = {}

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def open_stream(self, caller: Caller) -> EventStream:
        """A stream for ``caller``, from now on."""
        stream = EventStream(caller.uid, self._backlog, self._now_ns, self._streams.pop)
        self._streams[stream] = None
        return stream

    def publish(self, transition: Transition) -> None:
        """An observer of transitions."""
        if not self._streams:
            return
        task = transition.task
        operation = NONE if task.operation is None else task.operation.name
        line = (
            f"{_time(self._now_ns())} {task.name} {transition.old or NONE} {transition.new or NONE}"
            f" op={operation} uid={task.uid}\n"
        )
        for stream in self._streams:
            if self._access.may_follow(stream.uid, task.uid):
                stream.add(line)
        self.change.notify()


class EventStream(Stream):
    """The lines that one reader has not read yet, at most ``backlog``. ``closed`` is called with the stream."""

    def __init__(
        self, uid: int, backlog: int, now_ns: Callable[[], int], closed: Callable[[EventStream], object]
    ) -> None:
        self.uid = uid
        self._lines: deque[str] = deque(maxlen=backlog)
        self._lost = 0
        self._now_ns = now_ns
        self._closed = closed
        self._added = trio.Event()

    def add(self, line: str) -> None:
        """One more line; the oldest is lost if there are too many."""
        self._lost += len(self._lines) == self._lines.maxlen
        self._lines.append(line)
        self._added.set()

    async def next_chunk(self) -> bytes:
        with trio.move_on_after(HEARTBEAT):
            await self._added.wait()
        text = "".join(self._lines)
        if self._lost:
            text = f"{_time(self._now_ns())} {NONE} {NONE} {NONE} lost={self._lost}\n{text}"
        self._lines.clear()
        self._lost = 0
        self._added = trio.Event()
        return text.encode() or b"\n"

    def idle(self) -> bytes:
        return b"\n"

    def ready(self) -> bool:
        return bool(self._lines)

    def close(self) -> None:
        self._closed(self)


def _time(nanoseconds: int) -> str:
    """Seconds since the epoch, to the microsecond."""
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9 // 1000:06d}"
