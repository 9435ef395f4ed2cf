"""After umount(8) the daemon ends, and after its end the next daemon mounts, even if users hold parts of the mount."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import clear_place, filesystems_at
from tests.attacks.callers import wait_for_worker
from tests.support.daemon import Mount
from tests.support.poll import DEADLINE, until
from tests.support.processes import halt
from tests.support.shell import run

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker


def test_a_mount_namespace_of_a_user_does_not_keep_the_daemon(mount_maker: MountMaker, attack: Attack) -> None:
    mount = mount_maker("mode=0666")
    attack("never.py", "namespace", str(mount.path))
    assert run("umount", str(mount.path)).status == 0
    assert mount.process.wait(DEADLINE) == 0
    assert mount_maker(statedir=mount.statedir).read("version")


def test_a_successor_takes_a_held_mount_away(mount_maker: MountMaker, attack: Attack, area: Path) -> None:
    """The daemon was stopped, and killed then; a user holds the root and the tasks; commands hang for that."""
    mount = mount_maker("mode=0666")
    attack("never.py", "write", str(mount.path / "tasks/control"))
    attack("never.py", "getdents", str(mount.path / "tasks/"))
    attack("never.py", "getdents", str(mount.path))
    halt(mount.pid)
    waiting = [attack.begin(mount, script) for script in ("cat version", "ls tasks/", "mkdir none", "echo x > events")]
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait(DEADLINE)
    again = Mount(mount.path, statedir=mount.statedir, log=area / "again")
    try:
        assert again.read("version")
        assert len([line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line]) == 1
        attack.end()
        assert all(each.returncode != 0 for each in waiting)
    finally:
        again.close()
        mount.kill()


def test_a_mount_that_a_dead_server_has_left_to_another_process_is_severed(root: None, area: Path) -> None:
    """As to a service manager that keeps it: who waits for an answer would wait for as long as that lives."""
    device = mount_device(str(area), "example", allow_other=True)
    try:
        waiting = subprocess.Popen(["stat", area], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: Path(f"/proc/{waiting.pid}/stat").read_text().rpartition(") ")[2][0] == "D", "it waits")
        clear_place(str(area), "fuse.example", nonempty=False)
        waiting.communicate(timeout=DEADLINE)
    finally:
        os.close(device)
    assert waiting.returncode != 0
    assert filesystems_at(str(area)) == []


def test_a_mount_is_not_busy_for_the_daemon(mount_maker: MountMaker) -> None:
    mount = mount_maker()
    for _ in range(3):
        mount.shell("ls -lR . > /dev/null")
    assert run("umount", str(mount.path)).status == 0
    assert mount.process.wait(DEADLINE) == 0


def test_no_child_of_the_daemon_has_the_device(mount_maker: MountMaker, memory: Path) -> None:
    mount = mount_maker()
    (memory / "f").write_bytes(b"x" * 65536)
    assert mount.write("tasks/control", f"clear path={memory}/f name=slow rate_max=1 chunk=4K") == (0, None)
    wait_for_worker(mount, "slow")
    children = run("pgrep", "--parent", str(mount.pid)).out.split()
    grandchildren = run("pgrep", "--parent", ",".join(children)).out.split()
    assert len(children) >= 1
    assert len(grandchildren) >= 1
    for pid in (*children, *grandchildren):
        with contextlib.suppress(FileNotFoundError):  # the one that touches files has ended meanwhile
            held = {os.path.realpath(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert "/dev/fuse" not in held
    mount.write("tasks/slow/control", "kill")
    until(lambda: mount.read("tasks/slow/state") == "interrupted\n", "it was killed")
