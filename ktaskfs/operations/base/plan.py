"""The plan of a task that can start, and the preparation that makes it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar

from ktaskfs.errors import undo_after
from ktaskfs.ktask import Control
from ktaskfs.operations.base.nodes import chunk_sizes, make_nodes
from ktaskfs.operations.base.parameters import TaskParameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from ktaskfs.host.hands import Hands
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.processes import MappedFiles
    from ktaskfs.span import Node, Span


class Plan(NamedTuple):
    """A task that can start at once: everything is open, checked and reserved.

    nodes:   the work, in the operation's units, one entry for each NUMA node or remaining range.
    control: the chunk function and its rules for ``ktask.run_numa``; the worker adds monitor and live limits.
    abort:   undoes the changes of ``prepare`` (a created file, a new size); called if the task never starts.
    finish:  called once after the last chunk, with the outcome of the job; returns the text for the ``result`` file.
             It may raise KtaskfsError (an unexpected digest).
    tree:    a digest of the list of files that the positions count, or of the file that is copied; 0 without one.
    """

    nodes: Sequence[Node]
    control: Control
    abort: Callable[[], None]
    finish: Callable[[Outcome], str]
    tree: int = 0


class PlanToldError(Exception):
    """Ends ``prepare`` before its first change, for plan=1; has the work and more lines for the result. Not a
    failure."""

    def __init__(self, nodes: Sequence[Node], changes: Mapping[str, object]) -> None:
        super().__init__()
        self.nodes = nodes
        self.changes = changes


class Closable(Protocol):
    """Anything that must be closed."""

    def close(self) -> None: ...


P = TypeVar("P", bound=TaskParameters)
C = TypeVar("C", bound=Closable)


class Preparation(Generic[P]):
    """The input of ``prepare``, and everything that it has opened or changed so far.

    Kept resources are closed, and changes undone, in reverse order: at once if ``prepare`` raises (as a context
    manager), otherwise when the plan is aborted or finished.

    kernel:     opened before this process took its caller's root.
    parameters: those of the spec.
    remaining:  the rest of an earlier run; None for a new task.
    file:       an O_PATH descriptor of the file, if the spec names it without a path.
    files:      the files, if the spec names several without a path.
    """

    def __init__(self, kernel: Kernel, parameters: P, remaining: Sequence[Node] | None) -> None:
        self.kernel = kernel
        self.parameters = parameters
        self.remaining = remaining
        self.file: int | None = None
        self.files: MappedFiles | None = None
        self._resources = ExitStack()

    @property
    def resumes(self) -> bool:
        """Whether an earlier run left this work."""
        return self.remaining is not None

    def before_changes(self, nodes: Sequence[Node], told: Callable[[], Mapping[str, object]]) -> None:
        """``prepare`` calls it before its first change; with plan=1 it raises.

        ``told`` then makes the checks that otherwise belong to the changes, and returns lines for ``result``, by key.
        """
        if self.parameters.plan:
            raise PlanToldError(nodes, told())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, PlanToldError):
            self._resources.close()
        elif error is not None:
            undo_after(error, self._resources.close)

    def keep(self, resource: C) -> C:
        """Close ``resource`` at the end; returns it."""
        self._resources.callback(resource.close)
        return resource

    def hands(self, nodes: Sequence[Node], make: Callable[[Kernel, int], Hands | None]) -> Hands | None:
        """The hands of the task, if ``make`` finds them worthwhile for this work; closed at the end. plan=1: none."""
        made = None if self.parameters.plan else make(self.kernel, sum(node.size for node in nodes))
        return None if made is None else self.keep(made)

    def callback(self, function: Callable[..., object], *arguments: object) -> None:
        """Call ``function`` at the end."""
        self._resources.callback(function, *arguments)

    def nodes(self, extent: Span, unit: int) -> tuple[Node, ...]:
        """The work on ``extent``, or what remains of it; returns and raises as ``make_nodes``."""
        return make_nodes(self.kernel, extent, self.parameters.nodes, unit, self.remaining)

    def control(
        self,
        thread_func: Callable[[Any, Any], object],
        *,
        least: int,
        most: int,
        align: int = 1,
        undo_func: Callable[[Any, Any], object] | None = None,
    ) -> Control:
        """The control for an operation's chunk function and its own chunk sizes, with ``chunk`` and ``undo`` applied.

        ``undo_func`` must also undo a chunk that failed midway: the chunk function records the old state before it
        changes anything, or how far it came.
        """
        sizes = chunk_sizes(self.parameters.chunk, least=least, most=most, align=align)
        undo_func = undo_func if self.parameters.undo else None
        return Control(
            thread_func,
            min_chunk_size=sizes.least,
            max_chunk_size=sizes.most,
            align=sizes.align,
            undo_func=undo_func,
            undo_failed=undo_func is not None,
        )

    def plan(self, nodes: Sequence[Node], control: Control, finish: Callable[[Outcome], str], *, tree: int = 0) -> Plan:
        """The plan. Everything stays open until ``finish`` has returned."""
        close = self._resources.close

        def finish_and_close(outcome: Outcome) -> str:
            try:
                result = finish(outcome)
            except Exception as error:
                undo_after(error, close)
                raise
            close()
            return result

        return Plan(nodes=nodes, control=control, abort=close, finish=finish_and_close, tree=tree)
