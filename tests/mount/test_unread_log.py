"""A daemon in the foreground whose log is a pipe that nobody reads."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 16384
STARTS = 200
"""Their refusals fill the pipe several times."""

pytestmark = pytest.mark.usefixtures("patient")


def test_refused_starts_do_not_hang_the_daemon(memory: Path, root: None) -> None:
    point, state = memory / "mount", memory / "state"
    point.mkdir()
    state.mkdir()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
    command = [sys.executable, "-m", "ktaskfs.cli.main", "mount", "--foreground", "-o", f"statedir={state}", str(point)]
    with (
        ThreadPoolExecutor(1) as pool,  # a write to a daemon that hangs cannot be interrupted
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, cwd=ROOT) as daemon,
    ):
        try:
            until(lambda: (point / "version").exists(), "the mount answers")
            pool.submit(refused, point, STARTS).result(DEADLINE)
            assert len(os.read(reader, 2 * SIZE)) > SIZE // 2
            pool.submit(refused, point, 1).result(DEADLINE)
            assert b"lines dropped, because nobody read them: " in os.read(reader, SIZE)
        finally:
            os.close(reader)  # a daemon that waits in a write to the pipe goes on (EPIPE)
            os.close(writer)
            daemon.terminate()
            daemon.wait(DEADLINE)
    assert daemon.returncode == 0


def refused(point: Path, count: int) -> None:
    """Starts that the log tells of."""
    for _ in range(count):
        control = os.open(point / "tasks/control", os.O_WRONLY)
        try:
            with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
                os.write(control, f"checksum path={point}/none\n".encode())
        finally:
            os.close(control)
