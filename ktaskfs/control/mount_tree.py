"""The contents of the mount, declared as one tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.control.events import EventFeed
from ktaskfs.control.manual import manual
from ktaskfs.control.metrics import Exposition, Metrics, MetricsFile
from ktaskfs.control.task_list import TaskList
from ktaskfs.control.tasks_directory import ShownTasks
from ktaskfs.control.transitions import Transitions
from ktaskfs.control.tunable_file import TunableFile
from ktaskfs.control.views import IN_INFO, UsersDirectory, own_view
from ktaskfs.host.hugepages import read_node_pools, read_pools
from ktaskfs.host.topology import read_nodes
from ktaskfs.tasks.tunables import TUNABLES
from ktaskfs.units import format_cpulist, format_size, table
from ktaskfs.version import VERSION
from ktaskfs.vfs import ROOT_INO, Attributes, Caller, Directory, Inode, StaticDirectory, StreamFile, TextFile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import SpecWord


def build_tree(fs: Filesystem, open_handles: Callable[[], int]) -> Directory:
    """The root directory. ``open_handles`` returns the open files and directories; it is called while the
    mount is served."""
    operations = fs.service.operations
    events = EventFeed(fs.access, fs.portions)
    metrics = Metrics(operations, fs.kernel, open_handles)
    own_list = f"users/{fs.root.uid}/task_list"
    tasks = TaskList(fs.service.table, fs.access, lambda: fs.notices.add(own_list))
    Transitions(fs.service.table).observers.extend((events.publish, metrics.count, tasks.observe))
    return StaticDirectory(
        ROOT_INO,
        fs.root,
        {
            "README": _file(fs, lambda caller: manual(operations)),
            "version": _file(fs, lambda caller: f"{VERSION}\n"),
            "debug": _directory(fs, {each.file: TunableFile(fs, each) for each in TUNABLES}),
            "operations": _directory(fs, {name: _operation(fs, each) for name, each in operations.items()}),
            "info": _info(fs),
            "tasks": own_view(fs.numbers.take(), fs.attributes(0o777), "users/%d/tasks"),
            "users": UsersDirectory(fs.numbers.take(), fs, ShownTasks(fs, tasks)),
            "events": _event_stream(fs, events),
            "metrics": _metrics_file(fs, metrics, Exposition.PROMETHEUS),
            "metrics.openmetrics": _metrics_file(fs, metrics, Exposition.OPENMETRICS),
        },
    )


def _directory(fs: Filesystem, children: Mapping[str, Inode]) -> StaticDirectory:
    return StaticDirectory(fs.numbers.take(), fs.attributes(0o555), children)


def _file(fs: Filesystem, text: Callable[[Caller], str | Awaitable[bytes]]) -> TextFile:
    return TextFile(fs.numbers.take(), fs.attributes(0o444), text, texts=fs.limits.texts)


def _metrics_file(fs: Filesystem, metrics: Metrics, form: Exposition) -> TextFile:
    return MetricsFile(
        fs.numbers.take(), fs.attributes(0o444), lambda caller: metrics.text(form), texts=fs.limits.texts
    )


def _operation(fs: Filesystem, operation: SpecWord) -> Directory:
    return _directory(
        fs,
        {
            "description": _file(fs, lambda caller: f"{operation.description}\n"),
            "parameters": _file(fs, lambda caller: parameters_text(operation)),
        },
    )


def _info(fs: Filesystem) -> Directory:
    own = {
        link: own_view(fs.numbers.take(), fs.attributes(0o777), f"../users/%d/{name}") for name, link in IN_INFO.items()
    }
    return _directory(
        fs,
        own
        | {
            "hugepages": _file(fs, lambda caller: hugepages_text(fs.kernel)),
            "nodes": _file(fs, lambda caller: nodes_text(fs.kernel)),
        },
    )


def _event_stream(fs: Filesystem, events: EventFeed) -> StreamFile:
    # A user who may start tasks may follow them: owner and mode of tasks/control, without the write bits.
    attributes = Attributes(fs.access.mode & 0o444, fs.access.uid, fs.access.gid, fs.root.time_ns)
    return StreamFile(
        fs.numbers.take(),
        attributes,
        events.open_stream,
        change=events.change,
        patience=fs.patience,
        splices=fs.splices,
        quota=fs.limits.streams,
    )


def parameters_text(operation: SpecWord) -> str:
    """A line for each parameter: name, type, default (``-`` for none), meaning."""
    lines = operation.declared
    return table(
        ("name", "type", "default", "meaning"), [(p.name, p.kind.name, p.default_text(), p.help) for p in lines]
    )


def hugepages_text(kernel: Kernel) -> str:
    """The pools: first those of the machine (node ``-``), then those of each node, which have no reservations."""
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
