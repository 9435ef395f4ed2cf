"""The composition root: makes all the parts of one daemon and runs them until the mount is gone."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control.access import Access
from ktaskfs.control.facts import Load
from ktaskfs.control.filesystem import Filesystem
from ktaskfs.control.mount_tree import build_tree
from ktaskfs.errors import ConfigError, KtaskfsError, TargetError
from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import abort, detach, filesystems_at
from ktaskfs.fuse.probe import NoAnswer, probe
from ktaskfs.fuse.session import mounted
from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.context import TaskContext
from ktaskfs.tasks.crash_points import crash_points
from ktaskfs.tasks.launcher import Launcher
from ktaskfs.tasks.service import TaskService
from ktaskfs.tasks.state_directory import StateDirectory
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import ACTIVE, WORKING
from ktaskfs.tasks.tunables import TUNABLES, Settings
from ktaskfs.vfs import Attributes, Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ktaskfs.config import MountConfig
    from ktaskfs.fuse.session import Session
    from ktaskfs.systemd import Manager
    from ktaskfs.tasks.private_directory import PrivateDirectory
    from ktaskfs.tasks.task import Task

LOG: Final = logging.getLogger(__name__)
NAME: Final = "ktaskfs"
PROBED: Final = "version"
"""The file of the mount that is read to see whether it answers."""
STATUS_INTERVAL: Final = 1.0
"""Seconds between two status lines for the service manager."""
SIGNS_OF_LIFE: Final = 3
"""Signs of life in the time that the service manager allows for one, so that a slow one does no harm."""


@dataclass(frozen=True)
class _Daemon:
    """What the parts of one daemon share.

    config:   its options.
    settings: the tunables in force.
    state:    the state directory, which is locked.
    manager:  the service manager, if there is one.
    ready:    called when the mount answers.
    stop:     set when the mount is to end.
    """

    config: MountConfig
    settings: Settings
    state: StateDirectory
    manager: Manager
    ready: Callable[[], None]
    stop: trio.Event


def run_daemon(
    config: MountConfig, directory: PrivateDirectory, ready: Callable[[], None], manager: Manager
) -> None:
    """Mount and serve; returns after the unmount. ``ready`` is called when the mount answers; it may not block.

    ``directory`` is the state directory, which is closed at the end. Raises KtaskfsError when it cannot be mounted.
    """
    settings = Settings(config.file_tunables() | dict(config.tunables))
    # Each task at work takes two descriptors, and so does each open control file: as many as we may have.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # more than fs.nr_open, if that was lowered
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    state = StateDirectory(directory, crash_points(os.environ))  # locked: no rival can mount from now on
    try:
        if config.device is None:
            clear_stale_mount(config.mountpoint)
        else:  # no copy may stay: requests of the mount then fail, and do not hang, if this daemon dies
            manager.forget(NAME)
        trio.run(_obey, _Daemon(config, settings, state, manager, ready, trio.Event()))
    except ExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # nurseries wrap their error
            error = error.exceptions[0]
        if isinstance(error, KtaskfsError):
            raise error from None
        raise
    finally:
        state.close()


def mount_for_manager(config: MountConfig, manager: Manager) -> None:
    """Mount, and hand the open /dev/fuse to the service manager, for the daemon that it starts next.

    Raises KtaskfsError.
    """
    clear_stale_mount(config.mountpoint)
    if not manager.listens:
        raise ConfigError("there is no service manager to keep the mount (NOTIFY_SOCKET)")
    fd = mount_device(config.mountpoint, NAME, allow_other=config.allow_other)
    try:
        manager.store(fd, NAME)
    except OSError as error:
        raise TargetError.from_os(error, "hand the mount to the service manager") from error
    finally:
        os.close(fd)


def clear_stale_mount(mountpoint: str) -> None:
    """Unmount what dead daemons left at ``mountpoint``. Raises ConfigError where nothing can be mounted.

    Call it with the state directory locked, or for the service manager, which runs one daemon at a time: then no daemon
    of this mount point is alive, except one with another state directory, which loses its mount. Nothing looks at the
    old mount, because it may never answer.
    """
    while (there := filesystems_at(mountpoint)) and there[-1].kind == f"fuse.{NAME}":
        abort(there[-1])
        detach(mountpoint)
        if len(filesystems_at(mountpoint)) >= len(there):
            raise ConfigError(f"{mountpoint}: the old mount cannot be taken away", errno=errno.EBUSY)
    try:
        os.listdir(mountpoint)
    except OSError as error:
        raise ConfigError(f"{mountpoint}: {error.strerror}", errno=error.errno) from error


async def _obey(daemon: _Daemon) -> None:
    """Serve, and obey signals from before the mount is made until all is over: none finds the daemon half-way."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, daemon, signals)
            await _serve(daemon)
            nursery.cancel_scope.cancel()


async def _serve(daemon: _Daemon) -> None:
    config = daemon.config
    async with trio.open_nursery() as nursery:
        launcher = Launcher(nursery)
        launcher.start()
        table = TaskTable(daemon.settings, private_names=config.hidepid == 2)
        kernel = Kernel.open()
        service = TaskService(TaskContext(table, launcher, daemon.state, find_operations(), nursery, kernel.cgroups))
        access = Access(config.uid, config.gid, config.mode, config.hidepid)
        owned = Attributes(0o555, os.geteuid(), os.getegid(), time.time_ns())
        fs = Filesystem(service, kernel, access, owned, Watcher(nursery))

        def load() -> Load:
            return Load(session.open_handles)

        root = build_tree(fs, load)
        service.adopt()
        options = {"nosuid", "nodev", "noexec", *(["allow_other"] if config.allow_other else [])}
        with mounted(root, config.mountpoint, name=NAME, options=options, device=config.device) as session:
            nursery.start_soon(_terminate, daemon, session)
            nursery.start_soon(_report, daemon, session, table)
            await session.serve()
            # The tasks that speak of the mount are cancelled here, and waited for when the mount is gone: one of them
            # may have a child that waits for an answer of the mount.
            nursery.cancel_scope.cancel()
        daemon.manager.tell("STOPPING=1")
        left = [task.name for task in table if task.state in WORKING]
        LOG.info("unmounted; %d tasks go on%s", len(left), f": {' '.join(left)}" if left else "")


async def _terminate(daemon: _Daemon, session: Session) -> None:
    await daemon.stop.wait()
    session.terminate()


async def _report(daemon: _Daemon, session: Session, table: TaskTable) -> None:
    """Say that the mount answers once it does, and keep the service manager informed from then on."""
    mountpoint, manager = daemon.config.mountpoint, daemon.manager
    try:
        session.hold(await probe(mountpoint, PROBED, session.static_names if session.seen else ()))
    except NoAnswer as error:  # it was already unmounted, or another mount covers it
        LOG.error("the mount on %s does not answer: %s", mountpoint, error.message)
        session.terminate()
        return
    LOG.info("mounted on %s", mountpoint)
    daemon.ready()
    manager.tell("READY=1", _status(table))
    if manager.listens:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_status, table, manager)
            if manager.watchdog is not None:
                nursery.start_soon(_show_life, mountpoint, manager, manager.watchdog)


async def _tell_status(table: TaskTable, manager: Manager) -> None:
    """Keep the service manager's status line right, with one message a second at most."""
    changed = trio.Event()

    def note(task: Task) -> None:
        changed.set()

    table.observers.append(note)
    while True:
        await changed.wait()
        changed = trio.Event()
        manager.tell(_status(table))
        await trio.sleep(STATUS_INTERVAL)


def _status(table: TaskTable) -> str:
    tasks = list(table)
    return f"STATUS={len(tasks)} tasks, {sum(task.state in ACTIVE for task in tasks)} at work"


async def _show_life(mountpoint: str, manager: Manager, within: float) -> None:
    """Tell the service manager that all is well, each time that the mount has answered."""
    while True:
        await trio.sleep(within / SIGNS_OF_LIFE)
        try:
            await probe(mountpoint, PROBED)
        except NoAnswer as error:
            LOG.warning("the mount on %s does not answer: %s", mountpoint, error.message)
        else:
            manager.tell("WATCHDOG=1")


async def _obey_signals(daemon: _Daemon, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            _reload(daemon)
        elif not daemon.stop.is_set():
            LOG.info("signal %s: unmounting", signal.Signals(number).name)
            daemon.stop.set()


def _reload(daemon: _Daemon) -> None:
    """Put the tunables of the configuration file in force; nothing changes if one of its lines is wrong."""
    manager = daemon.manager
    manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        tunables = daemon.config.file_tunables()
    except KtaskfsError as error:
        for line in error.message.splitlines():
            LOG.error("%s", line)
    else:
        daemon.settings.update(tunables)
        texts = [f"{each.name}={each.format(tunables[each.name])}" for each in TUNABLES if each.name in tunables]
        LOG.info("configuration read again: %s", " ".join(texts) or "empty")
    manager.tell("READY=1")
