"""Users that hold as much as they can: memory, streams and descriptors of the daemon are left for the others."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.control.limits import MEMORY_MAX, STREAMS_MAX
from ktaskfs.errors import TooManyOpen
from ktaskfs.quota import FEW_PART, ROOT_PART, Quota
from ktaskfs.tasks.table import DESCRIPTORS_PART
from tests.support.poll import until
from tests.support.resident import resident
from tests.support.shell import run
from tests.support.slow import start_slow, stop
from tests.support.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

HOLD = """
import os, sys
path, flags, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held, number = [], 0
try:
    while len(held) < most:
        held.append(os.open(path, flags))
except OSError as error:
    number = error.errno
print(len(held), number, flush=True)
sys.stdin.read()
"""
"""Opens a file as often as may be and holds it; prints how often, and the errno."""

pytestmark = pytest.mark.usefixtures("patient")


def test_a_large_result_is_in_memory_once(mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]) -> None:
    mounted = mount_maker("mode=0666")
    user, _ = two_users
    holes = 12_000
    with (memory / "f").open("wb") as file:
        for page in range(holes):
            os.pwrite(file.fileno(), b"x", page * 8192)
    os.chown(memory / "f", user.uid, user.gid)
    assert mounted.write("tasks/control", f"survey path={memory}/f name=s", user=user) == (0, None)
    assert mounted.read("tasks/s/wait", user=user).endswith("done\n")
    size = len(mounted.read("tasks/s/result", user=user))
    assert size > 400_000
    before = resident(mounted.pid)
    command = [sys.executable, "-I", "-c", HOLD, str(mounted.path / "tasks/s/result"), "0", "600"]
    with holding(command, user) as counts:
        assert counts == [600, 0]
        assert resident(mounted.pid) - before < 600 * size / 8


REMOVED = """
import os, sys
mount, file, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
held = []
for _ in range(times):
    with open(f"{mount}/tasks/control", "w") as control:
        control.write(f"survey path={file} name=s\\n")
    with open(f"{mount}/tasks/s/wait") as wait:
        wait.read()
    held.append(os.open(f"{mount}/tasks/s/state", os.O_RDONLY))
    os.rmdir(f"{mount}/tasks/s")
print(len(held), flush=True)
sys.stdin.read()
"""
"""Surveys a file again and again, and holds a file of each task, which it removes."""


def test_the_results_of_removed_tasks_are_not_in_memory(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    """An open file counts a kilobyte, whatever the result of its task was."""
    mounted = mount_maker("mode=0666")
    user, _ = two_users
    times, size = 20, 400_000
    with (memory / "f").open("wb") as file:
        for page in range(12_000):
            os.pwrite(file.fileno(), b"x", page * 8192)
    os.chown(memory / "f", user.uid, user.gid)
    command = [sys.executable, "-I", "-c", REMOVED, str(mounted.path), str(memory / "f")]
    with holding([*command, "1"], user) as counts:
        assert counts == [1]
        before = resident(mounted.pid)
    with holding([*command, str(times)], user) as counts:
        assert counts == [times]
        assert resident(mounted.pid) - before < times * size / 4


def test_open_texts_of_one_user_are_limited(mount_maker: MountMaker, attacker: User, victim: User) -> None:
    """Each opening has a separate text here: a path of 4 KiB."""
    mounted = mount_maker("mode=0666")
    for user, task in ((attacker, "own"), (victim, "hers")):
        script = 'mkdir tasks/$1 && echo clear > tasks/$1/op && echo "$2" > tasks/$1/path'
        assert mounted.shell(script, task, "/" + "x/" * 2047, user=user).status == 0
    most = MEMORY_MAX // 4096
    command = [sys.executable, "-I", "-c", HOLD, str(mounted.path / "tasks/own/path"), "0", str(most)]
    with holding(command, attacker) as (held, number):
        assert number == errno.ENOMEM
        assert held < most
        for reader, task in ((victim, "hers"), (None, "own")):
            assert len(mounted.read(f"tasks/{task}/path", user=reader)) == 4096
    assert len(mounted.read("tasks/own/path", user=attacker)) == 4096


@contextlib.contextmanager
def holding(command: list[str], user: User) -> Iterator[list[int]]:
    """The output of HOLD, while it holds."""
    ids: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **ids) as holder:
        assert holder.stdout is not None
        yield [int(each) for each in holder.stdout.readline().split()]
        holder.kill()


@pytest.mark.parametrize("name", ["events", "tasks/own/wait"])
def test_streams_of_one_user_are_limited(mount_maker: MountMaker, two_users: tuple[User, User], name: str) -> None:
    mounted = mount_maker("mode=0666")
    mine, other = two_users
    assert mounted.shell("mkdir tasks/own", user=mine).status == 0
    outcome = run("python3", "-c", HOLD, str(mounted.path / name), "0", "1000", user=mine)
    assert outcome.out.split() == [str(STREAMS_MAX), str(errno.EMFILE)]
    assert mounted.read("info/last_cmd_status", user=mine) == (
        f"open: EMFILE: you hold {STREAMS_MAX} events and wait files open; the limit of a user is {STREAMS_MAX}\n"
    )
    until(
        lambda: run("timeout", "0.1", "cat", str(mounted.path / "events"), user=other).status == 124,
        "another user reads the events",
    )


def test_many_uids_do_not_take_all_descriptors(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    mounted = mount_maker("mode=0666", prefix=("prlimit", "--nofile=400"))
    control, descriptors = mounted.path / "tasks/control", Path(f"/proc/{mounted.pid}/fd")
    before = len(list(descriptors.iterdir()))
    holders: list[subprocess.Popen[bytes]] = []
    try:
        for uid in range(40_000, 40_040):
            command = ["python3", "-c", HOLD, str(control), str(os.O_WRONLY), "256"]
            ids: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []}
            holders.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **ids))
        counts = [int(holder.stdout.readline().split()[0]) for holder in holders if holder.stdout]
        assert min(counts) > 0
        assert sum(counts) < 100
        for user in (two_users[1], None):
            assert mounted.write("tasks/control", "clear path=/nowhere", user=user) == (1, "ENOENT")
    finally:
        for holder in holders:
            holder.communicate()
    until(lambda: len(list(descriptors.iterdir())) <= before + 4, "the daemon has let go of them")


def test_a_task_at_work_takes_two_descriptors(mounted: Mount, memory: Path) -> None:
    """The limit on tasks counts on that."""
    descriptors = Path(f"/proc/{mounted.pid}/fd")
    start_slow(mounted, memory, "first")
    before = len(list(descriptors.iterdir()))
    for number in range(4):
        start_slow(mounted, memory, f"t{number}")
    until(lambda: len(list(descriptors.iterdir())) <= before + 2 * 4, "two for each")
    stop(mounted, "first", *(f"t{number}" for number in range(4)))


def test_groups_of_callers_do_not_take_the_daemons_memory(mount_maker: MountMaker, attacker: User) -> None:
    """Root of a user namespace can be in 65536 groups, also if all of them are one and the same."""
    mounted = mount_maker("mode=0666")
    control = str(mounted.path / "tasks/control")
    script = f"import os, resource; os.setgroups([{attacker.gid}] * 65536); os.setresgid(*[{attacker.gid}] * 3)\n"
    script += f"os.setresuid(*[{attacker.uid}] * 3)\n" + HOLD
    outcome = run("python3", "-c", script, control, str(os.O_WRONLY), "256")
    assert outcome.out.split() == ["0", str(errno.EPERM)], outcome.err
    assert "in more than 1024 groups" in mounted.read("info/last_cmd_status", user=attacker)


def test_many_uids_do_not_take_all_room_for_tasks(mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    """Each task at work is a process, and takes descriptors of the daemon."""
    mounted = mount_maker("mode=0666", prefix=("prlimit", "--nofile=400"))
    source = mounted.statedir.parent / "source"
    source.write_bytes(b"x" * (8 << 20))
    source.chmod(0o644)
    uids = range(40_000, 40_040)
    attackers = [User(f"many{uid}", uid, uid, Path("/")) for uid in uids]
    begun = 0
    try:
        for attacker in attackers:
            for number in range(8):
                spec = f"checksum path={source} rate_max=1 chunk=4K name=of-{attacker.uid}-{number}"
                status, errname = mounted.write("tasks/control", spec, user=attacker)
                assert (status, errname) in ((0, None), (1, "EAGAIN"))
                begun += status == 0
        assert 20 <= begun < 400 // DESCRIPTORS_PART
        last = mounted.read("info/last_cmd_status", user=attackers[-1])
        assert last.endswith("of 50: the rest is for others\n")
        assert mounted.shell("mkdir tasks/one-more", user=attackers[0]).errname == "EAGAIN"
        assert mounted.write("tasks/control", f"checksum path={source}") == (0, None)
    finally:
        for attacker in attackers:
            mounted.write("tasks/control", "cancel", user=attacker)
    until(lambda: "running" not in mounted.shell("cat tasks/*/state").out, "all are cancelled")
    assert mounted.write("tasks/control", f"checksum path={source}", user=two_users[0]) == (0, None)


@given(st.integers(32, 4096), st.lists(st.integers(1, 40), max_size=300))
def test_greedy_users_leave_something_for_the_next(total: int, users: list[int]) -> None:
    quota = Quota("things", each=total, total=total, refusal=TooManyOpen)
    refused: set[int] = set()
    for user in users:
        try:
            for _ in range(total):
                quota.take(user)
        except TooManyOpen:
            refused.add(user)
    few, roots = max(1, total // FEW_PART), total // ROOT_PART
    held = {user: quota.held(user) for user in users}
    assert sum(held.values()) <= total - roots
    assert sum(each for each in held.values() if each > few) <= total // 2 + few * len(held)
    if len(held) * few < total // 2 - roots:
        assert min(held.values(), default=few) >= few
    for _ in range(roots):
        quota.take(0)
    for user, each in held.items():
        quota.give_back(user, each)
    quota.give_back(0, roots)
    quota.take(1, total // 2 - roots)


def test_root_takes_half_and_leaves_the_few_of_the_others() -> None:
    quota = Quota("things", each=8, total=64, refusal=TooManyOpen)
    quota.take(0, 32)
    with pytest.raises(TooManyOpen):
        quota.take(0)
    for user in range(1, 29):
        quota.take(user)
    with pytest.raises(TooManyOpen):
        quota.take(29)
