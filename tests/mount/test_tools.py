"""The programs that people use on /proc and /sys, on this mount."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import run
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Mount


@pytest.fixture
def mount(mounted: Mount, memory: Path) -> Iterator[Mount]:
    """A mount with a task that is done, one at work and one that is empty."""
    (memory / "f").write_bytes(b"x" * 8192)
    assert mounted.write("tasks/control", f"clear path={memory}/f name=ended") == (0, None)
    assert mounted.read("tasks/ended/wait").endswith("done\n")
    start_slow(mounted, memory, "slow")
    mounted.shell("mkdir tasks/empty")
    yield mounted
    stop(mounted, "slow")


def test_readers_agree_on_a_file(mount: Mount) -> None:
    """A program that reads in one piece or byte by byte gets the same text as cat."""
    text = mount.read("tasks/ended/stat")
    lines = text.splitlines()
    commands = {
        "head -n 100 {}": text,
        "tail -n 100 {}": text,
        "tail -c 5 {}": text[-5:],
        "sed -n 2p {}": f"{lines[1]}\n",
        "awk '{{ print $1 }}' {}": "".join(f"{line.split()[0]}\n" for line in lines),
        "grep -c '' {}": f"{len(lines)}\n",
        "wc -l < {}": f"{len(lines)}\n",
        "wc -c < {}": f"{len(text)}\n",
        "dd bs=1 if={} status=none": text,
        "dd bs=7 if={} status=none": text,
        "less {}": text,
        "cut -d ' ' -f 1- {}": text,
        "cmp {} {} && echo same": "same\n",
        "diff {} {} && echo same": "same\n",
        "cp {} /dev/stdout | cat": text,
        "tee < {}": text,
        'x=$(< {}); echo "$x"': text,
        'read -r x < {}; echo "$x"': f"{lines[0]}\n",
        'while read -r key value; do echo "$key $value"; done < {}': text,
        'mapfile -t all < {}; printf "%s\\n" "${{all[@]}}"': text,
        f'{sys.executable} -c \'print(open("{{}}").read(), end="")\'': text,
        f'{sys.executable} -c \'print(*open("{{}}"), sep="", end="")\'': text,
        "perl -pe 1 {}": text,
    }
    for command, expected in commands.items():
        outcome = mount.shell(command.replace("{}", "tasks/ended/stat").replace("{{", "{").replace("}}", "}"))
        assert (outcome.out, outcome.status) == (expected, 0), f"{command}: {outcome.err}"


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash"]], ids=" ".join)
def test_shells_write_commands(mount: Mount, shell: list[str]) -> None:
    script = """
        echo 3 > debug/ktask_max_threads && cat debug/ktask_max_threads
        echo -n 2 > debug/ktask_max_threads && cat debug/ktask_max_threads
        printf 4 > debug/ktask_max_threads && cat debug/ktask_max_threads
        echo 5 | tee debug/ktask_max_threads
        echo 6 >> debug/ktask_max_threads && cat debug/ktask_max_threads
        read x < tasks/ended/state && echo $x
        echo pause > tasks/slow/control && cat tasks/slow/state
        printf 'resume\\n' > tasks/slow/control && cat tasks/slow/state
        echo nonsense > tasks/slow/control || cat info/last_cmd_status
    """
    outcome = run(*shell, "-c", script, cwd=mount.path)
    expected = ["3", "2", "4", "5", "6", "done", "paused", "running"]
    assert outcome.out.splitlines()[:8] == expected, outcome.err
    assert outcome.out.splitlines()[8].startswith("tasks/slow/control: EINVAL: unknown verb 'nonsense'")


def test_busybox(mount: Mount) -> None:
    """Not its cat and cp: they use sendfile(2), which Linux answers with nothing for a FUSE file of size 0."""
    text = mount.read("tasks/ended/stat")
    for command in ("head -n 100", "tail -n 100", "grep ''", "sed ''", "awk 1", "sort -s -k 9"):
        assert mount.shell(f"busybox {command} tasks/ended/stat").out == text, command
    assert mount.shell("busybox dd if=tasks/ended/stat bs=1 2> /dev/null").out == text
    assert mount.shell("busybox wc -c < tasks/ended/stat").out == f"{len(text)}\n"
    assert mount.shell("busybox find . -name state | busybox sort").out.split() == [
        f"./users/0/tasks/{name}/state" for name in ("empty", "ended", "slow")
    ]
    assert mount.shell("busybox grep -rl '^state done$' tasks/ended operations debug info").out == "tasks/ended/stat\n"
    assert mount.shell("busybox stat -c %a tasks/ended/stat").out == "440\n"
    assert mount.shell("busybox ls -lR tasks").status == 0


def test_programs_that_walk_the_whole_mount_come_to_its_end(mount: Mount, area: Path) -> None:
    """``events`` and the ``wait`` of a task at work have no end for now; grep and tar open without blocking."""
    files = mount.shell("find . -type f").out.split()
    assert "./events" in files
    assert "./users/0/tasks/slow/wait" in files
    grepped = mount.shell("grep -r '^state running$' .")
    assert grepped.out == "./users/0/tasks/slow/stat:state running\n"
    complaints = sorted(line.split(": ")[1] for line in grepped.err.splitlines())
    assert complaints == ["./events", "./users/0/tasks/empty/wait", "./users/0/tasks/slow/wait"], grepped.err
    assert mount.shell(f"tar cf {area}/all.tar .").status == 0
    with tarfile.open(area / "all.tar") as archive:
        assert sorted(member.name for member in archive if member.isfile()) == sorted(files)
    listed = mount.shell("ls -lR .")
    assert (listed.status, listed.err) == (0, "")
    assert mount.shell("du -a . | wc -l").status == 0
    for command in ("find -H tasks", "find tasks/", "find -L tasks"):
        assert mount.shell(f"{command} -name state -size -2").out.count("state") == 3
    assert mount.shell("find tasks").out == "tasks\n", "it is a link"
    assert mount.shell("find -L . -path './tasks/*/state' | wc -l").out == "3\n"
    assert mount.shell("stat -f -c %T .").out in ("fuse\n", "fuseblk\n")  # the newer coreutils say fuse
    assert mount.shell("df .").status == 0


def test_copies_of_a_directory(mount: Mount, area: Path) -> None:
    for command in ("cp -r", "cp -a"):
        assert mount.shell(f"{command} tasks/ended {area}/copy").status == 0
        assert (area / "copy/stat").read_text() == mount.read("tasks/ended/stat")
        assert (area / "copy/wait").read_text().endswith("done\n")
        shutil.rmtree(area / "copy")


def test_cat_of_everything_in_a_task_that_ended(mount: Mount) -> None:
    everything = mount.shell("cd tasks/ended; cat *").out
    for name in os.listdir(mount.path / "tasks/ended"):
        assert mount.read(f"tasks/ended/{name}") in everything


def follow(mount: Mount, command: str, *, end: signal.Signals) -> int:
    """Run ``command`` beside the running task until it has printed two lines of it; its status after ``end``."""
    words = ["bash", "-c", f"exec {command}"]
    with subprocess.Popen(words, cwd=mount.path / "tasks/slow", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = (line for line in process.stdout if "speed=" in line)
        assert [next(lines, ""), next(lines, "")].count("") == 0
        process.send_signal(end)
    return process.returncode


def test_cat_of_everything_in_a_task_at_work_goes_on_line_by_line_and_can_be_stopped(mount: Mount) -> None:
    assert follow(mount, "cat *", end=signal.SIGINT) == -signal.SIGINT


def test_tail_follows(mount: Mount) -> None:
    """From the first line, tail passes on what comes; without that it waits for the end of the file."""
    assert follow(mount, "stdbuf -o0 tail -n +1 -f wait", end=signal.SIGTERM) == -signal.SIGTERM
    more = 'exec 3< <(exec tail -f tasks/ended/state); read -r line <&3; echo "$line"; timeout 3 cat <&3; kill $!'
    assert mount.shell(more).out == "done\n"
    assert mount.shell("tail -n 1 tasks/ended/wait").out == "done\n"


def test_what_makes_no_sense_is_refused_as_sysfs_does(mount: Mount) -> None:
    for command, errname in (
        ("mv tasks/ended tasks/other", "EPERM"),
        ("mv version other", "EPERM"),
        ("rm -f version", "EPERM"),
        ("touch tasks/other", "EACCES"),
        ("echo x > tasks/ended/other", "EACCES"),
        ("echo x > version", "EACCES"),
        ("cat tasks/ended > tasks/ended/state", "EACCES"),
        ("mkdir debug/other", "EPERM"),
        ("mkdir tasks/ended/other", "EPERM"),
        ("mkdir tasks/ended", "EEXIST"),
        ("mkdir tasks/.hidden", "EINVAL"),
        ("rmdir tasks", "ENOTDIR"),
        ("rmdir tasks/slow", "EBUSY"),
        ("rmdir tasks/nobody", "ENOENT"),
        ("ln -s ended tasks/link", "EPERM"),
        ("ln tasks/ended/state tasks/link", "EPERM"),
        ("mkfifo tasks/fifo", "EPERM"),
        ("chmod 600 tasks/ended/state", "EPERM"),
        ("chown 1 tasks/ended/state", "EPERM"),
        ("cat tasks", "EISDIR"),
        ("cat tasks/nobody/state", "ENOENT"),
        ("cat version/x", "ENOTDIR"),
    ):
        outcome = mount.shell(command)
        assert (outcome.status != 0, outcome.errname) == (True, errname), f"{command}: {outcome.err}"
