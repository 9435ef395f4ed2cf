"""What the mount contains, declared as one tree."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ktaskfs.control.command_log import CommandLog
from ktaskfs.control.commands import Writers
from ktaskfs.control.events import EventFeed
from ktaskfs.control.manual import manual
from ktaskfs.control.metrics import Metrics
from ktaskfs.control.task_text import table
from ktaskfs.control.tasks_directory import TasksDirectory
from ktaskfs.control.transitions import Transitions
from ktaskfs.host.hugepages import read_node_pools, read_pools
from ktaskfs.host.topology import read_nodes
from ktaskfs.tasks.tunables import TUNABLES, Settings, Tunable
from ktaskfs.units import format_cpulist, format_size
from ktaskfs.version import VERSION
from ktaskfs.vfs import (
    ROOT_INO,
    Attributes,
    Caller,
    Directory,
    Inode,
    InodeNumbers,
    Invalidations,
    StaticDirectory,
    StreamFile,
    TextFile,
    Watcher,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import trio

    from ktaskfs.control.access import Access
    from ktaskfs.control.facts import Load
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.tasks.service import TaskService


def build_tree(
    service: TaskService,
    settings: Settings,
    kernel: Kernel,
    access: Access,
    nursery: trio.Nursery,
    load: Callable[[], Load],
    invalidations: Invalidations,
    *,
    uid: int,
    gid: int,
) -> Directory:
    """The root directory; ``uid`` and ``gid`` own what is not a task's, nor ``tasks/control``.

    ``load`` tells what the kernel has of the mount; it is asked only while the mount is served. ``invalidations`` gets
    the names of tasks that were removed.
    """
    return _Builder(service, settings, kernel, access, nursery, load, invalidations, uid, gid).root()


class _Builder:
    """Holds what the nodes of the tree have in common while it is built."""

    def __init__(
        self,
        service: TaskService,
        settings: Settings,
        kernel: Kernel,
        access: Access,
        nursery: trio.Nursery,
        load: Callable[[], Load],
        invalidations: Invalidations,
        uid: int,
        gid: int,
    ) -> None:
        self._service = service
        self._settings = settings
        self._kernel = kernel
        self._access = access
        self._uid = uid
        self._gid = gid
        self._time_ns = time.time_ns()
        self._numbers = InodeNumbers()
        self._log = CommandLog()
        self._watcher = Watcher(nursery)
        self._invalidations = invalidations
        self._events = EventFeed(access)
        self._metrics = Metrics(service.table, kernel, load)
        Transitions(service.table).observers.extend((self._events.publish, self._metrics.count))

    def root(self) -> Directory:
        operations = self._service.operations
        return self._directory(
            {
                "README": self._file(lambda caller: manual(operations)),
                "version": self._file(lambda caller: f"{VERSION}\n"),
                "debug": self._directory({each.file: self._tunable(each) for each in TUNABLES}),
                "operations": self._directory({name: self._operation(each) for name, each in operations.items()}),
                "info": self._directory(
                    {
                        "last_cmd_status": self._file(self._log.status),
                        "error_log": self._file(self._log.errors, self._clear_errors, mode=0o666),
                        "last_task": self._file(self._last_task),
                        "hugepages": self._file(lambda caller: hugepages_text(self._kernel)),
                        "nodes": self._file(lambda caller: nodes_text(self._kernel)),
                    }
                ),
                "tasks": TasksDirectory(
                    self._numbers.take(),
                    self._numbers,
                    self._service,
                    self._log,
                    Writers(),
                    self._access,
                    self._watcher,
                    self._invalidations,
                    time_ns=self._time_ns,
                ),
                "events": self._event_stream(),
                "metrics": self._file(lambda caller: self._metrics.text()),
            },
            ino=ROOT_INO,
        )

    def _directory(self, children: Mapping[str, Inode], ino: int | None = None) -> StaticDirectory:
        return StaticDirectory(self._numbers.take() if ino is None else ino, self._attributes(0o555), children)

    def _attributes(self, mode: int) -> Attributes:
        return Attributes(mode, self._uid, self._gid, self._time_ns)

    def _file(
        self,
        text: Callable[[Caller], str | Awaitable[str]],
        write: Callable[[Caller, str], Awaitable[str | None]] | None = None,
        *,
        mode: int = 0o444,
    ) -> TextFile:
        return TextFile(self._numbers.take(), self._attributes(mode), text, write)

    def _event_stream(self) -> StreamFile:
        # Whoever may start tasks may follow them: the owner of tasks/control, and its mode without the write bits.
        access = self._access
        attributes = Attributes(access.mode & 0o444, access.uid, access.gid, self._time_ns)
        events = self._events
        return StreamFile(self._numbers.take(), attributes, events.open_stream, change=events.change)

    def _tunable(self, tunable: Tunable) -> TextFile:
        file = f"debug/{tunable.file}"

        async def write(caller: Caller, text: str) -> None:
            self._settings.set(tunable, text)

        write_recorded, refused = self._log.keeping(file, write)
        return TextFile(
            self._numbers.take(),
            self._attributes(0o644),
            lambda caller: f"{self._settings[tunable.name]}\n",
            write_recorded,
            refused=refused,
        )

    def _operation(self, operation: Operation[Any]) -> Directory:
        return self._directory(
            {
                "description": self._file(lambda caller: f"{operation.description}\n"),
                "parameters": self._file(lambda caller: parameters_text(operation)),
            }
        )

    async def _clear_errors(self, caller: Caller, text: str) -> None:
        self._log.clear(caller)

    def _last_task(self, caller: Caller) -> str:
        return "".join(f"{name}\n" for name in self._service.table.last_task.get(caller.uid, ()))


def parameters_text(operation: Operation[Any]) -> str:
    """A line for each parameter: name, type, default (``-`` for none), meaning."""
    lines = operation.declared
    return table(
        ("name", "type", "default", "meaning"), [(p.name, p.kind.name, p.default_text(), p.help) for p in lines]
    )


def hugepages_text(kernel: Kernel) -> str:
    """The pools: those of the machine (node ``-``), then those of each node, which know of no reservations."""
    rows = [
        (
            format_size(pool.size),
            "-" if pool.node is None else pool.node,
            pool.total,
            pool.free,
            "-" if pool.node is not None else pool.reserved,
            pool.surplus,
        )
        for pool in (*read_pools(kernel), *read_node_pools(kernel))
    ]
    return table(("size", "node", "total", "free", "reserved", "surplus"), rows)


def nodes_text(kernel: Kernel) -> str:
    """The NUMA nodes, with their memory in bytes."""
    rows = [(node.nid, format_cpulist(node.cpus) or "-", node.total, node.free) for node in read_nodes(kernel)]
    return table(("node", "cpus", "total", "free"), rows)
