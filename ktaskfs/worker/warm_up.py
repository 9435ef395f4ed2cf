"""A warm-up start in a spare worker, while nobody waits for it.

A forked process shares its parent's memory, and copies each page at the first write; Python writes to an object even
when it reads it (its reference count). So the first start in a process takes two to three times as long as the second
(measured).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ktaskfs.host.becoming import warm_up_becoming
from ktaskfs.host.cgroups import own_groups
from ktaskfs.host.credentials import Identity, read_caller
from ktaskfs.host.group_limits import enter_groups
from ktaskfs.host.syscalls import page_size
from ktaskfs.progress import Requests, Shape, lay_out_page
from ktaskfs.worker import protocol
from ktaskfs.worker.run import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.host.cgroups import GroupMounts
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import SpecWord

_OPERATION: Final = "clear"
"""An operation that uses the code of operations on ranges of files."""


class WarmUp(NamedTuple):
    """A task on one page of memory: its descriptor, that of a shared page, and the request.

    The spawner owns them, and all workers use the same ones: nobody reads their data.
    """

    target: int
    page: int
    request: protocol.StartRequest

    @classmethod
    def open(cls) -> Self:
        """Raises OSError, and KtaskfsError."""
        target, page = os.memfd_create("warm-up"), os.memfd_create("warm-up page")
        os.ftruncate(target, page_size())
        lay_out_page(page, Shape(slots=1, nodes=1), Requests())
        caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
        caller.close()
        request = protocol.StartRequest(
            name="warm-up",
            operation=_OPERATION,
            parameters={},
            remaining=None,
            baseline=None,
            identity=caller.identity.to_fields(),
            load_bal_shift=2,
        )
        return cls(target, page, request)

    @property
    def descriptors(self) -> frozenset[int]:
        """All its descriptors."""
        return frozenset({self.target, self.page})

    def pass_on(self) -> None:
        """The spawner's part of a start: read, decode and send a request. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            protocol.send(ours, self.request, [self.page])
            data, fds, _ = protocol.receive(theirs)
            protocol.decode(data)
            for fd in fds:
                os.close(fd)

    def run(self, operations: Mapping[str, SpecWord], kernel: Kernel, cgroups: GroupMounts) -> None:
        """Do all reversible steps of a start, and close the descriptors. Raises the errors of a start."""
        parameters = {"path": f"/proc/{os.getpid()}/fd/{self.target}", "force": "1"}
        request = protocol.decode(protocol.encode(self.request._replace(parameters=parameters)))
        assert isinstance(request, protocol.StartRequest)
        identity = Identity.from_fields(request.identity)
        enter_groups(cgroups, list(own_groups().values()))  # in which it is
        warm_up_becoming(identity)
        try:
            self._do(request, operations[request.operation], kernel, cgroups)
        finally:
            for fd in self.descriptors:
                os.close(fd)
            os.chdir("/")

    def _do(self, request: protocol.StartRequest, word: SpecWord, kernel: Kernel, cgroups: GroupMounts) -> None:
        daemon, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with daemon:
            daemon.send(protocol.GO)
            Worker(request, word, kernel, [self.page, channel.detach()], cgroups).carry_out()
        if _threads() > 1:  # none if the start was refused; the signal would otherwise stay pending for the real task
            os.kill(os.getpid(), signal.SIGTERM)  # ends the thread that waits for the signal
        while _threads() > 1:  # only a single-threaded process can become its caller
            os.sched_yield()
        gc.collect()  # the rest of the worker still has a copy of the page's descriptor


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))
