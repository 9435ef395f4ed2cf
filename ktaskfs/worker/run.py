"""The life of one worker process: become the caller, prepare, wait for GO, work, say how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import setproctitle

from ktaskfs import ktask
from ktaskfs.errors import Finding, KtaskfsError, NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.operations.base.parameters import parse_parameters
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import Phase, WorkerPage
from ktaskfs.span import Node
from ktaskfs.worker import protocol
from ktaskfs.worker.seal import become_caller, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import Operation, Plan
    from ktaskfs.operations.base.parameters import TaskParameters

COMM_MAX = 15
"""Characters that the kernel keeps of a thread's name (TASK_COMM_LEN less the NUL)."""
NICE_MIN, NICE_MAX = -20, 19
"""The bounds of setpriority(2)."""


@dataclass(frozen=True)
class FinalReport:
    """How the work ended, as the page reports it; ``number`` is an errno."""

    phase: Phase
    number: int = 0
    position: int = 0
    message: str = ""


class Worker:
    """One task in this process. ``run`` returns the exit status: 0 whenever the page or the channel tells the story."""

    def __init__(
        self, request: protocol.StartRequest, operation: Operation[Any], kernel: Kernel, fds: Sequence[int]
    ) -> None:
        """``fds`` are those beside the request: the page, the channel, and what the caller is known by."""
        page, channel, *self._callers = fds
        self._request = request
        self._operation = operation
        self._kernel = kernel
        self._page = WorkerPage(page)
        self._channel = socket.socket(fileno=channel)
        self._applying = threading.Lock()
        """Held from the reading of the requests to the end of their use, so that older ones never come last."""

    def run(self) -> int:
        """Become the caller, prepare, wait for GO, work."""
        # By its name while it may: after the change of user its files in /proc are not its own.
        setproctitle.setproctitle(f"ktask/{self._request.name}")
        if self._given_up():
            return 0
        try:
            become_caller(self._request.identity, self._callers)
            parameters = parse_parameters(self._operation.parameters, self._request.parameters)
            remaining, baseline = self._earlier(parameters)
            if baseline is not None:
                parameters = self._operation.settled(parameters, baseline)
            plan = self._operation.plan(self._kernel, parameters, remaining)
        except Exception as error:
            self._refuse(error)
            return 0
        try:
            baseline = baseline or self._operation.baseline(parameters, plan.nodes)
            job = self._make_job(plan)
        except Exception as error:
            plan.abort()
            self._refuse(error)
            return 0
        if not self._may_begin(sum(node.size for node in plan.nodes), baseline):
            plan.abort()
            return 0
        self._channel.close()
        self._work(plan, job)
        return 0

    def _refuse(self, error: Exception) -> None:
        number, message = _explain(error)
        with contextlib.suppress(ConnectionError):  # the daemon died, and nobody wants to know
            protocol.send(self._channel, protocol.Refused(number, message[: protocol.WORDS_MAX]))

    def _given_up(self) -> bool:
        """Whether the daemon gave the start up before this process was: its target may be another's by now."""
        try:
            return self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def _may_begin(self, total: int, baseline: Baseline) -> bool:
        """Say that all is ready, and wait for the daemon's word; False if it gave the start up, or died."""
        try:
            protocol.send(self._channel, protocol.Ready(total, dataclasses.asdict(baseline)))
            return self._channel.recv(1) == protocol.GO
        except ConnectionError:
            return False

    def _earlier(self, parameters: TaskParameters) -> tuple[list[Node] | None, Baseline | None]:
        """What an earlier run left to do, and rested on. Raises TargetError if what it has done is no longer there.

        Where nothing was done yet there is nothing to lose: the task then begins anew.
        """
        if self._request.remaining is None:
            return None, None
        remaining = [Node(*each) for each in self._request.remaining]
        if self._request.baseline is None:
            return remaining, None
        baseline = Baseline.from_fields(self._request.baseline)
        try:
            baseline.require(parameters)
        except TargetError:
            if sum(each.size for each in remaining) < baseline.total:
                raise
            return None, None
        return remaining, baseline

    def _make_job(self, plan: Plan) -> ktask.Job:
        """The job, and the thread that will listen for wishes: at the limit of threads it fails before any work."""
        if len(plan.nodes) > self._page.shape.nodes:
            raise NotSupported(f"{len(plan.nodes)} ranges are more than the shared page has room for")
        control = dataclasses.replace(
            plan.control,
            # The daemon shares the CPUs out among all tasks, through the number of threads that it asks for.
            cpu_percent=100,
            load_bal_shift=self._request.load_bal_shift,
            monitor=self._page,
            thread_start=self._name_thread,
        )
        job = ktask.Job(plan.nodes, control)
        try:
            threading.Thread(target=self._listen, args=(job,), daemon=True).start()
        except RuntimeError as error:
            raise TargetError(f"no thread can be started: {error}", errno=errno.EAGAIN) from error
        return job

    def _work(self, plan: Plan, job: ktask.Job) -> None:
        self._apply(job)
        nodes = [Node(_ordinal(node.start), node.size, node.nid) for node in plan.nodes]
        self._page.begin(nodes, sum(node.size for node in nodes))
        ending = self._run_job(job)
        result = ""
        try:
            result = plan.finish()
        except Exception as error:
            number, message = _explain(error)
            position = 0
            if isinstance(error, Finding):
                position, result = error.position, error.result
            if ending.phase is Phase.DONE:
                ending = FinalReport(Phase.FAILED, number, position, message)
        self._page.end(
            ending.phase, number=ending.number, position=ending.position, message=ending.message, result=result
        )

    def _run_job(self, job: ktask.Job) -> FinalReport:
        try:
            outcome = job.run()
        except ktask.TaskError as failure:
            number, message = _explain(failure.error)
            return FinalReport(Phase.FAILED, number, _ordinal(failure.position), message)
        return FinalReport(Phase.CANCELLED if outcome.cancelled else Phase.DONE)

    def _listen(self, job: ktask.Job) -> None:
        """The control thread: sleeps in sigwait(3) until the daemon, or a person with kill(1), has a wish."""
        while True:
            if signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGTERM:
                job.cancel()
            else:
                self._apply(job)

    def _apply(self, job: ktask.Job) -> None:
        """Put what the daemon asks in force, with what could not be asked made possible."""
        slots = self._page.shape.slots
        with self._applying:
            requests = self._page.requests()
            job.set_max_threads(min(requests.threads or slots, slots))
            job.set_rate(requests.rate or None)
            job.set_nice(min(max(requests.nice, NICE_MIN), NICE_MAX))
            if requests.cancel:
                job.cancel()
            elif requests.paused:
                job.pause()
            else:
                job.resume()

    def _name_thread(self, slot: int) -> None:
        suffix = f":{slot}"
        syscalls.set_thread_name(f"ktask/{self._request.name}"[: COMM_MAX - len(suffix)] + suffix)


def _ordinal(position: Any) -> int:
    """A position as the page has it: its number (``__index__``), or 0 for one that has none."""
    return position.__index__() if hasattr(position, "__index__") else 0


def _explain(error: BaseException) -> tuple[int, str]:
    """The errno, and the sentence with its notes, of whatever a chunk raised; the unforeseen goes to the log too."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, KtaskfsError):
        return error.errno, error.message + notes
    if isinstance(error, OSError) and error.errno:
        return error.errno, os.strerror(error.errno) + notes
    report(error)
    return errno.EIO, f"unforeseen {type(error).__name__}: {error}{notes}"
