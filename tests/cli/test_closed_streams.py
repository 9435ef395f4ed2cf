"""A daemon that began with closed standard streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ktaskfs.fuse.mountpoint import filesystems_at
from tests.support.daemon import ROOT
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import run


def test_programs_of_a_mount_without_standard_descriptors_have_them(area: Path, root: None) -> None:
    point = area / "mount"
    point.mkdir()
    with none_left():
        options = ["--foreground", "-o", f"statedir={area / 'state'}"]
        words = [sys.executable, "-m", "ktaskfs.cli.main", "mount", *options, str(point)]
        with subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *words], cwd=ROOT) as daemon:
            try:
                until(lambda: bool(filesystems_at(str(point))) and (point / "version").exists(), "it is mounted")
                for fd in range(3):
                    told = Path(f"/proc/{daemon.pid}/fdinfo/{fd}").read_text()
                    flags = next(int(line.split()[1], 8) for line in told.splitlines() if line.startswith("flags:"))
                    assert flags & os.O_CLOEXEC == 0, fd
                until(lambda: run("umount", str(point)).status == 0, "it is unmounted")
                assert daemon.wait(DEADLINE) == 0
            finally:
                daemon.kill()
