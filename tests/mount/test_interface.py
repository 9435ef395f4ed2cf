"""Tasks made file by file, transactions, and the live tunables of a task, on the real mount."""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import DEADLINE, until
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

pytestmark = pytest.mark.usefixtures("patient")


def number(mount: Mount, task: str, key: str) -> int:
    """A key of ``tasks/NAME/stat``."""
    return int(dict(line.split() for line in mount.read(f"tasks/{task}/stat").splitlines())[key])


def test_a_task_made_file_by_file(mounted: Mount, memory: Path) -> None:
    script = """
        mkdir tasks/vm0 && cd tasks/vm0 && cat op path length state
        echo fallocate > op && echo "$1/vm0" > path && echo 1M > length && echo 0640 > mode
        cat op path length mode control state && echo start > control && tail -n 1 wait
    """
    outcome = mounted.shell(script, str(memory))
    assert outcome.err == ""
    expected = ["-", "-", "-", "new", "fallocate", f"{memory}/vm0", "1M", "0640", "start", "new", "done"]
    assert outcome.out.split() == expected
    assert (memory / "vm0").stat().st_size == 1 << 20
    assert (memory / "vm0").stat().st_mode & 0o777 == 0o640
    assert mounted.write("tasks/vm0/length", "2M") == (1, "EBUSY")
    assert mounted.write("tasks/vm0/op", "clear") == (1, "EBUSY")
    assert mounted.write("tasks/vm0/control", "start") == (1, "EBUSY")
    assert mounted.shell("rmdir tasks/vm0 && ls tasks").out == "control\n"


def test_an_empty_task_shows_what_it_could_be_told(mounted: Mount) -> None:
    mounted.shell("mkdir tasks/a tasks/b; echo clear > tasks/b/op")
    first, second = (set(os.listdir(mounted.path / "tasks" / name)) for name in "ab")
    assert first > second
    assert "keep_size" in first - second
    assert mounted.write("tasks/b/keep_size", "1")[0] == 1
    assert mounted.write("tasks/a/control", "start") == (1, "EINVAL")
    assert mounted.write("tasks/b/control", "start") == (1, "EINVAL")
    assert "path is missing" in mounted.read("info/last_cmd_status")
    script = "echo copy > op; echo /x > source; echo /y > path; echo - > path; echo start > control"
    mounted.shell(f"mkdir tasks/c; cd tasks/c; {script}")
    assert "parameter path is missing" in mounted.read("info/last_cmd_status"), "not a file with that name"


def test_a_spec_starts_an_empty_task(mounted: Mount, memory: Path) -> None:
    (memory / "f").write_bytes(b"x" * 4096)
    mounted.shell("mkdir tasks/a")
    assert mounted.write("tasks/a/control", f"clear path={memory}/f name=b") == (1, "EINVAL")
    assert mounted.write("tasks/a/control", f"clear path={memory}/g") == (1, "ENOENT")
    assert mounted.read("tasks/a/op") == "-\n"
    assert mounted.write("tasks/a/control", f"clear path={memory}/f") == (0, None)
    assert mounted.read("tasks/a/wait").endswith("done\n")


def test_a_spec_keeps_what_the_files_of_an_empty_task_say(mounted: Mount, memory: Path) -> None:
    """Above all that the task is only a plan."""
    (memory / "f").write_bytes(b"x" * 4096)
    mounted.shell("mkdir tasks/a; echo 1 > tasks/a/plan; echo 1 > tasks/a/force; echo 4K > tasks/a/chunk")
    assert mounted.write("tasks/a/control", f"clear path={memory}/f force=0") == (0, None)
    assert mounted.read("tasks/a/wait").splitlines()[-1] == "planned"
    assert mounted.shell("cat tasks/a/plan tasks/a/force tasks/a/chunk").out == "1\n0\n4K\n"
    assert (memory / "f").read_bytes() == b"x" * 4096


def test_a_descriptor_reads_back_the_names_of_its_own_tasks(mounted: Mount, memory: Path) -> None:
    (memory / "f").write_bytes(b"x" * 4096)
    spec = f"clear path={memory}/f"
    fd, other = (os.open(mounted.path / "tasks/control", os.O_RDWR) for _ in range(2))
    try:
        os.write(fd, f"{spec} name=a\n{spec} name=b\n".encode())
        os.pwrite(other, f"{spec} name=c".encode(), 0)
        assert os.pread(fd, 100, 0) == b"a\nb\n"
        assert os.pread(other, 100, 0) == b"c\n"
        os.pwrite(fd, spec.encode(), 0)
        automatic = os.pread(fd, 100, 0).decode().split()[-1]
        assert automatic.startswith("clear-")
        assert mounted.read("info/last_task") == f"{automatic}\n"
        for name in ("a", "b", "c", automatic):
            assert mounted.read(f"tasks/{name}/wait").endswith("done\n")
    finally:
        os.close(fd)
        os.close(other)


@pytest.mark.parametrize("bad", ["clear path={}/missing name=b", "clear path={}/f name=a", "nonsense"])
def test_several_specs_start_together_or_not_at_all(mounted: Mount, memory: Path, bad: str) -> None:
    (memory / "f").write_bytes(b"x" * 4096)
    good = f"clear path={memory}/f name=a"
    for lines in ((good, bad.replace("{}", str(memory))), (bad.replace("{}", str(memory)), good)):
        assert mounted.write_once("tasks/control", "\n".join(lines))[0] == 1
        assert mounted.shell("ls tasks").out == "control\n"
        assert (memory / "f").read_bytes() == b"x" * 4096
    assert mounted.read("info/last_task") == ""


def test_rate_and_nice_and_threads_change_while_the_work_goes_on(mounted: Mount, memory: Path) -> None:
    start_slow(mounted, memory, "slow", rate="4K")
    assert mounted.read("tasks/slow/rate_max") == "4K\n"
    assert number(mounted, "slow", "done") < 1 << 20
    assert mounted.write("tasks/slow/rate_max", "1M") == (0, None)
    assert number(mounted, "slow", "rate_max") == 1 << 20
    until(lambda: number(mounted, "slow", "done") > 1 << 20, "more is done than the old rate allows in minutes")
    pid = number(mounted, "slow", "pid")
    assert mounted.write("tasks/slow/nice", "7") == (0, None)

    def nice_values() -> list[int]:
        values = []
        for row in mounted.read("tasks/slow/threads").splitlines()[1:]:
            with contextlib.suppress(ProcessLookupError):  # a thread that has ended
                values.append(os.getpriority(os.PRIO_PROCESS, int(row.split()[0])))
        return sorted(values)

    until(lambda: nice_values()[-1] in (0, 7), "no helper is nicer than it is told")
    assert mounted.write("tasks/slow/max_threads", "1") == (0, None)
    assert number(mounted, "slow", "max_threads") == 1

    def at_work() -> int:
        rows = [row.split() for row in mounted.read("tasks/slow/threads").splitlines()[1:]]
        return sum(row[3] in ("running", "throttled") for row in rows)

    until(lambda: at_work() <= 1, "the helpers have stopped")
    for file, text in (("rate_max", "0"), ("rate_max", "fast"), ("nice", "20"), ("max_threads", "0")):
        assert mounted.write(f"tasks/slow/{file}", text) == (1, "EINVAL")
    assert number(mounted, "slow", "pid") == pid
    stop(mounted, "slow")


def test_a_task_that_does_not_work_shows_what_it_was_told(mount_maker: MountMaker, memory: Path) -> None:
    keys = ("max_threads", "nice", "rate_max")
    mounted = mount_maker("max_tasks=2")
    start_slow(mounted, memory, "slow")
    mounted.shell("mkdir tasks/new && cd tasks/new && echo 1 > max_threads && echo 7 > nice && echo 4K > rate_max")
    spec = f"fallocate path={memory}/q length=1M name=q queue=1 max_threads=3 nice=5 rate_max=1M"
    assert mounted.write("tasks/control", spec) == (0, None)
    told = {"new": [1, 7, 4096], "q": [3, 5, 1 << 20]}
    assert {task: [number(mounted, task, key) for key in keys] for task in told} == told
    mounted.kill()
    again = mount_maker("max_tasks=2", statedir=mounted.statedir)
    assert {task: [number(again, task, key) for key in keys] for task in told} == told
    assert again.write("tasks/control", "cancel") == (0, None)
    assert again.read("tasks/slow/wait").splitlines()[-1] == "cancelled"


def test_a_new_rate_reaches_who_sleeps_for_the_old_one(mounted: Mount, memory: Path) -> None:
    """A thread that has to wait for minutes at the old rate is woken by the new one."""
    start_slow(mounted, memory, "slow", rate="1K", chunk="1M")
    assert mounted.write("tasks/slow/rate_max", "max") == (0, None)
    with open(mounted.path / "tasks/slow/wait", "rb", buffering=0) as stream:
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        assert poll.poll(DEADLINE * 1000) != []
        assert stream.readall().endswith(b"done\n")
