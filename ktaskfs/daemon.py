"""The composition root: makes the parts of a daemon and runs them until the mount is gone."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ktaskfs.config import KIND, NAME
from ktaskfs.control.access import Access
from ktaskfs.control.filesystem import Filesystem
from ktaskfs.control.mount_tree import build_tree
from ktaskfs.errors import ConfigError, KtaskfsError, TargetError
from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import vacant
from ktaskfs.fuse.negotiation import CannotTakeOver
from ktaskfs.fuse.probe import FirstProbe, NoAnswer, probe
from ktaskfs.fuse.session import DESCRIPTOR, mounted
from ktaskfs.fuse.toucher import tell_watchers
from ktaskfs.host.kernel import Kernel
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
    from collections.abc import AsyncIterator, Callable, Mapping

    from ktaskfs.config import MountConfig
    from ktaskfs.fuse.session import Session
    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.systemd import Manager
    from ktaskfs.tasks.private_directory import PrivateDirectory
    from ktaskfs.tasks.task import Task
    from ktaskfs.worker.start import SpawnerProcess

LOG: Final = logging.getLogger(__name__)
PROBED: Final = "version"
"""The file that is read to check whether the mount answers."""
STATUS_INTERVAL: Final = 1.0
"""Seconds between two status lines for the service manager."""
GARBAGE_INTERVAL: Final = 60.0
"""Seconds between two full garbage collections; no cyclic garbage was ever seen at work."""
YOUNG: Final = 2000
"""New objects between two collections of the youngest generation, which take some 0.2 ms."""
SIGNS_OF_LIFE: Final = 3
"""Watchdog pings per interval of the service manager, so that a slow one does no harm."""


class _Daemon(NamedTuple):
    """Shared by the parts of one daemon.

    config:   its options.
    settings: the tunables in force.
    state:    the locked state directory.
    manager:  the service manager, if there is one.
    operations, spawner: of the tasks; the launcher owns the spawner.
    place:    keeps other servers from mounting there, until it is closed.
    first_probe: probes the mount once.
    ready:    called when the mount answers.
    answers:  set when it does.
    stop:     set to end the mount.
    """

    config: MountConfig
    settings: Settings
    state: StateDirectory
    manager: Manager
    operations: Mapping[str, SpecWord]
    spawner: SpawnerProcess
    place: contextlib.ExitStack
    first_probe: FirstProbe
    ready: Callable[[], None]
    answers: trio.Event
    stop: trio.Event


def run_daemon(
    config: MountConfig,
    directory: PrivateDirectory,
    ready: Callable[[], None],
    manager: Manager,
    operations: Mapping[str, SpecWord],
    spawner: SpawnerProcess,
) -> None:
    """Mount and serve; returns after the unmount. Calls ``ready`` when the mount answers; it must not block.

    ``directory`` is the state directory, which is closed at the end. Raises KtaskfsError when it cannot be mounted.
    """
    settings = Settings(config.file_tunables() | dict(config.tunables))
    with contextlib.ExitStack() as place:
        if config.device is None and not config.keep:
            # Again: another daemon may have mounted there since the state directory was opened.
            place.enter_context(vacant(config.mountpoint, KIND, nonempty=config.nonempty))
        state = StateDirectory(directory, crash_points(os.environ))  # locked: the tasks are this daemon's from now on
        try:
            if config.device is None and config.keep:
                config = config._replace(device=f"{DESCRIPTOR}{mount_for_manager(config, manager)}")
            elif config.device is not None and not config.keep:
                try:  # keep no copy, so that requests fail instead of hanging if this daemon dies
                    manager.forget(NAME)
                except OSError as error:
                    LOG.warning("the service manager may keep the mount: %s", error.strerror)
            with contextlib.closing(FirstProbe()) as first_probe:
                answers, stop = trio.Event(), trio.Event()
                parts = _Daemon(
                    config, settings, state, manager, operations, spawner, place, first_probe, ready, answers, stop
                )
                trio.run(_obey, parts)
            if config.passing and not config.keep:  # the next daemon of a kept mount needs the session data
                state.remove_unused()
        except ExceptionGroup as group:
            cause: BaseException = group
            while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:  # nurseries wrap their error
                cause = cause.exceptions[0]
            if isinstance(cause, CannotTakeOver):  # so the mount dies, and the next daemon makes a new one
                try:
                    manager.forget(NAME)
                except OSError as error:
                    what = f"{cause.message}; have the service manager close it"
                    raise TargetError.from_os(error, what) from error
            if isinstance(cause, KtaskfsError):
                raise cause from None
            raise
        finally:
            state.close()


def mount_for_manager(config: MountConfig, manager: Manager) -> int:
    """Mount, and pass a copy of the open /dev/fuse to the service manager, for the next daemon.

    Returns the descriptor. Raises KtaskfsError.
    """
    if not manager.listens:
        raise ConfigError("no service manager (NOTIFY_SOCKET) can keep the mount")
    with vacant(config.mountpoint, KIND, nonempty=config.nonempty):
        fd = mount_device(config.mountpoint, NAME, allow_other=config.allow_other)
    try:
        manager.store(fd, NAME)
    except OSError as error:
        os.close(fd)
        raise TargetError.from_os(error, "hand the mount to the service manager") from error
    return fd


async def _obey(daemon: _Daemon) -> None:
    """Serve, and handle signals from before the mount until the end, so that none finds the daemon half-way."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, daemon, signals)
            await _serve(daemon)
            nursery.cancel_scope.cancel()


async def _serve(daemon: _Daemon) -> None:
    config = daemon.config
    async with trio.open_nursery() as nursery:
        launcher = Launcher(nursery)
        launcher.start(daemon.spawner)
        table = TaskTable(daemon.settings, private_names=config.hidepid == 2)
        kernel = Kernel.open()
        service = TaskService(TaskContext(table, launcher, daemon.state, daemon.operations, nursery, kernel.cgroups))
        access = Access(config.uid, config.gid, config.mode, config.hidepid)
        owned = Attributes(0o555, os.geteuid(), os.getegid(), time.time_ns())
        fs = Filesystem(service, kernel, access, owned, Watcher(nursery))
        root = build_tree(fs, lambda: session.open_handles)
        try:
            await service.adopt()
        except OSError as error:
            raise TargetError.from_os(error, f"take over the tasks of {daemon.state.path}") from error
        options = {"nosuid", "nodev", "noexec", *(["allow_other"] if config.allow_other else [])}
        with mounted(root, config.mountpoint, name=NAME, options=options, device=config.device) as session:
            daemon.place.close()
            nursery.start_soon(_terminate, daemon, session)
            nursery.start_soon(_report, daemon, session, fs, launcher)
            if config.keep:
                await session.serve(*_succession(daemon.state))
            else:
                await session.serve()
            # The tasks that report on the mount end with it.
            nursery.cancel_scope.cancel()
        daemon.manager.tell("STOPPING=1")
        left = [task.name for task in table if task.state in WORKING]
        LOG.info("unmounted; %d tasks go on%s", len(left), f": {' '.join(left)}" if left else "")


def _succession(state: StateDirectory) -> tuple[str, Callable[[str], None]]:
    """The session data of an earlier daemon, and a function that stores it for the next."""

    def remember(text: str) -> None:
        try:
            state.remember_session(text)
        except OSError as error:
            LOG.error("the next daemon cannot take over this mount: %s", error.strerror)

    try:
        return state.session(), remember
    except OSError as error:
        LOG.error("cannot read the state of an earlier daemon: %s", error.strerror)
        return "", remember


async def _terminate(daemon: _Daemon, session: Session) -> None:
    await daemon.stop.wait()
    session.terminate()


async def _report(daemon: _Daemon, session: Session, fs: Filesystem, launcher: Launcher) -> None:
    """Report that the mount answers; then keep the service manager and inotify watchers informed."""
    mountpoint, manager, table = daemon.config.mountpoint, daemon.manager, fs.service.table
    not_readers = fs.limits.texts.not_readers
    async with daemon.first_probe as first_probe:
        not_readers.add(first_probe.pid)
        try:
            await first_probe.answers(mountpoint, PROBED, session.static_names if session.seen else ())
        except NoAnswer as error:  # it was already unmounted, or another mount covers it
            LOG.error("the mount on %s does not answer: %s", mountpoint, error.message)
            session.terminate()
            return
        LOG.info("mounted on %s", mountpoint)
        daemon.ready()
        daemon.answers.set()
        manager.tell("READY=1", _status(table))
        pins = await first_probe.pins()
        session.hold(pins)
    not_readers.discard(first_probe.pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect_garbage)
        if pins:  # another path would make the mount busy
            nursery.start_soon(tell_watchers, pins[0], fs.notices, not_readers, launcher.toucher)
        if manager.listens:
            nursery.start_soon(_tell_status, table, manager)
            if manager.watchdog is not None:
                nursery.start_soon(_show_life, mountpoint, manager, manager.watchdog)


async def _collect_garbage() -> None:
    """Collect all garbage rarely: with thousands of pending requests that takes some 0.1 s.

    By default Python does so whenever the long-lived objects have grown by a quarter.
    """
    gc.freeze()  # existing objects stay
    gc.set_threshold(YOUNG, 10, 1 << 30)
    gc.enable()
    while True:
        await trio.sleep(GARBAGE_INTERVAL)
        gc.collect()


async def _tell_status(table: TaskTable, manager: Manager) -> None:
    """Keep the service manager's status line current, with at most one message a second."""
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
    return f"STATUS={len(tasks)} tasks, {sum(task.state in ACTIVE for task in tasks)} unfinished"


async def _show_life(mountpoint: str, manager: Manager, within: float) -> None:
    """Ping the service manager's watchdog each time the mount has answered."""
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
    """Apply the tunables of the configuration file; nothing changes if one of its lines is wrong."""
    manager, answers = daemon.manager, daemon.answers.is_set()
    if answers:  # before, the manager would take the end of a reload for that of the start
        manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        tunables = daemon.config.file_tunables()
    except KtaskfsError as error:
        for line in error.message.splitlines():
            LOG.error("%s", line)
    else:
        daemon.settings.update(tunables)
        texts = [f"{each.name}={each.format(tunables[each.name])}" for each in TUNABLES if each.name in tunables]
        LOG.info("configuration reloaded: %s", " ".join(texts) or "empty")
    if answers:
        manager.tell("READY=1")
