"""^C while the daemon is stopped and answers nothing: the command ends when the user wants. Also a stopped spawner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from tests.cli.conftest import until_said
from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.processes import child_called, halt
from tests.support.slow import start_slow, stop
from tests.support.terminal import CONTROL_C, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cli.conftest import Command
    from tests.support.daemon import Mount


@contextlib.contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """Stops the daemon by SIGSTOP for the time of the block."""
    halt(mount.pid)
    try:
        yield
    finally:
        os.kill(mount.pid, signal.SIGCONT)


@contextlib.contextmanager
def begun(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Starts a program, and kills it at the end if it still runs."""
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def started(command: Command, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The same for the command."""
    return begun(command.words(*arguments))


def waits_for_the_daemon(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> bool:
    """Whether a thread of the command is in a system call that the daemon must answer."""
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    for found in processes:
        for each in Path(f"/proc/{found.pid}/task").glob("*/wchan"):
            with contextlib.suppress(OSError):  # a thread that has ended
                if each.read_text() == "request_wait_answer":
                    return True
    return False


def press(process: subprocess.Popen[str]) -> None:
    """Send ^C to a command of two processes, and wait until it has heard it: two signals at once are one."""
    parent, wchan = psutil.Process(process.pid), Path(f"/proc/{process.pid}/wchan")
    until(lambda: "poll" in wchan.read_text(), "it waits for ^C")
    before = parent.num_ctx_switches().voluntary
    process.send_signal(signal.SIGINT)
    until(lambda: parent.num_ctx_switches().voluntary > before and "poll" in wchan.read_text(), "it waits again")


@pytest.fixture
def slow(command: Command, memory: Path) -> Iterator[str]:
    """The name of a running task that does not end by itself."""
    start_slow(command.mount, memory, "slow")
    yield "slow"
    stop(command.mount, "slow")


def test_run_says_so_and_a_second_control_c_leaves_the_task(command: Command, memory: Path, slow: str) -> None:
    spec = f"clear path={memory}/slow-{slow} name={slow}"
    with started(command, "run", "--if-exists=join", spec) as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith(f"{slow}: running")
        with stopped(command.mount):
            until(lambda: waits_for_the_daemon(follower), "it looks at the task")
            follower.send_signal(signal.SIGINT)
            line = until_said(follower.stderr, "the daemon does not answer yet; ")
            assert line == "the daemon does not answer yet; ^C again ends this command alone\n"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(DEADLINE) == 130
        words = f"the tasks go on; follow them with: ktaskfs wait -m {command.mount.path} {slow}\n"
        assert follower.stderr.read() == f"ktaskfs: the daemon does not answer; {words}"
    assert command.mount.read(f"tasks/{slow}/state") == "running\n"


def test_a_cancel_that_the_daemon_does_not_take_can_be_left(command: Command, memory: Path, slow: str) -> None:
    """The first ^C comes while the command waits for a state change. Then its write of `cancel` hangs."""
    spec = f"clear path={memory}/slow-{slow} name={slow}"
    with started(command, "run", "--if-exists=join", spec) as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith(f"{slow}: running")
        with stopped(command.mount):
            press(follower)
            until(lambda: waits_for_the_daemon(follower), "it cancels the task")
            follower.send_signal(signal.SIGINT)
            assert follower.wait(DEADLINE) == 130
        assert "the daemon does not answer; the tasks go on" in follower.stderr.read()


def test_the_daemon_goes_on_after_the_first_one(command: Command, memory: Path) -> None:
    """When the daemon continues after the first ^C, the tasks are cancelled as usual."""
    spec = f"clear path={memory}/file rate_max=1K chunk=4K name=cancelled"
    with started(command, "run", spec) as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith("cancelled: ")
        with stopped(command.mount):
            until(lambda: waits_for_the_daemon(follower), "it looks at the task")
            follower.send_signal(signal.SIGINT)
            until_said(follower.stderr, "the daemon does not answer yet; ")
        assert follower.wait(DEADLINE) == 130
    assert command.mount.read("tasks/cancelled/state") == "cancelled\n"


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_words_on_a_terminal_have_their_own_line(command: Command, memory: Path, slow: str, term: str) -> None:
    words = command.words("run", "--if-exists=join", f"clear path={memory}/slow-{slow} name={slow}")
    with Terminal(*words, columns=100, env={"PYTHONPATH": str(ROOT), "TERM": term}) as terminal:
        terminal.sees(slow, "running")
        with stopped(command.mount):
            terminal.type(CONTROL_C)
            terminal.sees("^C again")
            terminal.type(CONTROL_C)
            assert terminal.end() == 130
        assert "follow them with: ktaskfs wait" in terminal.text
        assert "\r\nktaskfs: the daemon does not answer" in terminal.raw


def test_a_start_that_is_not_answered(command: Command, memory: Path) -> None:
    with stopped(command.mount), started(command, "run", f"checksum path={memory}/file") as starter:
        assert starter.stderr is not None
        until(lambda: waits_for_the_daemon(starter), "it waits")
        starter.send_signal(signal.SIGINT)
        assert starter.stderr.readline().startswith("the daemon does not answer yet; ")
        starter.send_signal(signal.SIGINT)
        assert starter.wait(DEADLINE) == 130
        assert "the tasks may start anyway: see ktaskfs ls" in starter.stderr.read()


STOPS: Final = """
import os, sys
from ktaskfs.cli.main import main
from tests.support.processes import halt
daemon, name, *words = sys.argv[1:]
real = getattr(os, name)
def call(fd, *rest):
    if os.readlink(f"/proc/self/fd/{fd}").startswith(words[2]):
        halt(int(daemon))
    return real(fd, *rest)
setattr(os, name, call)
sys.exit(main(words))
"""
"""Runs the command, and stops the daemon before the first read or write of an open file of the mount."""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("pread", ["ls"]),
        ("pread", ["show", "slow"]),
        ("pread", ["wait", "slow"]),
        ("read", ["events"]),
        ("write", ["set", "slow", "nice=5"]),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_that_is_open_holds_nobody(
    command: Command, slow: str, call: str, words: list[str], number: signal.Signals
) -> None:
    """The process with the open file cannot end before the daemon continues. The other one handles the signal."""
    python, _, _, *arguments = command.words(*words)
    line = [python, "-c", STOPS, str(command.mount.pid), call, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        try:
            until(lambda: psutil.Process(command.mount.pid).status() == psutil.STATUS_STOPPED, "the daemon is stopped")
            until(lambda: waits_for_the_daemon(process), "it waits")
            process.send_signal(number)
            assert process.wait(DEADLINE) in (130, -number)
        finally:
            os.kill(command.mount.pid, signal.SIGCONT)
    assert command.mount.read("tasks/slow/state") == "running\n"


def test_the_doctor_finds_it(command: Command) -> None:
    with stopped(command.mount):
        found = [json.loads(line) for line in command("doctor", "--json").out.splitlines()]
    of_mount = [each["text"] for each in found if each["check"] == "mount"]
    assert of_mount == [f"{command.mount.path}: its daemon is stopped or hangs, there is no answer within 5 s"]
    assert "hugetlbfs" in {each["check"] for each in found}, "the machine is looked at, too"


def test_a_stopped_spawner_is_named(command: Command, memory: Path) -> None:
    """The daemon answers, but no start goes on. Other tests may stop their own spawners meanwhile."""

    def named_by_the_doctor() -> bool:
        found = [json.loads(line) for line in command("doctor", "--json").out.splitlines()]
        of_ours = [each for each in found if each["check"] == "spawner" and f"process {spawner.pid}," in each["text"]]
        assert all(each["mend"].startswith(f"kill -CONT {spawner.pid} ") for each in of_ours)
        return of_ours != []

    spawner = child_called(command.mount.pid, "ktaskfs: spawner")
    assert not named_by_the_doctor()
    halt(spawner.pid)
    try:
        assert command.mount.write("tasks/control", f"checksum path={memory}/file name=late") == (0, None)
        words = f"State:\tstarting (the spawner, process {spawner.pid}, is stopped by a signal)\n"
        assert words in command.mount.read("tasks/late/status")
        assert command.mount.write("tasks/control", f"checksum path={memory}/file name=given-up") == (0, None)
        assert command.mount.write("tasks/given-up/control", "cancel") == (0, None)
        assert words.replace("(", "(a cancel is pending; ") in command.mount.read("tasks/given-up/status")
        until(named_by_the_doctor, "the doctor names it")  # not while the daemon takes more than five seconds
    finally:
        spawner.resume()
    assert command.mount.read("tasks/late/wait").endswith("done\n")
    assert command.mount.read("tasks/given-up/wait").endswith("cancelled\n")
    assert not named_by_the_doctor()


PATIENT_DOCTOR: Final = f"""
import sys
from ktaskfs.cli import check_service
from ktaskfs.cli.main import main
check_service.answers.__defaults__ = ({2 * DEADLINE},)
sys.exit(main())
"""
"""The command, whose doctor waits longer for the mount than a process may stall."""


@pytest.mark.parametrize("words", [["wait", "slow"], ["ls"], ["show", "slow"], ["set", "slow", "nice=5"], ["doctor"]])
def test_one_is_enough_for_the_others(command: Command, slow: str, words: list[str]) -> None:
    python, _, _, *arguments = command.words(*words)
    line = [python, "-c", PATIENT_DOCTOR, *arguments]
    with stopped(command.mount), begun(line) as process:
        until(lambda: waits_for_the_daemon(process), "it waits")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) in (130, -signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
