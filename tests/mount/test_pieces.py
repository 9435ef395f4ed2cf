"""Commands longer than the buffer of the program that writes them: each arrives as a whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.vfs.pieces import BLOCK
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Mount

CONTROL = "tasks/control"
ECHO = 'echo a terminal; echo "$1" > tasks/control && echo success'
PROGRAMS = {
    "bash": ["bash", "-c", ECHO, "-"],
    "bash without a newline": ["bash", "-c", 'echo a; printf %s "$1" > tasks/control && echo success', "-"],
    "bash in a subshell": ["bash", "-c", 'echo a; ( echo "$1" ) > tasks/control && echo success', "-"],
    "bash in a group": ["bash", "-c", 'echo a; { echo "$1"; } > tasks/control && echo success', "-"],
    "bash appends": ["bash", "-c", 'echo a; echo "$1" >> tasks/control && echo success', "-"],
    "dash": ["dash", "-c", ECHO, "-"],
    "dash without a newline": ["dash", "-c", 'echo a; printf %s "$1" > tasks/control && echo success', "-"],
    "busybox": ["busybox", "sh", "-c", ECHO, "-"],
    "sed": ["bash", "-c", 'echo "$1" | sed -n "w tasks/control" && echo success', "-"],
    "mawk": ["bash", "-c", 'echo "$1" | mawk "{ print > \\"tasks/control\\" }" && echo success', "-"],
    "perl": ["perl", "-e", 'open F, ">tasks/control"; print F $ARGV[0]; close F or die; print "success"'],
    "jq": ["bash", "-c", 'jq -rn --arg x "$1" "\\$x" > tasks/control && echo success', "-"],
    "jq, JSON": ["bash", "-c", 'jq -n --arg x "$2" "{op: \\"fallocate\\", length: 4096, path: \\$x}" > tasks/control'
                 " && echo success", "-"],
    "tee": ["bash", "-c", 'echo "$1" | tee tasks/control > /dev/null && echo success', "-"],
    "dd": ["bash", "-c", 'echo "$1" | dd of=tasks/control status=none && echo success', "-"],
    "dd bs=1k": ["bash", "-c", 'printf %s "$1" | dd of=tasks/control bs=1k status=none && echo success', "-"],
    "python": [sys.executable, "-c", "import sys, pathlib; pathlib.Path('tasks/control').write_text(sys.argv[1])"
               "; print('success')"],
    "python, small buffer": [
        sys.executable,
        "-c",
        "import sys; f = open('tasks/control', 'wb', buffering=1024); f.write(sys.argv[1].encode()); f.close();"
        "print('success')",
    ],
}  # fmt: skip
LENGTHS = (1024, 2048, 3000)

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def deep(mounted: Mount, memory: Path) -> Iterator[Path]:
    """A directory through which a path can be made as long as one likes."""
    (memory / ("d" * 100)).mkdir()
    yield memory
    mounted.shell("for each in tasks/*/; do [ $(cat $each/state) = new ] || cat $each/wait; done")


def spec(directory: Path, length: int, name: str) -> tuple[str, str]:
    """A spec of ``length`` bytes, or with the longest possible path, whose path ends in ``name``; and the path."""
    head, path, most = "fallocate length=4096 path=", f"{directory}/", 4095
    size = min(length - len(head), most)
    while size - len(path) > 200 + len(name):
        path += "d" * 100 + "/../"
    path += "f" * (size - len(path) - len(name)) + name
    return head + path, path


def at_a_terminal(mount: Mount, argv: list[str]) -> tuple[int, str]:
    """Run a program whose standard output is a terminal; its status and its output."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir(mount.path)
            os.execvpe(argv[0], argv, dict(os.environ, LC_ALL="C"))
        finally:
            os._exit(127)
    said = b""
    try:
        while data := os.read(terminal, 65536):
            said += data
    except OSError:  # EIO: the other side is gone
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), said.decode(errors="replace")


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_file()}


def test_programs_at_a_terminal_write_long_commands(mounted: Mount, deep: Path) -> None:
    """Each command is carried out, whole and once, or its program gets the error."""
    made: set[str] = set()
    for name, program in PROGRAMS.items():
        for length in LENGTHS:
            line, path = spec(deep, length, f"{len(made)}")
            status, said = at_a_terminal(mounted, [*program, line, path])
            assert (status, "success" in said) == (0, True), (name, length, said, mounted.read("info/last_cmd_status"))
            made.add(os.path.basename(path))
            assert files(deep) == made, (name, length)
            line, path = spec(deep / "none", length, "x")
            status, said = at_a_terminal(mounted, [*program, line, path])
            refusal = mounted.read("info/last_cmd_status")
            assert refusal.startswith("tasks/control: ENOENT: "), (name, length, refusal)
            if "without a newline" in name and length % BLOCK == 0:
                assert status == 0, "shells do not look at what close(2) says"
            else:
                # Python shows the program in a traceback.
                assert (status != 0, "success" in said.splitlines()) == (True, False), (name, length, said)
            assert files(deep) == made, (name, length)


@pytest.fixture
def control(mounted: Mount) -> Iterator[int]:
    """A descriptor of tasks/control."""
    fd = os.open(mounted.path / CONTROL, os.O_WRONLY)
    yield fd
    os.close(fd)


def test_close_carries_out_and_says_what_came_of_it(mounted: Mount, deep: Path) -> None:
    for directory, number in ((deep, 0), (deep / "none", errno.ENOENT)):
        fd = os.open(mounted.path / CONTROL, os.O_WRONLY)
        line, path = spec(directory, 2048, "x")
        for piece in (line[:1024], line[1024:]):
            assert os.write(fd, piece.encode()) == 1024
        assert not os.path.exists(path)
        if number:
            with pytest.raises(OSError, match=os.strerror(number)):
                os.close(fd)
        else:
            os.close(fd)
            assert os.path.exists(path)


def test_complete_lines_are_held_with_the_one_that_is_not(mounted: Mount, deep: Path, control: int) -> None:
    lines = f"fallocate length=4096 path={deep}/first\n" + spec(deep / "none", 1500, "x")[0] + "\n"
    os.write(control, lines[:1024].encode())
    assert files(deep) == set()
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        os.write(control, lines[1024:].encode())
    assert files(deep) == set()


def test_a_fork_that_closes_its_copy_carries_nothing_out(mounted: Mount, deep: Path, control: int) -> None:
    line, path = spec(deep, 1500, "x")
    os.write(control, line[:1024].encode())
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            os.close(control)
            os._exit(0)
        os.waitpid(pid, 0)
    os.close(os.dup(control))
    assert files(deep) == set()
    os.write(control, line[1024:].encode() + b"\n")
    assert files(deep) == {os.path.basename(path)}


def test_children_of_a_shell_that_end_meanwhile_carry_nothing_out(mounted: Mount, deep: Path) -> None:
    """Each closes the descriptor that it has inherited, in the middle of one command or another."""
    line, path = spec(deep, 3000, "x")
    script = 'exec 3> tasks/control; for i in {1..100}; do true & echo "$1" >&3 || exit; done; wait'
    mounted.write("debug/ktask_max_tasks", "200")
    status, said = at_a_terminal(mounted, ["bash", "-c", f"echo a; {script}", "-", line])
    assert status == 0, (said, mounted.read("info/last_cmd_status"))
    assert files(deep) == {os.path.basename(path)}


def test_of_a_file_that_was_passed_on_the_last_close_counts(mounted: Mount, deep: Path) -> None:
    """The opener is gone, and two others have it: one of them closes it while the other is in the middle."""
    line, path = spec(deep, 1024, "x")
    fd = os.open(mounted.path / CONTROL, os.O_WRONLY)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        os.write(fd, line.encode())
        other = os.fork()
        if other == 0:
            os._exit(0)  # closes it
        os.waitpid(other, 0)
        os._exit(len(os.listdir(deep)) - 1)
    os.close(fd)
    os.write(go, b"g")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    until(lambda: files(deep) == {os.path.basename(path)}, "it is carried out after the last close")
    os.close(ready)
    os.close(go)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_writer_had_begun_is_dropped(mounted: Mount, deep: Path, number: signal.Signals) -> None:
    line, _ = spec(deep, 1024, "x")
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the test run handles it, and would miss it just before pause()
        fd = os.open(mounted.path / CONTROL, os.O_WRONLY)
        os.write(fd, line.encode())
        os.write(done, b"d")
        signal.pause()
    os.read(ready, 1)
    os.kill(pid, number)
    os.waitpid(pid, 0)
    until(lambda: mounted.read("info/last_cmd_status") != "ok\n", "the log says so")
    assert mounted.read("info/last_cmd_status") == (
        "tasks/control: EINTR: its writer was killed before the command was complete\n"
    )
    assert f"Command: {line}\n" in mounted.read("info/error_log")
    assert files(deep) == set()
    os.close(ready)
    os.close(done)


def test_a_writer_that_just_ends_is_carried_out(mounted: Mount, deep: Path) -> None:
    line, path = spec(deep, 1024, "x")
    pid = os.fork()
    if pid == 0:
        os.write(os.open(mounted.path / CONTROL, os.O_WRONLY), line.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert files(deep) == {os.path.basename(path)}


def test_two_writers_each_have_their_own(mounted: Mount, deep: Path) -> None:
    first, second = (os.open(mounted.path / CONTROL, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    (one, path), (two, other) = spec(deep, 1500, "x"), spec(deep, 1600, "y")
    for fd, piece in ((first, one[:1024]), (second, two[:1024]), (first, one[1024:] + "\n"), (second, two[1024:])):
        os.write(fd, piece.encode())
    os.close(first)
    os.close(second)
    assert files(deep) == {os.path.basename(path), os.path.basename(other)}


def test_too_long_a_command_is_refused_whole(mounted: Mount, deep: Path, control: int) -> None:
    line = f"fallocate length=4096 path={deep}/x\n"
    block = line.encode() * 20 + b" " * 1024
    block = block[:1024]
    for _ in range(64):
        assert os.write(control, block) == 1024
    for data in (block, block, b"x\n"):
        with pytest.raises(OSError, match="Argument list too long|Invalid argument"):
            os.write(control, data)
    assert files(deep) == set()
    os.write(control, line.encode())
    until(lambda: files(deep) == {"x"}, "the next command is carried out")


def test_a_parameter_can_be_as_long_as_a_path(mounted: Mount, deep: Path) -> None:
    _, path = spec(deep, 3000, "x")
    script = 'echo a; mkdir tasks/t; echo fallocate > tasks/t/op; echo "$1" > tasks/t/path && echo success'
    status, said = at_a_terminal(mounted, ["bash", "-c", script, "-", path])
    assert (status, "success" in said) == (0, True), said
    assert mounted.read("tasks/t/path") == f"{path}\n"


def test_a_piece_of_a_writer_that_executes_another_program_is_carried_out(mounted: Mount, memory: Path) -> None:
    """While execve(2) closes the descriptor, every look at the writer in /proc waits for the end of execve(2). So the
    command is carried out after execve(2), at the last close, for which nobody waits."""
    spec = f"fallocate path={memory / 'file'} length=4096 name=executed".ljust(BLOCK)
    code = f"import os; os.write(os.open({str(mounted.path / CONTROL)!r}, os.O_WRONLY), {spec!r}.encode()); "
    process = subprocess.Popen([sys.executable, "-c", code + "os.execv('/bin/true', ['true'])"])
    try:
        assert process.wait(timeout=DEADLINE) == 0
    except subprocess.TimeoutExpired:
        mounted.process.kill()  # or every process that reads /proc, as ps(1), waits for ever
        raise
    until((mounted.path / "tasks/executed").exists, "the command is carried out")
    assert mounted.cat("tasks/executed/wait").out.endswith("done\n")


def lines_of(specs: list[dict[str, object]]) -> str:
    """``specs`` as JSON in lines, whose last write is no full block: a shell does not look at what close(2) says."""
    text = json.dumps(specs, indent=1)
    return text if len(text) % BLOCK else text + " "


SHELLS = {"bash": ["bash"], "dash": ["dash"], "busybox": ["busybox", "sh"], "zsh": ["zsh"]}


@pytest.mark.parametrize("shell", SHELLS)
def test_json_in_lines_arrives_from_every_shell(mounted: Mount, memory: Path, shell: str) -> None:
    """bash writes each line by itself, also a long one in blocks."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"no {shell}")
    ways = (
        'echo "$1" > tasks/control',
        'printf "%s\\n" "$1" >> tasks/control',
        '{ printf "%s" "$1"; } > tasks/control',
    )
    made: set[str] = set()
    for way in ways:
        names = [f"{len(made) + number}" for number in range(2)]
        path = f"{memory}/" + "./" * 700
        specs = [{"op": "fallocate", "length": 4096, "path": path + name} for name in names]
        status, said = at_a_terminal(mounted, [*SHELLS[shell], "-c", f"echo a; {way}", "-", lines_of(specs)])
        assert status == 0, (way, said, mounted.read("info/last_cmd_status"))
        made.update(names)
        assert files(memory) == made, way
        specs[0]["path"], specs[1]["path"] = f"{memory}/x", f"{memory}/none/x"
        status, said = at_a_terminal(mounted, [*SHELLS[shell], "-c", f"echo a; {way}", "-", lines_of(specs)])
        assert mounted.read("info/last_cmd_status").startswith("tasks/control: ENOENT: spec 2 of 2"), (way, said)
        assert status != 0, (way, said)
        assert files(memory) == made, "together or not at all"


def test_another_command_after_json_that_is_not_closed_is_refused_and_so_is_that(control: int) -> None:
    os.write(control, b'{"op": "fallocate",\n')
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        os.write(control, b"cancel\n")
    os.write(control, b"cancel\n")


def test_json_that_is_never_closed_is_refused_at_the_close(mounted: Mount) -> None:
    fd = os.open(mounted.path / CONTROL, os.O_WRONLY)
    os.write(fd, b'{"op": "fallocate",\n')
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        os.close(fd)
    assert mounted.read("info/last_cmd_status") == "tasks/control: EINVAL: the JSON ends early\n"
