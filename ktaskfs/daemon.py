"""The composition root: makes all the parts of one daemon and runs them until the mount is gone."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control.access import Access
from ktaskfs.control.facts import Load
from ktaskfs.control.tree import build_tree
from ktaskfs.errors import ConfigError, KtaskfsError, TargetError
from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import detach, filesystems_at
from ktaskfs.fuse.session import mounted
from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.crash_points import steps
from ktaskfs.tasks.launcher import Launcher
from ktaskfs.tasks.record import StateDirectory
from ktaskfs.tasks.service import TaskService
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import ACTIVE, WORKING
from ktaskfs.tasks.tunables import Settings
from ktaskfs.vfs import Invalidations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ktaskfs.config import MountConfig
    from ktaskfs.fuse.session import Session
    from ktaskfs.systemd import Manager
    from ktaskfs.tasks.task import Task

LOG: Final = logging.getLogger(__name__)
NAME: Final = "ktaskfs"
STATUS_INTERVAL: Final = 1.0
"""Seconds between two words to the service manager on how many tasks there are."""
SIGNS_OF_LIFE: Final = 3
"""Signs of life within the time that the service manager gives for one; a slow one then does no harm."""


def run_daemon(config: MountConfig, ready: Callable[[], None], manager: Manager) -> None:
    """Mount and serve; returns after the unmount. ``ready`` is called when the mount answers; it may not block.

    Raises KtaskfsError when it cannot be mounted.
    """
    settings = Settings(config.file_tunables() | dict(config.tunables))
    # Two descriptors for each task at work, and for each control file that somebody has open: as many as we may have.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # more than fs.nr_open, which somebody has lowered
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    state = StateDirectory(config.statedir, steps(os.environ))  # locked: from now on no rival can mount
    try:
        if config.device is None:
            clear_stale_mount(config.mountpoint)
        else:  # ours alone, so that a mount whose daemon dies does not hang but fails
            manager.forget(NAME)
        trio.run(_obey, config, settings, state, ready, manager)
    except ExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # nurseries wrap what ends them
            error = error.exceptions[0]
        if isinstance(error, KtaskfsError):
            raise error from None
        raise
    finally:
        state.close()


def mount_for_manager(config: MountConfig, manager: Manager) -> None:
    """Mount, and leave the open /dev/fuse with the service manager, for the daemon that it starts next.

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
    """Unmount what a daemon that was killed has left there; raises ConfigError where nothing can be mounted."""
    try:
        os.listdir(mountpoint)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise ConfigError(f"{mountpoint}: {error.strerror}", errno=error.errno) from error
        detach(mountpoint)


async def _obey(
    config: MountConfig, settings: Settings, state: StateDirectory, ready: Callable[[], None], manager: Manager
) -> None:
    """Serve, and obey signals from before the mount is made until all is over: none finds the daemon half-way."""
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, stop, config, settings, manager)
            await _serve(config, settings, state, ready, manager, stop)
            nursery.cancel_scope.cancel()


async def _serve(
    config: MountConfig,
    settings: Settings,
    state: StateDirectory,
    ready: Callable[[], None],
    manager: Manager,
    stop: trio.Event,
) -> None:
    async with trio.open_nursery() as nursery:
        launcher = Launcher(nursery)
        launcher.start()
        table = TaskTable(settings)
        service = TaskService(table, launcher, state, find_operations(), nursery)
        access = Access(config.uid, config.gid, config.mode, config.hidepid)

        def load() -> Load:
            return Load(session.open_handles, session.known_nodes)

        owner = {"uid": os.geteuid(), "gid": os.getegid()}
        invalidations = Invalidations()
        root = build_tree(service, settings, Kernel.open(), access, nursery, load, invalidations, **owner)
        service.adopt()
        options = {"nosuid", "nodev", "noexec", *(["allow_other"] if config.allow_other else [])}
        mountpoint = config.device or config.mountpoint
        with mounted(root, mountpoint, name=NAME, options=options, invalidations=invalidations) as session:
            nursery.start_soon(_terminate, session, stop)
            nursery.start_soon(_report, session, config.mountpoint, ready, table, manager)
            await session.serve()
            # Those who speak of the mount say no more; they are waited for when it is gone, for one of them may have
            # a child that waits for an answer of it.
            nursery.cancel_scope.cancel()
        manager.tell("STOPPING=1")
        left = [task.name for task in table if task.state in WORKING]
        LOG.info("unmounted; %d tasks go on%s", len(left), f": {' '.join(left)}" if left else "")


async def _terminate(session: Session, stop: trio.Event) -> None:
    await stop.wait()
    session.terminate()


async def _report(
    session: Session, mountpoint: str, ready: Callable[[], None], table: TaskTable, manager: Manager
) -> None:
    """Say that the mount answers once it does, and to the service manager what it wants to know from then on."""
    ours = filesystems_at(mountpoint)[-1:]
    if trouble := await _trouble(mountpoint):  # it was unmounted, or covered, before anybody knew of it
        LOG.error("the mount on %s does not answer: %s", mountpoint, trouble)
        session.terminate()
        return
    LOG.info("mounted on %s", mountpoint)
    ready()
    manager.tell("READY=1", _status(table))
    if manager.listens:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_status, table, manager)
            if manager.watchdog is not None:
                nursery.start_soon(_show_life, mountpoint, ours, manager, manager.watchdog)


async def _trouble(mountpoint: str) -> str:
    """Why the mount does not answer somebody who reads from it; empty if it does.

    By another process: were it a thread of ours, and the answer never to come, the kernel could not end this process
    even with SIGKILL, for the thread would wait for an answer that its own process owes (fs/fuse/dev.c,
    request_wait_answer). The child is in our process group, on which an automount depends (autofs_oz_mode).
    """
    command = ["cat", os.path.join(mountpoint, "version")]
    try:
        done = await trio.run_process(
            command, check=False, capture_stdout=True, capture_stderr=True, stdin=subprocess.DEVNULL
        )
    except OSError as error:  # there is no descriptor left, no memory, or no cat
        return f"{command[0]}: {error.strerror}"
    await trio.lowlevel.checkpoint_if_cancelled()  # it may have answered just before it was unmounted
    said = done.stderr.decode(errors="replace").strip()
    return "" if done.returncode == 0 else said or f"{command[0]} ended with {done.returncode}"


async def _tell_status(table: TaskTable, manager: Manager) -> None:
    """Keep the service manager's status line right, with a word each second at most."""
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


async def _show_life(mountpoint: str, ours: list[str], manager: Manager, within: float) -> None:
    """Tell the service manager that all is well, each time that the mount has answered.

    One that somebody took away while files in it are open (umount -l) is served on, and cannot be looked at.
    """
    while True:
        await trio.sleep(within / SIGNS_OF_LIFE)
        trouble = await _trouble(mountpoint)
        if trouble and set(ours) <= set(filesystems_at(mountpoint, ours)):
            LOG.warning("the mount on %s does not answer: %s", mountpoint, trouble)
        else:
            manager.tell("WATCHDOG=1")


async def _obey_signals(
    signals: AsyncIterator[int], stop: trio.Event, config: MountConfig, settings: Settings, manager: Manager
) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            _reload(config, settings, manager)
        elif not stop.is_set():
            LOG.info("signal %s: unmounting", signal.Signals(number).name)
            stop.set()


def _reload(config: MountConfig, settings: Settings, manager: Manager) -> None:
    """Put the tunables of the configuration file in force; nothing changes if one of its lines is wrong."""
    manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        tunables = config.file_tunables()
    except KtaskfsError as error:
        for line in error.message.splitlines():
            LOG.error("%s", line)
    else:
        settings.update(tunables)
        LOG.info("configuration read again: %s", " ".join(f"{name}={tunables[name]}" for name in tunables) or "empty")
    manager.tell("READY=1")
