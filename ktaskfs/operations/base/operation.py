"""What an operation is: a declaration of parameters and limits, and ``prepare``, which turns a spec into a Plan.

``prepare`` runs in the task's own worker process, as the caller. It opens, checks and reserves; it touches no
page and leaves nothing changed when it raises. The plan's functions then run in the same process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ktaskfs.errors import NotSupported
from ktaskfs.operations.base.parameters import TaskParameters, parameters_of
from ktaskfs.operations.base.plan import Preparation
from ktaskfs.operations.base.resume import Baseline, FileState, paths_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.operations.base.plan import Plan
    from ktaskfs.span import Node
    from ktaskfs.units import Units

P = TypeVar("P", bound=TaskParameters)


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
    """Why ``undo=1`` is refused; empty if the operation can take back what it did."""
    no_resume: ClassVar[str] = ""
    """What the rest alone would lack, for the refusal to resume; empty if the operation can resume."""

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
        """The parameters for a resume: defaults keep the meaning that they had in the first run."""
        return parameters

    def plan(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        """The plan for ``parameters``, or for what an earlier run left; raises as ``prepare``, and NotSupported.

        ``kernel`` has what was opened before this process took its caller's root. Operations that cannot resume in
        part restart, if nothing was done.
        """
        if parameters.undo and self.no_undo:
            raise NotSupported(f"undo=1: {self.no_undo}")
        lacking = "" if remaining is None else self.resume_refusal(parameters)
        if remaining is None or not lacking:
            return self._prepared(kernel, parameters, remaining)
        whole = self._prepared(kernel, parameters, None)
        if sum(each.size for each in remaining) < sum(node.size for node in whole.nodes):
            whole.abort()
            raise NotSupported(f"resume: {lacking}; start the task anew")
        return whole

    def _prepared(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        with Preparation(kernel, parameters, remaining) as preparation:
            return self.prepare(preparation)

    def resume_refusal(self, parameters: P) -> str:
        """``no_resume``; overridden by an operation that cannot resume with some ``parameters`` only."""
        return self.no_resume

    @abstractmethod
    def prepare(self, preparation: Preparation[P]) -> Plan:
        """Open, check and reserve the target; raises KtaskfsError with the errno of the caller's write.

        What is kept in ``preparation`` is closed if this raises. Called by ``plan`` alone.
        """
