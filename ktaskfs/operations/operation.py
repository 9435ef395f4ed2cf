"""What an operation is: a declaration of parameters, and ``prepare``, which turns them into a Plan.

``prepare`` runs in the task's own worker process, as the caller. It opens, checks and reserves; it touches no
page and leaves nothing changed when it raises. The plan's functions then run in the same process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ktaskfs.operations.parameters import TaskParameters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Control, Node

P = TypeVar("P", bound=TaskParameters)


@dataclass(frozen=True)
class Range:
    """Units ``start`` to ``end`` (exclusive) of the operation's own scale, wanted on NUMA node ``nid``."""

    start: int
    end: int
    nid: int


@dataclass(frozen=True)
class Plan:
    """A task that can start at once: everything is open, checked and reserved.

    nodes:   the work, in the operation's units, one entry for each NUMA node or remaining range.
    control: the chunk function and its rules for ``ktask.run_numa``; the worker adds monitor and live limits.
    abort:   takes back what ``prepare`` itself changed (a created file, a new size); called when the task never starts.
    finish:  called once after the last chunk, whatever the end; returns the text for the ``result`` file.
             It may raise KtaskfsError (a digest that was not the expected one).
    """

    nodes: Sequence[Node]
    control: Control
    abort: Callable[[], None]
    finish: Callable[[], str]


class Operation(ABC, Generic[P]):
    """One kind of work. Subclasses are found by the registry: one file in this package each."""

    name: ClassVar[str]
    """The word that starts a spec."""
    description: ClassVar[str]
    """One or two sentences for ``operations/NAME/description``."""
    units: ClassVar[str]
    """What positions count: ``bytes``, ``pages`` or ``inodes``."""
    parameters: ClassVar[type[Any]]
    """The frozen dataclass P."""

    @abstractmethod
    def prepare(self, kernel: Kernel, parameters: P, remaining: Sequence[Range] | None) -> Plan:
        """Open, check and reserve the target; raises KtaskfsError with the errno of the caller's write.

        ``kernel`` has what was opened before this process took its caller's root.

        ``remaining`` is None for a new task; for one that is resumed it is what an earlier run left to do.
        """
