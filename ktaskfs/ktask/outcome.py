"""What a task has done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.span import Node


@dataclass(frozen=True, slots=True)
class ThreadShare:
    """What the threads of one slot did; slot 0 is the first thread, the caller of ``run``."""

    slot: int
    chunks: int
    units: int
    busy_seconds: float
    """Time spent in the chunk function."""


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What was done of one node, by whichever threads."""

    nid: int
    size: int
    units: int
    """Units done and not taken back."""
    chunks: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task has done, at its end or at any moment before."""

    units_done: int
    """Units done and not taken back."""
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
        """The ranges that are not done, for a later run; they include chunks that failed or still run, as a whole."""
        return self.left


class TaskError(Exception):
    """A chunk failed. ``error``, also the cause, is the first exception; other threads finished their chunks first.

    ``position`` is where the failed chunk starts; ``outcome`` says what was done nevertheless.
    """

    def __init__(self, error: BaseException, position: Any, outcome: Outcome) -> None:
        super().__init__(f"chunk at {shown(position)}: {shown(error, repr)}")
        self.error = error
        self.position = position
        self.outcome = outcome
        self.__cause__ = error

    def __reduce__(self) -> tuple[type[TaskError], tuple[BaseException, Any, Outcome]]:
        """For pickle, which a task in a process of a pool needs."""
        return type(self), (self.error, self.position, self.outcome)


def shown(value: Any, text_of: Callable[[Any], str] = str) -> str:
    """``value`` as text, or its type alone if that fails, as for a position that is an element of a long list."""
    try:
        return text_of(value)
    except Exception:
        return f"<{type(value).__name__}>"
