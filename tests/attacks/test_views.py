"""One user's actions in a view of the tasks do not affect the other views."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.attacks.callers import wait_for_worker
from tests.support.poll import until

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.users import User


def test_a_strangers_look_does_not_take_the_working_directory_away(
    mount_maker: MountMaker, attack: Attack, attacker: User, victim: User
) -> None:
    mount = mount_maker("mode=0666,hidepid=2")
    assert mount.shell("mkdir tasks/hers", user=victim).status == 0
    script = "cd tasks/hers && echo there && read -r _ < $1 && /bin/pwd -P && cat state"
    fifo = mount.statedir.parent / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    command = attack.begin(mount, script, str(fifo), user=victim)
    assert command.stdout is not None
    assert command.stdout.readline() == b"there\n"
    own = f"users/{victim.uid}"
    looks = f"stat tasks/hers; ls tasks/; stat {own} {own}/tasks/hers; ls {own}; cd {own}/tasks/hers; mkdir {own}/x"
    assert "state" not in mount.shell(looks, user=attacker).out
    fifo.write_text("go on\n")
    assert command.stdout.read().decode() == f"{mount.path}/{own}/tasks/hers\nnew\n"


def test_only_the_user_and_root_get_into_a_view(
    mount_maker: MountMaker, attack: Attack, attacker: User, victim: User
) -> None:
    mount = mount_maker("mode=0666,hidepid=2")
    assert mount.shell("mkdir tasks/hers", user=victim).status == 0
    for what in (f"ls users/{victim.uid}", f"cat users/{victim.uid}/tasks/control", "ls users", "mkdir users/new"):
        assert mount.shell(what, user=attacker).errname == "EACCES", what
    assert mount.shell("ls users").out == "0\n"
    assert mount.shell(f"ls users/{victim.uid}/tasks").out == "control\nhers\n"
    assert mount.shell("ls tasks").out == "control\nhers\n"
    assert mount.shell("ls tasks", user=attacker).out == "control\n"
    for name in ("01", "-1", "+1", "x", str(2**32 - 1), str(2**64), "٣"):
        assert mount.shell('ls "users/$1"', name).errname == "ENOENT", name
    listed = mount.shell(f"ls users/{2**32 - 2}").out.split()
    assert listed == [
        "error_log",
        "holders",
        "holders.json",
        "last_cmd_status",
        "last_task",
        "task_list",
        "task_list.json",
        "tasks",
    ]


def test_who_inherits_a_place_in_a_view_cannot_open_anything_there(
    mount_maker: MountMaker, attacker: User, victim: User
) -> None:
    """As after ``cd tasks; su``: else there were names that hidepid=2 hides, and locks that the view's user needs."""
    mount = mount_maker("mode=0666,hidepid=2")
    for user, name in ((attacker, "own"), (victim, "hers")):
        assert mount.shell(f"mkdir tasks/{name}", user=user).status == 0

    def left_in(place: str, script: str, user: User) -> str:
        command = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "bash", "-c", script]
        done = subprocess.run(command, cwd=mount.path / place, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    views = {"tasks": ("control", "own/control", "own/state"), f"users/{victim.uid}/tasks": ("control",)}
    for view, paths in views.items():
        assert "hers" not in left_in(view, "ls -a .; echo *", attacker)
        for path in paths:
            assert "Permission denied" in left_in(view, f"exec 3<> {path} || exec 3< {path}", attacker), path
    assert left_in(f"users/{attacker.uid}/tasks", "ls; cat own/state", attacker) == "control\nown\nnew\n"
    assert left_in("tasks", f"cat {mount.path}/tasks/own/state", attacker) == "new\n"
    assert mount.shell(f"cd users/{victim.uid}/tasks && ls && cat hers/state").out == "control\nhers\nnew\n"


def test_a_lease_on_ones_own_file_does_not_keep_root_from_ending_the_task(
    mount_maker: MountMaker, memory: Path, attack: Attack, attacker: User
) -> None:
    mount = mount_maker("mode=0666")
    file = memory / "target"
    file.write_bytes(b"x" * 65536)
    file.chmod(0o666)
    spec = f"clear path={file} name=mine rate_max=1 chunk=4K"
    assert mount.write("tasks/control", spec, user=attacker) == (0, None)
    wait_for_worker(mount, "mine")
    attack("lease.py", str(mount.path / "tasks/mine/control"))
    assert attack.answered(mount, "echo kill > tasks/mine/control")
    assert attack.holds_lease(), "nobody had to wait for it"
    until(lambda: mount.read("tasks/mine/state") == "interrupted\n", "it was killed")


def test_names_that_are_always_there_are_found_while_the_root_is_held(
    mount_maker: MountMaker, attack: Attack, attacker: User, victim: User
) -> None:
    """The daemon pins them, so the kernel asks for none of them, even after a shortage of memory."""
    mount = mount_maker("mode=0666")
    attack("never.py", "getdents", str(mount.path))
    change = attack.begin(mount, "exec mkdir none", user=attacker)
    until(lambda: Path(f"/proc/{change.pid}/stat").read_text().rpartition(") ")[2][0] == "D", "mkdir waits")
    Path("/proc/sys/vm/drop_caches").write_text("2")
    script = "cat version debug/* info/* operations/*/* > /dev/null; ls tasks/; mkdir tasks/$1; cat tasks/$1/state"
    for user in (victim, None):
        assert attack.answered(mount, script, f"of-{user and user.uid}", user=user)
