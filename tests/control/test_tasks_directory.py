"""``tasks/`` while another user changes it."""

from __future__ import annotations

import contextlib
import gc
import os
import time
import weakref
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.control.access import Access
from ktaskfs.control.callers import Callers
from ktaskfs.control.filesystem import Filesystem
from ktaskfs.control.task_list import TaskList
from ktaskfs.control.tasks_directory import ShownTasks, TasksDirectory
from ktaskfs.errors import NoSuchTask
from ktaskfs.fuse.listing import Listing, listings_quota
from ktaskfs.host.credentials import read_caller
from ktaskfs.host.kernel import Kernel
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.vfs import Attributes, Caller, Watcher
from tests.tasks.house import open_house

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.host.credentials import CallerProcess

OTHER = Caller(os.geteuid() + 1, 0, os.getpid())


async def test_a_task_that_is_removed_while_its_remover_is_examined_does_not_exist(tmp_path: Path) -> None:
    async with open_house(tmp_path / "state") as house:
        task = house.service.create_empty("t", os.geteuid(), os.getegid(), ALL_CAPABILITIES)

        def read(pid: int, uid: int, gid: int) -> CallerProcess:
            trio.from_thread.run_sync(house.service.forget, task)
            return read_caller(pid, os.geteuid(), os.getegid())

        root = Attributes(0o555, time_ns=time.time_ns())
        with contextlib.closing(Kernel.open()) as kernel:
            fs = Filesystem(house.service, kernel, Access(0, 0), root, Watcher(house.nursery), callers=Callers(read))
            listed = TaskList(house.table, fs.access, lambda: None)
            directory = TasksDirectory(0, OTHER.uid, fs, ShownTasks(fs, listed))
            with pytest.raises(NoSuchTask):
                await directory.rmdir("t", OTHER)


async def test_an_open_directory_keeps_no_task_that_was_removed(tmp_path: Path) -> None:
    """Its memory would be beyond all limits of users: for a name there are 160 bytes."""
    me = Caller(os.geteuid(), os.getegid(), os.getpid())
    async with open_house(tmp_path / "state") as house:
        task = house.service.create_empty("t", me.uid, me.gid, ALL_CAPABILITIES)
        root = Attributes(0o555, time_ns=time.time_ns())
        with contextlib.closing(Kernel.open()) as kernel:
            fs = Filesystem(house.service, kernel, Access(0, 0), root, Watcher(house.nursery))
            directory = TasksDirectory(0, me.uid, fs, ShownTasks(fs, TaskList(house.table, fs.access, lambda: None)))
            listing = Listing(directory, me, listings_quota())
            assert [name for _, name, _ in listing.children(0)] == ["control", "t"]
            kept = weakref.ref(task)
            house.service.forget(task)
            del task
            gc.collect()
            assert kept() is None
            assert [name for _, name, _ in listing.children(0)] == ["control"]
