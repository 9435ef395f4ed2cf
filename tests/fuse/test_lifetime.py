"""Moments at which a session might hang, or touch what is not its own any more."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuse.conftest import Example


def test_to_terminate_a_session_that_has_ended_does_nothing(area: Path) -> None:
    script = """
import sys
import trio
from ktaskfs.fuse.session import mounted
from ktaskfs.vfs import ROOT_INO, Attributes, StaticDirectory

with mounted(StaticDirectory(ROOT_INO, Attributes(0o755), {}), sys.argv[1], name="x") as session:
    session.terminate()  # before it is served too
    trio.run(session.serve)
    session.terminate()
session.terminate()
"""
    assert run(sys.executable, "-c", script, str(area)) == Outcome(0, "", "")


END_WITH_A_DEPARTURE = """
import subprocess, sys
from pathlib import Path
import trio
from ktaskfs.fuse.session import mounted
from ktaskfs.vfs import ROOT_INO, Attributes, Invalidations, Directory, StaticDirectory

class Slow(Directory):
    def __init__(self):
        super().__init__(ROOT_INO, Attributes(0o755))
        self.asked, self.answer = trio.Event(), trio.Event()
    def lookup(self, name, caller):
        return None
    def entries(self, caller):
        return []
    async def mkdir(self, name, caller):
        self.asked.set()
        await self.answer.wait()
        return StaticDirectory(int(name), Attributes(0o755), {})

async def until_waiting(tasks):
    # "D" in proc_pid_stat(5): whoever waits for the lock of a directory cannot be killed.
    while not any(stat.read_text().rpartition(")")[2].split()[0] == "D" for stat in tasks.glob("*/stat")):
        await trio.sleep(0.01)

async def main(root, session, invalidations):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.serve)
        subprocess.Popen(["mkdir", f"{sys.argv[1]}/2"])  # has the lock, and waits for the answer
        await root.asked.wait()
        second = subprocess.Popen(["mkdir", f"{sys.argv[1]}/3"])  # waits for the lock, to ask then
        await until_waiting(Path(f"/proc/{second.pid}/task"))
        invalidations.add(root, "gone")  # waits for the lock behind both
        await until_waiting(Path("/proc/self/task"))
        root.answer.set()
        if sys.argv[2] == "terminate":
            session.terminate()
        else:
            raise ZeroDivisionError

root, invalidations = Slow(), Invalidations()
with mounted(root, sys.argv[1], name="x", invalidations=invalidations) as session:
    trio.run(main, root, session, invalidations)
"""


@pytest.mark.parametrize(("how", "status"), [("terminate", 0), ("an error", 1)])
def test_the_end_waits_for_those_who_wait_for_an_answer_to_others(area: Path, how: str, status: int) -> None:
    """A name that the kernel is told to forget needs the lock that a request has, or one that nobody has read yet."""
    with subprocess.Popen(
        [sys.executable, "-c", END_WITH_A_DEPARTURE, str(area), how], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            _, said = server.communicate(timeout=30)
            assert (server.returncode, "ZeroDivisionError" in said) == (status, bool(status))
        finally:
            run("pkill", "-KILL", "-P", str(server.pid))  # those who wait, or the server could not be killed
            server.kill()


READ_WHAT_IS_NOT_THERE = """
import os, select, signal, subprocess, sys
import trio
from ktaskfs.fuse.session import mounted
from ktaskfs.vfs import ROOT_INO, Attributes, StaticDirectory

class Killer(trio.abc.Instrument):
    client = None
    killed = False
    def before_io_wait(self, timeout):
        if self.client is None:  # the loop is about to look, and will find a request
            self.client = subprocess.Popen(["stat", f"{sys.argv[1]}/none"])
            fds = {os.path.realpath(f"/proc/self/fd/{fd}"): int(fd) for fd in os.listdir("/proc/self/fd")}
            assert select.select([fds["/dev/fuse"]], [], [], 30)[0]
    def after_io_wait(self, timeout):
        if not self.killed:  # it has found one, which is gone before it is read
            self.client.send_signal(signal.SIGKILL)
            self.client.wait()
            self.killed = True

async def main(session):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.serve)
        for _ in range(9):
            await trio.lowlevel.checkpoint()  # until the session waits for its first request
        killer = Killer()
        trio.lowlevel.add_instrument(killer)
        while not killer.killed:
            await trio.sleep(0.01)
        await trio.sleep(0.01)  # nobody asks for anything, and yet time goes on
        session.terminate()

with mounted(StaticDirectory(ROOT_INO, Attributes(0o755), {}), sys.argv[1], name="x") as session:
    trio.run(main, session)
"""


def test_a_request_that_is_gone_when_it_is_read_stops_nothing(area: Path) -> None:
    assert run(sys.executable, "-c", READ_WHAT_IS_NOT_THERE, str(area)) == Outcome(0, "", "")


def test_what_was_mounted_over_it_stays(example: Example) -> None:
    assert run("mount", "-t", "tmpfs", "above", str(example.path)).status == 0
    try:
        example.process.send_signal(signal.SIGTERM)
        example.end()
        assert run("findmnt", "-n", "-o", "SOURCE", str(example.path)).out.splitlines()[-1] == "above"
        assert "something else is mounted on" in example.log.read_text()
    finally:
        assert run("umount", str(example.path)).status == 0
        assert run("umount", "-l", str(example.path)).status == 0  # what the server has left
    example.log.write_text("")
