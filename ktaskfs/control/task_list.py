"""``info/tasks`` and ``info/tasks.json``: the tasks that the reader may see.

A long text is made in slices, between which other requests run, and concurrent readers share it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

import trio

from ktaskfs.control.figures import Figures
from ktaskfs.control.task_text import format_speed
from ktaskfs.tasks.task import ENDED, State
from ktaskfs.vfs import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ktaskfs.control.access import Access
    from ktaskfs.control.transitions import Transition
    from ktaskfs.tasks.history import History
    from ktaskfs.tasks.table import TaskTable
    from ktaskfs.tasks.task import Task

HEADER: Final = ("name", "operation", "state", "percent", "done", "total", "speed", "finish", "uid", "age")
ORDER: Final = (
    State.RUNNING,
    State.PAUSED,
    State.STARTING,
    State.QUEUED,
    State.NEW,
    State.FAILED,
    State.INTERRUPTED,
    State.CANCELLED,
    State.PLANNED,
    State.DONE,
)
"""The order of rows: running, waiting, failed, then the others. Within a state: by creation."""
MAX_AGE: Final = 0.1
"""Seconds for which a text is kept while no task changes its state; short enough for people."""
SLICE: Final = 200
"""Rows that are checked or formatted at a time: about a millisecond."""
MADE: Final = 20
"""Weight of a row that must be made, because its task's page is read."""


class Form(StrEnum):
    """The format of the tasks."""

    TABLE = "table"
    JSON = "json"


class _Row(NamedTuple):
    """A task without its age. For an ended task it stays valid while ``history`` and ``requests`` are the same."""

    cells: tuple[str, ...]
    json: str
    created_ns: int
    history: History
    requests: object


@dataclass(slots=True, eq=False)
class _Text:
    """A text shared by the readers of one user. ``changes`` is the number of changes at its start."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    text: bytes = b""
    changes: int = -1
    begun: float = 0.0


class _ChangeOfList(Change):
    """The change that all opens of one user wait for; it lives as long as the user's view and these opens."""

    __slots__ = ("__weakref__",)


class TaskList:
    """The task lists of one mount, by user."""

    def __init__(self, table: TaskTable, access: Access, changed: Callable[[], None]) -> None:
        self._table = table
        self._changed = changed
        self._access = access
        self._changes = 0
        self._rows: dict[Task, _Row] = {}
        """The rows of tasks that have ended."""
        self._texts: dict[tuple[int, Form], _Text] = {}
        self._making = trio.Lock()
        """One text is made at a time; otherwise the slices of many texts would delay other requests."""
        self._followed: WeakValueDictionary[int, _ChangeOfList] = WeakValueDictionary()
        """By uid."""

    def observe(self, transition: Transition) -> None:
        """An observer of transitions."""
        task = transition.task
        self._changes += 1
        self._changed()
        self._rows.pop(task, None)
        comes_or_goes = transition.old is None or transition.new is None
        for uid, followed in self._followed.items():
            if _may_read(uid, task) or (comes_or_goes and self._access.may_know(uid, task.uid)):
                followed.notify()

    def follow(self, uid: int) -> Change:
        """The change that poll(2) on an open of ``uid`` waits for."""
        followed = self._followed.get(uid)
        if followed is None:
            followed = self._followed[uid] = _ChangeOfList()
        return followed

    async def text(self, uid: int, form: Form) -> bytes:
        """The file for ``uid``: states are current, progress is at most MAX_AGE old."""
        asked, changes = trio.current_time(), self._changes
        shared = self._texts.setdefault((uid, form), _Text())
        async with shared.lock:
            if shared.changes < changes or shared.begun < asked - MAX_AGE:
                async with self._making:
                    self._drop_old_texts()
                    begun, changes = trio.current_time(), self._changes
                    rows = await self._shown(uid)
                    shared.text = await _table(rows) if form is Form.TABLE else await _array(rows)
                    shared.begun, shared.changes = begun, changes
            return shared.text

    def _drop_old_texts(self) -> None:
        old = trio.current_time() - MAX_AGE
        for key, each in list(self._texts.items()):
            if each.begun < old and not each.lock.locked():
                del self._texts[key]

    async def _shown(self, uid: int) -> list[_Row]:
        by_state: dict[State | None, list[_Row]] = {state: [] for state in (*ORDER, None)}
        looked_through = 0
        for task in self._table:  # a snapshot, in order of creation
            looked_through += 1
            if looked_through >= SLICE:
                looked_through = 0
                await trio.lowlevel.checkpoint()
            if task not in self._table or not self._access.may_know(uid, task.uid):
                continue
            row = self._kept(task) if _may_read(uid, task) else _row_of(Figures.outline(task), task)
            if row is None:
                row = self._made(task)
                looked_through += MADE
            by_state[task.state if _may_read(uid, task) else None].append(row)
        return list(itertools.chain.from_iterable(by_state.values()))

    def _kept(self, task: Task) -> _Row | None:
        """The cached row of an ended task, if it is still valid."""
        row = self._rows.get(task)
        return row if row is not None and row.history is task.history and row.requests is task.requests else None

    def _made(self, task: Task) -> _Row:
        row = _row_of(Figures.of(task), task)
        if task.state in ENDED:
            self._rows[task] = row
        return row


def _may_read(uid: int, task: Task) -> bool:
    """Whether ``uid`` may read the files of ``task`` in any group."""
    return uid in (0, task.uid)


def _row_of(figures: Figures, task: Task) -> _Row:
    left = None if figures.finish_usec is None else f"{figures.finish_usec / 1e6:.1f}s"
    rate = None if figures.speed is None else format_speed(task.units, figures.speed)
    shown = (
        figures.name,
        figures.operation,
        figures.state,
        figures.percent,
        figures.done,
        figures.total,
        rate,
        left,
        figures.uid,
    )
    cells = tuple("-" if each is None else str(each) for each in shown)
    return _Row(cells, figures.json, task.created_ns, task.history, task.requests)


async def _table(rows: Sequence[_Row]) -> bytes:
    now = time.time_ns()
    parts: list[list[tuple[str, ...]]] = [[HEADER]]
    widths = [len(name) for name in HEADER]
    for part in _parts(rows):
        await trio.lowlevel.checkpoint()
        lines = [(*row.cells, f"{max(0, now - row.created_ns) // 10**9}s") for row in part]
        widths = [max(width, *map(len, cells)) for width, cells in zip(widths, zip(*lines, strict=True), strict=True)]
        parts.append(lines)
    shape = "  ".join(f"{{:{width}}}" for width in widths[:-1]) + "  {}\n"
    texts = []
    for lines in parts:
        await trio.lowlevel.checkpoint()
        texts.append("".join(shape.format(*cells) for cells in lines).encode())
    return b"".join(texts)


async def _array(rows: Sequence[_Row]) -> bytes:
    """A JSON array, with a task on each line."""
    texts = []
    for part in _parts(rows):
        await trio.lowlevel.checkpoint()
        texts.append(",\n".join(row.json for row in part).encode())
    return b"[" + b",\n".join(texts) + b"]\n"


def _parts(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    return (rows[first : first + SLICE] for first in range(0, len(rows), SLICE))
