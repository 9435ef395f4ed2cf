"""The state of a task that all views share."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from ktaskfs.control.access import Access
from ktaskfs.control.filesystem import Filesystem
from ktaskfs.control.shown_task import ShownTask
from ktaskfs.control.task_directory import task_files
from ktaskfs.host.kernel import Kernel
from ktaskfs.progress import Shape
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.task import State
from ktaskfs.tasks.worker_handle import WorkerHandle
from ktaskfs.vfs import Attributes, Watcher
from tests.tasks.house import OPERATIONS, open_house, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_page_that_cannot_be_read_does_not_end_the_daemon(tmp_path: Path) -> None:
    """As after a failure of the state directory's disk, while somebody polls for progress."""
    async with open_house(tmp_path / "state") as house:
        task = house.service.create_empty("t", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
        watcher = Watcher(house.nursery, 0.01)
        page = os.open(tmp_path / "page", os.O_WRONLY | os.O_CREAT)
        with contextlib.closing(Kernel.open()) as kernel:
            fs = Filesystem(house.service, kernel, Access(0, 0), Attributes(0o555, time_ns=time.time_ns()), watcher)
            shown = ShownTask(1 << 10, task, fs, task_files(OPERATIONS))
            task.worker = WorkerHandle(os.getpid(), 0, -1, page, Shape(1, 1))
            task.state = State.RUNNING
            shown.of_progress.await_next("somebody", lambda: None)
            assert watcher.watching == 1
            await until(lambda: watcher.watching == 0, "nobody looks at it any more")
            assert shown.of_progress.waiting == 1
            task.state, task.worker = State.NEW, None
        os.close(page)
