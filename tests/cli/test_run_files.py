"""``ktaskfs run --files``: runs the specs in files, one after another."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run
from tests.support.slow import stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.support.users import User


SLOW: Final = "fallocate path={}/slow length=64M chunk=1M rate_max=1M"


def states(command: Command, *names: str) -> list[str]:
    """Returns the state of each task; "" if the task never started."""
    return [command.mount.cat(f"tasks/{name}/state").out.strip() for name in names]


def created(command: Command, name: str) -> int:
    return int(command.mount.shell(f"grep -o 'created_usec\": [0-9]*' tasks/{name}/stat.json | grep -o '[0-9]*$'").out)


def test_a_line_begins_when_the_one_before_it_is_done(command: Command, memory: Path) -> None:
    """The second task reads the first one's file. The third removes it only after the second has read it."""
    file = memory / "a.tasks"
    file.write_text(
        "# Comments and empty lines say nothing.\n\n"
        f"  fallocate path={memory}/made length=4M name=make rate_max=16M chunk=1M\n"
        f'{{"op": "checksum", "path": "{memory}/made", "name": "sum"}}\n'
        f"free path={memory}/made offset=0 length=4M name=free"
    )
    outcome = command("run", "--files", str(file))
    assert outcome.status == 0, outcome
    assert states(command, "make", "sum", "free") == ["done", "done", "done"]
    assert command.mount.read("tasks/sum/result") in outcome.out
    assert "total 4194304" in command.mount.read("tasks/sum/stat")


def test_files_of_a_directory_come_in_the_order_of_their_names(command: Command, memory: Path) -> None:
    for name in ("20-b.tasks", "10-a.tasks", "30-c.conf", ".05-d.tasks"):
        (memory / name).write_text(f"checksum path={memory}/file name={name[-7]}\n")
    assert command("run", "--files", str(memory)).status == 0
    assert states(command, "a", "b", "c", "d") == ["done", "done", "", ""]
    assert created(command, "a") < created(command, "b")


@pytest.mark.usefixtures("patient")
def test_after_a_line_that_does_not_get_done_the_next_file_comes(command: Command, memory: Path) -> None:
    first, second = memory / "10.tasks", memory / "20.tasks"
    first.write_text(f"checksum path={memory}/none name=one\nchecksum path={memory}/file name=two\n")
    second.write_text(f"checksum path={memory}/file name=three\n")
    outcome = command("run", "--quiet", "--files", str(memory))
    assert outcome.status == 1
    assert outcome.err.startswith(f"ktaskfs: {first}:1: ")
    assert f"{memory}/none" in outcome.err
    assert states(command, "two", "three") == ["", "done"]


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device", "dangling"])
def test_what_is_no_file_does_not_hold_the_others(command: Command, memory: Path, kind: str) -> None:
    """A FIFO has no end without a writer, and /dev/zero none at all."""
    odd, good = memory / "10.tasks", memory / "20.tasks"
    match kind:
        case "fifo":
            os.mkfifo(odd)
        case "socket":
            os.mknod(odd, stat.S_IFSOCK)
        case "directory":
            odd.mkdir()
        case "device":
            odd.symlink_to("/dev/zero")
        case _:
            odd.symlink_to(memory / "none")
    reason = ": No such file or directory" if kind == "dangling" else " is not a regular file"
    good.write_text(f"checksum path={memory}/file name=next\n")
    outcome = command("run", "--quiet", "--files", str(memory))
    assert outcome == Outcome(1, command.mount.read("tasks/next/result"), f"ktaskfs: {odd}{reason}\n")


def test_a_link_to_null_masks_a_file(command: Command, memory: Path) -> None:
    (memory / "10.tasks").symlink_to(os.devnull)
    (memory / "20.tasks").write_text(f"checksum path={memory}/file name=next\n")
    outcome = command("run", "--quiet", "--files", str(memory))
    assert outcome == Outcome(0, command.mount.read("tasks/next/result"), "")


def test_a_person_may_name_a_pipe(command: Command, memory: Path) -> None:
    line = command.mount.shell(f"echo 'checksum path={memory}/file name=sum' > {memory}/lines")
    assert line.status == 0
    words = shlex.join(command.words("run", "--quiet", "--files"))
    assert run("bash", "-c", f"{words} <(cat {memory}/lines)", cwd=ROOT).status == 0
    assert states(command, "sum") == ["done"]


def test_a_word_that_is_wrong_is_shown_with_its_place(command: Command, memory: Path) -> None:
    file = memory / "x.tasks"
    file.write_text(f"# x\nchecksum pth={memory}/file\n")
    lines = command("run", "--files", str(file)).err.splitlines()
    assert lines[0].startswith(f"ktaskfs: {file}:2: ")
    assert lines[1] == f"  checksum pth={memory}/file"
    assert lines[2].strip().startswith("^")


def test_a_task_that_is_cancelled_ends_its_file(command: Command, memory: Path) -> None:
    file = memory / "x.tasks"
    file.write_text(f"{SLOW.format(memory)} name=slow\nchecksum path={memory}/file name=next\n")
    words = command.words("run", "--files", str(file))
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        until(lambda: states(command, "slow") == ["running"], "the first is at work")
        command.mount.write("tasks/slow/control", "cancel")
        err = running.communicate()[1]
    assert running.returncode == 3
    assert f"ktaskfs: {file}:1: " in err.splitlines()[-1]
    assert states(command, "next") == [""]


@pytest.mark.parametrize("again", [1, 2])
def test_replace_lets_it_be_run_again(command: Command, memory: Path, again: int) -> None:
    (memory / "a.tasks").write_text(f"checksum path={memory}/file name=a\n")
    for _ in range(again):
        assert command("run", "--if-exists=replace", "--files", str(memory)).status == 0
    assert command("run", "--files", str(memory)).status == 1


def test_plan_changes_nothing(command: Command, memory: Path) -> None:
    (memory / "a.tasks").write_text(f"fallocate path={memory}/new length=1M name=a\n")
    outcome = command("run", "--plan", "--files", str(memory))
    assert (outcome.status, states(command, "a")) == (0, ["planned"])
    assert not (memory / "new").exists()


@pytest.mark.parametrize("name", ["absent", "closed"])
def test_what_cannot_be_read_is_an_error(
    command: Command, memory: Path, two_users: tuple[User, User], name: str
) -> None:
    if name == "closed":
        (memory / name).touch(0o600)
    outcome = command("run", "--files", str(memory / name), user=two_users[0])
    assert outcome.status == 1
    assert outcome.errname == {"absent": "ENOENT", "closed": "EACCES"}[name]


def test_an_empty_directory_is_no_work(command: Command, memory: Path) -> None:
    (memory / "empty").mkdir()
    assert command("run", "--files", str(memory / "empty")) == Outcome(0, "", "")


def test_its_tasks_cannot_be_left(command: Command, memory: Path) -> None:
    """Each line waits for the line before it."""
    outcome = command("run", "--files", "--detach", str(memory))
    assert outcome.status == 2
    assert "not allowed with" in outcome.err


def test_a_command_to_leave_the_tasks_starts_no_further_line(command: Command, memory: Path) -> None:
    """The next line must not begin before this one is done."""
    (memory / "10.tasks").write_text(f"{SLOW.format(memory)} name=slow\nchecksum path={memory}/file name=next\n")
    (memory / "20.tasks").write_text(f"checksum path={memory}/file name=last\n")
    words, pipe = command.words("run", "--json", "--files", str(memory)), subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as running:
        running.communicate("detach\n", timeout=DEADLINE)
    assert (running.returncode, states(command, "next", "last")) == (0, ["", ""])
    until(lambda: states(command, "slow") == ["running"], "the first is at work")
    stop(command.mount, "slow")
