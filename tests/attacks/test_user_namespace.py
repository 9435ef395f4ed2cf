"""A caller in its own user namespace that sees the host's processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.attacks.callers import OWN_USER_NAMESPACE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make users"),
    pytest.mark.usefixtures("patient"),
]

SECRET = b"secret" * 1000
HOLD = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.unlink(sys.argv[1])
print(fd, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: Path, user: User) -> Iterator[str]:
    """``/proc/PID/fd/N`` of a file without a name, which a process of ``user`` outside of the namespace holds."""
    path.write_bytes(SECRET)
    path.chmod(0o600)
    os.chown(path, user.uid, user.gid)
    command = ["/usr/bin/python3", "-I", "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user.uid, group=user.gid, extra_groups=[]
    ) as child:
        assert child.stdout is not None
        yield f"/proc/{child.pid}/fd/{int(child.stdout.readline())}"
        child.kill()


def ask(mount: Mount, spec: str, user: User) -> Outcome:
    """Write a spec from within a user namespace that ``user`` makes."""
    control = str(mount.path / "tasks/control")
    return run(*OWN_USER_NAMESPACE, "bash", "-c", 'echo "$1" > "$2"', "-", spec, control, user=user)


def test_it_reaches_no_file_of_a_process_outside(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    user = two_users[0]
    mount = mount_maker("mode=0666")
    with holder(memory / "secret", user) as path:
        assert run(*OWN_USER_NAMESPACE, "cat", path, user=user).errname == "EACCES"  # it cannot do so itself
        assert run("cat", path, user=user).out.encode() == SECRET  # outside it could
        for spec in (f"copy source={path} path={memory}/stolen", f"fill path={path} pattern=00"):
            assert ask(mount, spec, user).errname == "EACCES", spec
        assert run("cat", path, user=user).out.encode() == SECRET


def test_it_does_its_ordinary_job(mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]) -> None:
    user = two_users[0]
    mount = mount_maker("mode=0666")
    assert ask(mount, f"fallocate path={memory}/own length=1M name=own", user).status == 0
    assert mount.read("tasks/own/wait").endswith("done\n")
    assert ((memory / "own").stat().st_uid, (memory / "own").stat().st_size) == (user.uid, 1 << 20)
    assert ask(mount, f"copy source={memory}/own path={memory}/copy name=copy", user).status == 0
    assert mount.read("tasks/copy/wait").endswith("done\n")


def test_an_ordinary_users_daemon_serves_a_namespace_of_that_user(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    user = two_users[0]
    mount = mount_maker(user=user)
    with holder(memory / "secret", user) as path:
        assert ask(mount, f"copy source={path} path={memory}/stolen", user).errname == "EACCES"
    assert ask(mount, f"fallocate path={memory}/own length=1M name=own", user) == Outcome(0, "", "")
    assert mount.read("tasks/own/wait", user=user).endswith("done\n")
    assert (memory / "own").stat().st_uid == user.uid


def test_root_in_there_is_refused_what_root_may(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    mount = mount_maker("mode=0666")
    (memory / "roots").write_bytes(SECRET)
    (memory / "roots").chmod(0o600)
    assert ask(mount, f"copy source={memory}/roots path={memory}/stolen", two_users[0]).errname == "EACCES"
    assert ask(mount, "reserve pages=0", two_users[0]).errname == "EACCES"


def test_it_works_on_memory_that_only_its_own_namespace_shows(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    """A memfd of a process in the same user namespace: its worker may look into it as the caller may."""
    mount = mount_maker("mode=0666")
    script = """
import os, sys
fd = os.memfd_create("guest")
os.ftruncate(fd, 1 << 20)
with open(sys.argv[1], "w") as control:
    control.write(f"fallocate path=/proc/{os.getpid()}/fd/{fd} name=guest\\n")
with open(sys.argv[2]) as wait:
    print(wait.read().split()[-1], os.fstat(fd).st_blocks)
"""
    files = [str(mount.path / each) for each in ("tasks/control", "tasks/guest/wait")]
    outcome = run(*OWN_USER_NAMESPACE, "/usr/bin/python3", "-I", "-c", script, *files, user=two_users[0])
    assert (outcome.out, outcome.err) == ("done 2048\n", "")
