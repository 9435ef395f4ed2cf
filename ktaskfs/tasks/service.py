"""What can be done to tasks: create, start, cancel, kill, pause, resume, forget; and what a daemon takes over."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ktaskfs.errors import KtaskfsError, WrongState
from ktaskfs.operations.base.parameters import format_parameters
from ktaskfs.progress import Requests
from ktaskfs.tasks.adoption import Adopter
from ktaskfs.tasks.lifecycle import Lifecycle
from ktaskfs.tasks.paths import absolute_paths
from ktaskfs.tasks.starter import Starter
from ktaskfs.tasks.task import ACTIVE, EMPTY, RESUMABLE, State, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import trio

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.tasks.launcher import Launcher
    from ktaskfs.tasks.record import StateDirectory
    from ktaskfs.tasks.spec import Spec
    from ktaskfs.tasks.table import TaskTable
    from ktaskfs.tasks.task import History


class TaskService:
    """The life of the tasks in ``table``; everything runs on the trio thread, in ``nursery`` where it goes on.

    What takes a CallerProcess takes it over, and closes its descriptors.
    """

    def __init__(
        self,
        table: TaskTable,
        launcher: Launcher,
        state: StateDirectory,
        operations: Mapping[str, Operation[Any]],
        nursery: trio.Nursery,
    ) -> None:
        self.table = table
        self.operations = operations
        self._lifecycle = Lifecycle(table, launcher, state, nursery)
        self._starter = Starter(
            table,
            launcher,
            state,
            nursery,
            began=self._lifecycle.begin,
            save=self._lifecycle.save,
            failed_late=self._lifecycle.refuse_late,
        )
        self._adopter = Adopter(table, state, operations, self._lifecycle, nursery)

    def adopt(self) -> None:
        """Take over every task that the state directory knows. Raises OSError if it cannot be read."""
        self._adopter.adopt()

    async def run_specs(self, caller: CallerProcess, specs: Sequence[Spec]) -> list[Task]:
        """Create a task for each spec and start them, all or none; returns when their targets are reserved.

        Raises KtaskfsError: NameTaken, TooManyTasks, or the target's own error; nothing is then left of them.
        """
        uid, gid = caller.identity.uid, caller.identity.gid
        tasks = []
        try:
            self.table.check_room(uid, len(specs))
            names = [spec.parameters.name for spec in specs if spec.parameters.name is not None]
            self.table.check_names(names)
            taken = set(names)
            for spec in specs:
                number = self.table.next_number()
                name = spec.parameters.name or self.table.free_name(spec.operation.name, number, taken)
                task = Task(number, name, uid, gid)
                task.define(spec.operation, absolute_paths(spec.operation, format_parameters(spec.parameters), caller))
                self.table.add(task)
                tasks.append(task)
        except KtaskfsError:
            caller.close()
            raise
        try:
            await self._start(tasks, caller)
        except KtaskfsError:
            for task in tasks:
                self._lifecycle.drop(task)
            raise
        self.table.note_last(uid, [task.name for task in tasks])
        return tasks

    def create_empty(self, name: str, uid: int, gid: int) -> Task:
        """A task that does nothing yet. Raises NameTaken, InvalidValue, TooManyTasks."""
        self.table.check_room(uid, 1)
        self.table.check_names([name])
        task = Task(self.table.next_number(), name, uid, gid)
        self.table.add(task)
        self._lifecycle.save(task)
        return task

    async def start(self, task: Task, caller: CallerProcess, spec: Spec | None = None) -> None:
        """Start a task that is new, to do what ``spec`` says, if any is given.

        Raises WrongState, InvalidValue, or the target's error; the task is then as it was.
        """
        before = task.history
        try:
            task.require({State.NEW}, "start")
            if spec is not None:
                task.define(spec.operation, format_parameters(spec.parameters))
            task.parsed()
        except KtaskfsError:
            task.history = before
            caller.close()
            raise
        await self._start_again(task, caller, before)

    async def resume(self, task: Task, caller: CallerProcess) -> None:
        """Go on: a paused task at once, an ended one with a new worker that does the rest only. Raises WrongState."""
        if task.state is State.PAUSED:
            caller.close()
            task.ask(replace(task.requests, paused=False))
            self._lifecycle.move(task, State.RUNNING)
            return
        try:
            task.require(RESUMABLE, "resume")
            self.table.check_room(task.uid, 1)
        except KtaskfsError:
            caller.close()
            raise
        before = task.history
        final = task.final or EMPTY
        task.base = task.done(final)
        if final.nodes:
            task.remaining = final.remaining()
            task.planned = sum(node.size for node in task.remaining)
        task.final, task.result = None, ""  # an earlier run's: it must not be counted beside ``base``
        await self._start_again(task, caller, before)

    async def _start_again(self, task: Task, caller: CallerProcess, history: History) -> None:
        """Start one task; if it may not begin it is as it was, with ``history``."""
        before = task.state
        assert task.operation is not None
        task.texts = absolute_paths(task.operation, task.texts, caller)
        try:
            await self._start([task], caller)
        except KtaskfsError:
            task.history = history
            self._lifecycle.move(task, before)
            raise

    async def _start(self, tasks: Sequence[Task], caller: CallerProcess) -> None:
        for task in tasks:
            task.requests = Requests(rate=task.rate_limit(), nice=self.table.nice_of(task))
            self.table.move(task, State.STARTING)
        await self._starter.start(tasks, caller)

    def save(self, task: Task) -> None:
        """Write the record of ``task`` after a change of what it is to do."""
        self._lifecycle.save(task)

    def cancel(self, task: Task) -> None:
        """Have the work end after the chunks in flight. Raises WrongState."""
        task.require(ACTIVE, "cancel")
        if task.state is State.STARTING:
            self._starter.cancel(task)
        else:
            task.ask(replace(task.requests, cancel=True, paused=False))

    def kill(self, task: Task) -> None:
        """SIGKILL the worker, even in the middle of a chunk. Raises WrongState."""
        task.require(ACTIVE, "kill")
        if task.state is State.STARTING:
            self._starter.kill(task)
        elif task.worker is not None:
            task.worker.signal(signal.SIGKILL)

    def pause(self, task: Task) -> None:
        """Hand out no further chunk until ``resume``. Raises WrongState."""
        task.require({State.RUNNING}, "pause")
        task.ask(replace(task.requests, paused=True))
        self._lifecycle.move(task, State.PAUSED)

    def set_live(self, task: Task) -> None:
        """Put changed ``max_threads``, ``nice`` and ``rate_max`` of a task in force."""
        task.require_known()
        task.ask(replace(task.requests, rate=task.rate_limit()))
        self.table.rebalance()

    def forget(self, task: Task) -> None:
        """Drop a task that is not at work, nor about to be. Raises WrongState."""
        if task.state in ACTIVE:
            raise WrongState(f"task {task.name} is {task.state}: cancel it first")
        self._lifecycle.drop(task)
