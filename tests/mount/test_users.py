"""Two ordinary users on one mount, and callers in other roots and namespaces."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.support.forked import run_forked
from tests.support.shell import run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

FILES = ("control", "state", "status", "stat", "progress", "threads", "result", "error", "wait", "path", "max_threads")

pytestmark = pytest.mark.usefixtures("patient")


@pytest.mark.parametrize("hidepid", [0, 1, 2])
def test_neither_sees_into_nor_disturbs_the_others_task(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], hidepid: int
) -> None:
    first, second = two_users
    mount = mount_maker(f"mode=0666,hidepid={hidepid}")
    start_slow(mount, memory, "slow", user=first)
    hidden = "ENOENT" if hidepid == 2 else "EACCES"
    for name in FILES:
        assert mount.cat(f"tasks/slow/{name}", user=second).errname == hidden, name
    for verb in ("cancel", "kill", "pause", "resume"):
        assert mount.write("tasks/slow/control", verb, user=second) == (1, hidden)
    assert mount.write("tasks/slow/rate_max", "max", user=second) == (1, hidden)
    removed = mount.shell("rmdir tasks/slow", user=second)
    assert removed.errname == ("ENOENT" if hidepid == 2 else "EPERM")
    assert mount.write("tasks/control", "cancel", user=second) == (0, None), "cancels the writer's own, and has none"
    assert ("slow" in mount.shell("ls tasks", user=second).out.split()) is (hidepid < 2)
    listed = mount.shell("ls tasks/slow", user=second)
    assert (listed.status == 0) is (hidepid == 0)
    assert mount.read("tasks/slow/state", user=first) == "running\n"
    assert mount.read("tasks/slow/state") == "running\n", "root sees all"
    stop(mount, "slow", user=first)
    assert mount.shell("rmdir tasks/slow", user=first).status == 0


def test_a_hidden_name_is_taken_all_the_same(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    """As a name in a directory that may not be listed: that it is taken is all that can be learnt."""
    first, second = two_users
    mount = mount_maker("mode=0666,hidepid=2")
    assert mount.shell("mkdir tasks/mine", user=first).status == 0
    assert mount.shell("mkdir tasks/mine", user=second).errname == "EEXIST"
    assert mount.shell("ls tasks", user=second).out == "control\n"


def test_limits_are_each_users_own(mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]) -> None:
    first, second = two_users
    mount = mount_maker("mode=0666,max_tasks=2")
    assert mount.shell("mkdir tasks/a1 tasks/a2", user=first).status == 0
    assert mount.shell("mkdir tasks/a3", user=first).errname == "EAGAIN"
    (memory / "f").touch(0o666)
    assert mount.write("tasks/control", f"clear path={memory}/f length=4096", user=first) == (1, "EAGAIN")
    assert "ktask_max_tasks" in mount.read("info/last_cmd_status", user=first)
    assert mount.shell("mkdir tasks/b1 tasks/b2", user=second).status == 0
    assert mount.read("info/last_cmd_status", user=second) == "ok\n"
    assert mount.shell("rmdir tasks/a1; mkdir tasks/a3", user=first).status == 0


def test_each_has_a_log_and_a_last_task_of_his_own(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    first, second = two_users
    mount = mount_maker("mode=0666")
    for user in two_users:
        (memory / user.name).write_bytes(b"x" * 4096)
        os.chown(memory / user.name, user.uid, user.gid)
        assert mount.write("tasks/control", f"clear path={memory}/{user.name} name={user.name}", user=user) == (0, None)
    mount.write("tasks/control", "nonsense of the first", user=first)
    for user in two_users:
        assert mount.read("info/last_task", user=user) == f"{user.name}\n"
    assert mount.read("info/last_task") == ""
    assert "nonsense" in mount.read("info/error_log", user=first)
    assert mount.read("info/error_log", user=second) == ""
    mount.write("info/error_log", "clear", user=second)
    assert "nonsense" in mount.read("info/error_log", user=first)
    for user in two_users:
        assert mount.read(f"tasks/{user.name}/wait", user=user).endswith("done\n")


def test_who_may_create_tasks(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    first, second = two_users
    mount = mount_maker(f"uid={first.uid},gid={second.gid},mode=0620")
    status = (mount.path / "tasks/control").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o620, first.uid, second.gid)
    assert mount.shell("mkdir tasks/a", user=first).status == 0
    assert mount.shell("mkdir tasks/b", user=second).status == 0
    assert mount.cat("tasks/control", user=first).status == 0
    assert mount.cat("tasks/control", user=second).errname == "EACCES"
    closed = mount_maker()
    assert closed.shell("mkdir tasks/a", user=first).errname == "EACCES"
    assert closed.write("tasks/control", "cancel", user=first) == (1, "EACCES")
    assert closed.write("debug/ktask_nice", "3", user=first) == (1, "EACCES")


def test_a_task_of_ones_own_is_started_by_nobody_else(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    """Root may stop it, but not start it: the work would run with root's rights on a path of the other's choosing."""
    first, _ = two_users
    mount = mount_maker("mode=0666")
    (memory / "f").write_bytes(b"x" * 4096)
    mount.shell(f"mkdir tasks/mine; echo clear > tasks/mine/op; echo {memory}/f > tasks/mine/path", user=first)
    assert mount.write("tasks/mine/control", "start") == (1, "EPERM")
    assert mount.write("tasks/mine/control", f"clear path={memory}/f") == (1, "EPERM")
    assert mount.write("tasks/mine/control", "start", user=first) == (1, "EACCES"), "the file is root's"
    assert (memory / "f").read_bytes() == b"x" * 4096


@pytest.fixture
def two_places(memory: Path) -> tuple[Path, Path]:
    """Two directories with a file of the same name, the second one in the first."""
    inside = memory / "inside"
    inside.mkdir()
    for place in (memory, inside):
        (place / "f").write_bytes(b"x" * 4096)
    return memory, inside


def only_inside_is_cleared(mount: Mount, places: tuple[Path, Path]) -> bool:
    outside, inside = places
    assert mount.read("tasks/a/wait").endswith("done\n")
    return (inside / "f").read_bytes() == bytes(4096) and (outside / "f").read_bytes() == b"x" * 4096


def test_a_path_begins_at_the_callers_root(mounted: Mount, two_places: tuple[Path, Path]) -> None:
    _, inside = two_places
    (inside / "m").mkdir()
    assert run("mount", "--bind", str(mounted.path), str(inside / "m")).status == 0

    def write() -> int:
        os.chroot(inside)
        os.chdir("/")
        fd = os.open("/m/tasks/control", os.O_WRONLY)
        return os.write(fd, b"clear path=/f name=a")

    try:
        assert run_forked(write) == 20
        assert only_inside_is_cleared(mounted, two_places)
    finally:
        assert run("umount", str(inside / "m")).status == 0


def test_a_path_is_looked_up_in_the_callers_mount_namespace(mounted: Mount, two_places: tuple[Path, Path]) -> None:
    outside, inside = two_places
    script = 'mount --bind "$2" "$3" && echo "clear path=$3/f name=a" > "$1/tasks/control"'
    outcome = run("unshare", "--mount", "bash", "-c", script, "bash", str(mounted.path), str(inside), str(outside))
    assert outcome.status == 0, outcome.err + mounted.read("info/last_cmd_status")
    assert only_inside_is_cleared(mounted, two_places)


@pytest.mark.parametrize("namespace", ["--pid", "--user --map-root-user"])
def test_callers_in_other_namespaces(mounted: Mount, memory: Path, namespace: str) -> None:
    """They are the user that the kernel reports, and get their own root."""
    (memory / "f").write_bytes(b"x" * 4096)
    script = f'unshare {namespace} --fork bash -c "echo clear path={memory}/f name=a > tasks/control"'
    outcome = mounted.shell(script)
    assert outcome.status == 0, outcome.err + mounted.read("info/last_cmd_status")
    assert mounted.read("tasks/a/wait").endswith("done\n")
    assert (memory / "f").read_bytes() == bytes(4096)


def test_root_of_a_user_namespace_is_not_root(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    first, second = two_users
    mount = mount_maker("mode=0666,hidepid=1")
    start_slow(mount, memory, "slow", user=second)
    (memory / "private").write_bytes(b"x" * 4096)
    become = "unshare --user --map-root-user bash -c"
    assert mount.shell(f"{become} 'cat tasks/slow/state'", user=first).status != 0
    assert mount.shell(f"{become} 'echo cancel > tasks/slow/control'", user=first).status != 0
    assert mount.shell(f"{become} 'echo 3 > debug/ktask_nice'", user=first).status != 0
    spec = f"clear path={memory}/private name=no"
    (memory / "private").chmod(0o600)
    assert mount.shell(f"{become} 'echo {spec} > tasks/control'", user=first).status != 0
    assert (memory / "private").read_bytes() == b"x" * 4096
    assert mount.read("tasks/slow/state") == "running\n"
    stop(mount, "slow", user=second)
