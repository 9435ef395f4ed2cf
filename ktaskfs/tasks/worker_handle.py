"""The daemon's hold on the process that runs a task."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotPermitted

if TYPE_CHECKING:
    from ktaskfs.host.group_limits import OomKills
    from ktaskfs.progress import Shape

_BY_A_MANAGER: Final = ", as when systemd stops a unit: resume does the rest"


@dataclass(frozen=True)
class WorkerHandle:
    """The process that runs a task: known by its pidfd, and by pid and start time (ticks) to a later daemon.

    ``page`` is a descriptor of the shared page. ``ticket`` is the launcher's number for the worker, None if an earlier
    daemon launched it. ``oom_kills`` tells whether the kernel killed a process of its control group, None if not known.
    ``begun``: it got its GO, at which it reads its requests.
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
        """Have the worker read its requests. Nothing happens if it has ended, or not begun.

        Raises NotPermitted, as ``signal``.
        """
        if self.begun:
            self.signal(signal.SIGUSR1)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal through the pidfd. Nothing happens if the worker has ended.

        Raises NotPermitted (EACCES) if the label that the worker has lets it have none from us.
        """
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            text = f"the label of process {self.pid} keeps it from getting {number.name} of this daemon"
            raise NotPermitted(text, errno=errno.EACCES) from error

    def close(self) -> None:
        """Close the descriptors; the process goes on."""
        os.close(self.pidfd)
        os.close(self.page)

    def ending_text(self, status: int | None) -> str:
        """Why it ended, as the end of a sentence: ``status`` is that of waitpid(2), None if nobody knows it."""
        text = _ending_text(status)
        if status in (None, signal.SIGKILL) and self.oom_kills is not None and self.oom_kills.happened:
            # A guess: another process of the group may have been killed so, and somebody then killed this one.
            text += f": killed by the memory limit of your control group {self.oom_kills.group}, or of one above it"
        return text


def _ending_text(status: int | None) -> str:
    """The status that waitpid(2) gave, as the end of a sentence; empty for None."""
    if status is None:
        return ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in {each.value for each in signal.Signals}
        text = f", killed by signal {number}" + (f" ({signal.Signals(number).name})" if known else "")
        return text + (_BY_A_MANAGER if number == signal.SIGTERM else "")
    return f", with exit status {os.WEXITSTATUS(status)}"
