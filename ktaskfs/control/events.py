"""The stream ``events``: a line for each state change of a task, from open(2) on."""

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
    from ktaskfs.vfs import Caller, Portions

BACKLOG: Final = 1024
"""Events kept for a slow reader. The oldest are dropped first, and a line has their number."""

BACKLOG_TOTAL: Final = 32768
"""Events kept for all readers together. A line has at most 250 bytes; readers of the same tasks share it, but with
hidepid not those of different users."""

CHUNK: Final = 4096
"""Bytes after which no further line is added to one read."""

HEARTBEAT: Final = 0.95
"""Seconds without an event until a reader gets an empty line, within the second that a read may take."""

NONE: Final = "-"
"""The state of a task before its creation and after its removal. No task can have this name."""


class EventFeed:
    """Adds each event to the streams whose readers may follow its task."""

    def __init__(
        self,
        access: Access,
        portions: Portions,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        backlog: int = BACKLOG,
    ) -> None:
        """``portions`` wake the readers."""
        self.change = Change()
        """Notified when a stream may be ready."""
        self._access = access
        self._portions = portions
        self._now_ns = now_ns
        self._backlog = backlog
        self._streams: dict[EventStream, None] = {}

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def open_stream(self, caller: Caller) -> EventStream:
        """A stream for ``caller``, from now on."""
        stream = EventStream(caller.uid, self._portions, self._now_ns, self._streams.pop)
        self._streams[stream] = None
        return stream

    def publish(self, transition: Transition) -> None:
        """An observer of transitions."""
        task = transition.task
        set_aside = transition.new is None and not task.forgotten  # a new task takes its name
        if not self._streams or set_aside:  # a reader only knows the names of tasks
            return
        operation = NONE if task.operation is None else task.operation.name
        line = (
            f"{_time(self._now_ns())} {task.name} {transition.old or NONE} {transition.new or NONE}"
            f" op={operation} uid={task.uid}\n"
        )
        most = min(self._backlog, max(1, BACKLOG_TOTAL // len(self._streams)))
        for stream in self._streams:
            if self._access.may_follow(stream.uid, task.uid):
                stream.add(line, most)
        self.change.notify()


class EventStream(Stream):
    """The unread events of one reader. ``portions`` wake the reader; ``closed`` is called with the stream."""

    def __init__(
        self, uid: int, portions: Portions, now_ns: Callable[[], int], closed: Callable[[EventStream], object]
    ) -> None:
        self.uid = uid
        self._lines: deque[str] = deque()
        self._lost = 0
        self._portions = portions
        self._now_ns = now_ns
        self._closed = closed
        self._reader: trio.Event | None = None
        """Set when there is a line, while somebody waits for one."""

    def add(self, line: str, most: int) -> None:
        """Add a line; drop the oldest beyond ``most``."""
        self._lines.append(line)
        while len(self._lines) > most:
            self._lines.popleft()
            self._lost += 1
        if self._reader is not None:
            self._portions.wake(self.uid, self._reader)
            self._reader = None

    async def next_chunk(self) -> bytes:
        if not self._lines:
            self._reader = reader = trio.Event()
            with trio.move_on_after(HEARTBEAT):
                await reader.wait()
            self._reader = None
        text = ""
        if self._lost:
            text = f"{_time(self._now_ns())} {NONE} {NONE} {NONE} lost={self._lost}\n"
            self._lost = 0
        while self._lines and len(text) < CHUNK:
            text += self._lines.popleft()
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
