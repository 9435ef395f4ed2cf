"""The actions on tasks: create, start, cancel, kill, pause, resume, forget and adopt."""

from __future__ import annotations

import dataclasses
import functools
import signal
from typing import TYPE_CHECKING

import trio

from ktaskfs.errors import KtaskfsError, TargetError, WrongState
from ktaskfs.operations.base.parameters import PID, format_parameters
from ktaskfs.operations.base.resume import values_of
from ktaskfs.tasks.adoption import Adopter
from ktaskfs.tasks.helper_watch import HelperWatch
from ktaskfs.tasks.kept_caller import KeptCaller, common_root
from ktaskfs.tasks.lifecycle import Lifecycle
from ktaskfs.tasks.looks import Looks
from ktaskfs.tasks.named_processes import NamedProcesses
from ktaskfs.tasks.paths import absolute_paths, are_absolute
from ktaskfs.tasks.queue import TaskQueue
from ktaskfs.tasks.spec_reader import SpecReader
from ktaskfs.tasks.starter import Starter, StartRefused
from ktaskfs.tasks.task import CANCELLABLE, RESUMABLE, WORKING, Origin, State, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.context import TaskContext
    from ktaskfs.tasks.history import History
    from ktaskfs.tasks.spec import Spec


class TaskService:
    """The actions on the tasks of ``context``, on the trio thread.

    A method with a CallerProcess takes it over, and closes its descriptors.
    """

    def __init__(self, context: TaskContext) -> None:
        self.table = context.table
        self.operations = context.operations
        self.looks = Looks(context)
        self.specs = SpecReader(context.operations, context.table.settings)
        self._lifecycle = Lifecycle(context)
        self._starter = Starter(context, self._lifecycle)
        self._named = NamedProcesses()
        self._queue = TaskQueue(context, self._lifecycle, self._start_queued)
        self._adopter = Adopter(context, self._lifecycle, self._queue)
        self._unanswered: set[Task] = set()
        """The tasks of writes under way: if such a write fails, nothing of it stays."""
        HelperWatch(context.table, context.nursery)
        self._launcher = context.launcher
        self._boot = context.state.boot

    @property
    def stopped_spawner(self) -> int | None:
        """The pid of the spawner if it is stopped; else None."""
        return self._launcher.stopped

    async def adopt(self) -> None:
        """Take over every task of the state directory. Raises OSError if it cannot be read, and NoThread."""
        await self._adopter.adopt()

    async def run_specs(self, caller: CallerProcess, specs: Sequence[Spec]) -> list[Task]:
        """Create a task for each spec and start them, all or none; returns when their targets are reserved.

        Those with queue=1 beyond the limit wait. Raises KtaskfsError: NameTaken, TooManyTasks, or the target's own
        error; no new task is then left, and replaced tasks stay.
        """
        uid = caller.identity.uid
        try:
            # Before there are tasks, so that nobody can change one during the wait.
            pids = {pid for spec in specs if spec.parameters.queue for _, pid in values_of(spec.parameters, PID)}
            began = await self._named.began(uid, pids)
        except BaseException:  # also if the wait is cancelled
            caller.close()
            raise
        specs = [self._beside(uid, spec) for spec in specs]
        try:
            now = self._beginning_now(uid, specs)
            named = [(spec.parameters.name, spec.parameters.replace) for spec in specs if spec.parameters.name]
            replaceable = self.table.replaceable(uid, named)
            # Until a write is answered, its names may go back to the tasks that it replaces.
            replaced = [task for task in replaceable if task not in self._unanswered]
            names = [name for name, _ in named]
            self.table.check_names(names, replaced)
        except KtaskfsError:
            caller.close()
            raise
        for old in replaced:
            self.table.set_aside(old)
        tasks = self._create(caller, specs, set(names), now)
        self._unanswered.update(tasks)
        try:
            await self._begin(caller, specs, tasks, replaced, began)
        finally:
            self._unanswered.difference_update(tasks)
        for task in tasks:
            if task.state is State.QUEUED:
                self._queue.put(task)
        self.table.note_last(uid, [task.name for task in tasks])
        return tasks

    async def _begin(
        self,
        caller: CallerProcess,
        specs: Sequence[Spec],
        tasks: Sequence[Task],
        replaced: list[Task],
        began: Mapping[int, int | None],
    ) -> None:
        """Start the NEW ones of ``tasks``, which ``specs`` describe, instead of the ``replaced`` ones. Raises as
        ``run_specs``. ``began``: the start times of processes that queued specs name."""
        queued = [task for task in tasks if task.state is State.QUEUED]

        def commit() -> None:
            for task in queued:
                self._lifecycle.record(task)
            queued.clear()
            self._lifecycle.drop(*(old for old in replaced if not old.forgotten))
            replaced.clear()

        try:
            self._keep_caller(queued, caller, began)
            await self._start([task for task in tasks if task.state is State.NEW], caller, commit)
        except KtaskfsError as error:
            await self._lifecycle.take_back(tasks, {old.name: old for old in replaced})
            if isinstance(error, StartRefused):
                index = tasks.index(error.task)
                raise specs[index].refused(error, index + 1, len(specs)) from error
            raise

    def _beginning_now(self, uid: int, specs: Sequence[Spec]) -> set[int]:
        """The indices of the specs that begin at once; the others wait. Raises TooManyTasks."""
        now = {index for index, spec in enumerate(specs) if not spec.parameters.queue}
        self.table.check_room(uid, len(now))
        for index in range(len(specs)):
            if index not in now and not self._queue.waits(uid) and self.table.has_room(uid, len(now) + 1):
                now.add(index)
        self.table.check_queue(uid, len(specs) - len(now))
        return now

    def _beside(self, uid: int, spec: Spec) -> Spec:
        """A plan changes nothing: it does not replace a task that has worked, but gets a name of its own."""
        asked = spec.parameters
        if asked.plan and asked.replace and asked.name and self.table.has_worked(uid, asked.name):
            return dataclasses.replace(spec, parameters=asked._replace(name=None))
        return spec

    def _create(
        self, caller: CallerProcess, specs: Sequence[Spec], taken: set[str], now: Collection[int]
    ) -> list[Task]:
        """A task for each spec, QUEUED unless its index is in ``now``. Generated names avoid ``taken``."""
        tasks = []
        uid, gid = caller.identity.uid, caller.identity.gid
        for index, spec in enumerate(specs):
            number = self.table.next_number()
            name = spec.parameters.name or self.table.free_name(spec.operation.name, uid, number, taken)
            task = Task(Origin.now(number, name, uid, gid))
            task.limit_rights(caller.identity.permitted)
            task.define(spec.operation, absolute_paths(spec.operation, format_parameters(spec.parameters), caller))
            if index not in now:
                task.state = State.QUEUED
            self.table.add(task)
            tasks.append(task)
        return tasks

    def _keep_caller(self, tasks: Sequence[Task], caller: CallerProcess, began: Mapping[int, int | None]) -> None:
        """Keep ``caller`` for queued tasks. On TargetError closes it."""
        try:
            root = common_root(caller) if tasks else None
            for task in tasks:
                assert task.operation is not None
                absolute = are_absolute(task.operation, task.texts)
                named = task.history.named_process
                process = None if named is None else (named[1], began[named[1]])
                task.history = task.history.of_process(None if process is None else process[1])
                task.caller = KeptCaller.of(caller, root, paths_are_absolute=absolute, process=process)
        except OSError as error:
            caller.close()
            raise TargetError.from_os(error, "queue a task") from error

    def _start_queued(self, task: Task, kept: KeptCaller, caller: CallerProcess) -> None:
        check = None if kept.process is None else functools.partial(self._named.require, task.uid, *kept.process)
        task.requests = self.table.asked_for(task)
        self.table.move(task, State.STARTING)
        self._starter.start_queued(task, caller, check)

    def create_empty(self, name: str, uid: int, gid: int, rights: int) -> Task:
        """Make a task without an operation; ``rights`` are its maker's permitted capabilities.

        Raises NameTaken, InvalidValue, TooManyTasks, and TargetError without a record.
        """
        self.table.check_room(uid, 1)
        self.table.check_names([name])
        task = Task(Origin.now(self.table.next_number(), name, uid, gid))
        task.limit_rights(rights)
        self._lifecycle.record(task)
        self.table.add(task)
        return task

    async def start(self, task: Task, caller: CallerProcess, spec: Spec | None = None) -> None:
        """Start a new task, with ``spec`` if given; its files keep what that does not name.

        Raises WrongState, InvalidValue, NotPermitted for a caller with more capabilities than the task's authors, or
        the target's error; the task then does not change.
        """
        before = task.history
        try:
            task.require({State.NEW}, "start")
            self._require_settled(task, "start")
            task.require_rights(caller.identity.permitted)
            if spec is not None:
                task.define(spec.operation, spec.texts)
                task.limit_rights(caller.identity.permitted)
            task.parsed()
        except KtaskfsError:
            task.history = before
            caller.close()
            raise
        await self._start_again(task, caller, before)

    async def resume(self, task: Task, caller: CallerProcess) -> None:
        """Continue a paused task, or give an ended task a new worker for the rest of its work; after a boot, for all.

        Raises WrongState, NotPermitted like ``start``, or the target's error.
        """
        if task.state is State.PAUSED:
            caller.close()
            task.ask(task.requests._replace(paused=False))
            self._lifecycle.move(task, State.RUNNING)
            return
        try:
            task.require(RESUMABLE, "resume")
            self._require_settled(task, "resume")
            task.require_rights(caller.identity.permitted)
            self.table.check_room(task.uid, 1)
            self._lifecycle.record(task)  # its page, which the start removes, may have more than its old record
            before, task.history = task.history, task.history.continued(self._boot)
        except KtaskfsError:
            caller.close()
            raise
        await self._start_again(task, caller, before)

    async def _start_again(self, task: Task, caller: CallerProcess, before: History) -> None:
        """Start one task. If that fails, restore its state and its history ``before``, except for parameters that were
        written meanwhile."""
        state, history = task.state, task.history
        assert history.operation is not None
        task.history = begun = history._replace(texts=absolute_paths(history.operation, history.texts, caller))
        try:
            await self._start([task], caller)
        except KtaskfsError:
            task.history = before.changed_as(begun.texts, task.texts)
            self._lifecycle.move(task, state)
            raise

    async def _start(
        self, tasks: Sequence[Task], caller: CallerProcess, commit: Callable[[], None] = lambda: None
    ) -> None:
        for task in tasks:
            task.requests = self.table.asked_for(task)
        self.table.move_all(tasks, State.STARTING)
        await self._starter.start(tasks, caller, commit)

    def _require_settled(self, task: Task, what: str) -> None:
        """Raise WrongState while a write under way decides whether the task stays."""
        if task in self._unanswered or task not in self.table:
            raise WrongState(f"{what}: the write that creates or replaces task {task.name} is not answered yet")

    def save(self, task: Task) -> None:
        """Write the record of ``task``, whose parameters or operation have changed.

        A write under way does so when the work begins: until then, a task that is replaced has the record of that name.
        """
        if task not in self._unanswered or task.state in WORKING:
            self._lifecycle.save(task)

    def cancel(self, task: Task) -> None:
        """End the work after the current chunks. Raises WrongState, and TargetError if the worker cannot be told."""
        task.require(CANCELLABLE, "cancel")
        if task.state is State.QUEUED:
            self._queue.cancel(task, answered=task not in self._unanswered)
        elif task.state is State.STARTING:
            self._starter.cancel(task)
        else:
            task.ask(task.requests._replace(cancel=True, paused=False))

    def is_cancelling(self, task: Task) -> bool:
        """Whether the task was told to end, but its worker has not yet done so."""
        if task.state is State.STARTING:
            return self._starter.is_cancelling(task)
        return task.state in WORKING and task.requests.cancel

    async def cancel_all(self, uid: int) -> None:
        """Cancel all tasks of ``uid``, and yield between two. Raises the first error of ``cancel`` after it was called
        for each."""
        errors = []
        # Queued ones first, so that none begins in the place of another.
        for task in sorted(self.table.of_user(uid), key=lambda task: task.state is not State.QUEUED):
            await trio.lowlevel.checkpoint()
            if task.state in CANCELLABLE and not task.forgotten:
                try:
                    self.cancel(task)
                except KtaskfsError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def kill(self, task: Task) -> None:
        """SIGKILL the worker, even in the middle of a chunk. Raises WrongState."""
        task.require(CANCELLABLE, "kill")
        if task.state is State.QUEUED:
            self._queue.cancel(task, answered=task not in self._unanswered)
        elif task.state is State.STARTING:
            self._starter.kill(task)
        elif task.worker is not None:
            task.worker.signal(signal.SIGKILL)

    def pause(self, task: Task) -> None:
        """Hand out no further chunk until ``resume``. Raises WrongState."""
        task.require({State.RUNNING}, "pause")
        task.ask(task.requests._replace(paused=True))
        self._lifecycle.move(task, State.PAUSED)

    def set_live(self, task: Task) -> None:
        """Apply changed values of ``max_threads``, ``nice`` and ``rate_max``.

        Raises TargetError if the worker cannot be told.
        """
        task.require_known()
        asked = self.table.asked_for(task)
        task.ask(task.requests._replace(rate=asked.rate) if task.worker else asked)
        errors = self.table.rebalance()
        if task in errors:
            raise errors[task]

    def forget(self, task: Task) -> None:
        """Remove a task that is not running, starting or queued. Raises WrongState, and TaskForgotten."""
        task.require_known()
        if task.state in CANCELLABLE:
            raise WrongState(f"task {task.name} is {task.state}: cancel it first")
        self._require_settled(task, "rmdir")
        self._lifecycle.drop(task)
