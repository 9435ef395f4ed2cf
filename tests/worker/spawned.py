"""A real spawner in a separate process, which the tests talk to like a daemon."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktaskfs.host.credentials import CallerProcess, read_caller
from ktaskfs.progress import Requests, Shape, Snapshot, create_page, read_snapshot, write_requests
from ktaskfs.worker import protocol
from tests.support.daemon import ROOT, interpreter
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.users import User

SHAPE = Shape(slots=2, nodes=8)
MIB = 1 << 20
PAUSED = Requests(paused=True)


def me() -> CallerProcess:
    """This process as a caller."""
    return read_caller(os.getpid(), os.geteuid(), os.getegid())


@dataclass
class Spawned:
    """A requested worker; without one ``pidfd`` is -1 and ``forked.errno`` has the reason."""

    forked: protocol.Forked
    pidfd: int
    channel: socket.socket
    page: int

    def answer(self) -> protocol.Message | None:
        """Its next message on the channel; None at the end of the channel."""
        data = self.channel.recv(protocol.MESSAGE_MAX)
        return protocol.decode(data) if data else None

    def go(self) -> None:
        """Let it begin."""
        assert isinstance(self.answer(), protocol.Ready)
        self.channel.send(protocol.GO)

    def ask(self, requests: Requests) -> None:
        """Write wishes and wake it."""
        write_requests(self.page, requests)
        signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def snapshot(self) -> Snapshot:
        """The snapshot of its page."""
        return read_snapshot(self.page, SHAPE)

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether the process has ended, or does so within ``seconds``."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def proc(self, name: str) -> Path:
        """``/proc/PID/name``."""
        return Path("/proc", str(self.forked.pid), name)


class Spawner:
    """``ktaskfs.worker.spawner`` as a subprocess; ``close`` ends it and every worker."""

    def __init__(self, area: Path, *, user: User | None = None, root: Path = ROOT) -> None:
        self.area = area
        self.log = area / "log"
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE)
        for end in (self.sock, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, protocol.MESSAGE_MAX)
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    interpreter(root),
                    "-m",
                    "ktaskfs.worker.spawner",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[theirs.fileno()],
                cwd=root,
                user=None if user is None else user.uid,
                group=None if user is None else user.gid,
            )
        self.spawned: list[Spawned] = []

    def request(self, operation: str, parameters: Mapping[str, str], **changes: Any) -> protocol.StartRequest:
        """A request with sensible values where ``changes`` does not say otherwise."""
        ticket = len(self.spawned) + 1
        caller: CallerProcess = changes.pop("caller", None) or me()
        caller.close()
        identity = caller.identity.to_fields()
        fields = {
            "name": f"t{ticket}",
            "remaining": None,
            "baseline": None,
            "load_bal_shift": 2,
            "ticket": ticket,
            "identity": identity,
        }
        return protocol.StartRequest(operation=operation, parameters=parameters, **{**fields, **changes})

    def spawn(
        self,
        operation: str,
        path: Path | None,
        *,
        requests: Requests | None = None,
        name: str | None = None,
        **more: Any,
    ) -> Spawned:
        """Ask for a worker and take the answer; ``more`` are parameters."""
        parameters = {key: str(value) for key, value in more.items()} | ({} if path is None else {"path": str(path)})
        request = self.request(operation, parameters, **({} if name is None else {"name": name}))
        return self.send(request, requests or Requests())

    def send(self, request: protocol.StartRequest, requests: Requests, caller: CallerProcess | None = None) -> Spawned:
        """Send a request with the descriptors of ``caller`` (this process), closed then, and take the answer."""
        page = create_page(str(self.area / f"page{request.ticket}"), SHAPE, requests)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE)
        caller = caller or me()
        with theirs:
            protocol.send(self.sock, request, [page, theirs.fileno(), *caller.descriptors])
        caller.close()
        forked, fds = self.hear()
        assert isinstance(forked, protocol.Forked)
        assert forked.ticket == request.ticket
        spawned = Spawned(forked, fds[0] if fds else -1, ours, page)
        self.spawned.append(spawned)
        return spawned

    def hear(self) -> tuple[protocol.Message, list[int]]:
        """The spawner's next message."""
        data, fds, _, _ = socket.recv_fds(self.sock, protocol.MESSAGE_MAX, protocol.FDS_MAX)
        assert data, self.log.read_text()
        return protocol.decode(data), fds

    def exited(self, spawned: Spawned) -> int:
        """The status of the end of ``spawned``, which must be the spawner's next message."""
        message, _ = self.hear()
        assert isinstance(message, protocol.Exited)
        assert message.ticket == spawned.forked.ticket
        assert spawned.has_ended()
        return message.status

    @contextlib.contextmanager
    def limited(self, which: int, soft: int) -> Any:
        """Set another soft limit of the spawner's process during the block."""
        before = resource.prlimit(self.process.pid, which)
        resource.prlimit(self.process.pid, which, (soft, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, which, before)

    def close(self) -> None:
        """End everything that was started."""
        self.sock.close()
        for each in self.spawned:
            each.channel.close()
            os.close(each.page)
            if each.pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)
                os.close(each.pidfd)
        self.process.wait(DEADLINE)
