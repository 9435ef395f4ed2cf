"""Chunks that share the room that a control group has left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.host.kernel import Kernel
from ktaskfs.host.target import MEMORY, open_target
from ktaskfs.memory.group_room import GroupRoom
from tests.mount.test_group_limits import MEMORY_MAX
from tests.support import filesystems
from tests.support.cgroups import group
from tests.support.forked import run_forked
from tests.support.poll import until

MIB = 1 << 20


def asleep(thread: threading.Thread) -> bool:
    """Whether the thread sleeps, or has ended."""
    try:
        stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "S"


@pytest.mark.usefixtures("root")
def test_what_does_not_fit_beside_another_chunk_waits_for_its_end(area: Path) -> None:
    """Pages of the other chunk count twice until its end: in the group, and in the room that it may still take."""
    with group("memory", {MEMORY_MAX: "64M"}) as where, filesystems.tmpfs(area / "memory", 64 * MIB) as memory:

        def body() -> list[str]:
            (where / "cgroup.procs").write_text("0")
            kernel = Kernel.open()
            target = open_target(kernel, str(memory / "file"), kinds=MEMORY, create=0o600)
            os.ftruncate(target.fd, 64 * MIB)
            room, ends = GroupRoom(kernel, target), []

            def take() -> None:
                try:
                    with room.taking(16 * MIB, lambda: 16 * MIB):
                        ends.append("taken")
                except TargetError as error:
                    ends.append(error.message)

            second = threading.Thread(target=take)
            with room.taking(24 * MIB, lambda: 24 * MIB):
                os.posix_fallocate(target.fd, 0, 24 * MIB)
                second.start()
                until(lambda: asleep(second), "the other chunk waits")
                ends.append("first")
            second.join()
            return ends

        assert run_forked(body) == ["first", "taken"]
        (memory / "file").unlink()
