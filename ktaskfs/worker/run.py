"""The life of one worker process: become the caller, prepare, wait for GO, work, report the outcome."""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import errno
import os
import resource
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import setproctitle

from ktaskfs import ktask
from ktaskfs.errors import NO_MORE_PROCESSES, Finding, KtaskfsError, NotSupported, TargetError, undo_after
from ktaskfs.host import syscalls
from ktaskfs.operations.base.parameters import parse_parameters
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import Phase, WorkerPage
from ktaskfs.span import Node
from ktaskfs.worker import protocol
from ktaskfs.worker.seal import become_caller, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.cgroups import GroupMounts
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.parameters import TaskParameters
    from ktaskfs.operations.base.plan import Plan

COMM_MAX = 15
"""Maximum characters of a thread's name (TASK_COMM_LEN less the NUL)."""
NICE_MIN, NICE_MAX = -20, 19
"""The bounds of setpriority(2)."""


class FinalReport(NamedTuple):
    """The outcome of the work for the page; ``number`` is an errno."""

    phase: Phase
    number: int = 0
    position: int = 0
    message: str = ""


class Worker:
    """One task in this process. ``run`` returns the exit status: 0, because the page or the channel has the outcome, or
    UNHEARD if the worker may not use the channel.
    """

    def __init__(
        self,
        request: protocol.StartRequest,
        word: SpecWord,
        kernel: Kernel,
        fds: Sequence[int],
        cgroups: GroupMounts,
    ) -> None:
        """``fds`` came with the request: the page, the channel, and the descriptors of the caller.

        ``cgroups`` are the mounts in which the worker enters the caller's groups.
        """
        page, channel, *self._callers = fds
        self._request = request
        self._word = word
        self._kernel = kernel._replace(abandoned=self._given_up)
        self._cgroups = cgroups
        self._page = WorkerPage(page)
        self._channel = socket.socket(fileno=channel)
        self._applying = threading.Lock()
        """Held while requests are read and applied, so that old requests never replace newer ones."""
        self._told_to_end = False

    def run(self) -> int:
        """Become the caller, prepare, wait for GO, work."""
        # Set the name now: after the change of user the process may not write its own files in /proc.
        setproctitle.setproctitle(f"ktask/{self._request.name}")
        if self._given_up():
            return 0
        try:
            self._kernel = become_caller(self._request.identity, self._callers, self._cgroups, self._kernel)
        except Exception as error:
            self._refuse(error)
            return 0
        if not self._may_answer():
            return protocol.UNHEARD
        self.carry_out()
        return 0

    def carry_out(self) -> None:
        """The life after this process has become the caller."""
        try:
            shared = parse_parameters(self._word.parameters, self._request.parameters)
            remaining, baseline = self._earlier(shared)
            operation, given = self._word.meant(shared)
            parameters = given if baseline is None else operation.settled(given, baseline)
            plan = operation.plan(self._kernel, parameters, remaining)
            if baseline is not None and baseline.tree != plan.tree and _nothing_done(remaining, baseline):
                plan.abort()
                baseline, parameters = None, given
                plan = operation.plan(self._kernel, parameters, None)
            if remaining is None:  # all is done again, in the range of the first start
                baseline = None
        except Exception as error:
            self._refuse(error)
            return
        try:
            if baseline is not None:
                baseline.require_tree(plan.tree)
            if parameters.plan:
                baseline = Baseline({}, end=0, size=0, total=0)
            baseline = baseline or operation.baseline(parameters, plan.nodes)._replace(tree=plan.tree)
            ready = protocol.Ready(
                sum(node.size for node in plan.nodes), baseline._asdict(), self._word.used_defaults(parameters)
            )
            job = self._make_job(plan)
            # Leave the caller's directory, which would block an unmount: everything is open, and all paths are
            # absolute.
            os.fchdir(self._kernel.proc)
        except Exception as error:
            undo_after(error, plan.abort)
            self._refuse(error)
            return
        if not self._may_begin(ready):
            plan.abort()
            return
        self._channel.close()
        self._work(plan, job)

    def _refuse(self, error: Exception) -> None:
        number, message = explain(error)
        with contextlib.suppress(ConnectionError):  # the daemon died
            protocol.send(self._channel, protocol.WorkerRefused(number, message[: protocol.WORDS_MAX]))

    def _given_up(self) -> bool:
        """Whether the daemon gave up the start: another task may use the target now."""
        if self._channel.fileno() < 0:  # the work has begun
            return False
        try:
            return self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def _may_answer(self) -> bool:
        """Whether the caller's label lets this process use the channel."""
        try:
            self._channel.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        except PermissionError:
            return False
        return True

    def _may_begin(self, ready: protocol.Ready) -> bool:
        """Report ready, and wait for GO; False if the daemon gave up the start, or died."""
        try:
            protocol.send(self._channel, ready)
            return self._channel.recv(1) == protocol.GO
        except ConnectionError:
            return False

    def _earlier(self, parameters: TaskParameters) -> tuple[list[Node] | None, Baseline | None]:
        """The rest of an earlier run, and its baseline. Raises TargetError if its files or its process are gone.

        If that run did nothing, the task restarts instead, even with other files. A baseline without ``remaining`` says
        that nothing of the run counts any more: then the task restarts with the same files.
        """
        remaining = None if self._request.remaining is None else [Node(*each) for each in self._request.remaining]
        if self._request.baseline is None:
            return remaining, None
        baseline = Baseline.from_fields(self._request.baseline)
        baseline.require_processes(parameters)
        try:
            baseline.require_files(parameters)
        except TargetError:
            if not _nothing_done(remaining, baseline):
                raise
            return None, None
        return remaining, baseline

    def _make_job(self, plan: Plan) -> ktask.Job:
        """The job, and its control thread: at the limit of threads this fails before any work."""
        if len(plan.nodes) > self._page.shape.nodes:
            raise NotSupported(f"{len(plan.nodes)} ranges do not fit the shared page")
        control = dataclasses.replace(
            plan.control,
            # The daemon shares the CPUs among all tasks by the requested number of threads.
            cpu_percent=100,
            load_bal_shift=self._request.load_bal_shift,
            monitor=self._page,
            thread_start=self._name_thread,
            machine=ktask.LinuxMachine(self._kernel.sys),  # the caller's root may have any files in /sys
        )
        job = ktask.Job(plan.nodes, control)
        try:
            _thread.start_new_thread(self._listen, (job,))  # threading.Thread would wait until the new thread runs
        except RuntimeError as error:
            raise TargetError(f"cannot start a thread: {NO_MORE_PROCESSES}", errno=errno.EAGAIN) from error
        return job

    def _work(self, plan: Plan, job: ktask.Job) -> None:
        self._apply(job)
        nodes = [Node(_ordinal(node.start), node.size, node.nid) for node in plan.nodes]
        self._page.begin(nodes, sum(node.size for node in nodes))
        ending, outcome = self._run_job(job)
        result = ""
        try:
            result = plan.finish(outcome)
        except Finding as finding:
            result = finding.result
            if ending.phase is Phase.DONE:
                ending = FinalReport(Phase.FAILED, finding.errno, finding.position, explain(finding)[1])
        except Exception as error:
            number, message = explain(error)
            if ending.phase is Phase.FAILED:
                ending = ending._replace(message=f"{ending.message}; at the end: {message}")
            else:
                ending = FinalReport(Phase.FAILED, number, message=message)
        if self._told_to_end and ending.phase is Phase.CANCELLED:
            _die_of_sigterm()
        with contextlib.suppress(OSError):  # the label forbids it, and a result that does not fit is an error
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # the caller's limit is not for the daemon's page
        self._page.end(
            ending.phase, number=ending.number, position=ending.position, message=ending.message, result=result
        )

    def _run_job(self, job: ktask.Job) -> tuple[FinalReport, ktask.Outcome]:
        try:
            outcome = job.run()
        except ktask.TaskError as failure:
            number, message = explain(failure.error)
            return FinalReport(Phase.FAILED, number, _ordinal(failure.position), message), failure.outcome
        return FinalReport(Phase.CANCELLED if outcome.cancelled else Phase.DONE), outcome

    def _listen(self, job: ktask.Job) -> None:
        """The control thread: sleeps in sigwait(3) until the daemon sends SIGUSR1, or anybody SIGTERM.

        The daemon never sends SIGTERM, but a service manager does when the caller's unit stops, and a user may with
        kill(1). The task is interrupted after the current chunks, without undo, and can be resumed.
        """
        while signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGUSR1:
            self._apply(job)
        with self._applying:
            self._told_to_end = not self._page.requests().cancel
            job.cancel(undo=not self._told_to_end)

    def _apply(self, job: ktask.Job) -> None:
        """Apply the requests, clamped to valid values."""
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


def _nothing_done(remaining: Sequence[Node] | None, baseline: Baseline) -> bool:
    return remaining is not None and sum(each.size for each in remaining) >= baseline.total


def _die_of_sigterm() -> None:
    """End as by SIGTERM without a handler. The page then has no outcome, and the daemon marks the task as
    interrupted."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def _ordinal(position: Any) -> int:
    """A position as a number for the page (``__index__``), or 0 if it is not a number."""
    return position.__index__() if hasattr(position, "__index__") else 0


def explain(error: BaseException) -> tuple[int, str]:
    """The errno and message, with notes, for an exception from a chunk; unexpected errors are also logged."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, KtaskfsError):
        return error.errno, error.message + notes
    if isinstance(error, OSError) and error.errno:
        return error.errno, os.strerror(error.errno) + notes
    report(error)
    return errno.EIO, f"unexpected {type(error).__name__}: {error}{notes}"
