"""The daemon's handle of the process that runs a task."""

from __future__ import annotations

import errno
import os
import select
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.host.process import is_stopped, thread_cpu

if TYPE_CHECKING:
    from ktaskfs.host.group_limits import OomKills
    from ktaskfs.progress import Shape

_BY_A_MANAGER: Final = ", as when systemd stops a unit: resume does the rest"


class WorkerHandle(NamedTuple):
    """The process that runs a task, identified by its pidfd, and by pid and start time (ticks, 0 if unknown) for a
    later daemon.

    ``page`` is a descriptor of the shared page. ``ticket`` is the launcher's number for the worker, None if an earlier
    daemon launched it. ``oom_kills`` tells whether the kernel killed a process of its control group, None if unknown.
    ``begun``: it got GO, and then reads its requests.
    """

    pid: int
    start_time: int
    pidfd: int
    page: int
    shape: Shape
    ticket: int | None = None
    oom_kills: OomKills | None = None
    begun: bool = True

    def wake(self) -> None:
        """Make the worker read its requests. Does nothing if it has ended, or not begun.

        Raises NotPermitted like ``signal``.
        """
        if self.begun:
            self.signal(signal.SIGUSR1)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal through the pidfd. Does nothing if the worker has ended.

        Raises NotPermitted (EACCES) if the worker's label forbids signals of this process.
        """
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            text = f"the label of process {self.pid} keeps it from getting {number.name} of this daemon"
            raise NotPermitted(text, errno=errno.EACCES) from error

    def is_stopped(self) -> bool:
        """Whether a signal or a tracer has stopped it. Raises OSError."""
        return not self.ended and is_stopped(self.pid)

    def cpu_of(self, tid: int) -> int | None:
        """The CPU that its thread ran on last; None if there is no such thread. Raises OSError."""
        return None if self.ended else thread_cpu(self.pid, tid)

    @property
    def ended(self) -> bool:
        """Whether it has ended. Its number may then be that of a process in execve(2), and whoever reads the stat of
        that one may wait for ever."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the descriptors; the process goes on."""
        os.close(self.pidfd)
        os.close(self.page)

    def ending_text(self, status: int | None) -> str:
        """The reason of its end, as the end of a sentence: ``status`` is from waitpid(2), None if unknown."""
        text = _ending_text(status)
        if status in (None, signal.SIGKILL) and self.oom_kills is not None and self.oom_kills.happened:
            # A guess: the OOM killer may have killed another process of the group, and somebody else this one.
            text += f": killed by the memory limit of your control group {self.oom_kills.group}, or of one above it"
        return text


def _ending_text(status: int | None) -> str:
    """The status of waitpid(2), as the end of a sentence; empty for None."""
    if status is None:
        return ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in {each.value for each in signal.Signals}
        text = f", killed by signal {number}" + (f" ({signal.Signals(number).name})" if known else "")
        return text + (_BY_A_MANAGER if number == signal.SIGTERM else "")
    return f", with exit status {os.WEXITSTATUS(status)}"
