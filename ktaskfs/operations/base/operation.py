"""What an operation is: a declaration of parameters and limits, and ``prepare``, which makes a Plan of a spec.

``prepare`` runs in the task's own worker process, as the caller. It opens, checks and reserves; it touches no
page and leaves nothing changed when it raises. The plan's functions then run in the same process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ktaskfs.errors import NotSupported
from ktaskfs.operations.base.parameters import TaskParameters, parameters_of
from ktaskfs.operations.base.resume import Baseline, FileState, paths_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Control
    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.span import Node
    from ktaskfs.units import Units

P = TypeVar("P", bound=TaskParameters)


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
    units: ClassVar[Units]
    """What positions count."""
    parameters: ClassVar[type[Any]]
    """The frozen dataclass P."""
    no_undo: ClassVar[str] = ""
    """Why ``undo=1`` is refused; empty for an operation that can take back what it did."""
    no_resume: ClassVar[str] = ""
    """What the rest alone would lack, so that it is refused; empty for an operation that can do it."""

    @cached_property
    def declared(self) -> tuple[Parameter, ...]:
        """The parameters, as ``parameters`` declares them."""
        return parameters_of(self.parameters)

    def baseline(self, parameters: P, nodes: Sequence[Node]) -> Baseline:
        """What there is now, for work that is to be done on ``nodes``. Raises TargetError.

        A family with ranges adds where its range ends.
        """
        files = {name: FileState.of(path).identity for name, path in paths_of(parameters)}
        return Baseline(files, end=0, size=0, total=sum(node.size for node in nodes))

    def settled(self, parameters: P, baseline: Baseline) -> P:
        """The parameters of a rest: what a spec left open means what it meant for the first run."""
        return parameters

    def plan(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        """As ``prepare``, for what the operation supports; raises NotSupported for the rest of it.

        An operation that cannot do a rest alone is resumed if nothing was done yet: it prepares the whole anew.
        """
        if parameters.undo and self.no_undo:
            raise NotSupported(f"undo=1: {self.no_undo}")
        lacking = "" if remaining is None else self.resume_refusal(parameters)
        if remaining is None or not lacking:
            return self.prepare(kernel, parameters, remaining)
        whole = self.prepare(kernel, parameters, None)
        if sum(each.size for each in remaining) < sum(node.size for node in whole.nodes):
            whole.abort()
            raise NotSupported(f"resume: {lacking}; start the task anew")
        return whole

    def resume_refusal(self, parameters: P) -> str:
        """``no_resume``; an operation of which it is true with some ``parameters`` only overrides this."""
        return self.no_resume

    @abstractmethod
    def prepare(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        """Open, check and reserve the target; raises KtaskfsError with the errno of the caller's write.

        ``kernel`` has what was opened before this process took its caller's root.

        ``remaining`` is None for a new task; for one that is resumed it is what an earlier run left to do.
        Called by ``plan`` alone.
        """
