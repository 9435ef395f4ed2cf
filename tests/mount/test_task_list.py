"""``info/tasks`` and its JSON, ``stat.json``: how all tasks stand, for awk, jq, poll(2) and for each user."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.host.statx import birth_time
from tests.support.poll import DEADLINE
from tests.support.slow import SIZE, start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

HEADER = ["name", "operation", "state", "percent", "done", "total", "speed", "finish", "uid", "age"]


def rows(mount: Mount, user: User | None = None) -> list[list[str]]:
    """The table's rows as awk would have them; each has every column."""
    header, *lines = [line.split() for line in mount.read("info/tasks", user=user).splitlines()]
    assert header == HEADER
    assert all(len(line) == len(HEADER) for line in lines)
    return lines


def objects(mount: Mount, user: User | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(mount.read("info/tasks.json", user=user))
    return found


def run_one(mount: Mount, memory: Path, name: str, user: User | None = None) -> None:
    file = memory / f"f-{name}"
    file.write_bytes(bytes(8192))
    file.chmod(0o666)
    assert mount.write("tasks/control", f"clear path={file} name={name}", user=user) == (0, None)
    assert mount.read(f"tasks/{name}/wait", user=user).endswith("done\n")


def test_a_row_for_each_task_and_those_at_work_first(mounted: Mount, memory: Path) -> None:
    assert rows(mounted) == []
    assert mounted.read("info/tasks.json") == "[]\n"
    run_one(mounted, memory, "ended")
    mounted.shell("mkdir tasks/empty")
    for name in ("first", "second", "third"):
        start_slow(mounted, memory, name)
    mounted.write("tasks/first/control", "pause")
    stop(mounted, "third")
    table = {row[0]: dict(zip(HEADER, row, strict=True)) for row in rows(mounted)}
    assert list(table) == ["second", "first", "empty", "third", "ended"]
    assert [row["state"] for row in table.values()] == ["running", "paused", "new", "cancelled", "done"]
    assert (table["second"]["operation"], table["second"]["total"], table["second"]["uid"]) == ("clear", str(SIZE), "0")
    assert table["ended"] | {"speed": "", "age": ""} == {
        "name": "ended",
        "operation": "clear",
        "state": "done",
        "percent": "100.0",
        "done": "8192",
        "total": "8192",
        "speed": "",
        "finish": "-",
        "uid": "0",
        "age": "",
    }
    assert [table["empty"][key] for key in HEADER[1:8]] == ["-", "new", "-", "0", "-", "-", "-"]
    assert all(row["age"].endswith("s") and row["age"][:-1].isdecimal() for row in table.values())
    assert mounted.shell("awk '$3 == \"running\" { print $1 }' info/tasks").out == "second\n"
    stop(mounted, "first", "second")
    mounted.shell("rmdir tasks/*")
    assert rows(mounted) == []


def test_a_task_tells_which_files_it_worked_on(mounted: Mount, memory: Path) -> None:
    """So a program finds out whether a path still leads to the same file."""
    run_one(mounted, memory, "first")
    now = (memory / "f-first").stat()
    (identity,) = json.loads(mounted.read("tasks/first/stat.json"))["files"].values()
    assert identity == [now.st_dev, now.st_ino, birth_time(str(memory / "f-first"))]
    (memory / "new").write_bytes(bytes(8192))
    (memory / "new").replace(memory / "f-first")
    assert identity[1] != (memory / "f-first").stat().st_ino
    assert mounted.write("tasks/control", f"survey pid={os.getpid()} name=process") == (0, None)
    assert mounted.read("tasks/process/wait").endswith("done\n")
    assert list(json.loads(mounted.read("tasks/process/stat.json"))["files"]) == ["pid"]


def test_jq_has_numbers_and_null_where_nothing_is_known(mounted: Mount, memory: Path) -> None:
    run_one(mounted, memory, "ended")
    mounted.shell("mkdir tasks/empty")
    start_slow(mounted, memory, "slow")
    for name in ("ended", "empty", "slow"):
        alone = json.loads(mounted.read(f"tasks/{name}/stat.json"))
        assert list(alone.pop("files")) == ([] if name == "empty" else ["path"])
        (listed,) = [each for each in objects(mounted) if each["name"] == name]
        assert list(alone) == list(listed)
        moving = {"done", "percent", "speed", "finish_usec", "elapsed_usec", "busy_usec", "chunks", "threads"}
        assert {key: alone[key] for key in alone if key not in moving} == {
            key: listed[key] for key in listed if key not in moving
        }
        flat = dict(line.split(" ") for line in mounted.read(f"tasks/{name}/stat").splitlines())
        for key in flat.keys() - moving:
            absent = "-" if key == "operation" else "0"
            assert flat[key] == (absent if alone[key] is None else str(alone[key])), key
    query = '.[] | select(.state == "running") | [.name, .total - .done > 0, .speed >= 0, .errno, .rate_max]'
    assert mounted.shell('jq -c "$1" info/tasks.json', query).out == '["slow",true,true,null,65536]\n'
    assert mounted.shell("jq .total,.operation,.finish_usec tasks/empty/stat.json").out == "null\nnull\nnull\n"
    stop(mounted, "slow")


@pytest.mark.parametrize("hidepid", [0, 1, 2])
def test_everybody_sees_what_everybody_may(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], hidepid: int
) -> None:
    mount = mount_maker(f"mode=0666,hidepid={hidepid}")
    ann, ben = two_users
    run_one(mount, memory, "ann", user=ann)
    run_one(mount, memory, "ben", user=ben)
    assert [row[:3] for row in rows(mount)] == [["ann", "clear", "done"], ["ben", "clear", "done"]]
    mine = ["ann", "clear", "done"]
    seen = rows(mount, user=ann)
    assert seen[0][:3] == mine
    if hidepid == 2:
        assert len(seen) == 1
        assert [each["name"] for each in objects(mount, user=ann)] == ["ann"]
    else:  # the same as a listing of tasks/
        assert seen[1][:9] == ["ben", *"-------", str(ben.uid)]
        (other,) = [each for each in objects(mount, user=ann) if each["name"] == "ben"]
        assert {key for key, value in other.items() if value is not None} == {"name", "uid", "created_usec"}


def polled(fd: int, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    return bool(poll.poll(seconds * 1000))


def reread(fd: int) -> str:
    return os.pread(fd, 1 << 20, 0).decode()


@pytest.mark.parametrize("file", ["info/tasks", "info/tasks.json"])
def test_poll_wakes_on_any_change_of_state(mounted: Mount, memory: Path, file: str) -> None:
    fd = os.open(mounted.path / file, os.O_RDONLY)
    try:
        reread(fd)
        assert not polled(fd)
        for change, shown in (
            (lambda: start_slow(mounted, memory, "slow"), "running"),
            (lambda: mounted.write("tasks/slow/control", "pause"), "paused"),
            (lambda: stop(mounted, "slow"), "cancelled"),
        ):
            change()
            assert polled(fd, DEADLINE)
            assert shown in reread(fd), "at once, not after the age that progress may have"
            assert not polled(fd)
        mounted.shell("rmdir tasks/slow")
        assert polled(fd, DEADLINE)
        assert "slow" not in reread(fd)
    finally:
        os.close(fd)


POLLER = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
poll = select.poll()
poll.register(fd, select.POLLPRI)
for line in sys.stdin:
    print(len(poll.poll(0)), flush=True)
    os.pread(fd, 1 << 20, 0)
"""


def test_nobody_is_woken_by_what_is_hidden(mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]) -> None:
    mount = mount_maker("mode=0666,hidepid=2")
    ann, ben = two_users
    with subprocess.Popen(
        [sys.executable, "-I", "-c", POLLER, str(mount.path / "info/tasks")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        user=ann.uid,
        group=ann.gid,
        extra_groups=[],
    ) as poller:
        ask, answer = poller.stdin, poller.stdout
        assert ask is not None
        assert answer is not None

        def woken() -> str:
            ask.write("?\n")
            return answer.readline()

        assert woken() == "1\n", "a file that was not read yet counts as changed"
        run_one(mount, memory, "ben", user=ben)
        assert woken() == "0\n"
        run_one(mount, memory, "ann", user=ann)
        assert woken() == "1\n"
        ask.close()
