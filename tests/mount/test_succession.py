"""A daemon that is killed, and another one that takes its mount over: no name leads to another task than before."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.config import NAME
from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import abort, filesystems_at
from tests.support.daemon import ROOT, interpreter
from tests.support.leftovers import none_left
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Kept:
    """A mount that the test keeps, as a service manager does, and a daemon that serves it."""

    def __init__(self, area: Path) -> None:
        self.path = area / "mount"
        self._statedir = area / "state"
        self._log = area / "log"
        self.path.mkdir()
        self._statedir.mkdir(mode=0o700)
        self._fd = mount_device(str(self.path), NAME, allow_other=True)
        os.set_inheritable(self._fd, True)
        self.serve()

    def serve(self) -> None:
        """Start a daemon; the last one must be dead."""
        with self._log.open("ab") as stream:
            self._daemon = subprocess.Popen(
                [interpreter(ROOT), "-W", "error", "-m", "ktaskfs.cli.main", "mount", "--foreground", "--keep"]
                + ["--fd", str(self._fd), "-o", f"statedir={self._statedir}", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=ROOT,
                pass_fds=[self._fd],
            )
        until(self._answers, "the mount answers")

    def _answers(self) -> bool:
        assert self._daemon.poll() is None, self._log.read_text()
        return run("cat", str(self.path / "version")).status == 0

    def kill(self) -> None:
        """The daemon ends without a word."""
        self._daemon.kill()
        self._daemon.wait()

    def close(self) -> None:
        """Nobody waits forever, in any case."""
        abort(filesystems_at(str(self.path))[-1])
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        self.kill()
        os.close(self._fd)


@pytest.fixture
def kept(root: None, area: Path) -> Iterator[Kept]:
    with none_left():
        mount = Kept(area)
        try:
            yield mount
        finally:
            mount.close()


def test_who_stands_in_a_task_gets_no_other_one(kept: Kept) -> None:
    tasks = kept.path / "tasks"
    for name in ("first", "second"):
        (tasks / name).mkdir()
    inside = {name: os.open(tasks / name, os.O_PATH) for name in ("first", "second")}
    (tasks / "first").rmdir()
    kept.kill()
    kept.serve()
    (tasks / "third").mkdir()
    for name, directory in inside.items():
        with pytest.raises(OSError, match="No such|Stale"):
            os.open("state", os.O_RDONLY, dir_fd=directory)
        assert (tasks / name).exists() == (name == "second")
        os.close(directory)
    assert (tasks / "second/op").read_text() == (tasks / "third/op").read_text() == "-\n"
