"""What came of a task."""

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
    """What was done of one node's range, whichever threads did it."""

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
    """The most threads that took part at one time."""
    seconds: float
    """From the call of ``run`` until the end, or until now."""
    cancelled: bool
    """It was cancelled before all work had been handed out."""
    per_thread: tuple[ThreadShare, ...]
    per_node: tuple[NodeShare, ...]
    """In the order of the nodes."""
    left: tuple[Node, ...]

    def remaining(self) -> tuple[Node, ...]:
        """The ranges that are not done, for a later run; chunks that failed or still run belong to them as a whole."""
        return self.left


class TaskError(Exception):
    """A chunk failed. The first exception is ``error`` and the cause; chunks of other threads were finished first.

    ``position`` is where the failed chunk starts; ``outcome`` says what was done all the same.
    """

    def __init__(self, error: BaseException, position: Any, outcome: Outcome) -> None:
        super().__init__(f"chunk at {shown(position)}: {shown(error, repr)}")
        self.error = error
        self.position = position
        self.outcome = outcome
        self.__cause__ = error

    def __reduce__(self) -> tuple[type[TaskError], tuple[BaseException, Any, Outcome]]:
        """As pickle needs it, for a task in a process of a pool."""
        return type(self), (self.error, self.position, self.outcome)


def shown(value: Any, text_of: Callable[[Any], str] = str) -> str:
    """``value`` as text; its type alone where that fails, as for a position that is a long list's element."""
    try:
        return text_of(value)
    except Exception:
        return f"<{type(value).__name__}>"
