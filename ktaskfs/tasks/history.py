"""The work of a task, and the results of its runs."""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import TargetError
from ktaskfs.operations.base.parameters import PID, TaskParameters
from ktaskfs.operations.base.resume import Baseline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.progress import Snapshot
    from ktaskfs.span import Node

ALL_CAPABILITIES: Final = (1 << 64) - 1
"""The rights of a task whose authors all had full capabilities."""


class History(NamedTuple):
    """One value, replaced as a whole: to undo a failed start, assign the earlier one.

    operation: None while an empty task (mkdir) has no operation.
    texts:     the given parameters, as canonical text.
    used:      the defaults that the target decided at the last start, as canonical text: only shown.
    remaining: the ranges of a resumed task at its start, None for a first run.
    base:      units done by earlier runs.
    baseline:  the files of those units; of a queued task, the process that it names. None before the first start.
    boot:      the boot in which those units were done (random(4)); empty before the first start.
    planned:   units of this run, announced by its worker before it began.
    final:     the last snapshot of the ended worker.
    result:    the text of ``result``, as bytes shared by all opens.
    rights:    the common capabilities of all who defined the task, a bit mask.
    """

    operation: SpecWord | None = None
    texts: Mapping[str, str] = MappingProxyType({})
    used: Mapping[str, str] = MappingProxyType({})
    remaining: tuple[Node, ...] | None = None
    base: int = 0
    baseline: Baseline | None = None
    boot: str = ""
    planned: int = 0
    final: Snapshot | None = None
    result: bytes = b""
    rights: int = ALL_CAPABILITIES

    @property
    def named_process(self) -> tuple[str, int] | None:
        """The parameter that names a process, and its number; None if none was given."""
        declared = () if self.operation is None else self.operation.declared
        given = (each for each in declared if each.kind is PID and each.name in self.texts)
        return next(((each.name, PID.parse(self.texts[each.name])) for each in given), None)

    def of_process(self, began: int | None) -> History:
        """This history with the identity of the process that the task names, which began at ``began``, if it exists."""
        if self.named_process is None or began is None:
            return self
        name, pid = self.named_process
        return self._replace(baseline=Baseline({name: (pid, began, 0)}, end=0, size=0, total=0))

    def continued(self, boot: str) -> History:
        """The history of a resumed task before its next run, in that ``boot``.

        After another boot nothing counts as done, because a crash loses what was not yet on the disk; the next run must
        have the same files.

        Raises TargetError (ESTALE) if the task names a process, and its start ended before the worker found it.
        """
        if self.baseline is None and self.named_process is not None:
            text = f"it is not known which process was {self.named_process[1]} at the start: start a new task"
            raise TargetError(text, errno=errno.ESTALE)
        again = self._replace(final=None, result=b"")
        if boot != self.boot:
            return again._replace(remaining=None, base=0, planned=0)
        remaining, done = self.remaining, 0
        if self.final is not None and self.final.nodes:
            remaining, done = self.final.remaining(), self.final.done
        if remaining is None:  # no work began, and what was prepared for it was undone
            return again._replace(baseline=self._same_process())
        # From now on ``base`` instead of ``final`` counts the earlier run's work.
        return again._replace(remaining=remaining, base=self.base + done, planned=sum(node.size for node in remaining))

    def _same_process(self) -> Baseline | None:
        """The baseline of a task without work: another process may have the number by now."""
        if self.baseline is None or self.named_process is None:
            return None
        name, pid = self.named_process
        identity = self.baseline.files.get(name)
        if identity is None or identity[0] != pid:
            return None
        return self.baseline._replace(files={name: identity}, end=0, size=0)

    def changed_as(self, old: Mapping[str, str], new: Mapping[str, str]) -> History:
        """This history with the changes of its operation's parameters from ``old`` to ``new``; without an operation, of
        those that every operation has."""
        declared = TaskParameters.declared if self.operation is None else self.operation.declared
        changed = {each.name for each in declared if old.get(each.name) != new.get(each.name)}
        kept = {name: text for name, text in self.texts.items() if name not in changed}
        return self._replace(texts=kept | {name: new[name] for name in changed if name in new})
