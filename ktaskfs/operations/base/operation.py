"""An operation: a declaration of parameters and limits, and ``prepare``, which turns a spec into a Plan.

``prepare`` runs in the task's own worker process, as the caller. It opens, checks and reserves; it touches no
page, and changes nothing if it raises. The plan's functions then run in the same process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ktaskfs.errors import NotSupported, TargetError, undo_after
from ktaskfs.ktask import Control
from ktaskfs.operations.base.parameters import TaskParameters, format_parameters, target_text
from ktaskfs.operations.base.plan import Plan, PlanToldError, Preparation
from ktaskfs.operations.base.resume import Baseline, identities_of
from ktaskfs.span import NO_NODE
from ktaskfs.units import escaped, format_cpulist

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.span import Node
    from ktaskfs.units import Units

P = TypeVar("P", bound=TaskParameters)


class SpecWord(ABC):
    """The word that starts a spec: an operation, or several of one name (``SharedWord``)."""

    name: str
    description: str
    """One or two sentences for ``operations/NAME/description``."""
    units: Units
    """The unit of positions."""
    parameters: type[Any]
    """A class of TaskParameters."""

    @cached_property
    def declared(self) -> tuple[Parameter, ...]:
        """The parameters, as ``parameters`` declares them."""
        declaration: type[TaskParameters] = self.parameters
        return declaration.declared

    @property
    @abstractmethod
    def meanings(self) -> tuple[Operation[Any], ...]:
        """The operations of this name, the general one first."""

    @abstractmethod
    def meant(self, parameters: Any) -> tuple[Operation[Any], Any]:
        """The operation that a spec is for, and its own parameters; raises InvalidValue for parameters that it lacks.

        Called once for a run, in the worker, because it may examine the target, and the next look may find another.
        """

    def used_defaults(self, own: TaskParameters) -> Mapping[str, str]:
        """The texts that an operation with its ``own`` parameters takes of those with several ``defaults``."""
        used = format_parameters(own)
        return {each.name: used[each.name] for each in self.declared if each.defaults and each.name in used}


class Operation(SpecWord, Generic[P]):
    """One kind of work. Subclasses are found by the registry: one file in this package each."""

    target: str = ""
    """If operations share a name: the target of this one, in words (``SharedWord``)."""
    creates: ClassVar[bool] = False
    """Whether it makes ``path`` if there is none."""
    no_undo: str = ""
    """Why ``undo=1`` is refused; empty if the operation can undo its work."""
    no_resume: str = ""
    """Why a resume is refused; empty if the operation can resume."""

    @property
    def meanings(self) -> tuple[Operation[Any], ...]:
        return (self,)

    def meant(self, parameters: P) -> tuple[Operation[Any], P]:
        return self, parameters

    def means(self, parameters: Any) -> bool:
        """Whether a spec, with the parameters of all operations of this name, is for this operation instead of the
        general one.

        Called in the worker, which may examine the target.
        """
        return False

    def baseline(self, parameters: P, nodes: Sequence[Node]) -> Baseline:
        """The current state of the files, for work on ``nodes``. Raises TargetError.

        A family with ranges adds the end of its range. Not called for plan=1: the files need not exist.
        """
        return Baseline(identities_of(parameters), end=0, size=0, total=sum(node.size for node in nodes))

    def settled(self, parameters: P, baseline: Baseline) -> P:
        """The parameters for a resume: defaults keep their meaning of the first run."""
        return parameters

    def plan(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        """The plan for ``parameters``, or for the rest of an earlier run; raises as ``prepare``, and NotSupported.

        ``kernel`` was opened before this process took its caller's root. Operations that cannot resume in
        part restart, if nothing was done.
        """
        if parameters.undo and (refusal := self.undo_refusal(parameters)):
            raise NotSupported(f"undo=1: {refusal}")
        lacking = "" if remaining is None else self.resume_refusal(parameters)
        if parameters.plan:
            return self._told(kernel, parameters, remaining)
        if remaining is None or not lacking:
            return self._prepared(kernel, parameters, remaining)
        whole = self._prepared(kernel, parameters, None)
        if sum(each.size for each in remaining) < sum(node.size for node in whole.nodes):
            error = NotSupported(f"resume: {lacking}; start a new task")
            undo_after(error, whole.abort)
            raise error
        return whole

    def _prepared(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        with Preparation(kernel, parameters, remaining) as preparation:
            try:
                self.locate(preparation)
                return self.prepare(preparation)
            except OSError as error:  # of any call, as when the server of a FUSE has died
                target = target_text(self.declared, format_parameters(parameters))
                raise TargetError.from_os(error, f"{self.name} {target}".rstrip()) from error

    def _told(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> Plan:
        """A plan without work, whose result lists the work of a real start."""
        changes: Mapping[str, object] = {}
        try:
            plan = self._prepared(kernel, parameters, remaining)
        except PlanToldError as told:
            nodes, changes = told.nodes, told.changes
        else:
            nodes = plan.nodes
            plan.abort()
        nids = sorted({node.nid for node in nodes if node.nid != NO_NODE})
        facts = {"operation": self.name, "total": sum(node.size for node in nodes), "units": self.units}
        facts |= {"nodes": format_cpulist(nids)} if nids else {}
        text = "".join(f"{key} {escaped(str(value))}\n" for key, value in {**facts, **changes}.items())
        return Plan((), Control(_nothing, min_chunk_size=1), abort=lambda: None, finish=lambda outcome: text)

    def undo_refusal(self, parameters: P) -> str:
        """``no_undo``; overridden by an operation that cannot undo with some ``parameters`` only."""
        return self.no_undo

    def resume_refusal(self, parameters: P) -> str:
        """``no_resume``; overridden by an operation that cannot resume with some ``parameters`` only."""
        return self.no_resume

    def locate(self, preparation: Preparation[P]) -> None:
        """Find a target that a spec names without a path; called before ``prepare``, and raises like it."""

    @abstractmethod
    def prepare(self, preparation: Preparation[P]) -> Plan:
        """Open, check and reserve the target; raises KtaskfsError with the errno of the caller's write.

        Resources kept in ``preparation`` are closed if this raises. Only ``plan`` calls it.
        """


def _nothing(start: object, end: object) -> None:
    """The chunk function of a plan without work."""
