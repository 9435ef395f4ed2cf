"""``events``, followed by real programs."""

from __future__ import annotations

import os
import select
import subprocess
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from tests.support.poll import DEADLINE, until
from tests.support.shell import run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("patient")


@contextmanager
def following(mount: Mount, *command: str, user: User | None = None) -> Iterator[IO[str]]:
    """``command`` with the stream opened, and so recording, for as long as the body runs."""
    fd = os.open(mount.path / "events", os.O_RDONLY) if user is None else None
    process = subprocess.Popen(
        command or ["cat", str(mount.path / "events")],
        stdin=fd,
        stdout=subprocess.PIPE,
        text=True,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
    )
    if fd is not None:
        os.close(fd)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def fields(stream: IO[str], count: int) -> list[list[str]]:
    """The next ``count`` events, without their times."""
    found: list[list[str]] = []
    while len(found) < count:
        line = stream.readline()
        assert line, "the stream has ended"
        if line.strip():
            time, *rest = line.split()
            assert float(time) > 1e9
            found.append(rest)
    return found


def test_the_life_of_a_task_as_events(mounted: Mount, memory: Path) -> None:
    with following(mounted, "cat") as stream:
        mounted.shell("mkdir tasks/vm0 && echo clear > tasks/vm0/op && rmdir tasks/vm0")
        start_slow(mounted, memory, "slow")
        mounted.write("tasks/slow/control", "pause")
        mounted.write("tasks/slow/control", "resume")
        stop(mounted, "slow")
        assert fields(stream, 8) == [
            ["vm0", "-", "new", "op=-", "uid=0"],
            ["vm0", "new", "-", "op=clear", "uid=0"],
            ["slow", "-", "new", "op=clear", "uid=0"],
            ["slow", "new", "starting", "op=clear", "uid=0"],
            ["slow", "starting", "running", "op=clear", "uid=0"],
            ["slow", "running", "paused", "op=clear", "uid=0"],
            ["slow", "paused", "running", "op=clear", "uid=0"],
            ["slow", "running", "cancelled", "op=clear", "uid=0"],
        ]


def test_a_spec_that_is_refused_leaves_its_traces_in_pairs(mounted: Mount) -> None:
    with following(mounted, "cat") as stream:
        assert mounted.write("tasks/control", "clear path=/nowhere name=gone") == (1, "ENOENT")
        assert [each[:3] for each in fields(stream, 3)] == [
            ["gone", "-", "new"],
            ["gone", "new", "starting"],
            ["gone", "starting", "-"],
        ]


def test_each_user_follows_what_the_mount_lets_him(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    first, second = two_users
    mount = mount_maker("mode=0666,hidepid=1")
    ready = memory / "ready"
    follow = 'exec 3< "$1"/events; echo > "$2"; exec cat <&3'
    memory.chmod(0o777)
    with following(mount, "bash", "-c", follow, "bash", str(mount.path), str(ready), user=second) as stream:
        until(ready.exists, "the stream is open")
        for user in two_users:
            run("mkdir", str(mount.path / "tasks" / user.name), user=user)
        assert fields(stream, 1) == [[second.name, "-", "new", "op=-", f"uid={second.uid}"]]
        run("rmdir", str(mount.path / "tasks" / first.name), user=first)
        run("rmdir", str(mount.path / "tasks" / second.name), user=second)
        assert fields(stream, 1) == [[second.name, "new", "-", "op=-", f"uid={second.uid}"]]


def test_only_who_may_start_tasks_may_follow_them(mounted: Mount, two_users: tuple[User, User]) -> None:
    assert mounted.cat("events", user=two_users[0]).errname == "EACCES"


def test_poll_says_when_there_is_something(mounted: Mount) -> None:
    fd = os.open(mounted.path / "events", os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLPRI)
        assert poll.poll(0) == []
        mounted.shell("mkdir tasks/a")
        assert poll.poll() == [(fd, select.POLLIN | select.POLLPRI)]
        assert b" a - new " in os.read(fd, 4096)
        assert poll.poll(0) == []
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
    finally:
        os.close(fd)


def test_a_pipeline_ends_soon_after_its_reader(mounted: Mount) -> None:
    """A follower in a pipe notices within a second that its reader is gone, with or without events."""
    script = "cat events | { head -n 1 > /dev/null; }"
    assert mounted.shell(f"timeout {DEADLINE:g} bash -c '{script}'").status == 0


def test_a_reader_that_sleeps_is_told_what_it_lost(mounted: Mount) -> None:
    fd = os.open(mounted.path / "events", os.O_RDONLY)
    try:
        assert mounted.shell("for i in {1..600}; do mkdir tasks/a; rmdir tasks/a; done").status == 0
        text = b""
        while text.count(b"\n") < 1025:
            text += os.read(fd, 65536)
        first, *others = text.decode().splitlines()
        assert first.split()[1:] == ["-", "-", "-", "lost=176"]
        assert len(others) == 1024
        assert others[-1].split()[1:4] == ["a", "new", "-"]
    finally:
        os.close(fd)
