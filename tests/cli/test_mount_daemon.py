"""What the daemon of ``ktaskfs mount`` takes from its caller, and what it hears before the mount answers."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.credentials import start_time
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.state_directory import StateDirectory
from ktaskfs.tasks.task import Origin, State
from tests.support.daemon import ROOT
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run
from tests.tasks.records import RECORD

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("root")

PYTHON = [sys.executable, "-W", "error"]
COMMAND = [*PYTHON, "-m", "ktaskfs.cli.main", "mount"]
RELOADED_EARLY = """
import os, signal, sys, trio
from ktaskfs import daemon
from ktaskfs.cli.main import main
answers, apply = daemon.FirstProbe.answers, daemon._reload
reloaded = trio.Event()
def reload(parts):
    apply(parts)
    reloaded.set()
async def answer(*arguments):
    os.kill(os.getpid(), signal.SIGHUP)
    await reloaded.wait()
    await answers(*arguments)
daemon._reload, daemon.FirstProbe.answers = reload, answer
sys.exit(main())
"""
"""A daemon that gets SIGHUP, and obeys it, before its mount has answered."""


@pytest.fixture
def point(area: Path) -> Path:
    path = area / "mount"
    path.mkdir()
    return path


@pytest.mark.parametrize("words", [[], ["--foreground"]])
def test_no_umask_takes_the_records_from_the_next_daemon(area: Path, point: Path, words: list[str]) -> None:
    """Root could read them anyway."""
    command = [*COMMAND, *words, "-o", f"statedir={area / 'above/state'}", str(point)]
    with none_left(), subprocess.Popen(["sh", "-c", 'umask 0777; exec "$@"', "sh", *command], cwd=ROOT) as process:
        if not words:
            assert process.wait(DEADLINE) == 0
        until((point / "version").exists, "it is mounted")
        (point / "tasks/new").mkdir()
        paths = [area / "above", *(area / "above").rglob("*")]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
        until(lambda: run("umount", str(point)).status == 0, "the daemon itself does not look at its mount any more")
    assert process.returncode == 0
    assert (modes.pop("above"), modes.pop("state")) == (0o700, 0o700)
    assert any(name.endswith(".json") for name in modes)
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("words", [[], ["--foreground"]])
def test_a_limit_on_open_files_that_is_too_low_is_named(area: Path, point: Path, words: list[str]) -> None:
    command = ["prlimit", "--nofile=20", *COMMAND, *words, "-o", f"statedir={area / 'state'}", str(point)]
    with none_left():
        outcome = run(*command, cwd=ROOT)
    assert outcome == Outcome(1, "", "ktaskfs: the limit on open files (ulimit -Hn) is 20, below 64\n")


@pytest.mark.parametrize("words", [[], ["--foreground"]])
def test_a_takeover_that_fails_is_named(area: Path, point: Path, words: list[str]) -> None:
    """The earlier daemon was allowed more open files."""
    with subprocess.Popen(["sleep", "infinity"]) as worker:
        state = StateDirectory(PrivateDirectory(str(area / "state")))
        running = RECORD._replace(state=State.RUNNING, pid=worker.pid, start_time=start_time(worker.pid))
        for number in range(1, 100):
            state.write(running._replace(origin=Origin.now(number, f"t{number}", 0, 0)))
        state.close()
        command = ["prlimit", "--nofile=80", *COMMAND, *words, "-o", f"statedir={area / 'state'}", str(point)]
        with none_left():
            outcome = run(*command, cwd=ROOT)
        worker.kill()
    assert outcome == Outcome(1, "", f"ktaskfs: take over the tasks of {area / 'state'}: Too many open files\n")
    assert len(list((area / "state").glob("*.json"))) == 99


def test_a_limit_on_processes_is_told_in_one_line(two_users: tuple[User, User], public_root: Path) -> None:
    words = ["bash", "-c", 'ulimit -u 1; exec "$@"', "-", *COMMAND, "-o", "statedir=/nowhere/state", "/nowhere/mount"]
    said = "ktaskfs: start the daemon: Resource temporarily unavailable\n"
    assert run(*words, user=two_users[0], cwd=public_root) == Outcome(1, "", said)


def test_a_reload_before_the_mount_answers_does_not_end_the_start(area: Path, point: Path) -> None:
    words = ["mount", "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
    environment = os.environ | {"NOTIFY_SOCKET": str(area / "notify")}
    with none_left(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(area / "notify"))
        manager.settimeout(DEADLINE)
        with subprocess.Popen([*PYTHON, "-c", RELOADED_EARLY, *words], cwd=ROOT, env=environment) as daemon:
            heard = manager.recv(1 << 12)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(DEADLINE) == 0
    assert heard == b"READY=1\nSTATUS=0 tasks, 0 unfinished"
