"""uid 0 with few capabilities, as root in a container that shares the host's user namespace."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.shell import run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.shell import Outcome
    from tests.support.users import User

POWERLESS: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
CONTAINER: Final = ("setpriv", "--bounding-set=-all,+dac_override,+fowner", "--inh-caps=-all")
"""May write any file, but signal no process of another user."""

pytestmark = pytest.mark.usefixtures("patient")


def as_root_with(prefix: tuple[str, ...], mount: Mount, script: str, *arguments: str) -> Outcome:
    """The result of a script in the mount, run as root with few capabilities."""
    return run(*prefix, "bash", "-c", script, "bash", *arguments, cwd=mount.path)


@pytest.mark.parametrize("prefix", [POWERLESS, CONTAINER], ids=["powerless", "container"])
def test_tunables_need_cap_sys_admin(mounted: Mount, prefix: tuple[str, ...]) -> None:
    outcome = as_root_with(prefix, mounted, "echo 1 > debug/ktask_max_tasks")
    assert (outcome.status, outcome.errname) == (1, "EPERM")
    words = mounted.read("info/last_cmd_status")
    assert words == "debug/ktask_max_tasks: EPERM: write to debug/ktask_max_tasks: you do not have the capability" + (
        " CAP_SYS_ADMIN\n"
    )
    assert mounted.read("debug/ktask_max_tasks") == "64\n"
    assert mounted.write("debug/ktask_max_tasks", "65") == (0, None)


def test_tunables_need_it_whatever_the_uid_is(mounted: Mount) -> None:
    """Root of a container may take another uid, and keep the capability to write any file."""
    user = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    few = ("--bounding-set=-all,+dac_override", "--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override")
    outcome = as_root_with((*user, *few), mounted, "echo daemon > debug/ktask_cgroup")
    assert (outcome.status, outcome.errname) == (1, "EPERM")
    assert mounted.read("debug/ktask_cgroup") == "caller\n"


def test_tasks_of_others_need_cap_kill(mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]) -> None:
    mounted = mount_maker("mode=0666")
    user, _ = two_users
    start_slow(mounted, memory, "t", user=user)
    for command in (
        "echo cancel > tasks/t/control",
        "echo kill > tasks/t/control",
        "echo pause > tasks/t/control",
        "echo 1 > tasks/t/rate_max",
    ):
        outcome = as_root_with(CONTAINER, mounted, command)
        assert (outcome.status, outcome.errname) == (1, "EPERM"), command
        assert "CAP_KILL" in mounted.read("info/last_cmd_status")
    assert mounted.read("tasks/t/state", user=user) == "running\n"
    assert mounted.write("tasks/t/rate_max", "1M") == (0, None)
    stop(mounted, "t")
    assert as_root_with(CONTAINER, mounted, "rmdir tasks/t").status == 1
    assert "CAP_KILL" in mounted.read("info/last_cmd_status")
    assert mounted.shell("rmdir tasks/t").status == 0


PREPARE: Final = {
    "made": "mkdir tasks/t",
    "nothing": "true",
    "parameter": 'echo "$1/trap" > tasks/t/path',
    "operation": "echo clear > tasks/t/op",
}


@pytest.mark.parametrize("trap", PREPARE)
def test_root_does_not_start_what_root_without_its_capabilities_has_prepared(
    mounted: Mount, memory: Path, trap: str
) -> None:
    (memory / "trap").write_bytes(b"precious")
    if trap != "made":
        assert mounted.shell("mkdir tasks/t").status == 0
    outcome = as_root_with(POWERLESS, mounted, PREPARE[trap], str(memory))
    assert outcome.status == 0, outcome.err
    script = 'echo clear > tasks/t/op && echo "$1/trap" > tasks/t/path && echo start > tasks/t/control'
    started = mounted.shell(script, str(memory))
    if trap == "nothing":
        assert started.status == 0, started.err
        assert mounted.read("tasks/t/wait").endswith("done\n")
        return
    assert (started.status, started.errname) == (1, "EPERM")
    assert "was defined without some of your capabilities" in mounted.read("info/last_cmd_status")
    assert mounted.write("tasks/t/control", f"clear path={memory}/trap") == (1, "EPERM")
    assert (memory / "trap").read_bytes() == b"precious"
    assert as_root_with(POWERLESS, mounted, "echo start > tasks/t/control").status == 0
    assert mounted.read("tasks/t/wait").endswith("done\n")


def test_root_does_not_resume_it_either_and_a_later_daemon_knows(mount_maker: MountMaker, memory: Path) -> None:
    mounted = mount_maker()
    (memory / "f").touch()
    spec = f"fallocate path={memory}/f length=1M chunk=4096 rate_max=1 name=t"
    script = 'echo "$1" > tasks/control && echo cancel > tasks/t/control'
    assert as_root_with(POWERLESS, mounted, script, spec).status == 0
    assert mounted.read("tasks/t/wait").splitlines()[-1] == "cancelled"
    assert mounted.write("tasks/t/control", "resume") == (1, "EPERM")
    mounted.kill()
    again = mount_maker(statedir=mounted.statedir)
    assert again.write("tasks/t/control", "resume") == (1, "EPERM")
    assert as_root_with(POWERLESS, again, "echo resume > tasks/t/control && echo pause > tasks/t/control").status == 0
    assert again.write("tasks/t/control", "resume") == (0, None)  # no new worker, and no path is opened
    assert again.write("tasks/t/control", "kill") == (0, None)


def test_a_refused_start_leaves_the_rights_as_they_were(mounted: Mount, memory: Path) -> None:
    assert mounted.shell("mkdir tasks/t").status == 0
    refused = as_root_with(POWERLESS, mounted, "echo clear path=/nowhere > tasks/t/control")
    assert (refused.status, refused.errname) == (1, "ENOENT")
    (memory / "f").write_bytes(b"x")
    assert mounted.write("tasks/t/control", f"clear path={memory}/f") == (0, None)
    assert mounted.read("tasks/t/wait").endswith("done\n")


def test_a_task_that_is_done_takes_no_values(mounted: Mount, memory: Path) -> None:
    assert mounted.write("tasks/control", f"fallocate path={memory}/f length=64K name=t") == (0, None)
    assert mounted.read("tasks/t/wait").endswith("done\n")
    for name, text in (("nice", "3"), ("max_threads", "1"), ("rate_max", "1M"), ("length", "1")):
        assert mounted.write(f"tasks/t/{name}", text) == (1, "EBUSY")


def test_with_hidepid_2_no_name_tells_of_others(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    mounted = mount_maker("mode=0666,hidepid=2")
    names: dict[int, list[str]] = {}
    for user, number in itertools.product(two_users, range(3)):
        mounted.shell('mkdir tasks/other$1{a,b,c}"$2"', str(user.uid), str(number))
        file = f"/dev/shm/kt-{os.getpid()}-{user.uid}"
        script = 'exec 3<>tasks/control; echo "fallocate path=$1 length=4096" >&3; cat <&3; rm "$1"'
        outcome = mounted.shell(script, file, user=user)
        names.setdefault(user.uid, []).extend(outcome.out.split())
    for user in two_users:
        assert names[user.uid] == [f"fallocate-{user.uid}-{number}" for number in (1, 2, 3)]
