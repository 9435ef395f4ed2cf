"""Moments at which a session might hang, or touch freed objects."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from tests.support.poll import DEADLINE
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuse.conftest import Example


def test_to_terminate_a_session_that_has_ended_does_nothing(area: Path, root: None) -> None:
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
            assert select.select([fds["/dev/fuse"]], [], [])[0]
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


def test_a_request_that_is_gone_when_it_is_read_stops_nothing(area: Path, root: None) -> None:
    assert run(sys.executable, "-c", READ_WHAT_IS_NOT_THERE, str(area)) == Outcome(0, "", "")


def test_what_was_mounted_over_it_stays(example: Example) -> None:
    assert run("mount", "-t", "tmpfs", "above", str(example.path)).status == 0
    try:
        example.process.send_signal(signal.SIGTERM)
        example.end()
        assert run("findmnt", "-n", "-o", "SOURCE", str(example.path)).out.splitlines()[-1] == "above"
        assert "another mount covers" in example.log.read_text()
    finally:
        assert run("umount", str(example.path)).status == 0
        assert run("umount", "-l", str(example.path)).status == 0  # the remaining objects of the server
    example.log.write_text("")


UNMOUNTED_BEFORE_THE_WAIT = """
import subprocess, sys
import trio
from ktaskfs.fuse.mountpoint import filesystems_at
from ktaskfs.fuse.session import until_gone

path = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
(filesystem,) = filesystems_at(path)
wait_readable = trio.lowlevel.wait_readable

def unmounted_first(fd):
    trio.lowlevel.wait_readable = wait_readable
    subprocess.run(["umount", path], check=True)
    return wait_readable(fd)

async def main():
    trio.lowlevel.wait_readable = unmounted_first
    await until_gone(filesystem)

trio.run(main)
"""


def test_an_unmount_just_before_the_wait_is_noticed(area: Path, root: None) -> None:
    """In a mount namespace without the mounts of other tests: their ends would wake it."""
    others = """awk '$5 ~ "/kt-" { print $5 }' /proc/self/mountinfo | sort -r"""
    # One is gone before it is unmounted if another test removes its directory.
    alone = f'while points=$({others}) && [ "$points" ]; do umount -l $points 2> /dev/null; done; exec "$@"'
    command = ("unshare", "--mount", "--propagation=private", "sh", "-c", alone, "sh", sys.executable, "-c")
    assert run(*command, UNMOUNTED_BEFORE_THE_WAIT, str(area)) == Outcome(0, "", "")


NAMED_AFTER_IT = """
import subprocess, sys
import trio
from ktaskfs.fuse.mountpoint import filesystems_at
from ktaskfs.fuse.session import until_gone

path, other, deadline = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
(filesystem,) = filesystems_at(path)
subprocess.run(["mount", "-t", "tmpfs", filesystem.device, other], check=True)
subprocess.run(["umount", path], check=True)

async def main():
    with trio.fail_after(float(deadline)):
        await until_gone(filesystem)

trio.run(main)
"""


def test_a_mount_with_a_source_that_looks_like_its_device_does_not_keep_it(area: Path, root: None) -> None:
    """An ordinary user chooses the source with fusermount3 -o fsname=."""
    path, other = area / "path", area / "carriage\rreturn"
    path.mkdir()
    other.mkdir()
    command = ("unshare", "--mount", "--propagation=private", sys.executable, "-c", NAMED_AFTER_IT)
    assert run(*command, str(path), str(other), str(DEADLINE)) == Outcome(0, "", "")
