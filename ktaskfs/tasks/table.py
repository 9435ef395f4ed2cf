"""All tasks: their names, owners, order, and common limits."""

from __future__ import annotations

import itertools
import logging
import resource
from collections import Counter
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, NameTaken, NoSuchTask, TooManyTasks
from ktaskfs.host.topology import usable_cpus
from ktaskfs.operations.base.parameters import MAX
from ktaskfs.progress import Requests
from ktaskfs.quota import room
from ktaskfs.tasks.retention import EndedTasks
from ktaskfs.tasks.spec import check_name
from ktaskfs.tasks.task import ACTIVE, ENDED, State, Task
from ktaskfs.tasks.thread_sharing import Claim, deal_threads, helper_limit
from ktaskfs.tasks.thread_use import ThreadUse
from ktaskfs.units import parse_int

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set

    from ktaskfs.tasks.tunables import Settings

LOG: Final = logging.getLogger(__name__)
RESERVED: Final = frozenset({"control"})
USERS_MAX: Final = 4096
"""Maximum users whose last tasks are remembered."""
LAST_NAMES_MAX: Final = 8192
"""Maximum names remembered of each."""
UNFINISHED_MAX: Final = 1024
"""Maximum unfinished tasks of all users; each is a process, and takes up to 12 KiB here."""
DESCRIPTORS_PART: Final = 8
"""Descriptors of this process for each unfinished task: a running one takes two, a starting one six or seven. Each is
also a process of some 5 MiB."""

QUEUED_PART: Final = 2
"""Divisor for the maximum of queued tasks: the caller of one in a container takes three descriptors."""


class TaskTable:
    """The tasks by name, and in order of creation. Only the trio thread touches it.

    ``observers`` are called with a task after each change of its state, and after it was added, set aside, put back or
    dropped. It is not in the table while it is set aside, and after it was dropped; then it is also ``forgotten``.
    """

    def __init__(self, settings: Settings, *, private_names: bool = False, descriptors: int | None = None) -> None:
        """``private_names``: generated names reveal nothing about other users' tasks (hidepid=2).

        ``descriptors``: the limit of this process, RLIMIT_NOFILE if None.
        """
        if descriptors is None:
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(descriptors // DESCRIPTORS_PART, UNFINISHED_MAX)
        self.settings = settings
        self.observers: list[Callable[[Task], None]] = []
        self.last_task: dict[int, list[str]] = {}
        """For each uid, the names of the tasks that its last write created; see ``note_last``."""
        self._last_names = 0
        self._tasks: dict[str, Task] = {}
        self._unfinished: Counter[int] = Counter()
        """By uid, tasks that have not ended, and are not QUEUED."""
        self._queued: Counter[int] = Counter()
        """By uid, tasks that are QUEUED."""
        self._ended = EndedTasks()
        self._active: dict[Task, None] = {}
        self._numbers = itertools.count(1)
        self._private_names = private_names
        self._own_numbers: dict[int, int] = {}
        """Number of private names of each of the USERS_MAX users who wrote last."""
        self.short_of_threads = False
        """Whether a task has fewer threads than it wants."""
        self.shortage_observers: list[Callable[[], None]] = []
        """Called after dealing threads, if a task has fewer than it wants."""
        self.thread_use = ThreadUse()
        settings.observers.append(self.rebalance)

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, name: str) -> Task | None:
        """The task of that name, or None."""
        return self._tasks.get(name)

    def __contains__(self, task: object) -> bool:
        return isinstance(task, Task) and self._tasks.get(task.name) is task

    def require(self, name: str) -> Task:
        """The task of that name; raises NoSuchTask."""
        task = self._tasks.get(name)
        if task is None:
            raise NoSuchTask(f"there is no task {name!a}")
        return task

    def number_from(self, first: int) -> None:
        """Number new tasks from ``first`` on, because files of an earlier daemon use lower numbers."""
        self._numbers = itertools.count(first)

    def next_number(self) -> int:
        return next(self._numbers)

    def check_room(self, uid: int, wanted: int) -> None:
        """Raise TooManyTasks unless ``uid`` may have ``wanted`` more unfinished tasks. None more are never too many."""
        if not wanted:
            return
        limit, own = self.settings["max_tasks"], self._unfinished[uid]
        if own + wanted > limit:
            raise TooManyTasks(f"you have {own} unfinished tasks; the limit is {limit} (debug/ktask_max_tasks)")
        used = self._unfinished.total()
        if used + wanted > room(self._most, uid, own + wanted):
            all_users = f"all users together {used} of {self._most}"
            raise TooManyTasks(f"you have {own} unfinished tasks, {all_users}: the rest is for others")

    def has_room(self, uid: int, wanted: int) -> bool:
        """Whether ``check_room`` would pass."""
        try:
            self.check_room(uid, wanted)
        except TooManyTasks:
            return False
        return True

    def check_queue(self, uid: int, wanted: int) -> None:
        """As ``check_room``, for QUEUED tasks."""
        if not wanted:
            return
        limit, own = self.settings["max_queued"], self._queued[uid]
        if own + wanted > limit:
            raise TooManyTasks(f"you have {own} queued tasks; the limit is {limit} (debug/ktask_max_queued)")
        used, most = self._queued.total(), self._most // QUEUED_PART
        if used + wanted > room(most, uid, own + wanted):
            all_users = f"all users together {used} of {most}"
            raise TooManyTasks(f"you have {own} queued tasks, {all_users}: the rest is for others")

    def replaceable(self, uid: int, named: Iterable[tuple[str, bool]]) -> list[Task]:
        """The tasks of ``uid`` whose names are free for new ones.

        ``named`` has the names, and whether any ended task may be replaced; a planned one always may, as the work under
        the same name comes after the plan.
        """
        found = ((self._tasks.get(name), ENDED if replace else {State.PLANNED}) for name, replace in named)
        return [task for task, states in found if task is not None and task.uid == uid and task.state in states]

    def has_worked(self, uid: int, name: str) -> bool:
        """Whether an ended task of ``uid`` has that name, other than a planned one."""
        task = self._tasks.get(name)
        return task is not None and task.uid == uid and task.state in ENDED - {State.PLANNED}

    def set_aside(self, task: Task) -> None:
        """Free the name of an ended task; then ``put_back`` or ``drop`` it."""
        del self._tasks[task.name]
        self._tell(task)

    def put_back(self, task: Task) -> None:
        """Undo ``set_aside``."""
        if not task.forgotten:
            self._tasks[task.name] = task
            self._tell(task)

    def check_names(self, names: Sequence[str], replaced: Collection[Task] = ()) -> None:
        """Raise NameTaken for a name used by a task outside ``replaced``, or twice in ``names``."""
        seen: set[str] = set()
        for name in names:
            taken = name in self._tasks and self._tasks[name] not in replaced
            if name in RESERVED:
                raise NameTaken(f"no task can have the name {name}")
            if name in seen:
                raise NameTaken(f"two tasks of one write have the name {name}")
            if taken:
                raise NameTaken(f"a task {name} exists")
            seen.add(check_name(name))

    def free_name(self, operation: str, uid: int, number: int, taken: Set[str] = frozenset()) -> str:
        """``OPERATION-N``: N is the task's number, or the next number whose name is free and not ``taken``.

        A private name is ``OPERATION-UID-N``, and N counts the user's own tasks.
        """
        stem = operation
        if self._private_names:
            stem, number = f"{operation}-{uid}", self._own_number(uid)
        candidates = (f"{stem}-{each}" for each in itertools.count(number))
        return next(name for name in candidates if name not in self._tasks and name not in taken)

    def _own_number(self, uid: int) -> int:
        number = self._own_numbers[uid] = self._own_numbers.pop(uid, 0) + 1
        if len(self._own_numbers) > USERS_MAX:
            del self._own_numbers[next(iter(self._own_numbers))]
        return number

    def note_last(self, uid: int, names: list[str]) -> None:
        """Remember the tasks of the last write of ``uid``, for the users who wrote last."""
        self._last_names += len(names) - len(self.last_task.pop(uid, ()))
        self.last_task[uid] = names
        while len(self.last_task) > USERS_MAX or (self._last_names > LAST_NAMES_MAX and len(self.last_task) > 1):
            self._last_names -= len(self.last_task.pop(next(iter(self.last_task))))

    def add(self, task: Task) -> None:
        """Add a task to the table, under a name that passed ``check_names``."""
        self._tasks[task.name] = task
        task.requests = self.asked_for(task)
        self._place(task)
        self._tell(task)

    def drop(self, *tasks: Task) -> None:
        """Remove ``tasks`` permanently. Their open files fail afterwards."""
        active = any(task in self._active for task in tasks)
        for task in tasks:
            if task in self:
                del self._tasks[task.name]
            self._displace(task)
            task.forgotten = True
            self._tell(task)
            # Open files and directories may keep the task for long, but nobody can read its result any more.
            task.history = task.history._replace(result=b"")
        if active:
            self.rebalance()

    def move(self, task: Task, state: State) -> None:
        """Change the state of a task, update counts and threads, and call the observers. Raises TaskForgotten."""
        self.move_all([task], state)

    def move_all(self, tasks: Sequence[Task], state: State) -> None:
        """Like ``move`` for each of ``tasks``, but deal threads at most once: that visits every running task."""
        active = state in ACTIVE or any(task in self._active for task in tasks)
        for task in tasks:
            task.require_known()
            self._displace(task)
            task.state = state
            self._place(task)
            self._tell(task)
        if active:
            self.rebalance()

    def overdue(self) -> list[Task]:
        """The ended tasks beyond ``debug/ktask_keep_finished``; see EndedTasks for their order."""
        return self._ended.overdue(self.settings["keep_finished"])

    def of_user(self, uid: int) -> list[Task]:
        """The tasks of ``uid`` that have not ended."""
        return [task for task in self._tasks.values() if task.uid == uid and task.state not in ENDED]

    def rebalance(self) -> dict[Task, KtaskfsError]:
        """Deal the helper threads among the running tasks, and apply other live limits.

        Returns the errors of workers that could not be told, which it also logs.
        """
        cpus = frozenset(usable_cpus())
        wanted: dict[Task, int] = {}
        claims: dict[Task, Claim] = {}
        for task in self._active:
            allowed = cpus if task.worker is None else frozenset(usable_cpus(task.worker.pid)) & cpus or cpus
            wanted[task] = self._threads_wanted(task, len(allowed))
            usable = self.thread_use.usable(task) or wanted[task]
            claims[task] = Claim(task.uid, min(wanted[task], usable), allowed)
        dealt = deal_threads(claims, cpus, self.settings["cpu_percent"])
        self.short_of_threads = any(dealt[task] < threads for task, threads in wanted.items())
        if self.short_of_threads:
            for observer in self.shortage_observers:
                observer()
        errors: dict[Task, KtaskfsError] = {}
        for task, threads in dealt.items():
            try:
                task.ask(task.requests._replace(threads=threads, nice=self.nice_of(task)))
            except KtaskfsError as error:  # an error of one worker's page must not affect the others
                LOG.error("%s", error.message)
                errors[task] = error
        return errors

    def running(self) -> list[Task]:
        """The tasks that are running."""
        return [task for task in self._active if task.state is State.RUNNING]

    def nice_of(self, task: Task) -> int:
        """The nice value for the helpers of ``task``."""
        text = task.texts.get("nice")
        return self.settings["nice"] if text is None else parse_int(text)

    def asked_for(self, task: Task) -> Requests:
        """The requests for a task before its worker begins, by its parameters."""
        threads = task.texts.get("max_threads", MAX)
        return Requests(
            threads=0 if threads == MAX else parse_int(threads), rate=task.rate_limit(), nice=self.nice_of(task)
        )

    def _threads_wanted(self, task: Task, cpus: int) -> int:
        if task.state is not State.RUNNING:  # other tasks may use its helpers
            return 1
        text = task.texts.get("max_threads", MAX)
        own = cpus if text == MAX else parse_int(text)
        return min(own, cpus, self.settings["max_threads"], 1 + helper_limit(cpus, self.settings["cpu_percent"]))

    def _place(self, task: Task) -> None:
        if task.state in ENDED:
            self._ended.add(task)
        else:
            self._counter(task)[task.uid] += 1
        if task.state in ACTIVE:
            self._active[task] = None

    def _displace(self, task: Task) -> None:
        self._active.pop(task, None)
        if not self._ended.remove(task):
            counter = self._counter(task)
            counter[task.uid] -= 1
            if not counter[task.uid]:
                del counter[task.uid]

    def _counter(self, task: Task) -> Counter[int]:
        return self._queued if task.state is State.QUEUED else self._unfinished

    def _tell(self, task: Task) -> None:
        for observer in self.observers:
            observer(task)
