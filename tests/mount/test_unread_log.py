"""A daemon in the foreground whose log is a pipe that nobody reads."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 16384
STARTS = 200
"""Their refusals fill the pipe several times."""


def test_refused_starts_do_not_hang_the_daemon(memory: Path, root: None) -> None:
    point, state = memory / "mount", memory / "state"
    point.mkdir()
    state.mkdir()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
    command = [sys.executable, "-m", "ktaskfs.cli.main", "mount", "--foreground", "-o", f"statedir={state}", str(point)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, cwd=ROOT) as daemon:
        try:
            until(lambda: (point / "version").exists(), "the mount answers")
            for _ in range(STARTS):
                refused(point)
            assert len(os.read(reader, 2 * SIZE)) > SIZE // 2
            refused(point)
            assert b"lines were dropped, because nobody read them\n" in os.read(reader, SIZE)
        finally:
            subprocess.run(["umount", str(point)], check=True)
            daemon.wait(DEADLINE)
            os.close(reader)
            os.close(writer)
    assert daemon.returncode == 0


def refused(point: Path) -> None:
    """A start that the log tells of."""
    control = os.open(point / "tasks/control", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
            os.write(control, f"checksum path={point}/none\n".encode())
    finally:
        os.close(control)
