"""Connections to hosts through ClusterShell: one command on all of them, batch by batch."""

from __future__ import annotations

import logging
import re
import resource
import shlex
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ClusterShell.Event import EventHandler
from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.Propagation import RouteResolvingError
from ClusterShell.Task import task_self
from ClusterShell.Topology import TopologyError
from ClusterShell.Worker.Worker import WorkerError

from ktaskfs.cli.arguments import FANOUT
from ktaskfs.cli.fleet.workers import GatheringEpoll, LocalWorker, SshWorker
from ktaskfs.errors import InvalidValue, WrongCommandLine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

TICK: Final = 0.25
"""Seconds between two calls of ``HostObserver.tick``."""
FILLING: Final = 0.1
"""Seconds to connect to more hosts before the output of connected ones is read."""
GATHERING: Final = 1e-4
"""Seconds for each connected host that output may wait, so that it is read with that of other hosts."""
CONNECT_TIMEOUT: Final = 5
"""Seconds to wait for a host that does not answer."""
SSH_OPTIONS: Final = "-oServerAliveInterval=5 -oServerAliveCountMax=2"
"""They come after the options of the user: ssh(1) takes the first value of an option."""
APART: Final = "setsid"
"""Runs each connection in its own session, so that only this program gets the terminal's ^C."""
DESCRIPTORS: Final = 4
"""Descriptors for each new connection."""
OWN_DESCRIPTORS: Final = 64
HOSTS_MOST: Final = 1 << 16
"""Hosts of one command."""
RANGE: Final = re.compile(r"[\[,](\d{1,4000})-(\d{1,4000})(?=[],/])")


class HostObserver(Protocol):
    """Observes events of hosts."""

    def connecting(self, host: str) -> None:
        """A connection is being made."""

    def said(self, host: str, line: bytes) -> None:
        """The command has written a line. The host may be a gateway."""

    def ended(self, host: str, status: int | None) -> bool:
        """The command has ended; returns whether to connect to further hosts."""

    def tick(self) -> None:
        """Time has passed."""


class Way(NamedTuple):
    """The way to reach hosts, and the number of hosts at a time."""

    fanout: int
    ssh_options: str
    topology: str | None
    via: str | None

    @classmethod
    def of(cls, given: argparse.Namespace) -> Way:
        """From the command line. Raises WrongCommandLine."""
        if given.topology is not None and given.via is not None:
            raise WrongCommandLine("--topology needs ssh: leave out --via")
        try:
            shlex.split(given.ssh_options or "")
        except ValueError as error:
            raise WrongCommandLine(f"--ssh-options: {error}") from error
        return cls(given.fanout or FANOUT, given.ssh_options or "", given.topology, given.via)


def names_of(text: str) -> list[str]:
    """The hosts that ``text`` names, each once, sorted. Raises WrongCommandLine."""
    too_many = WrongCommandLine(f"--hosts: these are more than {HOSTS_MOST} hosts")
    # A number too many would fill the memory: ClusterShell keeps each number of a range, not each product.
    if any(int(last) - int(first) >= HOSTS_MOST for first, last in RANGE.findall(text)):
        raise too_many
    try:
        nodes = NodeSet(text)
        if len(nodes) > HOSTS_MOST:
            raise too_many
        found = [str(each) for each in nodes]
    except NodeSetException as error:
        raise WrongCommandLine(f"--hosts: {error}") from error
    if not found:
        raise WrongCommandLine(f"--hosts: {text!r} names no host")
    if bad := [each for each in found if each.startswith("-") or any(map(str.isspace, each)) or not each.isprintable()]:
        raise WrongCommandLine(f"--hosts: {bad[0]!r} is not a host name")
    return found


def folded(names: Iterable[str]) -> str:
    """``hv[001-003,007]``."""
    return str(NodeSet.fromlist(list(names)))


def raise_descriptors(fanout: int) -> int:
    """Raise the limit on open files as far as possible; returns how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = fanout * DESCRIPTORS + OWN_DESCRIPTORS
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(fanout, (soft - OWN_DESCRIPTORS) // DESCRIPTORS))


class Connections(EventHandler):  # type: ignore[misc]  # ClusterShell has no types
    """Runs ``command``, a line for a shell, on hosts in ``batches``, and calls ``observer`` for each event."""

    def __init__(self, way: Way, command: str, batches: Sequence[Sequence[str]], observer: HostObserver) -> None:
        super().__init__()
        self._way = way._replace(fanout=raise_descriptors(way.fanout))
        self._command = command
        self._batches = deque(deque(each) for each in batches)
        self._waiting: deque[str] = deque()
        self._workers: dict[str, Any] = {}
        self._observer = observer
        self._is_filling = False
        # EPIPE of a host that has just ended is no news.
        logging.getLogger("ClusterShell").addHandler(logging.NullHandler())
        self._task = task_self()
        engine = self._task._engine
        engine.epolling = GatheringEpoll(engine.epolling, lambda: GATHERING * len(self._workers))
        self._task.set_default("stdout_msgtree", False)  # every line would be kept
        self._task.set_info("fanout", self._way.fanout)
        self._task.set_info("connect_timeout", CONNECT_TIMEOUT)
        self._task.set_info("ssh_path", f"{APART} ssh")
        self._task.set_info("ssh_options", f"{self._way.ssh_options} {SSH_OPTIONS}")
        if self._way.topology is not None:
            self._task.set_default("distant_worker", SshWorker)  # for gateways
            try:
                self._task.load_topology(self._way.topology)
            except TopologyError as error:
                raise InvalidValue(f"--topology: {error}") from error

    def run(self) -> str | None:
        """Return when all connections have ended or were cut; if the last gateway is gone, return the reason."""
        self._timer = self._task.timer(0, self, interval=TICK)
        handler = signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # of a host that has just ended
        try:
            self._task.resume()
        except RouteResolvingError:
            return "no gateway to it is left"
        except TopologyError as error:
            return str(error)
        except BrokenPipeError:  # nobody reads what this program prints
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.raise_signal(signal.SIGPIPE)
            raise
        finally:
            self._task.abort(kill=True)
            signal.signal(signal.SIGPIPE, handler)
        return None

    def tell(self, line: str) -> None:
        """Write a line to the command on every host where it runs or starts."""
        for worker in set(self._workers.values()):
            worker.write(line.encode() + b"\n")

    def begin_no_more(self) -> None:
        """Connect to no further hosts."""
        self._batches.clear()
        self._waiting.clear()

    def drop(self) -> None:
        """Cut all connections; ``run`` returns. The commands on the hosts hear nothing."""
        self.begin_no_more()
        self._task.abort()

    def ev_timer(self, timer: Any) -> None:
        """Called by ClusterShell."""
        self._fill()
        self._observer.tick()

    def ev_read(self, worker: Any, node: str, sname: str, msg: bytes) -> None:
        """Called by ClusterShell."""
        self._observer.said(node, msg)

    def ev_hup(self, worker: Any, node: str, rc: int | None) -> None:
        """Called by ClusterShell."""
        self._end(node, rc)
        self._fill()

    def _end(self, node: str, status: int | None) -> None:
        self._workers.pop(node, None)
        if not self._observer.ended(node, status):
            self.begin_no_more()

    def _fill(self) -> None:
        """Connect to as many hosts as the fanout allows; stop the timer after the last host.

        With a thousand hosts it continues at the next tick, so that it also reads output and notices ^C meanwhile.
        """
        if self._is_filling:  # a host whose connection cannot start ends at once
            return
        self._is_filling = True
        end = time.monotonic() + FILLING
        while (
            (self._waiting or (self._batches and not self._workers))
            and len(self._workers) < self._way.fanout
            and time.monotonic() < end
        ):
            if not self._waiting:
                self._waiting = self._batches.popleft()
            if self._way.topology is not None:  # gateways have each as many as the fanout
                self._begin(list(self._waiting))
                self._waiting.clear()
            else:
                self._begin([self._waiting.popleft()])
        self._is_filling = False
        if not (self._workers or self._waiting or self._batches):
            self._timer.invalidate()

    def _begin(self, hosts: list[str]) -> None:
        nodes = NodeSet.fromlist(hosts)
        if self._way.topology is not None:
            worker = self._task.shell(self._command, nodes=nodes, handler=self, tree=True)
        else:
            worker = self._worker(nodes)
        self._workers.update(dict.fromkeys(hosts, worker))
        for host in hosts:
            self._observer.connecting(host)
        if self._way.topology is None:
            try:
                self._task.schedule(worker)
            except (OSError, WorkerError) as error:  # no process, no descriptor; a percent sign that means nothing
                worker.abort()
                for host in hosts:
                    self._observer.said(host, str(error).encode())
                    self._end(host, None)

    def _worker(self, nodes: Any) -> Any:
        if self._way.via is None:
            return SshWorker(nodes, handler=self, timeout=None, command=self._command)
        # Percent signs of the user are patterns of ClusterShell's; those of a specification are none.
        command = f"exec {APART} {self._way.via} {self._command.replace('%', '%%')}"
        return LocalWorker(nodes, handler=self, timeout=None, command=command)
