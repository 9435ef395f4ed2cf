"""The finished work of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.span import Node


class ThreadShare(NamedTuple):
    """The work of the threads of one slot; slot 0 is the first thread, the caller of ``run``."""

    slot: int
    chunks: int
    units: int
    busy_seconds: float
    """Time spent in the chunk function."""


class NodeShare(NamedTuple):
    """The finished work of one node, by all threads."""

    nid: int
    size: int
    units: int
    """Units done and not undone."""
    chunks: int


class Outcome(NamedTuple):
    """The finished work of a task, at its end or before."""

    units_done: int
    """Units done and not undone."""
    units_undone: int
    """Units that were done and then given to ``undo_func``."""
    chunks: int
    """Chunks whose function returned."""
    threads: int
    """The largest number of threads that took part at one time."""
    seconds: float
    """From the call of ``run`` until the end, or until now."""
    cancelled: bool
    """The task was cancelled before all its work had been handed out."""
    per_thread: tuple[ThreadShare, ...]
    per_node: tuple[NodeShare, ...]
    """In the order of the nodes."""
    left: tuple[Node, ...]

    def remaining(self) -> tuple[Node, ...]:
        """The unfinished ranges, for a later run, including failed and running chunks as a whole."""
        return self.left


class TaskError(Exception):
    """A chunk failed. ``error``, also the cause, is the first exception; other threads finished their chunks first.

    ``position`` is the start of the failed chunk; ``outcome`` has the finished work.
    """

    def __init__(self, error: BaseException, position: Any, outcome: Outcome) -> None:
        super().__init__(f"chunk at {safe_text(position)}: {safe_text(error, repr)}")
        self.error = error
        self.position = position
        self.outcome = outcome
        self.__cause__ = error

    def __reduce__(self) -> tuple[type[TaskError], tuple[BaseException, Any, Outcome]]:
        """For pickle, as needed in a process pool."""
        return type(self), (self.error, self.position, self.outcome)


def safe_text(value: Any, text_of: Callable[[Any], str] = str) -> str:
    """``value`` as text, or its type alone if that fails, as for a position that is an element of a long list."""
    try:
        return text_of(value)
    except Exception:
        return f"<{type(value).__name__}>"
