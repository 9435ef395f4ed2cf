"""The composition root: makes all the parts of one daemon and runs them until the mount is gone."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control.access import Access
from ktaskfs.control.metrics import Load
from ktaskfs.control.tree import build_tree
from ktaskfs.errors import ConfigError
from ktaskfs.fuse.session import mounted
from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.registry import find_operations
from ktaskfs.tasks.launcher import Launcher
from ktaskfs.tasks.record import StateDirectory
from ktaskfs.tasks.service import TaskService
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import ENDED
from ktaskfs.tasks.tunables import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.config import MountConfig
    from ktaskfs.fuse.session import Session

LOG: Final = logging.getLogger(__name__)
NAME: Final = "ktaskfs"


def run_daemon(config: MountConfig, ready: Callable[[], None]) -> None:
    """Mount and serve; returns after the unmount. ``ready`` is called, on a thread, when the mount answers.

    Raises KtaskfsError when it cannot be mounted.
    """
    clear_stale_mount(config.mountpoint)
    state = StateDirectory(config.statedir)
    try:
        trio.run(_serve, config, state, ready)
    finally:
        state.close()


def clear_stale_mount(mountpoint: str) -> None:
    """Unmount what a daemon that was killed has left there; raises ConfigError where nothing can be mounted."""
    try:
        os.listdir(mountpoint)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise ConfigError(f"{mountpoint}: {error.strerror}", errno=error.errno) from error
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*command, mountpoint], check=False)


async def _serve(config: MountConfig, state: StateDirectory, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        launcher = Launcher(nursery)
        launcher.start()
        settings = Settings(config.tunables)
        table = TaskTable(settings)
        service = TaskService(table, launcher, state, find_operations(), nursery)
        access = Access(config.uid, config.gid, config.mode, config.hidepid)

        def load() -> Load:
            return Load(session.open_handles, session.known_nodes)

        owner = {"uid": os.geteuid(), "gid": os.getegid()}
        root = build_tree(service, settings, Kernel.open(), access, nursery, load, **owner)
        service.adopt()
        options = {"nosuid", "nodev", "noexec", *(["allow_other"] if config.allow_other else [])}
        with mounted(root, config.mountpoint, name=NAME, options=options) as session:
            nursery.start_soon(_announce, config.mountpoint, ready)
            nursery.start_soon(_end_on_signal, session)
            await session.serve()
        left = [task.name for task in table if task.state not in ENDED]
        LOG.info("unmounted; %d tasks go on%s", len(left), f": {' '.join(left)}" if left else "")
        nursery.cancel_scope.cancel()


async def _announce(mountpoint: str, ready: Callable[[], None]) -> None:
    """Ask the mount for something, as anybody would, and say that it answers; on a thread, since we answer."""

    def ask() -> None:
        with open(os.path.join(mountpoint, "version"), encoding="ascii") as file:
            file.read()
        ready()

    await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
    LOG.info("mounted on %s", mountpoint)


async def _end_on_signal(session: Session) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            LOG.info("signal %s: unmounting", signal.Signals(number).name)
            session.terminate()
